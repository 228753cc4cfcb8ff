from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from segresmamba.engine.zero import _parameter_groups, deepspeed_config
from segresmamba.errors import ConfigError
from segresmamba.models import SegResMamba
from tests.engine.tiny import tiny_config


def test_the_deepspeed_dict_follows_from_the_config_and_world_size(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, tmp_path, "train.batch_size=8", "train.accumulation=2", "train.zero_stage=2"
    )
    assert deepspeed_config(config, world_size=2) == {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 12.0,
        "zero_optimization": {"stage": 2},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 1e-3, "weight_decay": 1e-5, "torch_adam": True},
        },
        "steps_per_print": 2**62,
    }


def test_a_world_size_that_does_not_divide_the_batch_names_a_size_that_does(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size: 2.*multiple of 3"):
        deepspeed_config(tiny_config(tmp_path, tmp_path), world_size=3)


def test_weight_decay_spares_norms_biases_and_the_state_space_parameters() -> None:
    network = SegResMamba(dims=(8, 8), d_state=4)
    decayed, spared = _parameter_groups(network, 0.1)
    spared_ids = {id(parameter) for parameter in spared["params"]}
    names = {
        name.rpartition(".")[2]
        for name, parameter in network.named_parameters()
        if id(parameter) in spared_ids
    }
    assert names == {
        "A_log_KEN", "D_KE", "dt_bias_KE", "conv_bias_KE", "norm_weight", "norm_bias",
        "weight", "bias",
    }  # fmt: skip
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


def test_a_network_without_vectors_has_one_group() -> None:
    assert len(_parameter_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1
