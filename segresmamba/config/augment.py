"""The settings of augmentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from segresmamba.config.section import Fraction, Section, Target, refuse_stray_keywords
from segresmamba.errors import ConfigError

Axes = tuple[Literal["D", "H", "W"], ...]
LowerShare = Annotated[float, Field(gt=0.0, le=1.0)]


class AugmentConfig(Section):
    """Random changes of a training batch, on the training device.

    Each probability is that of one sample; 0 switches the change off.
    """

    flip_probability: Fraction = 0.5
    """Probability of mirroring along an axis, drawn for each of flip_axes."""
    flip_axes: Axes = ("D", "H", "W")
    """Axes along which crops are mirrored. Leave out W, from left to right, where labels name a
    side of the body."""
    affine_probability: Fraction = 0.2
    """Probability of rotating and scaling."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Largest rotation about each of rotation_axes, in degrees."""
    rotation_axes: Axes = ("D", "H", "W")
    """Axes about which crops are rotated: [D] rotates within axial slices, as suits thick ones."""
    scale_range: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Largest relative change of the size, for affine_probability."""
    rotation_probability: Fraction = 0.0
    """Probability of rotating, by rotation_degrees, where affine_probability does not."""
    scaling_probability: Fraction = 0.0
    """Probability of scaling by scaling_range, whether or not the crop is rotated too."""
    scaling_range: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.4)
    """Smallest and largest size of a voxel, as a multiple of the case's: above 1, structures become
    smaller."""
    scaling_axes: Axes = ("D", "H", "W")
    """Axes along which crops are scaled and their resolution is lowered: [H, W] leaves thick slices
    as they are."""
    blur_probability: Fraction = 0.0
    """Probability of Gaussian smoothing."""
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.0)
    """Smallest and largest width of the smoothing in voxels, drawn for each axis."""
    intensity_scale_probability: Fraction = 0.5
    """Probability of multiplying a channel by 1 + s."""
    intensity_scale_range: Annotated[float, Field(ge=0)] = 0.1
    """Largest absolute value of s."""
    intensity_shift_probability: Fraction = 0.5
    """Probability of adding an offset to a channel."""
    intensity_shift_range: Annotated[float, Field(ge=0)] = 0.1
    """Largest absolute value of the offset, in standard deviations of the image."""
    contrast_probability: Fraction = 0.0
    """Probability of multiplying the distances from a channel's mean, within its range."""
    contrast_range: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.25)
    """Smallest and largest factor; half of them are below 1."""
    low_resolution_probability: Fraction = 0.0
    """Probability of simulating a scan of lower resolution: fewer voxels, interpolated back."""
    low_resolution_range: tuple[LowerShare, LowerShare] = (0.5, 1.0)
    """Smallest and largest share of the voxels that is kept along an axis."""
    channel_probability: Fraction = 0.5
    """Probability that a channel of a blurred sample, or of one at a lower resolution, is so."""
    noise_probability: Fraction = 0.15
    """Probability of adding Gaussian noise."""
    noise_std: Annotated[float, Field(ge=0)] = 0.1
    """Largest standard deviation of the noise, in standard deviations of the image."""
    gamma_probability: Fraction = 0.15
    """Probability of applying a gamma curve to the intensity range of a channel."""
    gamma_range: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.5)
    """Smallest and largest exponent of the curve."""
    inverse_gamma_probability: Fraction = 0.0
    """Probability of applying such a curve to the inverted image, before the other."""
    gamma_keeps_statistics: bool = False
    """Give each channel its mean and deviation back after a curve, and draw half of the exponents
    below 1, as nnU-Net does."""
    target: Target | None = None
    """Changes of yours, as package.module:Class, which come after all others. Whoever trains with
    the configuration runs its code; see docs/settings.md."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keywords of the class in augment.target."""

    @model_validator(mode="after")
    def _keywords_have_a_target(self) -> AugmentConfig:
        refuse_stray_keywords(self.kwargs, self.target, "augment")
        return self

    @model_validator(mode="after")
    def _ranges_ascend(self) -> AugmentConfig:
        ranges = ("scaling_range", "blur_sigma", "contrast_range", "gamma_range")
        for key in (*ranges, "low_resolution_range"):
            low, high = getattr(self, key)
            if low > high:
                raise ConfigError(
                    "the smallest value of a range is above its largest",
                    where=f"augment.{key}",
                    got=[low, high],
                    remedy=f"give the smaller one first, as in 'augment.{key}=[{high},{low}]'",
                )
        return self
