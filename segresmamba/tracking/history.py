"""A run as it was recorded, for those who read it afterwards: from its folder or from MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segresmamba.tracking.energy.ledger import LEDGER_NAME, Ledger, power_line
from segresmamba.tracking.journal import JOURNAL_NAME, JournalRecord, read_header, read_journal
from segresmamba.tracking.mapping import MetricPoint, flatten, new_points
from segresmamba.tracking.protocol import TrackingError

ENERGY = "energy/"
ENERGY_FACT = "energy."


@dataclass(frozen=True)
class History:
    """What is known of one run.

    Attributes:
        id: Id of its journal, the same in the folder and in MLflow.
        name: Its name.
        where: The folder, or MLflow's URI and the id there.
        status: finished, failed, preempted, or running, which is also what a killed run leaves.
        settings: Every setting as an override would give it, such as {"train.lr": "0.0001"}.
        tags: What was chosen and found besides the settings, such as the device.
        curves: The values of each metric in the order of their steps, resumed steps once.
        energy: Totals over nodes and restarts: energy_kwh, emissions_kg; empty if not measured.
        power: How the power was known; empty if that is not recorded.
        files: Artifacts that are there, by their path among the artifacts.
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
    return (folder / JOURNAL_NAME).is_file()


def run_folders(folder: Path) -> list[Path]:
    """The folder itself if it is a run's, else the runs in it by name.

    Raises:
        TrackingError: If there is no run.
    """
    if is_run(folder):
        return [folder]
    inside = sorted(path for path in folder.iterdir() if is_run(path)) if folder.is_dir() else []
    if not inside:
        got = "a folder without journal.jsonl" if folder.is_dir() else "no folder"
        raise TrackingError(
            "this is no run, and no folder of runs",
            where=folder,
            got=got,
            remedy="name the folder of a run, such as runs/sample, or the folder of all runs",
        )
    return inside


def read_history(folder: Path) -> History:
    """Read a run's folder, which may still be growing; nothing in it is changed.

    A journal that ends in the middle of a record is read up to there, with a warning.

    Raises:
        TrackingError: If the journal or the energy ledger is missing, damaged or of a newer
            version.
    """
    header = read_header(folder / JOURNAL_NAME)
    settings: dict[str, str] = {}
    tags: dict[str, str] = {}
    status = "running"
    records = read_journal(folder / JOURNAL_NAME)
    for record in records:
        match record.kind:
            case "params":
                settings = flatten(record.body["values"])
            case "tags":
                tags |= record.body["values"]
            case "status":
                status = record.body["status"]
    curves = _curves(records)
    return History(
        id=header.body["id"],
        name=header.body["name"],
        where=str(folder),
        status=status,
        settings=settings,
        tags=tags,
        curves=curves,
        energy=energy_of(folder, curves),
        power=power_of(folder, tags),
        files=_files(folder, records),
    )


def energy_of(folder: Path, curves: Mapping[str, Sequence[MetricPoint]]) -> dict[str, float]:
    """The totals of the ledger in a folder, which has the segments of killed jobs, too.

    Without a ledger, what the run recorded as metrics, by the same names.

    Raises:
        TrackingError: If the ledger is damaged or of a newer version.
    """
    if (folder / LEDGER_NAME).exists():
        return Ledger(folder).totals()
    return {
        key.removeprefix(ENERGY): curve[-1].value
        for key, curve in curves.items()
        if key.startswith(ENERGY)
    }


def power_of(folder: Path, tags: Mapping[str, str]) -> str:
    """How power was known by the ledger in a folder, or else by a run's tags.

    Raises:
        TrackingError: If the ledger is damaged or of a newer version.
    """
    facts = {
        key.removeprefix(ENERGY_FACT): text
        for key, text in tags.items()
        if key.startswith(ENERGY_FACT)
    }
    return Ledger(folder).power() or power_line(facts)


def _curves(records: Iterable[JournalRecord]) -> dict[str, list[MetricPoint]]:
    """As MLflow has them: of a step that a resumed run trained again, the first value."""
    curves: dict[str, list[MetricPoint]] = {}
    last_step: dict[str, int] = {}
    for record in records:
        if record.kind == "metrics":
            for point in new_points(record, last_step):
                curves.setdefault(point.key, []).append(point)
        elif record.kind == "status" and record.body["status"] == "finished":
            last_step.clear()
    return curves


def _files(folder: Path, records: Iterable[JournalRecord]) -> dict[str, Path]:
    """Artifacts that are single files, by the names that MLflow shows."""
    files = {}
    for record in records:
        if record.kind == "artifact":
            path = folder / record.body["path"]
            name = "/".join(part for part in (record.body["folder"], path.name) if part)
            if path.is_file():
                files[name] = path
    return files
