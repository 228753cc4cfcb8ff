"""Runs small enough for a test, over the real store, loader, engine and journal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segresmamba.config import Config, load_config

MODEL = ("model.dims=[8,8]", "model.d_state=4")


TINY = (
    "data=custom",
    "data.patch=[32,32,32]",
    "data.workers=0",
    *MODEL,
    "train.max_steps=4",
    "train.warmup_steps=1",
    "train.batch_size=2",
    "train.lr=1e-3",
    "train.log_every=1",
    "train.precision=fp32",
    "train.threads=1",
    "validation.overlap=0",
    "validation.overlays=0",
    "tracking=none",
)
"""Four steps of two 32^3 crops, every step in the journal, MLflow and energy off."""


def tiny_config(store: Path, root: Path, *overrides: str) -> Config:
    """`TINY` as a configuration."""
    return load_config(
        [*TINY, f"data.store={store}", f"run.root={root}", "run.name=tiny", *overrides]
    )


def journal_losses(run: Path) -> dict[int, float]:
    """Loss by step, as the journal has it; a step recorded twice must not differ."""
    losses: dict[int, float] = {}
    for line in (run / "journal.jsonl").read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        loss = record.get("values", {}).get("train/loss")
        if loss is not None:
            losses[record["step"]] = loss
    return losses
