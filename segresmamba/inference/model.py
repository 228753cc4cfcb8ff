"""Trained networks that segment files and arrays, in Python and as an MLflow model.

    model = load_model("runs/first")
    label = model.segment("case_0000.nii.gz")

    model = mlflow.pyfunc.load_model("models:/spleen/1")
    label = model.predict({"image": "case_0000.nii.gz"})[0]

MLflow is not imported: the folder of a saved model names this module, and MLflow calls its
`_load_pyfunc`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from segresmamba.data.records import Spacing
from segresmamba.data.store.dataset import Case
from segresmamba.data.volumes import geometry
from segresmamba.data.volumes.geometry import OriginalGrid
from segresmamba.data.volumes.resampling import GridTransform
from segresmamba.data.volumes.volume import Volume, read_volume, volume_of
from segresmamba.errors import DataError
from segresmamba.inference import postprocessing
from segresmamba.inference.channel_order import require_channel_order
from segresmamba.inference.label_map import LabelMap
from segresmamba.inference.options import InferenceOptions
from segresmamba.inference.segmentation import segment_volume
from segresmamba.inference.sliding_window import Member, Progress, SlidingWindow
from segresmamba.inference.trained import (
    TrainedModel,
    common_rules,
    open_models,
    require_same_task,
)
from segresmamba.inference.way_back import ProbabilityPlanes
from segresmamba.storage.run_folder import RunFolder, best_weights
from segresmamba.task.weights import load_network

logger = logging.getLogger(__name__)

Image = str | Path | Sequence[str | Path] | npt.NDArray[Any]


@dataclass(frozen=True)
class PreparedCase:
    """A case as the networks see it."""

    image_CDHW: npt.NDArray[Any]
    normalisation_C4: npt.NDArray[np.floating]
    transform: GridTransform | None
    original: OriginalGrid
    source: Path | None = None
    """The file whose geometry the label gets."""

    @classmethod
    def of_stored(cls, case: Case) -> PreparedCase:
        """A case of a store, which has been prepared when it was converted."""
        image_CDHW, _ = case.read()
        return cls(image_CDHW, case.normalisation_C4, case.record.grid_transform, case.original)


class SegmentationModel:
    """One trained network or several, whose logits are averaged.

    Args:
        models: The networks, all of one task.
        options: How they are applied.

    Raises:
        UserError: If weights cannot be read or are not finite, the models do not fit together, or
            this machine lacks the device.
    """

    def __init__(
        self, models: Sequence[TrainedModel], options: InferenceOptions | None = None
    ) -> None:
        options = options or InferenceOptions()
        require_same_task(models)
        self.device = options.torch_device()
        loaded = [load_network(model.weights, model.config) for model in models]
        config, facts = models[0].config, models[0].facts
        self.classes = loaded[0].classes
        self.channel_names, self.labels = tuple(facts.channel_names), dict(facts.labels)
        self.preprocessing = facts.preprocessing
        self.rules = common_rules(models) if options.postprocessing else ()
        validation = config.validation
        self._sliding = SlidingWindow(
            [
                Member.from_config(
                    one.network.to(self.device),
                    model.config,
                    mirror=options.tta,
                    precision=options.precision,
                )
                for one, model in zip(loaded, models, strict=True)
            ],
            device=self.device,
            overlap=validation.overlap if options.overlap is None else options.overlap,
            window_batch=validation.window_batch,
            zeros_around=self.preprocessing.nnunet is not None,
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """What each channel of the probabilities belongs to."""
        return self.classes.channel_names

    def segment(
        self, image: Image, *, spacing_mm: Spacing | None = None, probabilities: bool = False
    ) -> LabelMap:
        """Segment one case.

        Args:
            image: A file or a DICOM folder for a network of one channel, a list with one for each
                channel, or an array (C, D, H, W) of raw intensities on a RAS grid; (D, H, W) will
                do for one channel.
            spacing_mm: For an array: the size of its voxels along (D, H, W). By default they have
                the size that the network was trained on.
            probabilities: Whether to keep probabilities, which take much memory.

        Returns:
            The label map, with the geometry of the first file.

        Raises:
            DataError: If the channels are not the network's, a file cannot be used, or a voxel
                size is impossible or given for a file.
        """
        prepared, is_array = self._prepare(image, spacing_mm), not _are_files(image)
        planes = _KeptPlanes(self, prepared.original) if probabilities else None
        label = self.segment_prepared(prepared, planes)
        kept = planes.on_label_axes(is_array=is_array) if planes else None
        return LabelMap(label.image, label.labels, label.source, is_array, kept)

    def read(self, paths: Sequence[Path]) -> PreparedCase:
        """Read the files of a case, one for each channel.

        Raises:
            DataError: If the channels are not the network's, or a file cannot be used.
        """
        self._check_channels(len(paths), "a file for each channel", where=paths[0])
        volume = read_volume(paths, preprocessing=self.preprocessing)
        return self._prepared(volume, paths[0])

    def segment_prepared(
        self,
        case: PreparedCase,
        probabilities: ProbabilityPlanes | None = None,
        progress: Progress = lambda done, total: None,
    ) -> LabelMap:
        """Segment a case that has been read.

        Args:
            case: The case.
            probabilities: What takes probabilities, plane by plane.
            progress: What is told of each batch of windows.
        """
        found = segment_volume(
            self._sliding,
            self.classes,
            case.image_CDHW,
            case.normalisation_C4,
            transform=case.transform,
            probabilities=probabilities,
            progress=progress,
            interpolate_logits=self.preprocessing.nnunet is not None,
        )
        _, affine = case.original.grid
        full_DHW = postprocessing.apply(found.full_DHW, self.rules, geometry.spacing_mm(affine))
        restored = case.original.for_labels(full_DHW.dtype).restore(full_DHW)
        return LabelMap(restored, self.labels, case.source)

    def _prepare(self, image: Image, spacing_mm: Spacing | None) -> PreparedCase:
        if _are_files(image):
            if spacing_mm is not None:
                raise DataError(
                    "files say the size of their voxels themselves",
                    where="spacing_mm",
                    got=spacing_mm,
                    remedy="leave it out, or give the voxels as an array",
                )
            given = [image] if isinstance(image, str | Path) else image
            paths = [Path(path) for path in given]
            self._check_channels(len(paths), "a file for each channel")
            require_channel_order(paths, self.channel_names)
            return self.read(paths)
        array = np.asarray(image)
        array_CDHW = array[None] if array.ndim == 3 else array
        self._check_channels(
            len(array_CDHW) if array_CDHW.ndim == 4 else 0, "an array (C, D, H, W)"
        )
        trained_mm = self.preprocessing.trained_mm or ((1.0, 1.0, 1.0),)
        seen_mm = self.preprocessing.spacing_mm or trained_mm[0]
        if (steps := self.preprocessing.seen) is not None:  # along the axes of the array
            depth, height, width = (seen_mm[steps.transpose.index(axis)] for axis in range(3))
            seen_mm = depth, height, width
        volume = volume_of(array_CDHW, spacing_mm or seen_mm, self.preprocessing)
        return self._prepared(volume, None)

    def _prepared(self, volume: Volume, source: Path | None) -> PreparedCase:
        self.preprocessing.warn_of_other_intensities(
            volume.statistics, self.channel_names, str(source or "the image")
        )
        if 1 in volume.original.shape_XYZ:
            logger.warning(
                "%s is a single slice, of shape %s, and the network was trained on volumes: the "
                "result may be wrong; of a DICOM series give the folder",
                source or "the image",
                volume.original.shape_XYZ,
            )
        normalisation_C4 = self.preprocessing.for_case(volume.statistics)
        return PreparedCase(
            volume.image_CDHW, normalisation_C4, volume.transform, volume.original, source
        )

    def _check_channels(self, found: int, form: str, where: object = "image") -> None:
        if found != len(self.channel_names):
            raise DataError(
                f"the network was trained on {len(self.channel_names)} channels",
                where=where,
                got=f"{found} of them",
                remedy=f"give {form}, in this order: {', '.join(self.channel_names)}",
            )


def load_model(path: str | Path, **options: Any) -> SegmentationModel:
    """Load what has been trained, ready to segment.

    Args:
        path: A run's folder, a folder of runs or of a sweep (their outputs are averaged), or a
            model folder.
        **options: The fields of `InferenceOptions`, such as device="cpu" or tta=True.

    Raises:
        UserError: If there is no trained model, or it cannot be used.
    """
    return SegmentationModel(open_models(Path(path)), InferenceOptions(**options))


def _are_files(image: Image) -> bool:
    return isinstance(image, str | Path) or (
        not isinstance(image, np.ndarray) and all(isinstance(one, str | Path) for one in image)
    )


class _KeptPlanes:
    """Probabilities of a whole case, in memory."""

    def __init__(self, model: SegmentationModel, original: OriginalGrid) -> None:
        shape_DHW, _ = original.grid
        self._all_KDHW = np.zeros((len(model.outputs), *shape_DHW), np.float16)
        if model.classes.exclusive:
            self._all_KDHW[0] = 1  # what is not computed is background
        self._original = original

    def __call__(self, depth: int, rows: slice, columns: slice, probabilities_KHW: Tensor) -> None:
        values = probabilities_KHW.half().cpu().numpy()
        self._all_KDHW[:, depth, rows, columns] = values

    def on_label_axes(self, *, is_array: bool) -> npt.NDArray[np.float16]:
        """The probabilities on the axes of the label's array."""
        affine = self._original.affine
        all_KXYZ = np.stack([geometry.in_file_axes(one, affine) for one in self._all_KDHW])
        return all_KXYZ.transpose(0, 3, 2, 1) if is_array else all_KXYZ


class ServedNetwork:
    """A model as MLflow wants it."""

    def __init__(self, model: SegmentationModel) -> None:
        self._model = model

    def predict(self, images: Any, params: object = None) -> list[npt.NDArray[np.int16]]:
        """Segment cases.

        Args:
            images: A table with a column "image", which MLflow makes of `{"image": case}`, or an
                iterable of cases. A case is a path for a one-channel network, a list of paths, one
                for each channel, or an array (C, D, H, W) of raw intensities whose voxels have the
                size that the network was trained on.
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
        return [self._model.segment(case).array.astype(np.int16) for case in cases]


def _files_or_array(case: Any) -> Any:
    """A case as a list of paths or as an array; MLflow passes arrays as nested lists."""
    if _are_files(case):
        return case
    array = np.asarray(case, np.float32)
    return array[0] if array.ndim == 5 and len(array) == 1 else array


def _load_pyfunc(path: str) -> ServedNetwork:
    """Load a saved model for MLflow, which passes the folder of the model's data."""
    # It has the run's `best` weights and configuration, under the names that the run gives them.
    folder = RunFolder(Path(path))
    model = TrainedModel.from_run(best_weights(folder.path), folder.config)
    return ServedNetwork(SegmentationModel([model]))
