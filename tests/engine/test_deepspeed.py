"""DeepSpeed's private or undocumented attributes that the engine uses.

They may change in any release, which is why pyproject.toml has an upper bound for DeepSpeed. Raise
it when these tests pass with the new release.
"""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from segresmamba.engine import sharding, zero
from segresmamba.engine.distributed import join
from segresmamba.engine.zero import ZeroEngine, import_deepspeed
from segresmamba.models import SegResMamba
from segresmamba.task.ranks import Ranks
from tests.engine.tiny import tiny_config

OF_THE_MODULE = {
    "ops.__compatible_ops__",
    "utils.logger",
    "accelerator.get_accelerator",
    "accelerator.set_accelerator",
    "accelerator.cpu_accelerator.CPU_Accelerator",
}
OF_EVERY_ENGINE = {
    "is_gradient_accumulation_boundary",
    "get_global_grad_norm",
    "optimizer.param_groups",
}
_SHARDED_STATE = {
    "optimizer.optimizer.state",
    "optimizer.single_partition_of_fp32_groups",
    "optimizer.unscale_and_clip_grads",
}
OF_AN_ENGINE = {
    0: {"optimizer.state", "enable_backward_allreduce"},
    1: _SHARDED_STATE,
    2: _SHARDED_STATE,
    3: {
        "optimizer.optimizer.state",
        "optimizer.fp32_partitioned_groups_flat",
        "optimizer.get_local_fp32_param",
        "optimizer.checkpoint_event_epilogue",
    },
}
_MAPPING = {
    "_hp_mapping.param_group_index",
    "_hp_mapping.hp_fragment_address.start",
    "_hp_mapping.hp_fragment_address.numel",
    "_hp_mapping.lp_fragment_address.start",
}
OF_A_PARAMETER = {0: set[str](), 1: _MAPPING, 2: _MAPPING, 3: {"ds_numel", "ds_tensor"}}


def lacking(owner: object, names: set[str]) -> set[str]:
    def lacks(name: str) -> bool:
        try:
            attrgetter(name)(owner)
        except AttributeError:
            return True
        return False

    return {name for name in names if lacks(name)}


def test_the_module_has_what_we_use() -> None:
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    assert not lacking(import_deepspeed(ranks), OF_THE_MODULE)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_engine_and_its_parameters_have_what_we_use(tmp_path: Path, stage: int) -> None:
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    config = tiny_config(tmp_path, tmp_path, f"train.zero_stage={stage}")
    engine = ZeroEngine(SegResMamba(dims=(8, 8), d_state=4), config, ranks)
    logits = engine.forward(torch.zeros(2, 1, 16, 16, 16))
    assert isinstance(logits, Tensor)
    engine.backward(logits.sum(), lr=1e-3)
    assert not lacking(engine._engine, OF_EVERY_ENGINE | OF_AN_ENGINE[stage])
    for parameter in engine.network.parameters():
        assert not lacking(parameter, OF_A_PARAMETER[stage])


def test_the_lists_name_only_what_is_used() -> None:
    sources = "".join(Path(str(module.__file__)).read_text() for module in (zero, sharding))
    assert '"deepspeed.accelerator.{kind}_accelerator"' in sources
    assert '"{kind.upper()}_Accelerator"' in sources
    listed = set().union(
        OF_THE_MODULE - {"accelerator.cpu_accelerator.CPU_Accelerator"},
        OF_EVERY_ENGINE,
        *OF_AN_ENGINE.values(),
        *OF_A_PARAMETER.values(),
    )
    assert not {name for name in listed if name.rpartition(".")[2] not in sources}
