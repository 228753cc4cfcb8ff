"""Which runs `python -m launch status` shows, and in which order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from launch.run_state import FAILED, RUNNING


class Order(Enum):
    """What comes first."""

    NAME = "name"
    """By folder; trials by their number."""
    DICE = "dice"
    """The highest Dice."""
    ENERGY = "energy"
    """The most energy."""
    RECENT = "recent"
    """The newest record."""


class Row(Protocol):
    """A run or a trial."""

    @property
    def state(self) -> str:
        """See `launch.run_state`."""

    @property
    def dice(self) -> float | None:
        """Its last validation."""

    @property
    def energy_wh(self) -> float | None:
        """Its energy."""

    @property
    def recorded_s(self) -> float | None:
        """When it last recorded something."""


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Selection:
    """A filter and an order."""

    states: frozenset[str] = frozenset()
    """States to show; all if it is empty."""
    order: Order = Order.NAME

    @classmethod
    def from_options(cls, *, failed: bool, running: bool, order: Order) -> Selection:
        """What the options of the command ask for."""
        chosen = {FAILED: failed, RUNNING: running}
        return cls(frozenset(state for state, is_asked in chosen.items() if is_asked), order)

    def of(self, rows: Sequence[R]) -> list[R]:
        """The rows to show, in their order. Rows without a value come last."""
        kept = [row for row in rows if not self.states or row.state in self.states]
        match self.order:
            case Order.NAME:
                return kept
            case Order.DICE:
                return sorted(kept, key=lambda row: _highest_first(row.dice))
            case Order.ENERGY:
                return sorted(kept, key=lambda row: _highest_first(row.energy_wh))
            case Order.RECENT:
                return sorted(kept, key=lambda row: _highest_first(row.recorded_s))


EVERYTHING = Selection()


def _highest_first(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else -value


def cell(value: float | None, form: str) -> str:
    """A number in a column as wide as the number itself; spaces if there is none."""
    return " " * len(form.format(0.0)) if value is None else form.format(value)
