"""`segresmamba predict`: its arguments, options and progress; `python -m launch` shares them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from segresmamba.cli.conversion import TIMED_COLUMNS
from segresmamba.errors import ConfigError

if TYPE_CHECKING:  # importing it takes as long as torch
    from segresmamba.inference.options import InferenceOptions
    from segresmamba.inference.predict import Observer, PredictRequest

Places = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL... INPUT OUTPUT",
        help="MODEL: a run, a folder of runs or of a sweep, or a model folder; several are "
        "averaged. INPUT: an image for each channel of one case, a folder of <case>_0000.nii.gz "
        "files, a DICOM folder, or a store. OUTPUT: a folder, or for one case a new file. With "
        "--out instead: MODEL IMAGE..., and the label file is replaced.",
    ),
]
LabelFormat = Annotated[
    str | None,
    typer.Option("--format", help="nifti, nrrd, mha or zarr. Default: that of the input."),
]
Probabilities = Annotated[
    bool, typer.Option("--probabilities", help="Also write probabilities, as OME-Zarr (float16).")
]
SplitOption = Annotated[
    str, typer.Option("--split", help="Cases of a store: all, train, or val (those held out).")
]
Tta = Annotated[
    bool,
    typer.Option("--tta", help="Average over mirrored images, along the axes of the training."),
]
Overlap = Annotated[
    float | None,
    typer.Option(help="Overlap of windows, as a share of their size. Default: the run's."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, or one GPU as in cuda:1.")]
Precision = Annotated[
    str | None, typer.Option(help="fp32, bf16 or fp16. Default: that of the training.")
]
NoPostprocessing = Annotated[
    bool, typer.Option("--no-postprocessing", help="Leave out the rules stored with the model.")
]
Energy = Annotated[
    bool, typer.Option("--energy/--no-energy", help="Measure the energy of each case of a folder.")
]


def predict(
    places: Places,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Label file of one case; it is replaced.")
    ] = None,
    kind: LabelFormat = None,
    probabilities: Probabilities = False,
    split: SplitOption = "all",
    tta: Tta = False,
    overlap: Overlap = None,
    device: Device = "auto",
    precision: Precision = None,
    no_postprocessing: NoPostprocessing = False,
    energy: Energy = True,
) -> None:
    """Segment images with trained models; the same command goes on with what is missing."""
    from segresmamba.inference.options import InferenceOptions
    from segresmamba.inference.predict import predict as predict_one
    from segresmamba.inference.predict import predict_cases, predict_file

    options = InferenceOptions(device, precision, tta, overlap, not no_postprocessing)
    if out is not None:
        _refuse_with_out(kind, probabilities=probabilities, split=split)
        model, *images = map(Path, places)
        if not images:
            raise _too_few(places, "predict MODEL IMAGE... --out LABEL")
        predict_one(model, images, out, options)
        typer.echo(f"labels: {out}")
        return
    request = request_of(
        places, options, kind=kind, probabilities=probabilities, split=split, energy=energy
    )
    with showing_progress(Console(stderr=True, soft_wrap=True)) as observer:
        if is_label_file(request.out):
            predict_file(request, observer)
            typer.echo(f"labels: {request.out}")
            return
        found = predict_cases(request, observer)
    typer.echo(
        f"{len(found.written)} cases segmented, {len(found.skipped)} were done: {request.out}"
    )
    finish(found.failed)


def finish(failed: dict[str, str]) -> None:
    """End the command with exit code 1 if cases have failed, and name them."""
    if failed:
        from segresmamba.inference.predict import failures_text

        typer.echo(failures_text(failed), err=True)
        raise typer.Exit(1)


def request_of(
    places: Sequence[str],
    options: InferenceOptions,
    *,
    kind: str | None,
    probabilities: bool,
    split: str,
    energy: bool,
) -> PredictRequest:
    """What the arguments ask for.

    Raises:
        ConfigError: If there are too few of them, or an option has no such value.
    """
    from segresmamba.inference.predict import PredictRequest

    if len(places) < 3:
        raise _too_few(
            places, "predict MODEL... INPUT OUTPUT, or predict MODEL IMAGE... --out LABEL"
        )
    *models, source, target = places
    sources = [source]
    # A model is a folder, so all files before OUTPUT are the channels of one case.
    while len(models) > 1 and Path(models[-1]).is_file() and Path(source).is_file():
        sources.insert(0, models.pop())
    return PredictRequest(
        models=tuple(map(Path, models)),
        sources=tuple(sources),
        out=Path(target),
        options=options,
        format=kind,
        probabilities=probabilities,
        split=split,
        energy=energy,
    )


def is_label_file(path: Path) -> bool:
    """Whether an output is named like one label map rather than like a folder of them."""
    name = path.name.lower()
    return not path.is_dir() and name.endswith((".nii", ".nii.gz", ".nrrd", ".mha", ".zarr"))


@contextmanager
def showing_progress(console: Console) -> Iterator[Observer]:
    """Show progress: bars with the time that is left on a terminal, elsewhere a line a case."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Progress(*TIMED_COLUMNS, console=console) as progress:
        yield _Bars(progress)


class _Lines:
    """A line for each case."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total, self._done = 0, 0

    def begin(self, total: int) -> None:
        self._total = total

    def case(self, name: str) -> None:
        pass

    def windows(self, done: int, total: int) -> None:
        pass

    def done(self, name: str) -> None:
        self._done += 1
        text = f"{self._done} of {self._total} cases: {name}"
        self._console.print(text, highlight=False, markup=False)


class _Bars:
    """A bar for all cases, and one for the windows of the case at hand."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._cases = progress.add_task("cases", total=None)
        self._windows = progress.add_task("windows", total=None)

    def begin(self, total: int) -> None:
        self._progress.update(self._cases, total=total)

    def case(self, name: str) -> None:
        self._progress.reset(self._windows, description=name, total=None)

    def windows(self, done: int, total: int) -> None:
        self._progress.update(self._windows, completed=done, total=total)

    def done(self, name: str) -> None:
        self._progress.advance(self._cases)


def _refuse_with_out(kind: str | None, *, probabilities: bool, split: str) -> None:
    given = {"--format": kind, "--probabilities": probabilities or None}
    given["--split"] = split if split != "all" else None
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                "--out names one label file, whose ending is its format",
                where=name,
                got=value,
                remedy=f"leave {name} out, or give predict MODEL... INPUT OUTPUT",
            )


def _too_few(places: Sequence[str], form: str) -> ConfigError:
    return ConfigError(
        "the command needs more arguments", where="predict", got=" ".join(places), remedy=form
    )
