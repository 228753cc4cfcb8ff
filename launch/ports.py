"""The port at which the ranks of a job meet."""

from __future__ import annotations

import socket
import zlib

# Linux gives ports from 32768 on to outgoing connections.
_FIRST, _COUNT = 20000, 12000
# A prime that does not divide _COUNT, so that the candidates of a job pass over all ports.
_STEP = 4099
_ATTEMPTS = 100


def free_port(job_id: str) -> int:
    """The first port in the job's own sequence that is free on this machine.

    The sequence follows from the job's id, so that jobs which share a node rarely try the same port
    at the same moment.

    Raises:
        OSError: If a hundred ports are taken.
    """
    start = zlib.crc32(job_id.encode())
    for number in range(_ATTEMPTS):
        port = _FIRST + (start + number * _STEP) % _COUNT
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"job {job_id} found no free port after {_ATTEMPTS} attempts")
