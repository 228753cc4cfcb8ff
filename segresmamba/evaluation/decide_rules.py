"""Decides by held-out cases which components of a prediction are kept.

nnU-Net's rule (nnunetv2/postprocessing/remove_connected_components.py): first the largest component
of all classes together is kept, if that raises the mean Dice and lowers the Dice of no class. Then,
for one class after the other, whatever raises its Dice is applied. Besides nnU-Net's largest
component, a smallest size is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segresmamba.inference.postprocessing import (
    Rule,
    apply,
    connected_components,
    kept_components,
)

_SIZES_MM3 = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)

Labels = NDArray[Any]
Members = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Decision:
    """The rules that help, in their order, and a sentence on each that was tried."""

    rules: tuple[Rule, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class KeptCase:
    """A predicted case in its original geometry, kept in a file."""

    path: Path

    @classmethod
    def write(
        cls, path: Path, prediction: Labels, reference: Labels, spacing_mm: Sequence[float]
    ) -> KeptCase:
        """Keep a case."""
        np.savez_compressed(path, prediction=prediction, reference=reference, spacing_mm=spacing_mm)
        return cls(path)

    def read(self) -> tuple[Labels, Labels, list[float]]:
        """Prediction, reference and voxel size."""
        with np.load(self.path) as content:
            prediction, reference = content["prediction"], content["reference"]
            return prediction, reference, content["spacing_mm"].tolist()

    def clean(self, rule: Rule) -> None:
        """Apply a rule to the prediction."""
        prediction, reference, spacing_mm = self.read()
        self.write(self.path, apply(prediction, [rule], spacing_mm), reference, spacing_mm)


def decide_rules(cases: Sequence[KeptCase], members: Members) -> Decision:
    """Find the rules that raise Dice on held-out cases.

    Args:
        cases: The cases. Their predictions are cleaned by the rules that are found.
        members: Label values of each class; classes may overlap.
    """
    accepted: list[Rule] = []
    reasons: list[str] = []
    for candidates in _candidates(members):
        components = [_Components.of(case, candidates[0].values, members) for case in cases]
        before = _mean_dice(components, None)
        best, after = None, before
        for rule in candidates:
            dice = _mean_dice(components, rule)
            better = _target(dice, rule) > _target(after, rule)
            if better and all(dice[name] >= before[name] for name in dice if name != rule.name):
                best, after = rule, dice
        reasons.append(_reason(candidates, best, before, after, len(cases)))
        if best is not None:
            accepted.append(best)
            for case in cases:
                case.clean(best)
    return Decision(tuple(accepted), tuple(reasons))


def _candidates(members: Members) -> Iterator[list[Rule]]:
    """The rules among which at most one is chosen, stage by stage."""
    if len(members) > 1:
        every = sorted({value for values in members.values() for value in values})
        yield [Rule(name="foreground", values=tuple(every), keep_largest=True)]
    for name, values in members.items():
        own = {"name": name, "values": tuple(values)}
        largest = Rule.model_validate(own | {"keep_largest": True})
        yield [largest, *(Rule.model_validate(own | {"minimum_mm3": mm3}) for mm3 in _SIZES_MM3)]


@dataclass(frozen=True)
class _Components:
    """The components of one case that rules remove or keep, and what of each class is in them."""

    voxels: NDArray[np.intp]
    voxel_mm3: float
    predicted: Mapping[str, NDArray[np.intp]]
    """For each class that the rules touch: voxels of the prediction by component."""
    common: Mapping[str, NDArray[np.intp]]
    """Those of them that the reference has too."""
    reference: Mapping[str, int]

    @classmethod
    def of(cls, case: KeptCase, values: Sequence[int], members: Members) -> _Components:
        prediction, reference, spacing_mm = case.read()
        numbers = connected_components(np.isin(prediction, values))
        voxels = np.bincount(numbers.ravel())
        predicted, common, expected = {}, {}, {}
        for name, own in members.items():
            if not set(own) & set(values):
                continue
            found, there = np.isin(prediction, own), np.isin(reference, own)
            predicted[name] = np.bincount(numbers[found], minlength=len(voxels))
            common[name] = np.bincount(numbers[found & there], minlength=len(voxels))
            expected[name] = int(np.count_nonzero(there))
        return cls(voxels, prod(spacing_mm), predicted, common, expected)

    def dice(self, rule: Rule | None) -> dict[str, float]:
        """Dice of each class if a rule were applied; 1 if neither volume then has the class."""
        kept = np.ones(len(self.voxels), np.bool_)
        if rule is not None:
            kept = kept_components(rule, self.voxels, self.voxel_mm3)
        totals = {
            name: self.predicted[name][kept].sum() + self.reference[name] for name in self.common
        }
        return {
            name: float(2 * self.common[name][kept].sum() / total) if total else 1.0
            for name, total in totals.items()
        }


def _mean_dice(cases: Sequence[_Components], rule: Rule | None) -> dict[str, float]:
    dice = [case.dice(rule) for case in cases]
    return {name: fmean(one[name] for one in dice) for name in dice[0]}


def _target(dice: Mapping[str, float], rule: Rule) -> float:
    """What a rule has to raise: the Dice of its class, for all classes together their mean."""
    return dice.get(rule.name, fmean(dice.values()))


def _reason(
    candidates: Sequence[Rule],
    best: Rule | None,
    before: Mapping[str, float],
    after: Mapping[str, float],
    cases: int,
) -> str:
    rule = best or candidates[0]
    if best is None:
        return (
            f"{rule.name}: Dice {_target(before, rule):.4f}, which no rule raises ({cases} cases)"
        )
    what = (
        "only the largest component"
        if rule.keep_largest
        else f"components of at least {rule.minimum_mm3:g} mm^3"
    )
    return (
        f"{rule.name}: {what}: Dice from {_target(before, rule):.4f} to {_target(after, rule):.4f} "
        f"({cases} cases)"
    )
