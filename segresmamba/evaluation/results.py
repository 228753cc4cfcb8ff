"""What an evaluation found: the values of each case and class, and their statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from segresmamba.evaluation.measures import Scoring
from segresmamba.evaluation.statistics import Statistic, statistics

MEAN = "mean"
"""The name of the mean over all classes, beside those of the classes."""

CaseValues = Mapping[str, Mapping[str, float]]
"""Class, metric, value; nan where a metric is not defined."""


@dataclass(frozen=True)
class Results:
    """The results of at least one case; all cases have the same classes and metrics."""

    scoring: Scoring
    members: Mapping[str, tuple[int, ...]]
    """Label values of each class."""
    cases: Mapping[str, CaseValues]
    failed: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with each case that could not be scored."""

    def dice(self, case_id: str) -> float:
        """Mean Dice of a case over the classes that have one; nan if none has."""
        values = [found["dice"] for found in self.cases[case_id].values()]
        defined = [value for value in values if not math.isnan(value)]
        return fmean(defined) if defined else math.nan

    @cached_property
    def ranked(self) -> list[str]:
        """The cases that have a Dice, the worst first."""
        dice = {case_id: self.dice(case_id) for case_id in self.cases}
        return sorted((one for one in dice if not math.isnan(dice[one])), key=dice.__getitem__)

    @cached_property
    def statistics(self) -> dict[str, dict[str, Statistic]]:
        """By class, and the mean over the classes; then by metric."""
        metrics = self.scoring.metrics
        values_NKM = np.array(
            [
                [[case[name][metric] for metric in metrics] for name in self.members]
                for case in self.cases.values()
            ]
        )
        return {
            name: dict(zip(metrics, row, strict=True))
            for name, row in zip([*self.members, MEAN], statistics(values_NKM), strict=True)
        }

    @property
    def one_sided(self) -> dict[str, int]:
        """In how many cases only one of the two volumes has a class."""
        return {
            name: sum(
                (case[name]["reference_ml"] == 0) != (case[name]["prediction_ml"] == 0)
                for case in self.cases.values()
            )
            for name in self.members
        }

    def flat(self) -> dict[str, float]:
        """Means under names for a tracker, `dice/mean`, `dice/<class>` ...; none is nan.

        Of a class only those that training knows, too: with many classes a tracker would show
        nothing but numbers. The files of the results have all.
        """
        return {
            f"{metric}/{name}": one.mean
            for name, row in self.statistics.items()
            for metric, one in row.items()
            if math.isfinite(one.mean) and (name == MEAN or metric in ("dice", "hd95_mm"))
        }

    def content(self) -> dict[str, Any]:
        """All of it for JSON, where nan is null."""
        one_sided = self.one_sided | {MEAN: sum(self.one_sided.values())}
        means: dict[str, Any] = {
            name: {metric: one.mean for metric, one in row.items()} | {"one_sided": one_sided[name]}
            for name, row in self.statistics.items()
        }
        details = {
            name: {metric: asdict(one) for metric, one in row.items()}
            for name, row in self.statistics.items()
        }
        content: dict[str, Any] = without_nan(
            {
                "mean": means.pop(MEAN),
                "classes": means,
                "statistics": details,
                "scoring": self.scoring.model_dump(mode="json"),
                "members": self.members,
                "cases": self.cases,
                "failed": self.failed,
            }
        )
        return content


def without_nan(value: Any) -> Any:
    """A value as JSON can have it: null for nan."""
    if isinstance(value, Mapping):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
