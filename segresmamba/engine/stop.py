"""A request to stop, from a signal handler to the training loop."""

from __future__ import annotations

_requested = False


def request_stop() -> None:
    """Ask the running `train`, or the one about to run, to save and return soon.

    Safe in a signal handler: it sets a flag. The ranks agree on it at a step boundary, because a
    checkpoint is written by all of them together.
    """
    global _requested  # noqa: PLW0603 - a signal handler has nothing else to reach the loop by
    _requested = True


def stop_requested() -> bool:
    """Whether somebody has asked."""
    return _requested


def forget_request() -> None:
    """Start afresh, for the next run in this process."""
    global _requested  # noqa: PLW0603
    _requested = False
