"""What a conversion does to images, and how a network then sees them.

A `Policy` is what the user asks for, once for a store. A `Preprocessing` is what this means for the
dataset at hand: all that is needed to treat a new image as the stored ones were treated. So it is
kept with a network's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from segresmamba.data.records import ChannelStatistics, Intensity, Spacing, StoreRecord
from segresmamba.errors import DataError

_CT_PERCENTILES = (0.5, 99.5)  # as in nnU-Net
_REMEDIES = {
    "spacing": "give keep, median, or three sizes in mm along D, H and W, as in --spacing 3,1,1",
    "intensity": "give auto, zscore, ct or stored; or one of them for each channel, as in "
    "--intensity ct,zscore",
    "dtype": "give auto, float32, float16 or int16",
}


class Policy(StoreRecord):
    """What the user asks a conversion to do. A store is made under one policy."""

    spacing: Literal["keep", "median"] | Spacing = "keep"
    """Voxel size: each case keeps its own, or all get the median, or this one in mm, (D, H, W)."""
    crop: bool = False
    """Whether cases are cut to the box around the voxels that are not zero in some channel."""
    intensity: tuple[Literal["auto"] | Intensity, ...] = ("auto",)
    """How the training device normalises intensities: one choice for all channels, or one each.

    - zscore: by the mean and deviation of the case's non-zero voxels
    - ct: clipped to percentiles of the foreground of all cases, then by its mean and deviation
    - stored: not at all
    - auto: ct for a channel named CT, zscore for others
    """
    dtype: Literal["auto", "float32", "float16", "int16"] = "auto"
    """Type of stored images. Auto is int16 if all channels are integers that fit, else float32."""

    @classmethod
    def from_options(cls, *, spacing: str, crop: bool, intensity: str, dtype: str) -> Policy:
        """The policy that the options of a command line describe.

        Raises:
            DataError: If a value is not one of the choices.
        """
        options = {"spacing": spacing, "intensity": intensity, "dtype": dtype}
        # pydantic checks everything, so that the choices are listed in the fields alone.
        sizes = spacing.split(",") if spacing not in ("keep", "median") else spacing
        given: dict[str, Any] = {"spacing": sizes, "intensity": intensity.split(",")}
        try:
            return cls(crop=crop, dtype=dtype, **given)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise DataError(
                "the option has no such value",
                where=f"--{name}",
                got=options[name],
                remedy=_REMEDIES[name],
            ) from error

    def for_channels(self, names: Sequence[str]) -> Policy:
        """The same policy with one intensity for each channel, and no "auto" among them.

        Raises:
            DataError: If there are several intensities, but not one for each channel.
        """
        # Earlier versions normalised all channels by zscore, and stored no intensities.
        given = self.intensity or ("zscore",)
        asked = given * len(names) if len(given) == 1 else given
        if len(asked) != len(names):
            raise DataError(
                "each channel needs an intensity",
                where="--intensity",
                got=f"{len(asked)} for the channels {', '.join(names)}",
                remedy=_REMEDIES["intensity"],
            )
        chosen = tuple(
            kind if kind != "auto" else ("ct" if name.lower() == "ct" else "zscore")
            for kind, name in zip(asked, names, strict=True)
        )
        return self.model_copy(update={"intensity": chosen})


class Normalisation(StoreRecord):
    """How one channel is normalised."""

    kind: Intensity = "zscore"
    low: float = 0.0
    """Only ct uses this value and those below. Lower intensities become this one."""
    high: float = 0.0
    """Higher intensities become this one."""
    mean: float = 0.0
    std: float = 1.0

    def bounds(self, statistics: ChannelStatistics) -> tuple[float, float, float, float]:
        """Low, high, mean and deviation that a case with these statistics is normalised by."""
        match self.kind:
            case "ct":
                return self.low, self.high, self.mean, self.std
            case "zscore":
                return -np.inf, np.inf, statistics.mean, statistics.std
            case "stored":
                return -np.inf, np.inf, 0.0, 1.0


class Preprocessing(StoreRecord):
    """How an image is treated before a network that was trained on a store sees it."""

    spacing_mm: Spacing | None = None
    """Voxel size along (D, H, W); with None each case keeps its own."""
    crop: bool = False
    normalisation: tuple[Normalisation, ...] = ()
    """One for each channel. Stores of earlier versions have none, and all channels use zscore."""

    def for_case(
        self, statistics: Sequence[ChannelStatistics], scale: Sequence[float] = ()
    ) -> npt.NDArray[np.float32]:
        """Low, high, mean and deviation of each channel, in the units of a case's stored voxels.

        Args:
            statistics: The case's statistics, one for each channel.
            scale: Intensity of a stored 1 in each channel; by default 1.
        """
        kinds = self.normalisation or (Normalisation(),) * len(statistics)
        bounds = [kind.bounds(one) for kind, one in zip(kinds, statistics, strict=True)]
        units = np.array(scale or [1.0] * len(bounds))
        bounds_C4: npt.NDArray[np.float32] = np.array(bounds) / units[:, None]
        return bounds_C4.astype(np.float32)


def ct_normalisation(samples: Sequence[Sequence[float]]) -> Normalisation:
    """nnU-Net's normalisation of CT, from the foreground of all cases.

    Args:
        samples: Foreground intensities of each case, see `statistics.foreground_sample`. They are
            as many for each case, so that large cases do not outweigh small ones.
    """
    pooled = np.concatenate([np.asarray(sample, np.float64) for sample in samples])
    low, high = np.percentile(pooled, _CT_PERCENTILES)
    std = max(float(pooled.std()), 1e-8)  # a constant foreground must not lead to a division by 0
    return Normalisation(kind="ct", low=low, high=high, mean=pooled.mean(), std=std)
