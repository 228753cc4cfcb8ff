"""A run as it was recorded, read back from its folder; `mlflow.source` reads it from MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path, PurePosixPath

from segresmamba.config import TrainConfig
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking.attempts import current, marked
from segresmamba.tracking.energy.ledger import Ledger, power_line
from segresmamba.tracking.journal import read_header, read_journal
from segresmamba.tracking.mapping import MetricPoint, flatten, new_points
from segresmamba.tracking.protocol import TrackingError

ENERGY = "energy/"
ENERGY_FACT = "energy."
STOPPED_EARLY = "stopped_early"
"""Tag of a run that `train.patience` has ended. It begins with `step N:`."""
PRUNED = "pruned"
"""Tag of a run that a search has given up, because it had fallen behind."""
SUMMARY = "summary"
"""Tag of what stands for a sweep in MLflow: the means of its runs, and no run itself."""


@dataclass(frozen=True)
class History:
    """What one run recorded.

    Attributes:
        id: Id of its journal, the same in the folder and in MLflow; the folder if the journal has
            lost it.
        name: Its name.
        where: The folder, or MLflow's URI and the id there.
        status: finished, failed, preempted or running. A run that was killed is still running.
        settings: Every setting as an override would give it, such as {"train.lr": "0.0001"}.
        tags: Facts besides the settings, such as the device.
        curves: The values of each metric in the order of their steps, without those of earlier
            attempts. A step that a resumed run trained again counts once, with its first value, as
            in MLflow.
        energy: Totals over all nodes and restarts, such as energy_kwh and emissions_kg; empty if
            energy was not measured.
        power: How the power was measured or estimated; empty if that is not recorded.
        files: Artifacts that still exist, by their path among the artifacts of the run in MLflow.
    """

    id: str
    name: str
    where: str
    status: str
    settings: Mapping[str, str]
    tags: Mapping[str, str]
    curves: Mapping[str, Sequence[MetricPoint]]
    energy: Mapping[str, float]
    power: str
    files: Mapping[str, Path]

    def last(self, key: str) -> float | None:
        """The latest value of a metric."""
        curve = self.curves.get(key)
        return curve[-1].value if curve else None


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return RunFolder(folder).journal.is_file()


def run_folders(folder: Path) -> list[Path]:
    """The folder itself if it holds a run, otherwise the folders of runs in it, by name.

    Raises:
        TrackingError: If there is no run.
    """
    if is_run(folder):
        return [folder]
    inside = sorted(path for path in folder.iterdir() if is_run(path)) if folder.is_dir() else []
    if not inside:
        journal = RunFolder(folder).journal.name
        got = f"a folder without {journal}" if folder.is_dir() else "no folder"
        raise TrackingError(
            "this is neither a run nor a folder of runs",
            where=folder,
            got=got,
            remedy="name the folder of a run, such as runs/sample, or the folder of all runs",
        )
    return inside


def finished_step(folder: Path, train: TrainConfig) -> int | None:
    """The step at which a run has finished; None if there is something left to do.

    Args:
        folder: The run folder, which need not exist.
        train: The settings to finish it with. If `epochs` is set, their `max_steps` may be any.
    """
    run = RunFolder(folder)
    step = max(run.saved_steps(), default=0)
    if not (step and run.validation(step).exists() and run.best.exists()):
        return None
    try:
        history = read_history(folder)
    except TrackingError:  # the tracker, which opens the journal too, says what is wrong
        return None
    if history.status != "finished":
        return None
    before = history.settings
    same_epochs = train.epochs is not None and before.get("train.epochs") == str(train.epochs)
    # The journal has the number of steps that the epochs are.
    steps = int(before["train.max_steps"]) if same_epochs else train.max_steps
    ends_here = history.tags.get(STOPPED_EARLY, "").startswith(f"step {step}:")
    same_patience = before.get("train.patience") == str(train.patience)
    is_counted = train.epochs is None or same_epochs
    return step if (ends_here and same_patience) or (is_counted and step >= steps) else None


def finished_text(folder: Path, step: int) -> str:
    """What to tell somebody who starts a finished run again."""
    return (
        f"{folder} has finished at step {step}, and nothing is left to train; to go on: the same "
        f"command with run.name={folder.name} train.max_steps=N (more than {step}) and "
        "--allow-config-change; if train.epochs or train.patience has ended it, change that one"
    )


def _reporting_damage(read: Callable[[Path], History]) -> Callable[[Path], History]:
    """Turn what a record of an unforeseen form leads to into an error that names the journal."""

    @wraps(read)
    def reading(folder: Path) -> History:
        try:
            return read(folder)
        except TrackingError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TrackingError(
                "the journal is damaged",
                where=RunFolder(folder).journal,
                got=f"{type(error).__name__}: {error}".splitlines()[0][:200],
                remedy="bring it back from a copy",
            ) from error

    return reading


@_reporting_damage
def read_history(folder: Path) -> History:
    """Read a run's folder, which may still be growing; nothing in it is changed.

    A journal that ends in the middle of a record is read up to there, with a warning.

    Raises:
        TrackingError: If the journal or the energy ledger is missing, damaged or of a newer
            version.
    """
    journal = RunFolder(folder).journal
    header = read_header(journal)
    status = "running"  # a run that was killed has recorded nothing else
    settings: dict[str, str] = {}
    tags: dict[str, str] = {}
    curves: dict[str, list[MetricPoint]] = {}
    last_step: dict[str, int] = {}
    files: dict[str, Path] = {}
    for record in current(marked(read_journal(journal))):
        match record.kind:
            case "params":
                settings = flatten(record.body["values"])  # a resume records all of them again
            case "tags":
                tags |= record.body["values"]
            case "metrics":
                for point in new_points(record, last_step):
                    curves.setdefault(point.key, []).append(point)
            case "artifact":
                path = folder / record.body["path"]
                if path.is_file():
                    files[str(PurePosixPath(record.body["folder"], path.name))] = path
            case "status":
                status = record.body["status"]
                if status == "finished":
                    last_step.clear()  # what comes after is another evaluation, not a resume
    return History(
        id=header.body["id"] or str(folder),
        name=header.body["name"],
        where=str(folder),
        status=status,
        settings=settings,
        tags=tags,
        curves=curves,
        energy=energy_of(folder, curves),
        power=power_of(folder, tags),
        files=files,
    )


def energy_of(folder: Path, curves: Mapping[str, Sequence[MetricPoint]]) -> dict[str, float]:
    """Totals of the energy ledger in a folder; without a ledger, those in the run's metrics.

    The ledger comes first, because a job that was killed recorded no energy as a metric.

    Raises:
        TrackingError: If the ledger is damaged or of a newer version.
    """
    if RunFolder(folder).emissions.exists():
        return Ledger(folder).totals()
    return {
        key.removeprefix(ENERGY): curve[-1].value
        for key, curve in curves.items()
        if key.startswith(ENERGY)
    }


def power_of(folder: Path, tags: Mapping[str, str]) -> str:
    """How power was measured or estimated, from the ledger in a folder or else from the run's tags.

    Raises:
        TrackingError: If the ledger is damaged or of a newer version.
    """
    facts = {
        key.removeprefix(ENERGY_FACT): text
        for key, text in tags.items()
        if key.startswith(ENERGY_FACT)
    }
    return Ledger(folder).power() or power_line(facts)
