"""Predictions of a run, computed when somebody looks at them."""

from __future__ import annotations

import gzip
import logging
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from segresmamba.data import Case, Dataset
from segresmamba.storage.run_folder import RunFolder
from segresmamba.view.volumes import label_nifti

if TYPE_CHECKING:  # files are looked at without torch
    from segresmamba.inference.model import SegmentationModel

logger = logging.getLogger(__name__)


class Segmenter:
    """The best weights of a run. They are applied as `evaluate` does, without post-processing.

    Args:
        folder: The run.
        dataset: Its dataset.

    Raises:
        UserError: If there are no best weights, or the dataset was prepared in another way.
    """

    def __init__(self, folder: RunFolder, dataset: Dataset) -> None:
        from segresmamba.inference.trained import open_models, require_same_preprocessing

        self._trained = open_models(folder.path)
        require_same_preprocessing(self._trained[0].facts, dataset)
        self._one_at_a_time = Lock()
        self._kept: dict[str, bytes] = {}  # a compressed label map is small

    @cached_property
    def _model(self) -> SegmentationModel:
        from segresmamba.inference.model import SegmentationModel
        from segresmamba.inference.options import InferenceOptions

        return SegmentationModel(self._trained, InferenceOptions(postprocessing=False))

    def __call__(self, case: Case) -> Any:
        """The labels of a case as a nibabel image; computed once.

        Raises:
            UserError: If the case or the weights are damaged.
        """
        from segresmamba.inference.model import PreparedCase

        with self._one_at_a_time:
            if case.case_id not in self._kept:
                logger.info("segmenting %s", case.case_id)
                label = self._model.segment_prepared(PreparedCase.of_stored(case))
                image = label_nifti(np.asarray(label.array), label.affine, case.case_id)
                self._kept[case.case_id] = gzip.compress(image.to_bytes(), 1)
            return nib.Nifti1Image.from_bytes(gzip.decompress(self._kept[case.case_id]))
