"""The energy ledger of a run: emissions.json, one segment for each start of the run on each node.

    {"schema": 1, "segments": {"4711/0/n1": {"energy_kwh": 0.12, "emissions_kg": 0.05, ...}, ...},
     "digest": "crc32c:..."}

A segment is named job/restart/node and holds running totals, which only its own meter overwrites.
When a process is killed, its segment keeps what was written last. The next start of the run writes
another segment, so the sum counts each exactly once.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segresmamba.storage.atomic import write_text
from segresmamba.storage.digest import json_digest
from segresmamba.storage.json_text import parse_json
from segresmamba.storage.locks import locked
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking.protocol import TrackingError, newer_error

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
    """The energy ledger of a run folder, shared by the meters of all nodes."""

    def __init__(self, folder: Path) -> None:
        self._path = RunFolder(folder).emissions
        self._lock = folder / LOCK_NAME

    def claim(self, facts: Mapping[str, Any]) -> str:
        """Begin a segment for this job, restart and node, and return its name.

        Outside Slurm the job is called "local".

        Args:
            facts: What the segment holds besides the running totals.

        Raises:
            OSError: If the ledger cannot be written.
            TrackingError: If it is damaged or of a newer version.
        """
        job = os.environ.get("SLURM_JOB_ID", "local")
        name = f"{job}/{os.environ.get('SLURM_RESTART_COUNT', '0')}/{node_name()}"
        with self._changing() as segments:
            # A job may start the run more than once, for instance by two srun lines in its script.
            count = sum(key.partition("#")[0] == name for key in segments)
            key = f"{name}#{count + 1}" if count else name
            segments[key] = {**dict.fromkeys(SUMMED, 0.0), **facts}
        return key

    def update(self, key: str, totals: Mapping[str, float]) -> None:
        """Overwrite the running totals of a segment.

        Raises:
            OSError: If the ledger cannot be written.
            TrackingError: If it is damaged or of a newer version.
        """
        with self._changing() as segments:
            segments.setdefault(key, {}).update(totals)

    def totals(self) -> dict[str, float]:
        """The sums over all segments: energy in kWh, emissions in kg CO2e, node time in s.

        `measured_kwh` is the part of the energy that meters counted; the rest is an estimate.

        Raises:
            OSError: If the ledger cannot be read.
            TrackingError: If it is damaged or of a newer version.
        """
        segments = self._read().values()
        sums = {name: sum(segment.get(name, 0.0) for segment in segments) for name in SUMMED}
        measured_kwh = sum(
            sum(
                float(segment.get(f"{part}_energy_kwh", 0.0))
                for part in ("cpu", "gpu", "ram")
                if str(segment.get(f"{part}_power", "")).startswith("measured")
            )
            for segment in segments
        )
        return {**sums, "measured_kwh": measured_kwh}

    def power(self) -> str:
        """How power was measured, and the carbon intensity; a line for each different answer.

        Raises:
            OSError: If the ledger cannot be read.
            TrackingError: If it is damaged or of a newer version.
        """
        lines = {power_line(facts) for facts in self._read().values()}
        return "\n".join(sorted(lines - {""}))

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            content = parse_json(self._path.read_bytes())
            digest = content.pop("digest", None)  # earlier versions wrote none
            if digest is not None and digest != json_digest(content):
                raise ValueError(f"checksum {json_digest(content)}, written with {digest}")
            if set(content) != {"schema", "segments"}:  # perhaps the checksum's own name
                raise ValueError(f"the keys {', '.join(content)}")
            schema, segments = int(content["schema"]), dict(content["segments"])
            for segment in segments.values():
                segment |= {name: float(segment[name]) for name in SUMMED if name in segment}
        except FileNotFoundError:
            return {}
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
        ) as error:
            raise TrackingError(
                "the energy ledger is damaged",
                where=self._path,
                got=str(error),
                remedy="move the file away; the run then begins a new one",
            ) from error
        if schema > SCHEMA:
            raise newer_error("the energy ledger", self._path, schema, SCHEMA)
        return segments

    @contextmanager
    def _changing(self) -> Iterator[dict[str, dict[str, Any]]]:
        """Give the segments to the block, and write what it makes of them."""
        with locked(self._lock):  # every node rewrites the whole file
            segments = self._read()
            yield segments
            content = {"schema": SCHEMA, "segments": segments}
            text = json.dumps(content | {"digest": json_digest(content)}, indent=1)
            write_text(self._path, text)


def power_line(facts: Mapping[str, Any]) -> str:
    """The facts of a segment in one line; empty if they were not recorded."""
    try:
        return (
            "processors {cpu_power}, GPUs {gpu_power}, memory {ram_power}; "
            "{intensity_g_per_kwh} g CO2e/kWh in {country} ({intensity_source})"
        ).format(**{**facts, "intensity_g_per_kwh": round(float(facts["intensity_g_per_kwh"]))})
    except (KeyError, ValueError, TypeError, OverflowError):
        return ""


def node_name() -> str:
    """Slurm's name of this node, or its host name: two nodes of a test cluster may share a host."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
