"""The folder that label maps are written to, and what it remembers of how they were made.

    OUTPUT/<case>.nii.gz                   a label map, in the geometry of the case's first image
    OUTPUT/<case>.probabilities.zarr       if they are asked for
    OUTPUT/predict.json                    models, settings, and every case that is done
    OUTPUT/.predict/<case>.json            how a case was made, by which a later start knows it

Several processes may fill one folder: each case has a record of its own, and `predict.json` joins
them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segresmamba import __version__
from segresmamba.data.formats.source import read_json
from segresmamba.errors import DataError
from segresmamba.inference.cases import InputCase
from segresmamba.inference.label_map import ENDINGS, LabelMap, cannot_write
from segresmamba.inference.model import PreparedCase, SegmentationModel
from segresmamba.inference.ome_zarr import ProbabilityWriter, writing_probabilities
from segresmamba.inference.options import InferenceOptions
from segresmamba.inference.sliding_window import Progress
from segresmamba.inference.trained import TrainedModel
from segresmamba.storage.atomic import remove_abandoned, write_text
from segresmamba.storage.locks import locked

logger = logging.getLogger(__name__)

SUMMARY = "predict.json"
_RECORDS = ".predict"
_VERSION = 1
_APPLIED: dict[str, Any] = {
    "model": True,
    "data": {"patch", "regions"},
    "validation": {"overlap"},
    "train": {"precision"},
    "augment": {"flip_axes", "flip_probability"},
}
"""The settings that, besides its weights, decide what a model makes of an image."""


class OutputFolder:
    """The folder that label maps are written to.

    Args:
        path: The folder; `enter` creates it.
        models: What makes them.
        options: How it is applied.
        format: One of `ENDINGS`; None for that of the input.
        probabilities: Whether to write these, too.
    """

    def __init__(
        self,
        path: Path,
        models: Sequence[TrainedModel],
        options: InferenceOptions,
        *,
        format: str | None = None,
        probabilities: bool = False,
    ) -> None:
        self._path, self._format, self._probabilities = path, format, probabilities
        self._settings = options.identity | {"probabilities": probabilities}
        self._models = []
        for model in models:
            with model.weights.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            self._models.append({"weights": str(model.weights), "sha256": digest})
        self._labels, self._regions = dict(models[0].facts.labels), models[0].config.data.regions
        made_by = {
            "models": [model["sha256"] for model in self._models],
            "applied": [
                model.config.model_dump(mode="json", include=_APPLIED)
                | {"rules": [rule.model_dump(mode="json") for rule in model.postprocessing]}
                for model in models
            ],
            "settings": self._settings,
        }
        text = json.dumps(made_by, sort_keys=True)
        self._made_by = hashlib.sha256(text.encode()).hexdigest()

    def enter(self, cases: Sequence[InputCase]) -> None:
        """Create the folder, and delete what killed processes left in it of these cases.

        Args:
            cases: Those of this process; no other may be writing them.

        Raises:
            DataError: If it cannot be created.
        """
        try:
            (self._path / _RECORDS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        names = (
            name
            for case in cases
            for name in output_names(case, self._format, probabilities=self._probabilities)
        )
        remove_abandoned(self._path, set(names))
        remove_abandoned(self._path / _RECORDS, {self._record(case).name for case in cases})

    def is_done(self, case: InputCase) -> bool:
        """Whether a label map is there that the same models and settings made of the same files."""
        record, label = read_json(self._record(case)), self._label(case)
        try:
            same = record.get("made_by") == self._made_by and record["input"] == case.fingerprint()
        except (OSError, KeyError):
            return False
        # A label map in another format may be there that other models made.
        same = same and record.get("label") == label.name and label.exists()
        return same and (
            not self._probabilities or (self._path / probabilities_name(case.name)).exists()
        )

    def segment(
        self, model: SegmentationModel, case: InputCase, prepared: PreparedCase, progress: Progress
    ) -> LabelMap:
        """Segment a case, and write its probabilities if they are asked for.

        Raises:
            DataError: If its label map would replace a file that is none of ours.
        """
        label = self._label(case)
        if label.exists() and not self._record(case).exists():
            raise DataError(
                "there is a file of that name already, which this command has not written",
                where=label,
                got="a file of unknown origin",
                remedy="write to another folder, or move the file",
            )
        if not self._probabilities:
            former = self._path / probabilities_name(case.name)
            if former.exists():
                logger.warning("%s is of an earlier prediction: delete it or move it", former)
            return model.segment_prepared(prepared, progress=progress)
        with writing_probabilities_of(model, prepared, self._path, case.name) as planes:
            return model.segment_prepared(prepared, planes, progress)

    def write(self, case: InputCase, label: LabelMap, cost: Mapping[str, Any]) -> None:
        """Write a label map, then how it was made, and what it took: time and energy.

        Raises:
            DataError: If the disk is full, or the folder cannot be written.
        """
        # First, so that a label map without a record is one that somebody else has written.
        self._remember(case, {"made_by": None})
        label.save(self._label(case))
        record = {
            "made_by": self._made_by,
            "label": self._label(case).name,
            "input": case.fingerprint(),
            **cost,
        }
        self._remember(case, record)

    def summarise(self) -> None:
        """Write `predict.json` from the records of all cases, those of other processes too.

        Raises:
            DataError: If it cannot be written.
        """
        path = self._path / SUMMARY
        try:
            # The last of several processes then knows what all have done.
            with locked(self._path / _RECORDS / "lock"):
                remove_abandoned(self._path, {SUMMARY})
                records = {
                    path.name.removesuffix(".json"): read_json(path)
                    for path in sorted((self._path / _RECORDS).glob("*.json"))
                }
                done = {name: record for name, record in records.items() if record.get("label")}
                content = {
                    "version": _VERSION,
                    "segresmamba": __version__,
                    "models": self._models,
                    "settings": self._settings,
                    "made_by": self._made_by,
                    "labels": self._labels,
                    "regions": self._regions,
                    "cases": done,
                }
                write_text(path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise cannot_write(path, error) from error

    def _remember(self, case: InputCase, record: dict[str, Any]) -> None:
        try:
            write_text(self._record(case), json.dumps(record) + "\n")
        except OSError as error:
            raise cannot_write(self._record(case), error) from error

    def _label(self, case: InputCase) -> Path:
        return self._path / output_names(case, self._format, probabilities=False)[0]

    def _record(self, case: InputCase) -> Path:
        return self._path / _RECORDS / f"{case.name}.json"


def output_names(case: InputCase, format: str | None, *, probabilities: bool) -> list[str]:
    """The names of what a case becomes: its label map, and its probabilities if asked for."""
    label = f"{case.name}{ENDINGS[format] if format else case.ending}"
    return [label, probabilities_name(case.name)] if probabilities else [label]


def probabilities_name(case: str) -> str:
    """The name of the probabilities of a case."""
    return f"{case}.probabilities.zarr"


@contextmanager
def writing_probabilities_of(
    model: SegmentationModel, case: PreparedCase, folder: Path, name: str
) -> Iterator[ProbabilityWriter]:
    """Give a block what writes a case's probabilities; see `writing_probabilities`.

    Raises:
        DataError: If they cannot be written.
    """
    shape_DHW, affine = case.original.grid
    path = folder / probabilities_name(name)
    has_background = model.classes.exclusive
    try:
        with writing_probabilities(
            path, shape_DHW, affine, channels=model.outputs, has_background=has_background
        ) as planes:
            yield planes
    except OSError as error:
        raise cannot_write(path, error) from error
