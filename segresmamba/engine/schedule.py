"""The learning rate is a pure function of the step, so a resumed run needs no state for it."""

from __future__ import annotations

import math

from segresmamba.config.train import TrainConfig


def learning_rate(step: int, train: TrainConfig) -> float:
    """Linear warm-up to `train.lr`, then the configured decay to zero at `train.max_steps`.

    The warm-up starts above zero, so that no step is wasted, and reaches the peak at step
    `warmup_steps`.

    Args:
        step: Optimizer steps already taken: 0 before the first, at most `max_steps`.
        train: Peak, warm-up, length and kind of decay.

    Raises:
        ValueError: If the step lies outside the run.
    """
    if not 0 <= step <= train.max_steps:
        raise ValueError(f"step {step} lies outside a run of {train.max_steps} steps")
    if step < train.warmup_steps:
        return train.lr * (step + 1) / (train.warmup_steps + 1)
    progress = (step - train.warmup_steps) / (train.max_steps - train.warmup_steps)
    match train.schedule:
        case "cosine":
            return train.lr * 0.5 * (1 + math.cos(math.pi * progress))
        case "polynomial":
            return train.lr * math.pow(1 - progress, 0.9)  # nnU-Net's exponent
        case "constant":
            return train.lr
