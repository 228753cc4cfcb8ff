from __future__ import annotations

import os
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segresmamba.config import Config, TrainConfig
from segresmamba.engine import zero
from segresmamba.engine.adamw import EagerAdamW
from segresmamba.engine.distributed import join
from segresmamba.engine.sharding import ShardedState
from segresmamba.engine.zero import (
    ZeroEngine,
    _parameter_groups,
    deepspeed_config,
    import_deepspeed,
)
from segresmamba.errors import ConfigError
from segresmamba.models import SegResMamba
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import freeze
from tests.engine.ranks import RankPool
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
        "zero_optimization": {
            "stage": 2,
            "reduce_bucket_size": 1 << 25,
            "overlap_comm": True,
            "use_multi_rank_bucket_allreduce": True,
        },
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**62,
        "timers": {"throughput": {"enabled": False}},
    }


@pytest.mark.parametrize(
    ("world_size", "overlaps", "to_all"),
    [(2, "false", True), (4, "true", True), (4, "false", False), (128, "false", True)],
)
def test_gradients_go_to_their_owners_alone_where_that_sends_less_without_waiting(
    tmp_path: Path, world_size: int, overlaps: str, to_all: bool
) -> None:
    words = ("train.batch_size=128", "train.zero_stage=1", f"train.overlap_comm={overlaps}")
    zero_settings = deepspeed_config(tiny_config(tmp_path, tmp_path, *words), world_size)
    assert zero_settings["zero_optimization"]["use_multi_rank_bucket_allreduce"] is to_all


def test_a_world_size_that_does_not_divide_the_batch_names_a_size_that_does(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size: 2.*multiple of 3"):
        deepspeed_config(tiny_config(tmp_path, tmp_path), world_size=3)


def test_weight_decay_spares_norms_biases_and_the_state_space_parameters() -> None:
    network = SegResMamba(dims=(8, 8), d_state=4)
    decayed, spared = _parameter_groups(network, TrainConfig(weight_decay=0.1))
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
    assert len(_parameter_groups(nn.Linear(2, 2, bias=False), TrainConfig())) == 1


def test_the_optimizer_steps_exactly_as_pytorchs() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 5), nn.Linear(5, 5)
    ours.load_state_dict(theirs.state_dict())
    settings: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "fused": True}
    steps = [
        (ours, EagerAdamW(ours.parameters(), **settings)),
        (theirs, torch.optim.AdamW(theirs.parameters(), **settings)),
    ]
    for x_BC in torch.randn(3, 4, 5):
        for network, optimizer in steps:
            optimizer.zero_grad()
            network(x_BC).square().mean().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("stage", range(4))
def test_frozen_weights_stay_and_loaded_ones_learn_more_slowly_at_every_stage(
    tmp_path: Path, stage: int
) -> None:
    """AdamW's first step moves each weight by the learning rate, whatever its gradient is."""
    words = (f"train.zero_stage={stage}", "train.weight_decay=0", "train.init_from=elsewhere")
    config = tiny_config(tmp_path, tmp_path, *words, "train.loaded_lr_factor=0.1")
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    network = nn.Sequential(*(nn.Conv3d(1, 1, 1) for _ in range(3)))
    freeze(network, ["0"])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    engine = ZeroEngine(network, config, ranks, loaded=["1.weight", "1.bias"])
    engine.backward(engine.forward(torch.randn(2, 1, 4, 4, 4)).square().mean(), 1e-2)  # type: ignore[union-attr]
    moved = {
        name: float((value - before[name]).abs().max()) for name, value in engine.weights().items()
    }
    expected = {"0": 0, "1": 1e-3, "2": 1e-2}
    assert moved == pytest.approx({name: expected[name[0]] for name in moved}, abs=1e-6)
    kept = {name: rows.clone() for name, (_, rows) in engine.state.copied().result().items()}
    weights = {name: value.item() for name, value in engine.weights().items()}
    assert {name: rows[0].item() for name, rows in kept.items()} == pytest.approx(weights)
    other = nn.Sequential(*(nn.Conv3d(1, 1, 1) for _ in range(3)))
    freeze(other, ["0"])
    resumed = ZeroEngine(other, config, ranks, loaded=["1.weight", "1.bias"])
    resumed.state.restore(kept.items(), step=1)
    assert {n: v.item() for n, v in resumed.weights().items()} == pytest.approx(weights)


@pytest.mark.parametrize("stage", range(4))
def test_a_step_waits_until_the_state_before_it_is_copied(tmp_path: Path, stage: int) -> None:
    config = tiny_config(tmp_path, tmp_path, f"train.zero_stage={stage}")
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    engine = ZeroEngine(nn.Conv3d(1, 1, 1), config, ranks)
    x_BCDHW = torch.randn(2, 1, 4, 4, 4)
    engine.backward(engine.forward(x_BCDHW).square().mean(), 1e-2)  # type: ignore[union-attr]
    before = engine.weights()
    engine.state._thread.submit(time.sleep, 0.3)  # the copy begins late
    copied = engine.state.copied()
    engine.backward(engine.forward(x_BCDHW).square().mean(), 1e-2)  # type: ignore[union-attr]
    found = {name: rows_3N[0].item() for name, (_, rows_3N) in copied.result().items()}
    assert found == {name: value.item() for name, value in before.items()}
    assert found != {name: value.item() for name, value in engine.weights().items()}


def test_stage_3_computes_the_same_when_it_really_gathers_every_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed keeps small weights whole; without that threshold none of the tiny ones is."""

    def losses(stage: int, threshold: int) -> list[float]:
        config = tiny_config(tmp_path, tmp_path, f"train.zero_stage={stage}")

        def settings(config: Config, world_size: int) -> dict[str, Any]:
            plain = deepspeed_config(config, world_size)
            plain["zero_optimization"]["stage3_param_persistence_threshold"] = threshold
            return plain

        monkeypatch.setattr(zero, "deepspeed_config", settings)
        ranks = Ranks.from_environment()
        join(ranks, threads=1)
        torch.manual_seed(0)
        engine = ZeroEngine(SegResMamba(dims=(8, 8), d_state=4), config, ranks)
        values = []
        for step in range(3):
            x_BCDHW = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(step))
            logits = engine.forward(x_BCDHW)
            assert isinstance(logits, torch.Tensor)
            loss = (logits - x_BCDHW).square().mean()
            engine.backward(loss, 1e-2)
            values.append(float(loss.detach()))
        if stage == 3 and threshold == 0:
            assert all(parameter.numel() == 0 for parameter in engine.network.parameters())
            assert all(value.numel() > 0 for value in engine.weights().values())
        return values

    assert losses(3, threshold=0) == pytest.approx(losses(0, threshold=0), abs=1e-5)


def on_two_ranks(root: Path, *overrides: str) -> list[float]:
    """All weights after three steps, of which the ranks have different batches."""
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    torch.manual_seed(0)
    config = tiny_config(root, root, "train.batch_size=4", *overrides)
    engine = ZeroEngine(SegResMamba(dims=(8, 8), d_state=4), config, ranks)
    images = torch.Generator().manual_seed(ranks.rank)
    for _ in range(3):
        logits = engine.forward(torch.randn(2, 1, 16, 16, 16, generator=images))
        assert isinstance(logits, torch.Tensor)
        engine.backward(logits.square().mean(), 1e-3)
    return torch.cat([weight.flatten() for weight in engine.weights().values()]).tolist()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_way_in_which_ranks_add_up_gradients_changes_rounding_at_most(
    two_ranks: RankPool, tmp_path: Path, stage: int
) -> None:
    def weights(word: str) -> list[float]:
        words = (f"train.zero_stage={stage}", "train.overlap_comm=false", word)
        first, second = two_ranks.run(on_two_ranks, tmp_path, *words)
        assert first == second
        return first

    plain = weights("train.reduce_dtype=fp32")
    if stage:
        assert weights("train.overlap_comm=true") == plain
    # Three steps of AdamW move a weight by at most 3e-3, in the direction of its gradient.
    moved = np.abs(np.subtract(weights("train.reduce_dtype=bf16"), plain))
    assert 0 < moved.mean() < 1e-4
    assert moved.max() < 6.1e-3


@pytest.mark.parametrize(("index", "local_rank"), [(0, 3), (3, 3)])
def test_deepspeed_gets_the_device_of_the_rank_and_the_process_keeps_its_environment(
    monkeypatch: pytest.MonkeyPatch, index: int, local_rank: int
) -> None:
    """A shell, or the tests, may say DS_ACCELERATOR=cpu, and the launcher shows a rank one GPU."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator, set_accelerator

    seen = dict[str, str]()
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **_: seen.update(os.environ))
    monkeypatch.setattr(deepspeed.ops, "__compatible_ops__", {})
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    before, accelerator = dict(os.environ), get_accelerator()
    try:
        import_deepspeed(Ranks(3, 4, local_rank, 4, torch.device("cuda", index)))
        assert get_accelerator().device_name() == "cuda"
    finally:
        set_accelerator(accelerator)
    assert (seen["DS_ACCELERATOR"], seen["LOCAL_RANK"]) == ("cuda", str(index))
    assert dict(os.environ) == before


def test_gpus_may_be_named_by_their_uuids(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed
    from deepspeed.accelerator import cuda_accelerator, get_accelerator, set_accelerator

    monkeypatch.setattr(deepspeed, "init_distributed", lambda **_: None)
    nvml = SimpleNamespace(nvmlDeviceGetHandleByIndex=int)  # as on a machine with a driver
    monkeypatch.setattr(cuda_accelerator, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-4e817856-0000-0000-0000-000000000000")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 3)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=8)
    )
    accelerator = get_accelerator()
    try:
        import_deepspeed(Ranks(0, 1, 0, 1, torch.device("cuda", 0)))
        # Stages 1 and 2 ask for it when they lay out the weights.
        assert get_accelerator().available_memory() == 5
    finally:
        set_accelerator(accelerator)


def test_a_copy_of_the_state_makes_no_context_on_the_first_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[tuple[object, str]] = []
    monkeypatch.setattr(
        torch.cuda,
        "set_device",
        lambda device: chosen.append((device, threading.current_thread().name)),
    )
    second, engine = torch.device("cuda", 1), SimpleNamespace(optimizer=None)
    state = ShardedState(nn.Linear(2, 2), engine, 0, Ranks(1, 2, 1, 2, second))
    name = state._thread.submit(lambda: threading.current_thread().name).result()
    assert chosen == [(second, name)]


def test_deepspeeds_groups_wait_as_long_as_the_jobs_own(tmp_path: Path) -> None:
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    ZeroEngine(SegResMamba(dims=(8, 8), d_state=4), tiny_config(tmp_path, tmp_path), ranks)
    groups = list(torch.distributed.distributed_c10d._world.pg_map)
    assert len(groups) > 1
    waits = {group._get_backend(ranks.device).options._timeout for group in groups}
    assert waits == {timedelta(hours=1)}
