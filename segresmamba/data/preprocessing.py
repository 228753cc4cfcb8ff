"""What a conversion does to images, and how a network then sees them.

A `Policy` is what the user asks for, once for a store. A `Preprocessing` is what this means for the
dataset at hand: all that is needed to treat a new image as the stored ones were treated. So it is
kept with a network's weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from segresmamba.data.records import ChannelStatistics, Intensity, Spacing, StoreRecord
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

CT_KINDS = frozenset({"ct", "ct-clipped"})
"""Intensities that are normalised by the foreground of all cases."""
_CT_PERCENTILES = (0.5, 99.5)  # as in nnU-Net
# What nnU-Net reads from the names of channels in dataset.json; all other names mean zscore.
_BY_NAME: dict[str, Intensity] = {
    "ct": "ct",
    "rescale_to_0_1": "rescale01",
    "rescale_0_1": "rescale01",
    "rgb_to_0_1": "rgb",
    "nonorm": "stored",
}
_CONSTANT = 1e-3
"""Deviation, as a share of the largest intensity, up to which a channel counts as constant."""
_LEAST_SHARED = 0.1
"""Share of the training's range of intensities that a new CT has to have."""
_REMEDIES = {
    "spacing": "give keep, median, or three sizes in mm along D, H and W, as in --spacing 3,1,1",
    "intensity": "give auto, zscore, zscore-whole, ct, ct-clipped, rescale01, rgb or stored; or "
    "one of them for each channel, as in --intensity ct,zscore",
    "dtype": "give auto, float32, float16 or int16",
}


SAME_SIZE = 0.01
"""Relative difference up to which two voxel sizes count as one."""


class Policy(StoreRecord):
    """What the user asks a conversion to do. A store is made under one policy."""

    spacing: Literal["keep", "median"] | Spacing = "keep"
    """Voxel size: each case keeps its own, or all get the median, or this one in mm, (D, H, W)."""
    crop: bool = False
    """Whether cases are cut to the box around the voxels that are not zero in some channel."""
    intensity: tuple[Literal["auto", "ct-clipped"] | Intensity, ...] = ("auto",)
    """How the training device normalises intensities: one choice for all channels, or one each.

    - zscore: by the mean and deviation of the case's non-zero voxels
    - zscore-whole: by those of all its voxels
    - ct: clipped to percentiles of the foreground of all cases, then by its mean and deviation
    - ct-clipped: the same, and clipped before it is stored
    - rescale01: from 0 to 1 over the case's range, 0 included
    - rgb: divided by 255
    - stored: not at all
    - auto: as nnU-Net, by the channel's name: ct for CT, rescale01 for rescale_to_0_1, rgb for
      rgb_to_0_1, stored for noNorm, zscore for others
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
            kind if kind != "auto" else _BY_NAME.get(name.lower(), "zscore")
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
            case "zscore" | "zscore-whole":
                largest = max(abs(statistics.min), abs(statistics.max))
                mean, std = statistics.mean, statistics.std
                if self.kind == "zscore-whole":
                    # Those of all voxels, from those of the voxels that are not zero.
                    share = statistics.nonzero_share
                    if share is None:
                        raise ValueError(
                            "the record lacks the share of non-zero voxels, "
                            "which zscore-whole needs"
                        )
                    variance = share * (std**2 + (1 - share) * mean**2)
                    mean, std = share * mean, float(np.sqrt(variance))
                if std <= _CONSTANT * largest:
                    # A mask or a map of one value. Divided by a deviation of nearly 0, its zeros
                    # would reach the network as numbers without bound.
                    return -np.inf, np.inf, 0.0, largest
                return -np.inf, np.inf, mean, std
            case "rescale01":
                # Statistics are those of non-zero voxels, and nearly every image has zeros too.
                low, high = min(0.0, statistics.min), max(0.0, statistics.max)
                return -np.inf, np.inf, low, high - low
            case "rgb":
                return -np.inf, np.inf, 0.0, 255.0
            case "stored":
                return -np.inf, np.inf, 0.0, 1.0


class NnUNetSteps(StoreRecord):
    """How nnU-Net treats an image, where stores of this project are made otherwise.

    With it, an image is cropped, normalised and then resampled, each as nnU-Net does it, see
    `data.volumes.nnunet`; the kinds of `Normalisation` have nnU-Net's meaning.
    """

    as_stored: bool = True
    """Whether the network saw the axes as files store them, and not those of RAS."""
    transpose: tuple[int, int, int] = (0, 1, 2)
    """Which of the axes (z, y, x) comes first, second and third (`transpose_forward`)."""
    masked: tuple[bool, ...] = ()
    """For each channel, whether zscore leaves out what is 0 around the object."""


class Preprocessing(StoreRecord):
    """How an image is treated before a network that was trained on a store sees it."""

    spacing_mm: Spacing | None = None
    """Voxel size along (D, H, W); with None each case keeps its own."""
    crop: bool = False
    normalisation: tuple[Normalisation, ...] = ()
    """One for each channel. Stores of earlier versions have none, and all channels use zscore."""
    trained_mm: tuple[Spacing, Spacing] | None = None
    """Smallest and largest voxel size of the stored cases; weights of earlier versions lack it."""
    nnunet: NnUNetSteps | None = None
    """For a network that nnU-Net trained, see `segresmamba import`."""
    axes: Literal["zyx", "xyz", "xyz-stored"] = "zyx"
    """Order of the axes that the network saw: of RAS, or as files store them. MONAI's networks see
    x first."""

    @property
    def seen(self) -> NnUNetSteps | None:
        """How the network saw the axes of an image, where it was not as stores have them."""
        if self.nnunet is not None or self.axes == "zyx":
            return self.nnunet
        return NnUNetSteps(as_stored=self.axes == "xyz-stored", transpose=(2, 1, 0))

    @property
    def only_mm(self) -> Spacing | None:
        """The voxel size of all images that the network saw; None if they had several."""
        if self.spacing_mm or self.trained_mm is None:
            return self.spacing_mm
        low_3, high_3 = np.array(self.trained_mm)
        if (high_3 > low_3 * (1 + SAME_SIZE)).any():
            return None
        depth, height, width = (float(size) for size in np.sqrt(low_3 * high_3).round(6))
        return depth, height, width

    def target_mm(self, spacing_mm: Spacing, name: str) -> Spacing | None:
        """The voxel size that an image gets, given its own; None if it keeps its own.

        A network that saw one voxel size alone takes structures of another size for others. So
        where all stored cases have one size, it is the network's, whatever the policy was.

        Args:
            spacing_mm: The image's voxel size.
            name: What messages call the image.
        """
        if self.spacing_mm or self._saw(spacing_mm):
            return self.spacing_mm
        if (only_mm := self.only_mm) is not None:
            logger.info(
                "%s has voxels of %s mm (D, H, W); it is resampled to %s mm, on which the network "
                "was trained",
                name,
                _mm(spacing_mm),
                _mm(only_mm),
            )
            return only_mm
        self.warn_of_other_spacing(spacing_mm, name)
        return None

    def warn_of_other_spacing(self, spacing_mm: Spacing, name: str) -> None:
        """Warn of voxels of a size that the network has not seen, and now sees as they are."""
        if self.trained_mm is not None and not self._saw(spacing_mm):
            logger.warning(
                "%s has voxels of %s mm (D, H, W), and the network was trained on %s to %s mm: the "
                "result may be wrong",
                name,
                _mm(spacing_mm),
                *map(_mm, self.trained_mm),
            )

    def _saw(self, spacing_mm: Spacing) -> bool:
        """Whether a voxel size is one of the training's, as far as these are known."""
        if self.trained_mm is None:
            return True
        (low_3, high_3), own_3 = np.array(self.trained_mm), np.array(spacing_mm)
        larger_3, smaller_3 = own_3 * (1 + SAME_SIZE), own_3 / (1 + SAME_SIZE)
        return bool((larger_3 >= low_3).all() and (smaller_3 <= high_3).all())

    def warn_of_other_intensities(
        self, statistics: Sequence[ChannelStatistics], names: Sequence[str], image: str
    ) -> None:
        """Warn of a CT that is not in the units of the training's, or is in another's channel.

        Other intensities have no units: they are scaled by those of the case itself.

        Args:
            statistics: Intensities of each channel.
            names: The channels.
            image: What the message calls the image.
        """
        for name, kind, one in zip(names, self.normalisation, statistics, strict=False):
            if kind.kind != "ct":
                continue
            shared = min(kind.high, one.percentile_99_5) - max(kind.low, one.percentile_00_5)
            # Some of the range that the foreground of the training had is in every such scan.
            if shared < _LEAST_SHARED * (kind.high - kind.low):
                logger.warning(
                    "%s: channel %s has intensities from %.4g to %.4g, and the network was trained "
                    "on %.4g to %.4g: the result may be wrong; see that the image is in HU, and "
                    "the channels are in this order: %s",
                    *(image, name, one.percentile_00_5, one.percentile_99_5, kind.low, kind.high),
                    ", ".join(names),
                )

    def for_case(
        self, statistics: Sequence[ChannelStatistics], scale: Sequence[float] = ()
    ) -> npt.NDArray[np.float32]:
        """Low, high, mean and deviation of each channel, in the units of a case's stored voxels.

        Args:
            statistics: The case's statistics, one for each channel.
            scale: Intensity of a stored 1 in each channel; by default 1.
        """
        kinds = self.normalisation or (Normalisation(),) * len(statistics)
        if self.nnunet is not None:  # its images are normalised before they are resampled
            kinds = (Normalisation(kind="stored"),) * len(statistics)
        bounds = [kind.bounds(one) for kind, one in zip(kinds, statistics, strict=True)]
        units = np.array(scale or [1.0] * len(bounds))
        bounds_C4: npt.NDArray[np.float32] = np.array(bounds) / units[:, None]
        return bounds_C4.astype(np.float32)


def _mm(spacing_3: Iterable[float]) -> str:
    return " x ".join(f"{size:.4g}" for size in spacing_3)


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
