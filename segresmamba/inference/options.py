"""How trained models are applied."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from segresmamba.errors import ConfigError
from segresmamba.task.ranks import Ranks

_PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class InferenceOptions:
    """Choices of the user; the defaults are those of the training's validation.

    Raises:
        ConfigError: If a value is not one of the choices.
    """

    device: str = "auto"
    """auto, cpu, cuda, or one GPU as in cuda:1."""
    precision: str | None = None
    """fp32, bf16 or fp16; None for that of the training."""
    tta: bool = False
    """Whether to average over the mirrorings that the training used."""
    overlap: float | None = None
    """Least overlap of neighbouring windows; None for that of the validation."""
    postprocessing: bool = True
    """Whether to apply the rules that are stored with the model."""

    def __post_init__(self) -> None:
        if self.precision not in (None, *_PRECISIONS):
            raise ConfigError(
                "there is no such precision",
                where="--precision",
                got=self.precision,
                remedy=f"choose among {', '.join(_PRECISIONS)}",
            )
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise ConfigError(
                "the overlap of windows is a share of their size",
                where="--overlap",
                got=self.overlap,
                remedy="give a number from 0 up to, but not including, 1",
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What may change a result."""
        return {key: value for key, value in asdict(self).items() if key != "device"}

    def torch_device(self) -> torch.device:
        """The device.

        Raises:
            ConfigError: If this machine has no such device.
            LaunchError: If Slurm has granted GPUs that torch does not see.
        """
        if self.device == "auto":
            return Ranks.from_environment(cpu_choice="--device cpu").device
        gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        known = ["cpu", *(["cuda"] if gpus else []), *gpus]
        if self.device not in known:
            raise ConfigError(
                "this machine has no such device",
                where="--device",
                got=self.device,
                remedy=f"choose among auto, {', '.join(known)}; `segresmamba doctor` says what "
                "PyTorch finds here",
            )
        return torch.device(self.device)
