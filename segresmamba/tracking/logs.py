"""The output of a run while it trains: a bar on a terminal, a line a minute elsewhere, or JSON."""

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
    """Formats a log record as one line of JSON.

    Its keys are time, level, rank, logger, message, those of `extra={"values": {...}}`, and
    traceback.

    Args:
        rank: Rank of this process.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        """Format the record."""
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
    """With style json, replace all handlers of this process by one that writes JSON to stderr."""
    if style != "json":
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(rank))
    logging.getLogger().handlers[:] = [handler]


class StepLog:
    """Shows how training goes on. A context manager.

    Args:
        style: The setting tracking.logs.
        max_steps: Steps of the whole training.
        enabled: Whether this rank shows anything: one rank does.
        console: The terminal; None takes that of the log, so that messages appear above the bar.
    """

    def __init__(
        self, style: Style, max_steps: int, *, enabled: bool, console: Console | None = None
    ) -> None:
        handlers = logging.getLogger().handlers
        of_log = (handler.console for handler in handlers if isinstance(handler, RichHandler))
        console = console or next(of_log, Console(stderr=True))
        self._max_steps, self._enabled = max_steps, enabled
        self._last_line_s = -LINE_S
        self._bar: Progress | None = None
        if enabled and style == "auto" and console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                console=console,
                # The thread that redraws takes processor time; each `step` redraws the bar anyway.
                refresh_per_second=1,
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
        """Show the metrics of a step.

        Args:
            step: The step that has been done.
            values: loss, step_s, data_wait_s, memory_gib, and dice if there was a validation.
        """
        if not self._enabled:
            return
        # Validations and checkpoints are not counted.
        left_s = (self._max_steps - step) * values["step_s"]
        parts = [
            f"loss {values['loss']:.4f}",
            *([f"Dice {values['dice']:.4f}"] if "dice" in values else []),
            f"{values['step_s']:.2f} s/step",
            f"{100 * values['data_wait_s'] / values['step_s']:.0f} % data wait",
            f"{values['memory_gib']:.2f} GiB",
            f"{_duration(left_s)} left",
        ]
        text = "  ".join(parts)
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
            if step < self._max_steps:
                return
        now_s = time.monotonic()
        if now_s - self._last_line_s >= LINE_S or step == self._max_steps:
            self._last_line_s = now_s
            extra = {"values": {**values, "step": step, "left_s": left_s}}
            logger.info("step %d/%d  %s", step, self._max_steps, text, extra=extra)


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
