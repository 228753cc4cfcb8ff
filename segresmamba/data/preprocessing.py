"""What a conversion changes, and what a network is later given: chosen once, kept in the store.

A `Policy` is what the user asks for. A `Preprocessing` is what came of it for a dataset: enough to
treat a new image as the stored ones were treated, so it goes with a network's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from segresmamba.data.records import ChannelStatistics, Intensity, Spacing, StoreRecord
from segresmamba.errors import DataError

_CT_PERCENTILES = (0.5, 99.5)  # nnU-Net's
_REMEDIES = {
    "spacing": "give keep, median, or three sizes in mm along D, H and W, as in --spacing 3,1,1",
    "intensity": "give auto, zscore, ct or stored; or one of them for each channel, as in "
    "--intensity ct,zscore",
    "dtype": "give auto, float32, float16 or int16",
}


class Policy(StoreRecord):
    """What a conversion is asked to do. A store is made under one policy."""

    spacing: Literal["keep", "median"] | Spacing = "keep"
    """Voxel size: of each case, the median of all cases, or this one in mm along (D, H, W)."""
    crop: bool = False
    """Cut cases to the box around what is not zero in some channel."""
    intensity: tuple[Literal["auto"] | Intensity, ...] = ("auto",)
    """How intensities are normalised on the training device, for all channels or for each: by the
    mean and deviation of a case's non-zero voxels (zscore), by those of the foreground of all cases
    after clipping to its percentiles (ct), or not at all (stored). Auto takes ct for a channel of
    that name and zscore for the others."""
    dtype: Literal["auto", "float32", "float16", "int16"] = "auto"
    """Of stored images; auto is int16 where all channels are integers that fit, else float32."""

    @classmethod
    def from_options(cls, *, spacing: str, crop: bool, intensity: str, dtype: str) -> Policy:
        """The policy that a command line describes.

        Raises:
            DataError: For a word that is none of the choices.
        """
        words = {"spacing": spacing, "intensity": intensity, "dtype": dtype}
        sizes = spacing.split(",") if spacing not in ("keep", "median") else spacing
        given: dict[str, Any] = {"spacing": sizes, "intensity": intensity.split(",")}
        try:
            return cls(crop=crop, dtype=dtype, **given)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise DataError(
                "there is no such policy",
                where=f"--{name}",
                got=words[name],
                remedy=_REMEDIES[name],
            ) from error

    def for_channels(self, names: Sequence[str]) -> Policy:
        """The same with an intensity for each channel.

        Raises:
            DataError: If there are neither one nor as many as channels.
        """
        words = self.intensity or ("zscore",)  # stores of earlier versions have none
        asked = words * len(names) if len(words) == 1 else words
        if len(asked) != len(names):
            raise DataError(
                "each channel needs its intensity policy",
                where="--intensity",
                got=f"{len(asked)} for the channels {', '.join(names)}",
                remedy=_REMEDIES["intensity"],
            )
        chosen = tuple(
            word if word != "auto" else ("ct" if name.lower() == "ct" else "zscore")
            for word, name in zip(asked, names, strict=True)
        )
        return self.model_copy(update={"intensity": chosen})


class Normalisation(StoreRecord):
    """How one channel is normalised."""

    kind: Intensity = "zscore"
    low: float = 0.0
    """With ct: intensities below become this one. The others likewise."""
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0

    def bounds(self, statistics: ChannelStatistics) -> tuple[float, float, float, float]:
        """Low, high, mean and deviation for a case with these statistics."""
        match self.kind:
            case "ct":
                return self.low, self.high, self.mean, self.std
            case "zscore":
                return -np.inf, np.inf, statistics.mean, statistics.std
            case "stored":
                return -np.inf, np.inf, 0.0, 1.0


class Preprocessing(StoreRecord):
    """What has to be done to an image before a network that was trained on a store sees it."""

    spacing_mm: Spacing | None = None
    """Voxel size along (D, H, W); None leaves each case its own."""
    crop: bool = False
    normalisation: tuple[Normalisation, ...] = ()
    """Of each channel; none in stores of earlier versions, which is zscore."""

    def for_case(
        self, statistics: Sequence[ChannelStatistics], scale: Sequence[float] = ()
    ) -> npt.NDArray[np.float32]:
        """Low, high, mean and deviation of each channel, in the units of a case's stored voxels.

        Args:
            statistics: Of the case.
            scale: Intensity of a stored 1 in each channel; none is 1.
        """
        kinds = self.normalisation or (Normalisation(),) * len(statistics)
        bounds = [kind.bounds(one) for kind, one in zip(kinds, statistics, strict=True)]
        units = np.array(scale or [1.0] * len(bounds))
        bounds_C4: npt.NDArray[np.float32] = np.array(bounds) / units[:, None]
        return bounds_C4.astype(np.float32)


def ct_normalisation(samples: Sequence[Sequence[float]]) -> Normalisation:
    """nnU-Net's for CT: from the foreground intensities of all cases, each weighing the same.

    Args:
        samples: Foreground intensities of each case, see `statistics.foreground_sample`.
    """
    pooled = np.concatenate([np.asarray(sample, np.float64) for sample in samples])
    low, high = np.percentile(pooled, _CT_PERCENTILES)
    return Normalisation(
        kind="ct", low=low, high=high, mean=pooled.mean(), std=max(float(pooled.std()), 1e-8)
    )
