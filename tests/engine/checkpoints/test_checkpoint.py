from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from segresmamba.engine.checkpoints.checkpoint import latest_step, load_weights, save_weights
from segresmamba.errors import CheckpointError


def test_weights_and_facts_come_back(tmp_path: Path) -> None:
    saved, loaded = nn.Linear(2, 3), nn.Linear(2, 3)
    save_weights(tmp_path / "best" / "weights.pt", saved.state_dict(), step=7, dice=0.5)
    assert load_weights(tmp_path / "best" / "weights.pt", loaded) == {"step": 7, "dice": 0.5}
    torch.testing.assert_close(loaded.weight, saved.weight)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["weights.pt"]


def test_weights_of_another_network_are_refused_with_the_first_difference(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pt", nn.Linear(2, 3).state_dict())
    with pytest.raises(CheckpointError, match=r"weight: \[3, 2\] in the checkpoint, \[3, 4\]"):
        load_weights(tmp_path / "weights.pt", nn.Linear(4, 3))


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
def test_missing_or_damaged_weights_are_refused_by_file(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        load_weights(path, nn.Linear(2, 2))


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "step-00000010").mkdir()
    (tmp_path / ".writing-step-00000020").mkdir()
    assert latest_step(tmp_path) == 10


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert latest_step(tmp_path / "nowhere") is None
