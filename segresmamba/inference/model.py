"""A trained network that segments files and arrays; also an MLflow model.

    model = mlflow.pyfunc.load_model("models:/spleen/1")
    label = model.predict({"image": "case_0000.nii.gz"})[0]
    label = model.predict({"image": array_CDHW})[0]  # slow if large: MLflow copies it into lists

MLflow is not imported: the folder of a saved model names this module, and MLflow calls its
`_load_pyfunc`.
"""

from __future__ import annotations

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
from segresmamba.storage.run_folder import RunFolder, best_weights
from segresmamba.task.ranks import Ranks
from segresmamba.task.weights import load_network


class ServedNetwork:
    """The network of a run, ready to segment.

    Args:
        weights: The run's best weights.
        config: The run's configuration.

    Raises:
        CheckpointError: If the weights cannot be read, or belong to another network.
    """

    def __init__(self, weights: Path, config: Config) -> None:
        trained = load_network(weights, config)
        self._config, self._classes = config, trained.classes
        self._channels = trained.facts.channel_names
        self._preprocessing = trained.facts.preprocessing
        self._device = Ranks.from_environment().device
        self._network = trained.network.to(self._device)

    def predict(self, images: Any, params: object = None) -> list[npt.NDArray[np.int16]]:
        """Segment cases.

        Args:
            images: A table with a column "image", which MLflow makes of `{"image": case}`, or an
                iterable of cases. A case is a NIfTI path for a one-channel network, a list of
                paths, one for each channel, or an array (C, D, H, W) of raw intensities whose
                voxels have the size that the network was trained on.
            params: Ignored; MLflow passes it.

        Returns:
            The labels of each case. For paths the array (X, Y, Z) has the geometry of the first
            image; for an array it is (D, H, W).

        Raises:
            DataError: If the channels are not the network's, or a file cannot be read.
        """
        cells: Iterable[Any] = images["image"] if hasattr(images, "columns") else images
        cases = [_files_or_array(case) for case in cells]
        if cases and all(isinstance(case, np.ndarray) and case.ndim == 3 for case in cases):
            cases = [np.stack(cases)]  # MLflow made a row of each channel of one array
        return [
            np.asarray(self.segment_files(case).dataobj, np.int16)
            if isinstance(case, list)
            else self._segment_array(case)
            for case in cases
        ]

    def _segment_array(self, case: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
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
        """Segment one case, given as a file for each channel.

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


def _files_or_array(case: Any) -> Any:
    """A case as a list of paths or as an array; MLflow passes arrays as nested lists."""
    if isinstance(case, str | Path):
        return [Path(case)]
    if isinstance(case[0], str | Path):
        return [Path(path) for path in case]
    array = np.asarray(case, np.float32)
    return array[0] if array.ndim == 5 and len(array) == 1 else array


def _load_pyfunc(path: str) -> ServedNetwork:
    """Load a saved model for MLflow, which passes the folder of the model's data."""
    # It has the run's best weights and configuration, under the names that the run gives them.
    folder = RunFolder(Path(path))
    return ServedNetwork(best_weights(folder.path), read_config(folder.config))
