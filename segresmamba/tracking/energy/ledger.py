"""The energy ledger of a run: emissions.json, one segment for each start of the run on each node.

    {"schema": 1, "segments": {"4711/0/n1": {"energy_kwh": 0.12, "emissions_kg": 0.05, ...}, ...}}

A segment is named job/restart/node and holds running totals that only its own meter overwrites. So
a segment whose process was killed stays as last written, the next start of the run writes another
one, and the sum counts each exactly once.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segresmamba.storage.locks import locked
from segresmamba.tracking.protocol import TrackingError

LEDGER_NAME = "emissions.json"
LOCK_NAME = ".emissions.lock"
SCHEMA = 1
SUMMED = (
    "energy_kwh",
    "emissions_kg",
    "cpu_energy_kwh",
    "gpu_energy_kwh",
    "ram_energy_kwh",
    "duration_s",
)


class Ledger:
    """emissions.json of a run folder, shared by the meters of all nodes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER_NAME
        self._lock = folder / LOCK_NAME

    def claim(self, facts: Mapping[str, Any]) -> str:
        """Begin a segment of this job, restart and node, and return its name.

        Args:
            facts: What is to be kept with it besides the running totals.

        Raises:
            OSError: If the ledger cannot be written.
            TrackingError: If it is damaged or of a newer version.
        """
        name = _segment_name(os.environ)
        with locked(self._lock):
            segments = self._read()
            # A job may start the run more than once, as with two srun lines in one script.
            count = sum(key.partition("#")[0] == name for key in segments)
            key = f"{name}#{count + 1}" if count else name
            segments[key] = {**dict.fromkeys(SUMMED, 0.0), **facts}
            self._write(segments)
        return key

    def update(self, key: str, totals: Mapping[str, float]) -> None:
        """Overwrite the running totals of a segment.

        Raises:
            OSError: If the ledger cannot be written.
            TrackingError: If it is damaged or of a newer version.
        """
        with locked(self._lock):
            segments = self._read()
            segments.setdefault(key, {}).update(totals)
            self._write(segments)

    def totals(self) -> dict[str, float]:
        """The sums over all segments: energy in kWh, emissions in kg CO2e, node time in s.

        Raises:
            OSError: If the ledger cannot be read.
            TrackingError: If it is damaged or of a newer version.
        """
        segments = self._read().values()
        return {name: sum(segment.get(name, 0.0) for segment in segments) for name in SUMMED}

    def power(self) -> str:
        """How power and carbon intensity were known; more than one line if starts or nodes differ.

        Raises:
            OSError: If the ledger cannot be read.
            TrackingError: If it is damaged or of a newer version.
        """
        lines = {power_line(facts) for facts in self._read().values()}
        return "\n".join(sorted(lines - {""}))

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self._path.read_text())
            schema, segments = content["schema"], dict(content["segments"])
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise TrackingError(
                "the energy ledger is damaged",
                where=self._path,
                got=str(error),
                remedy="move it away: the run begins another one",
            ) from error
        if schema > SCHEMA:
            raise TrackingError(
                "the energy ledger was written by a newer version of segresmamba",
                where=self._path,
                got=f"schema {schema}",
                remedy=f"upgrade segresmamba: this one reads up to schema {SCHEMA}",
            )
        return segments

    def _write(self, segments: Mapping[str, Any]) -> None:
        new = self._path.with_suffix(".tmp")
        with new.open("w") as file:
            json.dump({"schema": SCHEMA, "segments": segments}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)


def power_line(facts: Mapping[str, Any]) -> str:
    """A segment's facts in a line; empty if they are not there."""
    try:
        return (
            "processors {cpu_power}, GPUs {gpu_power}, memory {ram_power}; "
            "{intensity_g_per_kwh} g CO2e/kWh in {country} ({intensity_source})"
        ).format(**{**facts, "intensity_g_per_kwh": round(float(facts["intensity_g_per_kwh"]))})
    except KeyError:
        return ""


def _segment_name(environment: Mapping[str, str]) -> str:
    """job/restart/node under Slurm; elsewhere the job is "local" and each start is counted."""
    job = environment.get("SLURM_JOB_ID", "local")
    restart = environment.get("SLURM_RESTART_COUNT", "0")
    return f"{job}/{restart}/{node_name(environment)}"


def node_name(environment: Mapping[str, str] = os.environ) -> str:
    """This node, as Slurm calls it: two nodes of a test cluster may share a host's name."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()
