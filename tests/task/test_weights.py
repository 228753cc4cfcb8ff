from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from segresmamba.errors import CheckpointError
from segresmamba.task.weights import load_weights, save_weights


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
