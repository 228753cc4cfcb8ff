"""Segment one case or many; reading and writing go on while the network computes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from segresmamba.errors import ConfigError, DataError, UserError, is_passing, sort_error
from segresmamba.inference.cases import SPLITS, InputCase, find_cases
from segresmamba.inference.energy import CaseMeter, measuring_energy
from segresmamba.inference.label_map import ENDINGS, writer_for
from segresmamba.inference.model import SegmentationModel
from segresmamba.inference.options import InferenceOptions
from segresmamba.inference.output_folder import (
    OutputFolder,
    output_names,
    probabilities_name,
    writing_probabilities_of,
)
from segresmamba.inference.trained import TrainedModel, open_models, require_same_task
from segresmamba.storage.atomic import remove_abandoned
from segresmamba.storage.foreign_folder import refuse_foreign_folder

logger = logging.getLogger(__name__)

_SHOWN = 20
"""Failed cases that a message names."""


class Observer(Protocol):
    """What is told how far a prediction is."""

    def begin(self, total: int) -> None:
        """So many cases are to be segmented."""

    def case(self, name: str) -> None:
        """The next case begins."""

    def windows(self, done: int, total: int) -> None:
        """So many windows of the case are done."""

    def done(self, name: str) -> None:
        """A case is segmented, or has failed."""


class Unobserved:
    """Tells nobody."""

    def begin(self, total: int) -> None:
        """See `Observer`."""

    def case(self, name: str) -> None:
        """See `Observer`."""

    def windows(self, done: int, total: int) -> None:
        """See `Observer`."""

    def done(self, name: str) -> None:
        """See `Observer`."""


@dataclass(frozen=True)
class PredictRequest:
    """What is to be segmented, and how."""

    models: tuple[Path, ...]
    sources: tuple[str, ...]
    """A file, a folder, a store, or the channels of one case; see `find_cases`."""
    out: Path
    """A folder, or for a single case a file."""
    options: InferenceOptions = field(default_factory=InferenceOptions)
    format: str | None = None
    """One of `label_map.ENDINGS`; None for that of the input, or NIfTI."""
    probabilities: bool = False
    split: str = "all"
    """Which cases of a store: all, train or val."""
    energy: bool = False
    """Whether to measure the energy of each case of a folder."""
    share: tuple[int, int] = (0, 1)
    """This process takes each n-th case: number of the first, and n."""

    def __post_init__(self) -> None:
        if self.format not in (None, *ENDINGS):
            raise ConfigError(
                "there is no such format of label maps",
                where="--format",
                got=self.format,
                remedy=f"choose among {', '.join(ENDINGS)}",
            )
        if self.split not in SPLITS:
            raise ConfigError(
                "there is no such part of a store",
                where="--split",
                got=self.split,
                remedy=f"choose among {', '.join(SPLITS)}",
            )

    def opened(self) -> tuple[list[TrainedModel], list[InputCase]]:
        """The models of all paths and all cases, once it is sure that `out` can take them.

        Raises:
            UserError: If models, input or output cannot be used as asked.
        """
        self._check_output()
        trained = [model for path in self.models for model in open_models(path)]
        require_same_task(trained)
        cases = find_cases(self.sources, trained, self.split)
        made: dict[str, str] = {}
        for case in cases:
            for name in output_names(case, self.format, probabilities=self.probabilities):
                if (other := made.setdefault(name, case.name)) != case.name:
                    raise DataError(
                        "two cases would be written to one file",
                        where=self.out / name,
                        got=f"{other} and {case.name}",
                        remedy="rename one of them, or write label maps of another --format",
                    )
        return trained, cases

    def _check_output(self) -> None:
        out, source = self.out.resolve(), Path(self.sources[0]).resolve()
        if source.is_dir() and (out == source or source in out.parents):
            raise DataError(
                "the output lies inside the input",
                where=self.out,
                got=f"inside {self.sources[0]}",
                remedy="write to a folder outside: a later start would take label maps for images",
            )
        if not self.out.is_file():  # a label file has checks of its own
            refuse_foreign_folder(self.out, "OUTPUT")


@dataclass(frozen=True)
class Prediction:
    """What became of the cases."""

    written: tuple[str, ...]
    skipped: tuple[str, ...]
    """Were done before."""
    failed: dict[str, str]
    """Case to what is wrong with it."""


def predict(
    run: Path, images: Sequence[Path], out: Path, options: InferenceOptions | None = None
) -> None:
    """Segment one case, given as files. The run's dataset need not be there.

    Args:
        run: A trained model, see `open_models`.
        images: A file for each channel, in the dataset's order.
        out: Label file to write, in the geometry of the first image.
        options: How the model is applied.

    Raises:
        UserError: If there is no trained model, an image cannot be used, or `out` not written.
    """
    # A wrong name or folder is found now, not when the network has run for minutes.
    writer_for(out, images)
    remove_abandoned(out.parent, {out.name})
    model = SegmentationModel(open_models(run), options)
    model.segment(list(images)).save(out)


def predict_cases(request: PredictRequest, observer: Observer | None = None) -> Prediction:
    """Segment all cases of an input that are not done yet. A case that fails stops no other.

    Raises:
        UserError: If models, input or output cannot be used, or nothing can be written any more.
    """
    observer = observer or Unobserved()
    trained, every = request.opened()
    cases = every[request.share[0] :: request.share[1]]
    folder = OutputFolder(
        request.out,
        trained,
        request.options,
        format=request.format,
        probabilities=request.probabilities,
    )
    left = [case for case in cases if not folder.is_done(case)]
    skipped = tuple(case.name for case in cases if case not in left)
    if skipped:
        logger.info("%d cases are done already: %s", len(skipped), request.out)
    failed: dict[str, str] = {}
    observer.begin(len(left))
    # Weights that cannot be read leave no folder behind.
    model = SegmentationModel(trained, request.options) if left else None
    folder.enter(cases)
    if model is not None:
        with measuring_energy(model.device, asked=request.energy) as meter:
            for case, problem in _segment(model, left, folder, observer, meter):
                if problem is not None:
                    failed[case.name] = problem
                observer.done(case.name)
    folder.summarise()
    written = tuple(case.name for case in left if case.name not in failed)
    return Prediction(written, skipped, failed)


def predict_file(request: PredictRequest, observer: Observer | None = None) -> None:
    """Segment the only case of an input into the file `request.out`, which must be new.

    Raises:
        UserError: If models, input or output cannot be used.
    """
    observer = observer or Unobserved()
    trained, cases = request.opened()
    writer_for(request.out)
    if request.format and not _has_format(request.out, request.format):
        raise ConfigError(
            "the label file's name ends as another format",
            where="--format",
            got=f"{request.format}, and {request.out.name}",
            remedy=f"leave --format out, or name a file that ends in {ENDINGS[request.format]}",
        )
    if request.out.exists():
        raise DataError(
            "the label file is there already",
            where=request.out,
            got="a file of that name",
            remedy="name a new file, or delete this one; `predict RUN IMAGE... --out FILE` replaces"
            " it",
        )
    if len(cases) != 1:
        raise DataError(
            "one label file cannot hold several cases",
            where=request.out,
            got=f"{len(cases)} cases in {request.sources[0]}",
            remedy="name a folder to write to",
        )
    folder, name = request.out.parent, cases[0].name
    asked = request.probabilities
    if asked and request.out.name == probabilities_name(name):
        raise ConfigError(
            "the label map and the probabilities would be written to one file",
            where=request.out,
            got="a label map that is named as the probabilities",
            remedy="give the label map another name",
        )
    remove_abandoned(folder, {request.out.name, probabilities_name(name)})
    model = SegmentationModel(trained, request.options)
    observer.begin(1)
    observer.case(name)
    prepared = cases[0].read(model)
    with writing_probabilities_of(model, prepared, folder, name) if asked else nullcontext() as to:
        model.segment_prepared(prepared, to, observer.windows).save(request.out)
    observer.done(cases[0].name)


def _segment(
    model: SegmentationModel,
    cases: Sequence[InputCase],
    folder: OutputFolder,
    observer: Observer,
    meter: CaseMeter,
) -> Iterator[tuple[InputCase, str | None]]:
    """Segment cases; yields each with what is wrong with it, when it is written.

    At most three cases are in memory: one is read, one computed, one written.
    """
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        following = reader.submit(cases[0].read, model)
        writing: tuple[InputCase, Future[None]] | None = None
        for number, case in enumerate(cases):
            reading = following
            if number + 1 < len(cases):
                following = reader.submit(cases[number + 1].read, model)
            observer.case(case.name)
            meter.begin()
            begin_s = perf_counter()
            try:
                label = folder.segment(model, case, reading.result(), observer.windows)
                problem = None
            except Exception as error:
                problem = _problem(case, error)
            cost: dict[str, Any] = {"seconds": round(perf_counter() - begin_s, 3)} | meter.used()
            if writing is not None:
                yield writing[0], _outcome(*writing)
            writing = None
            if problem is None:
                writing = case, writer.submit(folder.write, case, label, cost)
            else:
                yield case, problem
        if writing is not None:
            yield writing[0], _outcome(*writing)


def _outcome(case: InputCase, writing: Future[None]) -> str | None:
    error = writing.exception()
    if error is None:
        return None
    if not isinstance(error, Exception):
        raise error
    return _problem(case, error)


def _problem(case: InputCase, error: Exception) -> str:
    """What to show of a case's error; a full disk, say, ends the whole prediction."""
    if is_passing(error):
        raise error
    text = sort_error(error).text
    logger.error("case %s: %s", case.name, text)
    return error.problem if isinstance(error, UserError) else text.splitlines()[-1]


def _has_format(path: Path, format: str) -> bool:
    """Whether a file is named as a format's; NIfTI may be packed or not."""
    name, ending = (one.lower().removesuffix(".gz") for one in (path.name, ENDINGS[format]))
    return name.endswith(ending)


def failures_text(failed: dict[str, str]) -> str:
    """The cases that failed, as the lines that end a command."""
    lines = [f"  {name}: {problem}" for name, problem in list(failed.items())[:_SHOWN]]
    if len(failed) > _SHOWN:
        lines.append(f"  and {len(failed) - _SHOWN} more")
    return "\n".join([f"{len(failed)} cases failed:", *lines])
