"""The settings of the loss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from segresmamba.config.section import Section, Target, refuse_stray_keywords
from segresmamba.errors import ConfigError


class LossConfig(Section):
    """What is minimised. Dice is that of the foreground; the loss has `name` from its terms."""

    name: Literal["dice_ce", "dice_focal", "dice_topk", "dice_hausdorff", "tversky"] = "dice_ce"
    """dice_ce: Dice plus cross-entropy. dice_focal: Dice plus focal loss. dice_topk: Dice plus the
    cross-entropy of the hardest voxels. dice_hausdorff: dice_ce plus a loss that weighs each error
    by its distance from the boundary. tversky: Dice with own weights for the two kinds of error."""
    class_weights: dict[str, NonNegativeFloat] | None = None
    """Weights of classes by name, such as {background: 0.5, tumour: 2}, in all terms; 1 for the
    others."""
    deep_supervision: tuple[NonNegativeFloat, ...] | None = None
    """Weights of the outputs of a network with deep supervision, full resolution first; 0 for those
    that are not listed. Unset, they are 1, 1/2, 1/4 and so on. They are divided by their sum."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """dice_focal: how strongly voxels that are nearly right lose weight; 0 is cross-entropy."""
    top_k: Annotated[float, Field(gt=0, le=1)] = 0.1
    """dice_topk: share of the voxels of a crop that count, those with the largest cross-entropy."""
    hausdorff_weight: PositiveFloat = 0.1
    """dice_hausdorff: weight of the boundary term after its warm-up."""
    hausdorff_warmup_steps: Annotated[int, Field(ge=0)] = 1000
    """dice_hausdorff: steps in which the weight of the boundary term rises linearly from 0."""
    tversky_alpha: Annotated[float, Field(ge=0)] = 0.3
    """tversky: weight of voxels that are predicted and not labelled."""
    tversky_beta: Annotated[float, Field(ge=0)] = 0.7
    """tversky: weight of voxels that are labelled and not predicted."""
    target: Target | None = None
    """A loss of yours or of another package, as package.module:Class, in the place of loss.name.
    Whoever trains with the configuration runs its code; see docs/settings.md."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keywords of the class in loss.target, such as {softmax: true}."""

    @model_validator(mode="after")
    def _a_target_has_its_own_settings(self) -> LossConfig:
        refuse_stray_keywords(self.kwargs, self.target, "loss")
        shared = {"target", "kwargs", "deep_supervision"}
        for key in LossConfig.model_fields.keys() - shared if self.target else ():
            if getattr(self, key) != LossConfig.model_fields[key].default:
                raise ConfigError(
                    "this setting is not one of loss.target",
                    where=f"loss.{key}",
                    got=f"{getattr(self, key)}, with loss.target={self.target}",
                    remedy="give the keywords of the class in loss.kwargs, or leave one of the two "
                    "out",
                )
        return self

    @model_validator(mode="after")
    def _every_setting_counts(self) -> LossConfig:
        for key, field in LossConfig.model_fields.items():
            kind = key.partition("_")[0]
            others = kind in {"focal", "top", "hausdorff", "tversky"} and kind not in self.name
            if others and getattr(self, key) != field.default:
                raise ConfigError(
                    "this setting is one of another loss",
                    where=f"loss.{key}",
                    got=f"{getattr(self, key)}, with loss={self.name}",
                    remedy=f"choose the loss that has it, or leave loss.{key} out",
                )
        if self.deep_supervision is not None and not sum(self.deep_supervision):
            raise ConfigError(
                "no output of the network would be trained",
                where="loss.deep_supervision",
                got=list(self.deep_supervision),
                remedy="give at least one weight above 0",
            )
        return self
