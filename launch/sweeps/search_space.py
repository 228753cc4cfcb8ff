"""What a search may try: Hydra's sweep grammar as dimensions.

model=segresmamba,segresnet               one of these
'train.warmup_steps=range(0,500,100)'     one of 0, 100, ..., 400, which have an order
'train.lr=interval(1e-5,1e-2)'            a number in between
'train.lr=tag(log,interval(1e-5,1e-2))'   the same, small ones tried as often as large ones
'train.batch_size=int(interval(2,8))'     an integer, the ends included
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from launch.sweeps.grammar import choices, parse
from segresmamba.config import changes_result, presets
from segresmamba.errors import ConfigError

Value = str | int | float
SearchPoint = dict[str, Value]
"""A value for each key that is searched over."""


@dataclass(frozen=True)
class Choice:
    """One of several values, which have no order."""

    key: str
    values: tuple[str, ...]

    @property
    def corners(self) -> tuple[Value, ...]:
        """Values whose settings are checked before a search begins."""
        return self.values

    @property
    def points(self) -> tuple[Value, ...] | None:
        """All values."""
        return self.values


@dataclass(frozen=True)
class Number:
    """A number between two others, which are integers if it is one."""

    key: str
    low: int | float
    high: int | float
    step: int | float | None
    """Distance of the values; unset, any number in between, or any integer."""
    log: bool

    @property
    def corners(self) -> tuple[Value, ...]:
        """Values whose settings are checked before a search begins."""
        return self.low, self.high

    @property
    def points(self) -> tuple[Value, ...] | None:
        """All values; None if there is no end of them."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return tuple(range(self.low, self.high + 1, int(self.step or 1)))
        if self.step is None:
            return None
        count = round((self.high - self.low) / self.step) + 1
        return tuple(self.low + k * self.step for k in range(count))


@dataclass(frozen=True)
class Space:
    """Words that are the same in every trial, and what differs."""

    fixed: tuple[str, ...]
    dimensions: tuple[Choice | Number, ...]

    @classmethod
    def from_overrides(cls, words: Sequence[str]) -> Space:
        """The space that these words describe.

        Raises:
            ConfigError: If there is nothing to search, twice the same to search, a setting that
                changes no result, or a range that makes no sense.
        """
        parsed = {word: parse(word) for word in words}
        swept = {word: over for word, over in parsed.items() if over.is_sweep_override()}
        dimensions = tuple(_dimension(word, override) for word, override in swept.items())
        keys = [override.key_or_group for override in parsed.values()]
        if not dimensions:
            raise ConfigError(
                "there is nothing to search",
                where="--search",
                got=" ".join(words) or "no words",
                remedy="name what may vary, as in 'train.lr=tag(log,interval(1e-5,1e-2))' "
                "model=segresmamba,segresnet",
            )
        for dimension in dimensions:
            if keys.count(dimension.key) > 1:
                raise ConfigError(
                    "a key of the search was given more than once",
                    where=dimension.key,
                    got=" ".join(w for w in words if w.startswith(f"{dimension.key}=")),
                    remedy="give it once",
                )
        return cls(tuple(word for word in words if word not in swept), dimensions)

    def words(self, values: Mapping[str, Value]) -> list[str]:
        """What `python -m launch train` is given for a point of the space."""
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]

    def corners(self) -> list[list[SearchPoint]]:
        """For each choice and each end of an interval, two points of the space that have it.

        The other settings are their first in one and their last in the other: some depend on each
        other, as warm-up and steps do.
        """
        bases = [{d.key: d.corners[end] for d in self.dimensions} for end in (0, -1)]
        return [
            [base | {dimension.key: value} for base in bases]
            for dimension in self.dimensions
            for value in dimension.corners
        ]

    def points(self) -> list[SearchPoint] | None:
        """Every point; None if there is no end of them."""
        axes = [dimension.points for dimension in self.dimensions]
        finite = [axis for axis in axes if axis is not None]
        if len(finite) < len(axes):
            return None
        keys = [dimension.key for dimension in self.dimensions]
        return [dict(zip(keys, point, strict=True)) for point in product(*finite)]


def _dimension(word: str, override: Override) -> Choice | Number:
    key, value = override.key_or_group, override.value()
    if not changes_result(f"{key}." if key in presets() else key):
        raise _senseless(word, "it changes no result", "give it one value")
    tags = set(getattr(value, "tags", ()))
    is_log = tags == {"log"} and isinstance(value, IntervalSweep)
    if tags and not is_log:
        raise _senseless(
            word, f"a tag {', '.join(map(str, sorted(tags)))}", "the one tag is log, of an interval"
        )
    match value:
        case IntervalSweep(start=int() | float() as low, end=int() | float() as high):
            found = Number(key, low, high, None, is_log)
        case RangeSweep():
            steps = sorted(value.range())
            if not steps:
                raise _senseless(word, "no value", "give range(start,stop,step), stop excluded")
            found = Number(key, steps[0], steps[-1], abs(value.step), log=False)
        case ChoiceSweep() | _:
            return Choice(key, tuple(dict.fromkeys(choices(override))))
    if not (math.isfinite(found.low) and math.isfinite(found.high) and found.low <= found.high):
        raise _senseless(word, "no number in between", "give the smaller end first")
    if found.log and found.low <= 0:
        raise _senseless(word, "a logarithm of what is not positive", "begin above 0")
    return found


def _senseless(word: str, got: str, remedy: str) -> ConfigError:
    return ConfigError(
        "this cannot be searched over",
        where=word.partition("=")[0],
        got=f"{word}: {got}",
        remedy=remedy,
    )
