"""Processes that tests start and talk to."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process in text mode that is killed when the block ends.

    The block of `Popen` itself waits for the process. If an assertion in it fails, or its time is
    up, it would wait for a server for ever, where no limit of a test reaches it.
    """
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()
