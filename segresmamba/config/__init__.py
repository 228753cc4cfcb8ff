"""Configuration: Hydra composes the presets under configs/, and pydantic validates the result."""

from segresmamba.config.compose import load_config, presets, read_config, to_yaml
from segresmamba.config.experiment import (
    changes_result,
    config_digest,
    experiment,
    former_digest,
    run_folder,
)
from segresmamba.config.networks import ModelConfig, SegResMambaConfig, SegResNetConfig
from segresmamba.config.own_presets import with_own_presets
from segresmamba.config.schema import (
    AugmentConfig,
    ClusterConfig,
    Config,
    DataConfig,
    LossConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)
from segresmamba.config.tracking import TrackingConfig

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
