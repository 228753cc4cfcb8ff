"""The end of a rank's process whose work is done."""

from __future__ import annotations

import atexit
import logging
import os
import sys


class QuickExit:
    """Ends this process after its exit handlers, if it was told that all went well.

    While Python takes itself apart, threads of libraries may still run, and one that then wants
    Python's lock aborts the process: "terminate called without an active exception". A rank that
    had finished would count as failed and its job be queued again.

    Made before the libraries are imported, so that their exit handlers come first.
    """

    def __init__(self) -> None:
        self.is_well = False
        """Set it when nothing is left to do."""
        # In a process that belongs to somebody else (debug, tests) the exit code is theirs.
        main = getattr(sys.modules["__main__"], "__spec__", None)
        if main is not None and main.name == "submitit.core._submit":
            atexit.register(self._end)

    def _end(self) -> None:
        if self.is_well:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
