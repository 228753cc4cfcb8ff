"""Types that the records of a store are made of. All of them are kept as JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spacing = tuple[Millimetres, Millimetres, Millimetres]
"""Voxel size along (D, H, W)."""
Intensity = Literal["zscore", "zscore-whole", "ct", "rescale01", "rgb", "stored"]


class StoreRecord(BaseModel):
    """Base of all records: unknown keys are refused, and nothing changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ChannelStatistics(StoreRecord):
    """Intensities of one channel over its non-zero voxels, in the units of the files."""

    mean: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float
    nonzero_share: float | None = None
    """Share of the voxels that are not zero; None where an earlier version has measured."""
