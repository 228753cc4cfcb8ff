"""The parts that a store's records are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spacing = tuple[Millimetres, Millimetres, Millimetres]
"""Along (D, H, W)."""
Intensity = Literal["zscore", "ct", "stored"]


class StoreRecord(BaseModel):
    """A part of what a store says about itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ChannelStatistics(StoreRecord):
    """Intensities of one channel over its non-zero voxels, before they were narrowed to a scale."""

    mean: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float
