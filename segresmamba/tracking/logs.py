"""What a run says while it trains: a live bar on a terminal, a line a minute elsewhere, or JSON."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

logger = logging.getLogger(__name__)

Style = Literal["auto", "text", "json"]
LINE_S = 60.0
"""Seconds between two lines where there is no terminal."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, rank, logger, message, and what `extra` holds.

    Args:
        rank: This process.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line."""
        time_utc = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": time_utc,
            "level": record.levelname,
            "rank": self._rank,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "values", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as(style: Style, rank: int) -> None:
    """With style json, have all handlers of this process write JSON to standard error."""
    if style != "json":
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(rank))
    logging.getLogger().handlers[:] = [handler]


class StepLog:
    """Tells how training goes on. A context manager; only the main rank makes one that speaks.

    Args:
        style: See tracking.logs.
        max_steps: Steps in all.
        speaks: Whether this rank does.
        console: The terminal, or what stands in for it.
    """

    def __init__(
        self, style: Style, max_steps: int, *, speaks: bool, console: Console | None = None
    ) -> None:
        console = console or _console_of_log()
        self._max_steps, self._speaks = max_steps, speaks
        self._last_line_s = -LINE_S
        self._bar: Progress | None = None
        if speaks and style == "auto" and console.is_terminal:
            columns = (TextColumn("step"), BarColumn(), MofNCompleteColumn())
            # Slow enough to cost nothing; each record redraws it anyway.
            self._bar = Progress(
                *columns, TextColumn("{task.description}"), console=console, refresh_per_second=1
            )
            self._task = self._bar.add_task("", total=max_steps)

    def __enter__(self) -> StepLog:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Show a record.

        Args:
            step: The step that has been done.
            values: loss, step_s, data_wait_s, memory_gib, and dice once there was a validation.
        """
        if not self._speaks:
            return
        left_s = (self._max_steps - step) * values["step_s"]
        text = "  ".join(_words(values, left_s))
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
        if self._bar is None or step == self._max_steps:
            self._line(step, text, {**values, "step": step, "left_s": left_s})

    def _line(self, step: int, text: str, values: Mapping[str, float]) -> None:
        now_s = time.monotonic()
        if now_s - self._last_line_s < LINE_S and step != self._max_steps:
            return
        self._last_line_s = now_s
        logger.info("step %d/%d  %s", step, self._max_steps, text, extra={"values": values})


def _console_of_log() -> Console:
    """Standard error; the log's own console if it has one, which then writes above the bar."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RichHandler):
            return handler.console
    return Console(stderr=True)


def _words(values: Mapping[str, float], left_s: float) -> list[str]:
    dice = [f"Dice {values['dice']:.4f}"] if "dice" in values else []
    return [
        f"loss {values['loss']:.4f}",
        *dice,
        f"{values['step_s']:.2f} s/step",
        f"{100 * values['data_wait_s'] / values['step_s']:.0f} % data wait",
        f"{values['memory_gib']:.2f} GiB",
        f"{_duration(left_s)} left",
    ]


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
