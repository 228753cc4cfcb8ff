"""The planner's numbers against real tensors, and what it proposes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segresmamba.config import Config, load_config
from segresmamba.engine.distributed import join
from segresmamba.engine.zero import ZeroEngine
from segresmamba.errors import ConfigError
from segresmamba.planner import Planner, Timeline, gpu_memory_gib, table, verdict
from segresmamba.planner import plan as plan_module
from segresmamba.planner.footprint import SavedBytes
from segresmamba.planner.simulation import simulate
from segresmamba.planner.states import states
from segresmamba.task.precision import Autocast
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import Task, build_network, freeze
from tests.engine.tiny import tiny_config
from tests.no_convolutions import NoConvolutions

LABELS = {"background": 0, "one": 1, "two": 2}


def saved_bytes(config: Config) -> int:
    """What a real forward pass on the CPU keeps."""
    network = build_network(config, 1, len(LABELS)).train()
    freeze(network, config.train.freeze)
    x_BCDHW = torch.zeros(2, 1, *config.data.patch)
    weights = [*network.parameters(), *network.buffers()]
    with SavedBytes([*weights, x_BCDHW]) as saved, NoConvolutions():
        outputs: Tensor | list[Tensor] = Autocast(network, config.train.precision)(x_BCDHW)
    del outputs
    return saved.total


@pytest.mark.parametrize(
    "words",
    [
        ("train.precision=fp32",),
        ("train.precision=bf16",),
        ("model.checkpoint_stages=1",),
        ("model.deep_supervision=true",),
        ("train.freeze=[downs]",),
        ("train.freeze=[blocks.1]", "train.precision=bf16"),
    ],
)
def test_saved_memory_is_predicted_within_five_percent(tmp_path: Path, words: list[str]) -> None:
    config = tiny_config(tmp_path, tmp_path, *words)
    predicted = simulate(config, 1, LABELS, 2, "cpu")
    assert predicted.saved_bytes == pytest.approx(saved_bytes(config), rel=0.05)
    assert predicted.peak_bytes > predicted.saved_bytes


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("segmamba", ["model.dims=[8,8,16,16]", "model.hidden_size=16", "model.d_state=4"]),
        ("segresnet", ["model.init_filters=8"]),
        ("swinunetr", ["model.feature_size=12"]),
        ("swinunetr_checkpointed", ["model.feature_size=12"]),
        (
            "unetr",
            [
                "data.patch=[32,16,16]",
                "model.hidden_size=24",
                "model.num_heads=4",
                "model.mlp_dim=32",
            ],
        ),
        ("unet", ["model.channels=[8,16,16]"]),
        ("dynunet", ["model.filters=[8,16,16,16]"]),
        ("mednext", ["data.patch=[32,16,16]"]),
        ("resenc_unet", ["model.features=[8,16,16]", "model.blocks=[1,2,1]"]),
        ("umamba_bot", ["model.features=[8,16,16]", "model.blocks=[1,2,1]"]),
        ("segresmamba_fine", ["model.dims=[8,8,16]"]),
    ],
)
def test_saved_memory_of_every_other_network_is_predicted_too(
    preset: str, words: list[str]
) -> None:
    config = load_config(
        ["data=custom", "data.store=none", "data.patch=[48,32,32]", "train.precision=bf16",
         f"model={preset}", *words]
    )  # fmt: skip
    predicted = simulate(config, 1, LABELS, 2, "cpu")
    assert predicted.saved_bytes == pytest.approx(saved_bytes(config), rel=0.05)


def test_checkpointing_works_under_the_autocast_lists_of_cuda(tmp_path: Path) -> None:
    words = ("train.precision=bf16", "model.checkpoint_stages=2")
    lean, plain = (
        simulate(tiny_config(tmp_path, tmp_path, *chosen), 1, LABELS, 2, "cuda")
        for chosen in (words, words[:1])
    )
    assert lean.saved_bytes < plain.saved_bytes
    assert lean.peak_bytes <= plain.peak_bytes


def test_frozen_parts_keep_nothing_for_the_backward_pass(tmp_path: Path) -> None:
    """The finest features are made by the first part, which is most of what is kept."""
    frozen, trained = (
        simulate(tiny_config(tmp_path, tmp_path, *words), 1, LABELS, 2, "cuda")
        for words in (["train.freeze=[downs,blocks]"], [])
    )
    assert frozen.weights_bytes == trained.weights_bytes == trained.trained_bytes
    assert frozen.trained_bytes < 0.5 * trained.trained_bytes
    assert frozen.saved_bytes < 0.5 * trained.saved_bytes
    assert frozen.peak_bytes < trained.peak_bytes


@pytest.mark.parametrize("world_size", [2, 8, 64])
def test_a_higher_stage_or_more_ranks_hold_less(world_size: int) -> None:
    weights_bytes = 4 << 30  # far above the bucket
    held = [states(stage, weights_bytes, world_size) for stage in (1, 2, 3)]
    assert held[0] == held[1]
    assert held[2].in_backward <= held[1].in_backward
    for stage in (1, 2, 3):
        fewer, more = (
            states(stage, weights_bytes, ranks) for ranks in (world_size, 2 * world_size)
        )
        assert more.in_backward < fewer.in_backward
        assert more.in_step < fewer.in_step


@pytest.mark.parametrize(
    ("stage", "frozen"), [(0, 0), (1, 0), (2, 0), (3, 0), (0, 5), (2, 5), (3, 5)]
)
def test_weights_gradients_and_optimizer_take_what_deepspeed_allocates(
    tmp_path: Path, stage: int, frozen: int
) -> None:
    config = tiny_config(tmp_path, tmp_path, f"train.zero_stage={stage}")
    ranks = Ranks.from_environment()
    join(ranks, threads=1)
    with Timeline() as timeline:
        network = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(8)))
        network[:frozen].requires_grad_(False)
        engine = ZeroEngine(network, config, ranks)
        for _ in range(2):
            outputs = engine.forward(torch.ones(1, 1024))
            assert isinstance(outputs, Tensor)
            engine.backward(outputs.sum(), lr=1e-4)
    layer_bytes = 4 * 1024 * 1025
    expected = states(stage, (8 - frozen) * layer_bytes, 1, frozen * layer_bytes)
    # Next to nothing is kept for the backward pass, so either part may be the peak.
    peak = max(expected.in_backward, expected.in_step)
    assert timeline.peak_bytes() == pytest.approx(peak, rel=0.05)


def planner(store: Path, *words: str) -> Planner:
    return Planner(Task.from_config(tiny_config(store, store.parent, *words)))


def test_what_fits_is_left_alone(tiny_store: Path) -> None:
    plan = planner(tiny_store).plan(40.0)
    assert plan.fits
    assert plan.overrides == ()
    assert plan.proposed is plan.asked
    assert verdict(plan).startswith("fits")
    assert len(table(plan).columns) == 2


def test_the_cheapest_change_that_fits_is_proposed_as_overrides_that_train_takes(
    tiny_store: Path,
) -> None:
    made = planner(tiny_store, "train.batch_size=8")
    asked = made.predict(made.config)
    plan = made.plan(asked.needed_gib - 1e-4)
    assert not plan.fits
    assert plan.overrides == ("train.accumulation=2",)
    assert "train.accumulation=2" in verdict(plan)
    assert len(table(plan).columns) == 3
    config = tiny_config(tiny_store, tiny_store.parent, "train.batch_size=8", *plan.overrides)
    assert made.predict(config).needed_gib <= plan.gpu_memory_gib


def test_a_small_network_on_several_ranks_is_not_given_up_for_the_buffers_of_zero(
    tiny_store: Path,
) -> None:
    made = planner(tiny_store, "train.batch_size=8", "cluster.tasks_per_node=2")
    asked = made.predict(made.config)
    assert made.predict(_zero_3(made.config)).needed_gib > asked.needed_gib
    assert made.plan(asked.needed_gib - 1e-4).overrides == ("train.accumulation=2",)


def _zero_3(config: Config) -> Config:
    train = config.train.model_copy(update={"zero_stage": 3, "accumulation": 4})
    return config.model_copy(update={"train": train})


def test_one_crop_is_computed_twice_before_its_size_shrinks(tiny_store: Path) -> None:
    made = planner(tiny_store, "train.batch_size=1", "data.patch=[36,36,36]")
    asked = made.predict(made.config)
    plan = made.plan(asked.needed_gib - 1e-4)
    assert plan.overrides == ("model.checkpoint_stages=1",)
    leanest = made.predict(
        tiny_config(tiny_store, tiny_store.parent, "train.batch_size=1", "data.patch=[36,36,36]",
                    "model.checkpoint_stages=2")
    )  # fmt: skip
    smaller = made.plan(leanest.needed_gib - 1e-4)
    assert "data.patch=[32,32,32]" in smaller.overrides
    assert "'data.patch=[32,32,32]'" in verdict(smaller)  # brackets are a pattern to some shells


def test_fewer_crops_at_once_are_simulated_only_where_one_crop_fits(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[tuple[int, int]] = []

    def looked(config: Config, channels: int, labels: object, crops: int, device: str) -> object:
        looked_at.append((config.model.model_dump()["checkpoint_stages"], crops))
        return simulate(config, channels, LABELS, crops, "cuda")

    made = planner(tiny_store, "train.batch_size=8", "data.patch=[36,36,36]")
    one_crop = made.predict(
        tiny_config(tiny_store, tiny_store.parent, "train.batch_size=1", "data.patch=[36,36,36]")
    )
    monkeypatch.setattr(plan_module, "simulate", looked)
    plan = made.plan(one_crop.needed_gib - 1e-4)
    assert plan.overrides == ("train.accumulation=8", "model.checkpoint_stages=1")
    assert not [crops for stages, crops in looked_at if stages == 0 and crops in (2, 4)]


def test_what_cannot_fit_is_refused_with_the_least_that_it_needs(tiny_store: Path) -> None:
    with pytest.raises(ConfigError, match="no training step") as caught:
        planner(tiny_store).plan(0.5)
    assert "the smallest tried needs" in str(caught.value.got)


def test_the_memory_of_the_gpus_must_be_known(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tiny_config(tiny_store, tiny_store.parent)
    with pytest.raises(ConfigError) as caught:
        gpu_memory_gib(config)
    assert caught.value.where == "plan.gpu_memory_gib"
    with pytest.raises(ConfigError):
        load_config(["plan.gpu_memory_gib=0"])


@pytest.mark.gpu
def test_the_peak_is_that_of_a_real_step(tiny_store: Path) -> None:
    words = ("data=custom", f"data.store={tiny_store}", "train.precision=bf16",
             "data.patch=[96,96,96]", "train.batch_size=1")  # fmt: skip
    config = load_config(list(words))
    predicted = simulate(config, 1, LABELS, 1, "cuda")
    held = states(0, predicted.trained_bytes, 1)
    ranks = Ranks.from_environment()
    join(ranks, None)
    engine = ZeroEngine(build_network(config, 1, len(LABELS)), config, ranks)
    x_BCDHW = torch.zeros(1, 1, 96, 96, 96, device=ranks.device)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        outputs = engine.forward(x_BCDHW)
        assert isinstance(outputs, Tensor)
        engine.backward(outputs.float().sum(), lr=1e-4)
    expected = max(held.in_backward + predicted.peak_bytes, held.in_step)
    assert torch.cuda.max_memory_allocated() == pytest.approx(expected, rel=0.15)
