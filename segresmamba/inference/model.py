"""A run's best weights as an MLflow model: MLflow loads them with `_load_pyfunc`.

    model = mlflow.pyfunc.load_model("models:/spleen/1")
    label = model.predict({"image": "case_0000.nii.gz"})[0]
    label = model.predict({"image": array_CDHW})[0]  # large arrays: MLflow copies them as lists

Nothing of MLflow is imported: it names this module in the model's folder, and calls it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba import data
from segresmamba.config import Config, read_config
from segresmamba.data.volumes.statistics import channel_statistics
from segresmamba.errors import DataError
from segresmamba.inference.sliding_window import predict_volume
from segresmamba.task.classes import Classes
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import build_network
from segresmamba.task.weights import load_weights, read_facts

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "weights.pt"
CONFIG_NAME = "config.yaml"


class ServedNetwork:
    """The network of a run, ready to segment.

    Args:
        weights: As `checkpoint.save_weights` wrote them.
        config: Of the run.

    Raises:
        CheckpointError: If the weights cannot be read, or are another network's.
    """

    def __init__(self, weights: Path, config: Config) -> None:
        self._config = config
        facts = read_facts(weights)
        self._channels: list[str] = facts["channel_names"]
        # Weights of earlier versions say nothing: they were trained without a policy.
        self._preprocessing = data.Preprocessing.model_validate(facts.get("preprocessing", {}))
        self._classes = Classes.from_labels(self._config, facts["labels"])
        self._device = Ranks.from_environment().device
        network = build_network(self._config, len(self._channels), self._classes.channels)
        load_weights(weights, network)
        logger.info("weights of step %d, Dice %.4f in training", facts["step"], facts["dice"])
        self._network = network.to(self._device)

    def predict(self, images: Any, params: object = None) -> list[npt.NDArray[np.int16]]:
        """Segment cases.

        Args:
            images: A table with a column "image" (what MLflow makes of `{"image": case}`), or an
                iterable of cases. A case is a NIfTI path for a one-channel network, a list of
                paths, one for each channel, or an array (C, D, H, W) of raw intensities, of the
                voxel size that the network was trained on.
            params: Ignored; MLflow passes it.

        Returns:
            For each case its labels: of paths in the geometry of the first image, (X, Y, Z); of an
            array (D, H, W).

        Raises:
            DataError: If the channels are not the network's, or a file cannot be read.
        """
        cases = [_files_or_array(case) for case in _cells(images)]
        if cases and all(isinstance(case, np.ndarray) and case.ndim == 3 for case in cases):
            cases = [np.stack(cases)]  # MLflow made a row of each channel of one array
        return [self._segment(case) for case in cases]

    def _segment(self, case: list[Path] | npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
        if isinstance(case, list):
            return np.asarray(self.segment_files(case).dataobj, np.int16)
        self._check_channels(len(case) if case.ndim == 4 else 0, "an array (C, D, H, W)")
        if not all(channel.any() for channel in case):
            raise DataError(
                "a channel is zero everywhere",
                where="image",
                got="nothing but 0",
                remedy="give voxels",
            )
        statistics = [channel_statistics(channel_DHW) for channel_DHW in case]
        return self._label(case, self._preprocessing.for_case(statistics))

    def segment_files(self, paths: Sequence[Path]) -> Any:
        """Segment the case in some files, one for each channel.

        Returns:
            A nibabel image of the labels in the geometry of the first file; uint8 if they fit.

        Raises:
            DataError: If there are not as many files as channels, or one cannot be read.
        """
        self._check_channels(len(paths), "a file for each channel")
        volume = data.read_volume(paths, preprocessing=self._preprocessing)
        label_DHW = self._label(volume.image_CDHW, self._preprocessing.for_case(volume.statistics))
        dtype = np.uint8 if max(self._classes.values) < 256 else np.int16
        return volume.restore_label(label_DHW, dtype)

    def _label(
        self, image_CDHW: npt.NDArray[Any], normalisation_C4: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.int16]:
        logits_KDHW = predict_volume(
            self._network,
            image_CDHW,
            normalisation_C4,
            patch=self._config.data.patch,
            validation=self._config.validation,
            device=self._device,
            precision=self._config.train.precision,
        )
        return self._classes.decode(logits_KDHW).cpu().numpy().astype(np.int16)

    def _check_channels(self, found: int, form: str) -> None:
        if found != len(self._channels):
            raise DataError(
                f"the network was trained on {len(self._channels)} channels",
                where="image",
                got=f"{found} of them",
                remedy=f"give {form}, in this order: {', '.join(self._channels)}",
            )


def _cells(images: Any) -> Iterable[Any]:
    """The cases of a table, or of any other iterable."""
    cells: Iterable[Any] = images["image"] if hasattr(images, "columns") else images
    return cells


def _files_or_array(case: Any) -> Any:
    """A cell as a list of paths or as an array: MLflow hands arrays over as nested lists."""
    if isinstance(case, str | Path):
        return [Path(case)]
    if isinstance(case[0], str | Path):
        return [Path(path) for path in case]
    array = np.asarray(case, np.float32)
    return array[0] if array.ndim == 5 and len(array) == 1 else array


def _load_pyfunc(path: str) -> ServedNetwork:
    """MLflow's way in; `path` is the folder that was logged."""
    folder = Path(path)
    return ServedNetwork(folder / WEIGHTS_NAME, read_config(folder / CONFIG_NAME))
