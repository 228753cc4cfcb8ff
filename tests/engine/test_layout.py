"""The choice of a memory layout, with a clock that stands in for the GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from segresmamba.engine import layout
from segresmamba.engine.distributed import join
from segresmamba.engine.layout import choose_layout
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import Task
from tests.engine.tiny import tiny_config

GPU = Ranks(0, 1, 0, 1, torch.device("cuda", 0))


def sees_channels_last(network: nn.Module) -> bool:
    seen = []
    first = next(module for module in network.modules() if isinstance(module, nn.Conv3d))
    hook = first.register_forward_hook(
        lambda _, x, y: seen.append(x[0].is_contiguous(memory_format=torch.channels_last_3d))
    )
    network(torch.randn(1, 2, 32, 32, 32))
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(("first_s", "last_s"), [(2.0, 1.0), (1.0, 2.0)])
def test_the_faster_layout_is_kept(
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first_s: float,
    last_s: float,
) -> None:
    join(Ranks.from_environment(), threads=1)
    task = Task.from_config(tiny_config(tiny_store, tmp_path))
    network, times = task.network(), iter([first_s, last_s])
    monkeypatch.setattr(layout, "_step_s", lambda *_: next(times))
    choice = choose_layout(task, network, GPU)
    assert choice == ("channels_last" if last_s < first_s else "channels_first")
    assert sees_channels_last(network) == (last_s < first_s)


def test_a_layout_that_does_not_fit_is_left_to_the_training_to_report(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError

    join(Ranks.from_environment(), threads=1)
    task = Task.from_config(tiny_config(tiny_store, tmp_path))
    monkeypatch.setattr(layout, "_step_s", full)
    assert choose_layout(task, task.network(), GPU) == "channels_first"


def test_nothing_is_measured_where_nothing_is_open(tiny_store: Path, tmp_path: Path) -> None:
    task = Task.from_config(tiny_config(tiny_store, tmp_path))
    chosen = Task.from_config(tiny_config(tiny_store, tmp_path, "train.channels_last=false"))
    assert choose_layout(task, task.network(), Ranks.from_environment()) is None
    assert choose_layout(chosen, chosen.network(), GPU) is None
