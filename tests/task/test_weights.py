from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from segresmamba import data
from segresmamba.config import Config
from segresmamba.errors import CheckpointError
from segresmamba.storage.digest import json_digest
from segresmamba.task.task import build_network
from segresmamba.task.weights import (
    WeightsFacts,
    first_not_finite,
    load_network,
    read_facts,
    read_weights,
    save_torch,
    save_weights,
)
from segresmamba.task.weights_file import _weights_digest, read_file, write_file
from segresmamba.tracking.memory import status_kib
from tests.damage import flips
from tests.engine.tiny import tiny_config

FLIPS = 100
LABELS = {"background": 0, "ball": 1}
FACTS = WeightsFacts(
    step=7,
    dice=0.5,
    labels=LABELS,
    channel_names=["a", "b"],
    preprocessing=data.Preprocessing(crop=True),
)


def config(tmp_path: Path, *overrides: str) -> Config:
    return tiny_config(tmp_path, tmp_path, *overrides)


def network(tmp_path: Path, *overrides: str) -> nn.Module:
    return build_network(config(tmp_path, *overrides), len(FACTS.channel_names), len(LABELS))


def test_weights_and_facts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "best" / "weights.safetensors"
    saved = network(tmp_path)
    for weight in saved.parameters():
        nn.init.normal_(weight)
    save_weights(path, saved.state_dict(), FACTS)
    trained = load_network(path, config(tmp_path))
    assert trained.facts == read_facts(path) == FACTS
    torch.testing.assert_close(trained.network.state_dict(), saved.state_dict())
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


def test_facts_are_read_without_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"large": torch.zeros(1 << 25)}, FACTS)  # 128 MiB
    read_facts(path)  # whatever the first call has to import or allocate
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before_kib = status_kib("VmHWM")
    assert read_facts(path) == FACTS
    after_kib = status_kib("VmHWM")
    assert before_kib is not None
    assert after_kib is not None
    assert after_kib - before_kib < 16 << 10


@pytest.mark.parametrize("stored", [{}, {"labels": LABELS, "channel_names": ["a", "b"]}])
def test_weights_of_earlier_versions_are_read(tmp_path: Path, stored: dict[str, Any]) -> None:
    torch.save({"weights": {}, "step": 7, "dice": 0.5, **stored}, tmp_path / "weights.pt")
    facts = read_facts(tmp_path / "weights.pt")
    assert (facts.step, facts.dice) == (7, 0.5)
    assert facts.labels == stored.get("labels", {})
    assert facts.preprocessing == data.Preprocessing()


def test_weights_of_another_network_are_refused_with_the_first_difference(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, network(tmp_path).state_dict(), FACTS)
    with pytest.raises(CheckpointError, match=r": \[8, .* in the checkpoint, \[16, "):
        load_network(path, config(tmp_path, "model.dims=[16,16]"))


@pytest.mark.parametrize("content", [None, b"", b"not weights", b"\0" * 8 + b"{}"])
def test_missing_or_damaged_weights_are_refused_by_file(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        load_network(path, config(tmp_path))
    with pytest.raises(CheckpointError, match=str(path)):
        read_facts(path)


def saved(tmp_path: Path) -> Path:
    """Best weights of `network`, with other values than a new one has."""
    path, made = tmp_path / "weights.safetensors", network(tmp_path)
    for weight in made.parameters():
        nn.init.normal_(weight)
    save_weights(path, made.state_dict(), FACTS)
    return path


def formerly_saved(tmp_path: Path) -> Path:
    """The weights of `saved`, as the versions before safetensors wrote them."""
    weights, facts = read_file(saved(tmp_path))
    content: dict[str, Any] = {"weights": weights, **facts}
    content["digests"] = {"facts": json_digest(facts), "weights": _weights_digest(weights)}
    save_torch(content, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.mark.parametrize("save", [saved, formerly_saved])
def test_no_flipped_bit_is_loaded_with_other_weights_or_facts(
    tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    path, settings, refused = save(tmp_path), config(tmp_path), 0
    good = load_network(path, settings).network.state_dict()
    for place in flips(path, FLIPS):
        try:
            found = load_network(path, settings)
        except CheckpointError:
            refused += 1
            continue
        assert found.facts == FACTS, place
        torch.testing.assert_close(
            found.network.state_dict(), good, rtol=0, atol=0, msg=f"{place} flipped"
        )
    assert refused > FLIPS // 2


def test_no_flipped_bit_of_the_facts_is_read_with_other_content(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"w": torch.zeros(1)}, FACTS)  # most of the file is facts
    for place in flips(path, 5 * FLIPS):
        with contextlib.suppress(CheckpointError):
            assert read_facts(path) == FACTS, place


def test_changed_facts_are_refused_and_so_are_weights_of_others(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"dice\\": 0.5', b'"dice\\": 0.9'))
    with pytest.raises(CheckpointError, match="checksum of the facts"):
        read_facts(path)
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="segresmamba did not write this file"):
        read_facts(path)


def test_weights_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"segresmamba": "1"', b'"segresmamba": "2"'))
    for read in (read_facts, read_weights):
        with pytest.raises(CheckpointError, match="a newer version of segresmamba"):
            read(path)


def test_a_former_file_with_changed_facts_or_without_its_digests_is_refused(tmp_path: Path) -> None:
    path = formerly_saved(tmp_path)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"dice": 0.9}, path)
    with pytest.raises(CheckpointError, match="checksum of the facts"):
        read_facts(path)
    digests = content.pop("digests")
    torch.save(content | {"dagests": digests}, path)
    with pytest.raises(CheckpointError, match=r"unknown entries.*dagests"):
        read_facts(path)


def test_a_former_file_is_the_same_weights(tmp_path: Path) -> None:
    former, settings = formerly_saved(tmp_path), config(tmp_path)
    old, new = (load_network(path, settings) for path in (former, saved(tmp_path)))
    assert old.facts == FACTS
    assert old.network.state_dict().keys() == new.network.state_dict().keys()


class Exploit:
    """Its pickle runs code when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "ran")


def test_a_bare_pickle_is_named_as_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(CheckpointError, match="neither safetensors nor a file of"):
        read_weights(path)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path, target = tmp_path / "weights.pt", tmp_path / "ran"
    torch.save({"weights": {}, "step": Exploit(target)}, path)
    for read in (read_facts, read_weights):
        with pytest.raises(CheckpointError, match="may run any code; it is not opened"):
            read(path)
    assert not target.exists()


def test_other_tools_read_the_weights(tmp_path: Path) -> None:
    # All kinds of tensors, in any layout in memory.
    weights = {
        "half": torch.ones(3, dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 2),
        "part": torch.arange(10.0)[2:5],
    }
    path = tmp_path / "weights.safetensors"
    save_weights(path, weights, FACTS)
    torch.testing.assert_close(load_file(path), weights)


def test_a_tensor_of_two_names_is_stored_once(tmp_path: Path) -> None:
    values, path = torch.arange(10_000.0), tmp_path / "weights.safetensors"
    weights = {"conv.weight": values, "all.0.weight": values, "equal": values.clone()}
    save_weights(path, weights, FACTS)
    assert values.nbytes * 2 < path.stat().st_size < values.nbytes * 2.2
    torch.testing.assert_close(read_weights(path)[0], weights)
    again = tmp_path / "again.safetensors"
    save_weights(again, *read_weights(path))
    assert again.stat().st_size == path.stat().st_size


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("save", [saved, formerly_saved])
def test_weights_that_are_not_finite_are_refused_by_name_though_the_digest_fits(
    tmp_path: Path, value: float, save: Callable[[Path], Path]
) -> None:
    path = save(tmp_path)
    weights, _ = read_weights(path)
    name = list(weights)[3]
    weights[name].view(-1)[-1] = value
    if save is saved:
        save_weights(path, weights, FACTS)
    else:
        content = torch.load(path, weights_only=True) | {"weights": weights}
        del content["digests"]
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"not all finite.*{name} has nan or inf.*delete it"):
        load_network(path, config(tmp_path))


def test_large_finite_weights_are_not_taken_for_infinite_ones() -> None:
    large = torch.full((4,), torch.finfo(torch.float32).max)
    assert first_not_finite([("large", large), ("count", torch.tensor(3))]) is None
    large[1] = float("nan")
    assert first_not_finite([("good", torch.ones(2)), ("large", large)]) == "large"


@pytest.mark.parametrize("count", [1, 100, 10_000, 10_000_000])
def test_a_full_disk_is_what_it_is(count: int) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        save_torch({"weights": torch.zeros(count), "step": 3}, Path("/dev/full"))
    with pytest.raises(OSError, match="No space left on device"):
        write_file(Path("/dev/full"), {"w": torch.zeros(count)}, {})
