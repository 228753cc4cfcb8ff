"""The figures of one network: measured here, and printed in the paper."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from segresmamba.storage.atomic import write_text

REFERENCE_CHANNELS, REFERENCE_CLASSES = 4, 3
REFERENCE_PATCH = (128, 128, 128)
REFERENCE_PRECISION = "bf16"

Status = Literal["ok", "out of memory", "failed", "interrupted"]


@dataclass
class Result:
    """One row of the table; None stands for what was not measured.

    The figures at the reference (4 channels of 128^3 voxels, batch 1, 3 classes, bf16 autocast) are
    counted with fake tensors, so they are the same on every machine. All others are measured on the
    device at the size of the run.
    """

    model: str
    """Name of the preset."""
    status: Status = "ok"
    """How the measurement ended; the row keeps what was found up to then."""
    note: str = ""
    """Why it did not end well."""
    trained_parameters: int | None = None
    """Parameters with a gradient, at the reference."""
    dead_parameters: int | None = None
    """Parameters without a gradient, at the reference."""
    reference_gmacs: float | None = None
    """Multiply-accumulate operations of one forward pass at the reference, in 10^9."""
    reference_saved_gib: float | None = None
    """Kept for the backward pass at the reference, under the CPU's autocast lists."""
    reference_saved_cuda_gib: float | None = None
    """The same under CUDA's autocast lists, which keep norms in fp32."""
    saved_gib: float | None = None
    """Kept for the backward pass in the run."""
    peak_gib: float | None = None
    """Peak memory of the training steps, weights and optimizer included: the memory of tensors on a
    GPU, resident memory above that of the idle process on a CPU."""
    step_s: float | None = None
    """Mean time of a training step on synthetic data, augmentation included."""
    loaded_step_s: float | None = None
    """Mean time of a training step that reads its crops from the store."""
    data_wait_s: float | None = None
    """Part of loaded_step_s in which the step waits for the readers."""
    wh_per_1000_steps: float | None = None
    """Energy of 1000 steps on synthetic data."""
    co2e_g_per_1000_steps: float | None = None
    """The same energy in grams of CO2e."""
    power: str | None = None
    """Whether the power was measured or estimated."""
    scan_backend: str | None = None
    """Implementation of the scan; "none" where nothing is scanned."""

    @property
    def summary(self) -> str:
        """The result in one line."""
        if self.status != "ok":
            return f"{self.status}: {self.note}"
        return f"{self.step_s:.3g} s a step, peak {self.peak_gib or math.nan:.3g} GiB"

    def save(self, path: Path) -> None:
        """Write the result as JSON, atomically."""
        write_text(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Paper:
    """A row of the paper's table."""

    parameters_m: float
    memory_gb: float | None
    epoch_s: float
    co2_kg: float
    note: str = ""


PAPER_SOURCE = (
    "Das et al., SegResMamba, MIDL 2025 (BraTS 2021, one A100 40 GB, batch 1, 128^3), from a "
    "second-hand copy; its parameters are for 1 input and 14 output channels, its CO2 column is "
    "time times a constant"
)
_PAPERS_OWN = Paper(119.98, 4.78, 267.83, 11.35, "its released code never runs Mamba")
PAPER = {
    "segresmamba": _PAPERS_OWN,
    "segresmamba_paper": _PAPERS_OWN,
    "segmamba": Paper(67.36, 13.44, 321.50, 13.62),
    "swinunetr_checkpointed": Paper(62.19, 7.68, 321.39, 13.61, "with gradient checkpointing"),
    "unetr": Paper(93.01, 3.02, 262.83, 11.13),
    "dynunet": Paper(31.19, None, 255.80, 10.84, "called 3D U-Net there"),
}
"""The paper's figures for a network, by the name of its preset."""


@dataclass(frozen=True)
class Setting:
    """What is the same for all rows of a table."""

    device: str
    patch: tuple[int, int, int]
    batch_size: int
    precision: str
    steps: int
    data: str
    """The store that is read, or why none is."""
    versions: str
