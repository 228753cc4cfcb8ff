"""The load of each node of a run: processors, memory, disk, network and GPUs.

Each node writes a journal of its own, system/<node>.jsonl in the run folder, in the format of
`journal`. So no rank waits for another, a hang is recorded while it lasts, and a kill loses no
sample. The uploader sends these journals too. The step of a sample is its number on that node: a
resumed run continues after the samples before it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil

from segresmamba.tracking.energy.gpus import BYTES_PER_MB, GpuReader
from segresmamba.tracking.energy.ledger import node_name
from segresmamba.tracking.journal import Journal, read_records

logger = logging.getLogger(__name__)

FOLDER_NAME = "system"
SAMPLE_S = 10.0


class SystemSampler:
    """Samples this node in a thread until it is stopped. Its errors never reach training.

    Args:
        folder: The run folder.
        gpu_uuids: The job's GPUs on this node.
    """

    def __init__(self, folder: Path, gpu_uuids: Sequence[str] = ()) -> None:
        self._folder = folder
        self._node = node_name()
        self._gpu_uuids = gpu_uuids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-sampler", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Take the last sample and end the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            path = node_journal(self._folder, self._node)
            path.parent.mkdir(parents=True, exist_ok=True)
            journal = Journal(path, name=self._node)
        except (OSError, ValueError) as error:
            logger.warning("this node is not sampled: %s", error)
            return
        try:
            step = sum(record.kind == "metrics" for record in read_records(path))
            gpus, host = GpuReader(self._gpu_uuids), _HostReader(self._folder)
            ended = False
            while not ended:
                # Wait first: a run of less than SAMPLE_S still gets the sample at its end.
                ended = self._stop.wait(SAMPLE_S)
                values = host.read() | gpus.read()
                named = {f"system/{self._node}/{name}": value for name, value in values.items()}
                journal.append("metrics", step=step, epoch=None, values=named)
                step += 1
        except Exception as error:
            logger.warning("this node is no longer sampled: %s", error)
        finally:
            journal.close()


def node_journal(folder: Path, node: str) -> Path:
    """The journal with the samples of a node."""
    return folder / FOLDER_NAME / f"{node}.jsonl"


class _HostReader:
    """Reads the load of the host, in the names of MLflow's own monitor.

    Network and disk traffic are counted from the moment when this object is made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._traffic = _traffic()
        psutil.cpu_percent()  # the first call starts the interval, and returns nothing of use

    def read(self) -> dict[str, float]:
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(self._folder)
        now, before = _traffic(), self._traffic
        traffic = {name: now[name] - before[name] for name in now.keys() & before.keys()}
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / BYTES_PER_MB,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / BYTES_PER_MB,
            "disk_available_megabytes": disk.free / BYTES_PER_MB,
        } | {f"{name}_megabytes": count / BYTES_PER_MB for name, count in traffic.items()}


def _traffic() -> dict[str, int]:
    """Bytes since the host started; a container may hide these counters."""
    counts: dict[str, int] = {}
    if network := psutil.net_io_counters():
        counts |= {
            "network_receive": network.bytes_recv,
            "network_transmit": network.bytes_sent,
        }
    if disk := psutil.disk_io_counters():
        counts |= {"disk_read": disk.read_bytes, "disk_write": disk.write_bytes}
    return counts
