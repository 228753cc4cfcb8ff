"""Configuration: Hydra composes the presets under configs/, and pydantic validates the result.

What composes is imported on first use, since ranks only read a run's configuration.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from segresmamba.config.augment import AugmentConfig
from segresmamba.config.cluster import ClusterConfig
from segresmamba.config.experiment import (
    changes_result,
    config_digest,
    experiment,
    former_digest,
    run_folder,
)
from segresmamba.config.loss import LossConfig
from segresmamba.config.networks import ModelConfig, SegResMambaConfig, SegResNetConfig
from segresmamba.config.own_presets import with_own_presets
from segresmamba.config.run_config import read_config, to_yaml
from segresmamba.config.schema import Config, DataConfig, RunConfig, ValidationConfig
from segresmamba.config.tracking import TrackingConfig
from segresmamba.config.train import TrainConfig

if TYPE_CHECKING:
    from segresmamba.config.compose import load_config, presets

__all__ = [
    "AugmentConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "RunConfig",
    "SegResMambaConfig",
    "SegResNetConfig",
    "TrackingConfig",
    "TrainConfig",
    "ValidationConfig",
    "changes_result",
    "config_digest",
    "experiment",
    "former_digest",
    "load_config",
    "presets",
    "read_config",
    "run_folder",
    "to_yaml",
    "with_own_presets",
]


def __getattr__(name: str) -> object:
    if name not in ("load_config", "presets"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("segresmamba.config.compose"), name)
