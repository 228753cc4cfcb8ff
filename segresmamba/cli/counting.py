"""How far a command has come: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_LINES = 20  # at most, of a command that runs to its end


@contextmanager
def counting(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """What to call with the number of finished parts and of all."""
    if not console.is_terminal:
        yield _Lines(what, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """A line at the start, and whenever another twentieth is done."""

    def __init__(self, what: str, console: Console) -> None:
        self._what, self._console = what, console
        self._said = -1

    def __call__(self, done: int, total: int) -> None:
        reached = _LINES * done // max(total, 1)
        if reached > self._said:
            self._said = reached
            self._console.print(f"{self._what}: {done} of {total} cases", highlight=False)
