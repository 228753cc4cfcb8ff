"""A request to stop, which a signal handler makes and the training loop reads.

A handler may run between any two instructions, so it only sets a flag.
"""

from __future__ import annotations

_requested = False


def request_stop() -> None:
    """Ask the running `train`, or the one about to run, to save and return soon.

    The ranks agree on it at a step boundary, because all of them write a checkpoint together.
    """
    global _requested  # noqa: PLW0603 - a signal handler cannot reach the loop otherwise
    _requested = True


def stop_requested() -> bool:
    """Whether a stop was requested in this process."""
    return _requested


def forget_request() -> None:
    """Clear the flag for the next run in this process."""
    global _requested  # noqa: PLW0603
    _requested = False
