"""`segresmamba evaluate`: a run's held-out cases, or a folder of predictions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from segresmamba.cli.conversion import counting
from segresmamba.errors import ConfigError

if TYPE_CHECKING:
    from segresmamba.evaluation import Scoring

console = Console(soft_wrap=True)

_OUT = Path("evaluation")


Target = Annotated[
    Path, typer.Argument(help="Run folder, or a folder of predictions.", metavar="RUN")
]
References = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of labels to compare the predictions with; then no run is needed.",
        metavar="[LABELS]",
    ),
]
Metrics = Annotated[
    str,
    typer.Option(
        help="usual, lesions, all, or names such as dice,nsd,lesion_f1; see docs/evaluation.md."
    ),
]
ToleranceMm = Annotated[
    str,
    typer.Option(
        "--tolerance-mm",
        help="Of the normalised surface Dice: 2, or by class with a rest: liver=3,tumour=2,1.",
    ),
]
Empty = Annotated[
    str,
    typer.Option(
        help="What a missing structure scores: challenge (the worst value), nan (left out "
        "where the formula has no value), zero-one (scores 0 or 1, distances left out)."
    ),
]
LesionDilation = Annotated[
    int, typer.Option(min=0, help="Voxels by which a lesion of the label is dilated.")
]
LesionMinimum = Annotated[
    float,
    typer.Option("--lesion-minimum-mm3", min=0, help="Lesions up to this size are left out."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="For folders: the classes, as liver=1,tumour=2,whole=1+2,ignore=3. Default: those "
        "of a dataset.json, else every value that occurs."
    ),
]
Images = Annotated[
    Path | None, typer.Option(help="For folders: the images, for pictures of some cases.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="For folders: where to write. Default: evaluation."),
]
Workers = Annotated[int, typer.Option(min=1, help="Cores that score.")]
DecidePostprocessing = Annotated[
    bool,
    typer.Option(
        "--decide-postprocessing",
        help="For a run: decide which components its predictions keep, and store it.",
    ),
]


def evaluate(
    target: Target,
    references: References = None,
    metrics: Metrics = "usual",
    tolerance_mm: ToleranceMm = "1",
    empty: Empty = "challenge",
    lesion_dilation: LesionDilation = 3,
    lesion_minimum_mm3: LesionMinimum = 50.0,
    labels: Labels = None,
    images: Images = None,
    out: Out = None,
    workers: Workers = 2,
    decide_postprocessing: DecidePostprocessing = False,
) -> None:
    """Score a run's best weights on its held-out cases, or the label maps of a folder.

    Whole volumes are compared in their original geometry.
    """
    scoring = _scoring(metrics, tolerance_mm, empty, lesion_dilation, lesion_minimum_mm3)
    with counting("scoring", console) as progress:
        common: dict[str, Any] = {"scoring": scoring, "workers": workers, "progress": progress}
        if references is None:
            _refuse({"--labels": labels, "--images": images, "--out": out}, "two folders")
            from segresmamba.evaluation import evaluate_run

            result = evaluate_run(target, decide_postprocessing=decide_postprocessing, **common)
        else:
            _refuse({"--decide-postprocessing": decide_postprocessing or None}, "a run")
            from segresmamba.evaluation import evaluate_folders
            from segresmamba.evaluation.structures import structures_from_text

            result = evaluate_folders(
                target,
                references,
                out or _OUT,
                structures=None if labels is None else structures_from_text(labels),
                images=images,
                **common,
            )
    console.print(result.table)
    for note in result.notes:
        typer.echo(f"post-processing: {note}")
    for file in result.files:
        typer.echo(f"written:  {file}")
    if result.overlays is not None:
        typer.echo(f"pictures: {result.overlays}")
    if result.ui_hint:
        typer.echo(f"watch and compare: {result.ui_hint}")
    for case_id, why in result.failed.items():
        sys.stderr.write(f"not scored: {case_id}: {why}\n")
    raise typer.Exit(1 if result.failed else 0)


def _refuse(given: dict[str, object], form: str) -> None:
    """Refuse options that belong to the other form of the command."""
    for option, value in given.items():
        if value is not None:
            raise ConfigError(
                f"an option belongs to the evaluation of {form}",
                where=option,
                got=value,
                remedy="leave it out; `segresmamba evaluate --help` says what belongs together",
            )


def _scoring(
    metrics: str, tolerance_mm: str, empty: str, dilation_voxels: int, minimum_mm3: float
) -> Scoring:
    from pydantic import ValidationError

    from segresmamba.evaluation import Scoring

    own, others_mm = _tolerances(tolerance_mm)
    try:
        return Scoring.model_validate(
            {
                "metrics": _metrics(metrics),
                "empty": empty,
                "tolerance_mm": own,
                "other_tolerance_mm": others_mm,
                "lesion_dilation_voxels": dilation_voxels,
                "lesion_minimum_mm3": minimum_mm3,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).removeprefix("other_").replace("_", "-")
        raise ConfigError(
            "an option has a value that it cannot have",
            where=f"--{option}",
            got=first["input"],
            remedy=first["msg"],
        ) from error


def _metrics(text: str) -> tuple[str, ...]:
    """The metrics that are named, in the order of the results; some are always among them."""
    from segresmamba.evaluation.measures import ALWAYS, LESION_METRICS, METRICS, USUAL

    groups = {"usual": USUAL, "lesions": LESION_METRICS, "all": tuple(METRICS)}
    named = {name for word in text.split(",") for name in groups.get(word.strip(), (word.strip(),))}
    if unknown := sorted(named - METRICS.keys()):
        raise ConfigError(
            "there is no such metric",
            where="--metrics",
            got=", ".join(unknown) or repr(text),
            remedy=f"choose among {', '.join([*groups, *METRICS])}",
        )
    return tuple(name for name in METRICS if name in named | set(ALWAYS))


def _tolerances(text: str) -> tuple[dict[str, float], float]:
    """Tolerances of single classes, and that of the others."""
    own, others_mm = dict[str, float](), 1.0
    for part in text.split(","):
        name, equals, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError as error:
            raise ConfigError(
                "a tolerance is a number of mm",
                where="--tolerance-mm",
                got=part.strip() or repr(text),
                remedy="write --tolerance-mm 2, or liver=3,tumour=2,1",
            ) from error
        if equals:
            own[name.strip()] = value
        else:
            others_mm = value
    return own, others_mm
