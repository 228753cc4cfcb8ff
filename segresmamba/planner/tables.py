"""A plan as a table for the terminal, and as one sentence with the overrides to add."""

from __future__ import annotations

import shlex

from rich.table import Table

from segresmamba.planner.plan import (
    CONTEXT_GIB,
    GIB,
    WORKSPACE_MARGIN,
    MemoryPlan,
    Prediction,
)


def table(plan: MemoryPlan) -> Table:
    """The configuration as asked and, where that does not fit, as proposed."""
    columns = {"as asked": plan.asked}
    if not plan.fits:
        columns["proposed"] = plan.proposed
    shown = Table(title=f"one GPU of {plan.gpu_memory_gib:g} GiB", title_justify="left")
    shown.add_column("")
    for name in columns:
        shown.add_column(name, justify="right")
    cells = [_cells(prediction) for prediction in columns.values()]
    for label in cells[0]:
        shown.add_row(label, *(column[label] for column in cells))
    return shown


def verdict(plan: MemoryPlan) -> str:
    """Whether the configuration fits, in one sentence."""
    if plan.fits:
        return f"fits: {plan.gpu_memory_gib - plan.asked.needed_gib:.1f} GiB to spare"
    return f"does not fit; with these overrides it does: {shlex.join(plan.overrides)}"


def _cells(prediction: Prediction) -> dict[str, str]:
    """The rows of one column, by their label."""
    config, activations = prediction.config, prediction.activations
    other = prediction.peak_bytes - activations.peak_bytes
    needed = f"with {WORKSPACE_MARGIN:.0%} for workspaces and {CONTEXT_GIB:g} for CUDA, GiB"
    return {
        "patch": " x ".join(map(str, config.data.patch)),
        "crops at once per GPU": str(prediction.micro_batch),
        "accumulation": str(config.train.accumulation),
        "ranks, ZeRO stage": f"{config.cluster.world_size}, {config.train.zero_stage}",
        "parameters": f"{activations.weights_bytes // 4:,}",
        "saved for the backward pass, GiB": f"{activations.saved_bytes / GIB:.2f}",
        "activations at the peak, GiB": f"{activations.peak_bytes / GIB:.2f}",
        "weights, gradients, optimizer, GiB": f"{other / GIB:.2f}",
        "tensors at the peak, GiB": f"{prediction.peak_bytes / GIB:.2f}",
        needed: f"{prediction.needed_gib:.2f}",
    }
