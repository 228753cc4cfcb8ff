"""What a search may try: Hydra's sweep grammar as dimensions.

model=segresmamba,segresnet               one of these
'train.warmup_steps=range(0,500,100)'     one of 0, 100, ..., 400, which have an order
'train.lr=interval(1e-5,1e-2)'            a number in between
'train.lr=tag(log,interval(1e-5,1e-2))'   a number in between, uniform in its logarithm
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
    """A number between two others. It is an integer if both of these are."""

    key: str
    low: int | float
    high: int | float
    step: int | float | None
    """Distance of the values; None for any number in between, or any integer."""
    log: bool

    @property
    def corners(self) -> tuple[Value, ...]:
        """Values whose settings are checked before a search begins."""
        return self.low, self.high

    @property
    def points(self) -> tuple[Value, ...] | None:
        """All values; None if they cannot be counted."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return tuple(range(self.low, self.high + 1, int(self.step or 1)))
        if self.step is None:
            return None
        count = round((self.high - self.low) / self.step) + 1
        return tuple(self.low + k * self.step for k in range(count))


@dataclass(frozen=True)
class Space:
    """The overrides that are the same in every trial, and the dimensions that vary."""

    fixed: tuple[str, ...]
    dimensions: tuple[Choice | Number, ...]

    @classmethod
    def from_overrides(cls, overrides: Sequence[str]) -> Space:
        """The space that these overrides describe.

        Raises:
            ConfigError: If there is nothing to search, a key comes twice, a setting changes no
                result, or a range is empty.
        """
        parsed = {text: parse(text) for text in overrides}
        swept = {text: over for text, over in parsed.items() if over.is_sweep_override()}
        dimensions = tuple(_dimension(text, override) for text, override in swept.items())
        keys = [override.key_or_group for override in parsed.values()]
        if not dimensions:
            raise ConfigError(
                "there is nothing to search",
                where="--search",
                got=" ".join(overrides) or "no settings",
                remedy="name what may vary, as in 'train.lr=tag(log,interval(1e-5,1e-2))' "
                "model=segresmamba,segresnet",
            )
        for dimension in dimensions:
            if keys.count(dimension.key) > 1:
                raise ConfigError(
                    "a key of the search was given more than once",
                    where=dimension.key,
                    got=" ".join(o for o in overrides if o.startswith(f"{dimension.key}=")),
                    remedy="give it once",
                )
        return cls(tuple(text for text in overrides if text not in swept), dimensions)

    def overrides(self, values: Mapping[str, Value]) -> list[str]:
        """What `python -m launch train` is given for a point of the space."""
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]

    def corners(self) -> list[list[SearchPoint]]:
        """For each choice and each end of an interval, two points of the space that have it.

        All other settings have their first value in one point and their last in the other, because
        some settings limit each other, as warm-up and steps: one point may be valid if one is not.
        """
        bases = [{d.key: d.corners[end] for d in self.dimensions} for end in (0, -1)]
        return [
            [base | {dimension.key: value} for base in bases]
            for dimension in self.dimensions
            for value in dimension.corners
        ]

    def points(self) -> list[SearchPoint] | None:
        """Every point; None if they cannot be counted."""
        axes = [dimension.points for dimension in self.dimensions]
        finite = [axis for axis in axes if axis is not None]
        if len(finite) < len(axes):
            return None
        keys = [dimension.key for dimension in self.dimensions]
        return [dict(zip(keys, point, strict=True)) for point in product(*finite)]


def _dimension(text: str, override: Override) -> Choice | Number:
    key, value = override.key_or_group, override.value()
    if not changes_result(f"{key}." if key in presets() else key):
        raise _unsearchable(text, "it changes no result", "give it one value")
    tags = set(getattr(value, "tags", ()))
    is_log = tags == {"log"} and isinstance(value, IntervalSweep)
    if tags and not is_log:
        raise _unsearchable(
            text,
            f"a tag {', '.join(map(str, sorted(tags)))}",
            "the only tag is log, for an interval",
        )
    match value:
        case IntervalSweep(start=int() | float() as low, end=int() | float() as high):
            found = Number(key, low, high, None, is_log)
        case RangeSweep():
            steps = sorted(value.range())
            if not steps:
                raise _unsearchable(text, "no value", "give range(start,stop,step), stop excluded")
            found = Number(key, steps[0], steps[-1], abs(value.step), log=False)
        case ChoiceSweep() | _:
            return Choice(key, tuple(dict.fromkeys(choices(override))))
    if not (math.isfinite(found.low) and math.isfinite(found.high) and found.low <= found.high):
        raise _unsearchable(text, "no number in between", "give the smaller end first")
    if found.log and found.low <= 0:
        raise _unsearchable(text, "a logarithm of what is not positive", "begin above 0")
    return found


def _unsearchable(text: str, got: str, remedy: str) -> ConfigError:
    return ConfigError(
        "this cannot be searched over",
        where=text.partition("=")[0],
        got=f"{text}: {got}",
        remedy=remedy,
    )
