"""The terminal, and what stands in its place: none of it may end a training when it goes away.

Standard output and error may lose their reader (`| head`, a closed ssh, a killed `tee`), and the
disk under them may be full. What cannot be written is dropped then, and once there is room again a
line says how much it was.
"""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from typing_extensions import Buffer, override


def stop_signals() -> tuple[signal.Signals, ...]:
    """Signals by which a user asks a command to stop, less the loss of a terminal under `nohup`."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))


@contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` answer these signals while a block runs."""
    before = {number: signal.signal(number, handler) for number in stop_signals()}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class _Lossy(io.FileIO):
    """A descriptor whose errors drop what was to be written."""

    _lost_bytes = 0
    _reason: str | None = None

    @override
    def write(self, data: Buffer, /) -> int:
        size = memoryview(data).nbytes
        try:
            if self._lost_bytes:
                said = f"\n[{self._lost_bytes} bytes of output were lost: {self._reason}]\n"
                super().write(said.encode())
                self._lost_bytes = 0
            return super().write(data) or 0
        except OSError as error:
            self._lost_bytes += size
            self._reason = error.strerror
            return size


def shield_output() -> None:
    """From now on, an error of the interpreter's own standard streams does no harm."""
    sys.stdout = _shielded(sys.stdout, sys.__stdout__)
    sys.stderr = _shielded(sys.stderr, sys.__stderr__)


def _shielded(stream: TextIO, original: TextIO | None) -> TextIO:
    # A test or a notebook may have put something else in its place, or there may be none.
    if stream is not original or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    raw = _Lossy(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
