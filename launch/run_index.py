"""What runs have recorded, in short, for commands that look at hundreds of them.

A run's journal is read once. What was found is kept in a file beside the runs, with the size and
time of the files that it came from, and holds as long as these are the same:

    <run.root>/.runs.json

The file may be deleted at any time, and where it cannot be written, all is read each time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from launch.run_state import read_run
from segresmamba.storage.atomic import write_text
from segresmamba.storage.run_folder import RunFolder

INDEX = ".runs.json"
# Clocks of file systems are coarse: a file that was just written may change within the same tick.
SETTLED_S = 10.0
_WATT_HOURS_PER_KWH = 1000.0


@dataclass(frozen=True)
class RunSummary:
    """The newest of what a run has recorded."""

    status: str
    """See `History`."""
    step: int | None
    """The last step with a loss."""
    max_steps: str
    """Steps in all; ? if that is not recorded."""
    values: dict[str, float]
    """The last validation."""
    energy_wh: float | None
    """Energy of all its starts, in watt hours; None if it was not measured."""
    recorded_s: float
    """When it last recorded something, in seconds since the epoch."""

    @classmethod
    def read(cls, folder: Path) -> RunSummary | None:
        """Read a run's journal; None if it has not begun, or cannot be read."""
        history = read_run(folder)
        if history is None:
            return None
        losses = history.curves.get("train/loss", ())
        energy_kwh = history.energy.get("energy_kwh")
        return cls(
            history.status,
            losses[-1].step if losses else None,
            history.settings.get("train.max_steps", "?"),
            {key: c[-1].value for key, c in history.curves.items() if key.startswith("validation")},
            None if energy_kwh is None else energy_kwh * _WATT_HOURS_PER_KWH,
            RunFolder(folder).journal.stat().st_mtime,
        )

    def last(self, key: str) -> float | None:
        """The latest value of a metric of the validation."""
        return self.values.get(key)


_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Entry:
    stamp: _Stamp
    summary: RunSummary


# JSON has no NaN, which the distance of a class that occurs in no label is.
_INDEX = TypeAdapter(dict[str, _Entry], config=ConfigDict(ser_json_inf_nan="strings"))


def summaries(folders: Iterable[Path]) -> dict[Path, RunSummary]:
    """What the runs in these folders have recorded; without those that have not begun."""
    beside = defaultdict(list)
    for folder in folders:
        beside[folder.parent].append(folder)
    found: dict[Path, RunSummary] = {}
    for root, runs in beside.items():
        is_new = False
        try:
            index = _INDEX.validate_json((root / INDEX).read_bytes())
        except (OSError, ValidationError):  # there is none, or it is damaged or of another version
            index = {}
        for folder in runs:
            stamp, entry = _stamp(RunFolder(folder)), index.get(folder.name)
            if entry is not None and entry.stamp == stamp:
                found[folder] = entry.summary
            elif stamp is not None and (summary := RunSummary.read(folder)) is not None:
                found[folder] = summary
                if summary.recorded_s < time.time() - SETTLED_S:
                    index[folder.name], is_new = _Entry(stamp, summary), True
        if is_new:
            with suppress(OSError):  # somebody else's runs
                write_text(root / INDEX, _INDEX.dump_json(index).decode())
    return found


def _stamp(folder: RunFolder) -> _Stamp | None:
    """Size and time of a run's journal and of its energy ledger; None without a journal."""
    try:
        journal = folder.journal.stat()
    except OSError:
        return None
    ledger = folder.emissions.stat() if folder.emissions.exists() else None
    of_ledger = (ledger.st_size, ledger.st_mtime_ns) if ledger else (0, 0)
    return (journal.st_size, journal.st_mtime_ns, *of_ledger)
