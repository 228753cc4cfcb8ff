"""What is known of one network: measured here, and printed in the paper."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

REFERENCE_CHANNELS, REFERENCE_CLASSES = 4, 3
REFERENCE_PATCH = (128, 128, 128)
REFERENCE_PRECISION = "bf16"

Status = Literal["ok", "out of memory", "failed", "interrupted"]


@dataclass
class Result:
    """One row of the table; None stands for what was not measured.

    "Reference" is 4 channels of 128^3 voxels, batch 1, 3 classes, bf16 autocast, counted with fake
    tensors: the same on every machine. All else is measured on the
    device at the size of the run.
    """

    model: str
    """Name of the preset."""
    status: Status = "ok"
    """How it ended; a row that did not end well keeps what was found before."""
    note: str = ""
    """Why it did not end well."""
    trained_parameters: int | None = None
    """At the reference."""
    dead_parameters: int | None = None
    """Parameters without a gradient, at the reference."""
    reference_gmacs: float | None = None
    """Of one forward pass at the reference, scan included."""
    reference_saved_gib: float | None = None
    """Kept for the backward pass at the reference, under the CPU's autocast lists."""
    reference_saved_cuda_gib: float | None = None
    """The same under CUDA's autocast lists, which keep norms in fp32."""
    saved_gib: float | None = None
    """Kept for the backward pass in the run."""
    peak_gib: float | None = None
    """Most memory of the training steps, weights and optimizer included: what tensors took on a
    GPU, resident memory above that of the idle process on a CPU."""
    step_s: float | None = None
    """Mean time of a training step on synthetic data, augmentation included."""
    loaded_step_s: float | None = None
    """Mean time of a training step that reads its crops from the store."""
    data_wait_s: float | None = None
    """Of that, waiting for the readers."""
    wh_per_1000_steps: float | None = None
    """Energy of 1000 steps on synthetic data."""
    co2e_g_per_1000_steps: float | None = None
    """The same energy in grams of CO2e."""
    power: str | None = None
    """How the power is known: measured, or estimated."""
    scan_backend: str | None = None
    """Implementation of the scan; "none" where nothing is scanned."""

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(json.dumps(asdict(self)))
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read back what `save` wrote."""
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
"""What the paper prints for a network, by the name that it has here."""


@dataclass(frozen=True)
class Setting:
    """What the rows of one table have in common."""

    device: str
    patch: tuple[int, int, int]
    batch_size: int
    precision: str
    steps: int
    data: str
    """The store that real loading reads, or why there is none."""
    versions: str
