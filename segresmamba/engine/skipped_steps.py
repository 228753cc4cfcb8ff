"""Steps that were skipped because a loss or a gradient was not finite: the count, the evidence.

All ranks skip such a step together (`engine.zero`). It leaves weights, moments and loss scale as
they were, and counts as a step like any other: the next one takes the next crops, at the learning
rate of its own number. So a run that skips a step sees the same crops as one that does not.

    skipped.jsonl         {"step": 7, "lr": 1e-4, "gradient_norm": "nan", "batches": [
                              {"rank": 0, "loss": "nan", "crops": [12], "cases": ["BRATS_001"]}]}
    skipped-weights.pt    full weights at the last of these steps

`segresmamba debug-batch` repeats one of them. In fp16 a gradient that overflows because of the loss
scale has a rule of its own (`task.precision.LossScaler`), and is not counted here.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from segresmamba.config import TrainConfig
from segresmamba.engine.distributed import gather
from segresmamba.engine.outcome import QueuedStep
from segresmamba.engine.zero import ZeroEngine
from segresmamba.storage.atomic import atomic_path
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.ranks import Ranks
from segresmamba.task.weights import save_torch

logger = logging.getLogger(__name__)

_LINES = 1000
"""Evidence is kept for this many steps at most, so that the file does not grow for ever."""


@dataclass
class SkippedSteps:
    """Counts skipped steps, on every rank alike."""

    config: TrainConfig
    folder: RunFolder
    ranks: Ranks
    total: int = 0
    in_a_row: int = 0

    def count(self, queued: QueuedStep, gradient_norm: float, engine: ZeroEngine) -> None:
        """Count a step, and keep its evidence if it was skipped (collective).

        Args:
            queued: The step.
            gradient_norm: The norm of its gradient.
            engine: The engine, before any later step.
        """
        if math.isfinite(gradient_norm):
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        own: list[dict[str, Any]] = [
            {
                "rank": self.ranks.rank,
                "loss": str(float(loss)),
                "crops": numbers,
                "cases": list(case_ids),
            }
            for (numbers, case_ids), loss in zip(queued.crops, queued.losses, strict=True)
        ]
        parts = gather(own, self.ranks)
        # The weights stay as they are until a step is made.
        weights = engine.weights() if self.in_a_row == 1 else None
        if self.ranks.is_main:
            found = [batch for part in parts for batch in part]
            record = {"step": queued.step, "lr": queued.lr, "gradient_norm": str(gradient_norm)}
            self._keep(record | {"batches": found}, weights)
            broken = [batch for batch in found if not math.isfinite(float(batch["loss"]))]
            where = [f"rank {b['rank']}: loss {b['loss']}, cases {b['cases']}" for b in broken]
            logger.warning(
                "step %d is skipped on all ranks, weights stay as they are: %s",
                queued.step,
                "; ".join(where) or "the losses are finite, but the gradient is not",
            )

    def too_many(self, step: int) -> bool:
        """Whether more of the steps up to this one were skipped than the configuration allows."""
        most = self.config.max_skipped_in_a_row
        share = self.config.max_skipped_share * step
        return self.in_a_row > most or self.total > max(most, share)

    def _keep(self, record: dict[str, object], weights: dict[str, Tensor] | None) -> None:
        try:
            if self.total <= _LINES:
                with self.folder.skipped.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
            if weights is not None:
                with atomic_path(self.folder.skipped_weights) as path:
                    save_torch({"step": record["step"], "weights": weights}, path)
        except OSError as error:  # training matters more than its evidence
            logger.error("what was skipped at step %s is not kept: %s", record["step"], error)
