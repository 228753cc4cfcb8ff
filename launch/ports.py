"""The port at which the ranks of a job meet."""

from __future__ import annotations

import socket
import zlib
from collections.abc import Iterator
from itertools import islice

# Below the ports that Linux gives to outgoing connections.
_FIRST, _COUNT = 20000, 12000
_STEP = 4099  # prime, and no divisor of _COUNT: the candidates of a job pass over all ports
_ATTEMPTS = 100


def free_port(job_id: str) -> int:
    """The first port of the job's sequence that nobody on this machine listens on.

    Derived from the job's id, so that jobs which share a node do not even try the same ones.

    Raises:
        OSError: If a hundred of them are taken.
    """
    for port in islice(_candidates(job_id), _ATTEMPTS):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"job {job_id} found no free port after {_ATTEMPTS} attempts")


def _candidates(job_id: str) -> Iterator[int]:
    start = zlib.crc32(job_id.encode())
    for number in range(_COUNT):
        yield _FIRST + (start + number * _STEP) % _COUNT
