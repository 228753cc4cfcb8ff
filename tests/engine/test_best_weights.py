"""What a validation reads and writes of the best weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from segresmamba.engine import train
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.weights import read_facts
from tests.engine.tiny import tiny_config


@pytest.mark.parametrize(("before", "is_kept"), [(2.0, True), (-1.0, False)])
def test_a_validation_compares_with_the_best_dice_without_reading_the_weights(
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: float,
    is_kept: bool,
) -> None:
    config = tiny_config(tiny_store, tmp_path, "train.max_steps=1", "train.warmup_steps=0")
    folder = RunFolder.from_config(config)
    path = folder.best.with_name("weights.pt")
    path.parent.mkdir(parents=True)
    # As an earlier version saved it.
    torch.save({"weights": {"w": torch.zeros(1)}, "step": 9, "dice": before}, path)
    load, mapped = torch.load, list[bool]()

    def watched(file: Any, *arguments: Any, **options: Any) -> Any:
        if file == path:
            mapped.append(options.get("mmap", False))
        return load(file, *arguments, **options)

    monkeypatch.setattr(torch, "load", watched)
    train(config)
    assert mapped
    assert all(mapped)
    assert folder.best == (path if is_kept else folder.new_best)
    assert list(path.parent.glob("weights*")) == [folder.best]  # never two
    assert (read_facts(folder.best).dice == before) == is_kept
    assert read_facts(folder.best).step == (9 if is_kept else 1)
