"""A new run takes what fits of other weights, and says what does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from segresmamba import data, models
from segresmamba.errors import ConfigError
from segresmamba.models.released import _NAMES
from segresmamba.models.state_dicts import renamed
from segresmamba.storage.run_folder import RunFolder, write_config
from segresmamba.task.starting_weights import load_starting_weights, starting_weights
from segresmamba.task.task import Task
from segresmamba.task.weights import WeightsFacts, save_weights
from tests.engine.tiny import tiny_config


def network(in_channels: int = 2, out_channels: int = 3, seed: int = 0) -> models.SegResMamba:
    torch.manual_seed(seed)
    return models.SegResMamba(
        in_channels=in_channels, out_channels=out_channels, dims=(8, 8), d_state=4
    )


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
def test_all_weights_of_the_same_network_are_taken_however_the_file_names_them(
    tmp_path: Path, nested: str | None
) -> None:
    source, target = network(seed=1), network()
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    path = saved(tmp_path / "model.pt", {nested: state, "epoch": 3} if nested else state)
    found = load_starting_weights(path, target, 2)
    assert set(found.taken) == target.state_dict().keys()
    assert not [*found.adapted, *found.fresh, *found.unused]
    images = torch.randn(1, 2, 16, 16, 16)
    assert torch.equal(target.eval()(images), source.eval()(images))


def test_other_channels_adapt_the_first_layer_and_other_classes_leave_the_head_fresh(
    tmp_path: Path,
) -> None:
    source, target = network(1, 2, seed=1), network(3, 3)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    path = saved(tmp_path / "model.pt", source.state_dict())
    found = load_starting_weights(path, target, 3)
    after = target.state_dict()
    assert [name.split()[0] for name in found.adapted] == ["downs.0.weight"]
    assert [name.split()[0] for name in found.fresh] == ["head.weight", "head.bias"]
    assert torch.equal(after["head.weight"], before["head.weight"])
    # The same image in every channel gives what the one channel gave.
    assert torch.allclose(
        after["downs.0.weight"].sum(1), source.state_dict()["downs.0.weight"][:, 0]
    )
    lines = str(found).splitlines()
    assert lines[0] == f"{path}: {len(found.taken)} weights taken, 1 adapted, 2 fresh, 0 unused"
    assert "  fresh: head.weight (8x2x2x2x2 in the file, 8x3x2x2x2 here)" in lines


def test_many_differences_fit_on_one_screen(tmp_path: Path) -> None:
    state = network().state_dict() | {f"other.{i}": torch.zeros(1) for i in range(100)}
    text = str(load_starting_weights(saved(tmp_path / "model.pt", state), network(), 2))
    assert len(text.splitlines()) < 20
    assert "unused: and 88 more" in text


def test_released_weights_are_taken_by_their_own_names(tmp_path: Path) -> None:
    source = network(seed=1).state_dict()
    theirs = {renamed(name, _NAMES): value for name, value in source.items()}
    assert "vit.downsample_layers.0.0.weight" in theirs
    target = network()
    found = load_starting_weights(saved(tmp_path / "released.pth", theirs), target, 2)
    assert not [*found.adapted, *found.fresh, *found.unused]
    assert all(torch.equal(source[name], value) for name, value in target.state_dict().items())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"a.weight": torch.zeros(2)}, "no weight fits the network"),
        ({"epoch": 3}, "no state dict"),
        ({"head.bias": torch.tensor([torch.nan] * 3)}, "head.bias has nan or inf"),
    ],
)
def test_a_file_without_fitting_weights_is_refused(
    tmp_path: Path, content: object, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        load_starting_weights(saved(tmp_path / "model.pt", content), network(), 2)
    assert caught.value.where == "train.init_from"


def test_a_missing_file_and_a_folder_without_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_starting_weights(tmp_path / "absent.pt", network(), 2)
    with pytest.raises(ConfigError, match=r"a folder without best/weights\.safetensors"):
        load_starting_weights(tmp_path, network(), 2)


def test_safetensors_of_others_are_read(tmp_path: Path) -> None:
    source, target = network(seed=1).state_dict(), network()
    save_file(source, tmp_path / "model.safetensors")
    found = load_starting_weights(tmp_path / "model.safetensors", target, 2)
    assert len(found.taken) == len(source)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(ConfigError, match=r"cut\.safetensors"):
        load_starting_weights(tmp_path / "cut.safetensors", target, 2)


def test_a_folder_of_several_models_is_refused_with_the_name_of_one(tmp_path: Path) -> None:
    for number in range(2):
        save_file(network(seed=number).state_dict(), tmp_path / f"weights-{number}.safetensors")
    with pytest.raises(ConfigError, match=r"2 models; name one, such as .*weights-0\.safetensors"):
        load_starting_weights(tmp_path, network(), 2)
    (tmp_path / "weights-1.safetensors").unlink()
    assert load_starting_weights(tmp_path, network(), 2).taken


HEAD = ["head.weight", "head.bias"]


def run_of(labels: dict[str, int], folder: Path, task: Task) -> RunFolder:
    """A finished run of the task's network, for other labels."""
    run = RunFolder(folder)
    facts = WeightsFacts(4, 0.5, labels, task.dataset.channel_names, data.Preprocessing())
    save_weights(run.best, task.network().state_dict(), facts)
    write_config(task.config, run.config)
    return run


@pytest.mark.parametrize(
    ("labels", "fresh", "warned"),
    [
        ({"background": 0, "ball": 1, "box": 2}, [], False),
        ({"background": 0, "Ball": 1, "BOX ": 2}, [], True),
        ({"background": 0, "ball": 2, "box": 1}, HEAD, False),  # the same, in another order
        ({"background": 0, "liver": 1, "lesion": 2}, HEAD, False),
    ],
)
def test_a_head_of_equal_size_is_taken_only_for_the_same_classes(
    tiny_store: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    labels: dict[str, int],
    fresh: list[str],
    warned: bool,
) -> None:
    task = Task.from_config(tiny_config(tiny_store, tmp_path))
    assert list(task.dataset.labels) == ["background", "ball", "box"]
    run = run_of(labels, tmp_path / "source", task)
    found = load_starting_weights(run.path, task.network(), 2, task)
    assert [name.split()[0] for name in found.fresh] == fresh
    theirs = ", ".join(sorted(labels, key=lambda name: labels[name]))
    both = f"classes {theirs} in the file, background, ball, box here"
    assert all(both in reason for reason in found.fresh)
    assert (both in caplog.text) == warned


def test_the_regions_of_a_run_are_its_classes(tiny_store: Path, tmp_path: Path) -> None:
    words = "data.regions={whole: [1,2], box: [2], ball: [1]}"
    task = Task.from_config(tiny_config(tiny_store, tmp_path, words))
    run = run_of(dict(task.dataset.labels), tmp_path / "source", task)
    assert not load_starting_weights(run.path, task.network(), 2, task).fresh
    exclusive = Task.from_config(tiny_config(tiny_store, tmp_path))
    found = load_starting_weights(run.path, exclusive.network(), 2, exclusive)
    assert [name.split()[0] for name in found.fresh] == HEAD


@pytest.mark.parametrize("content", ["{", "[]", '{"source": 3}', "\xff"])
def test_a_damaged_record_is_made_anew_while_the_source_is_there(
    tiny_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    source = tmp_path / "source"
    task = Task.from_config(tiny_config(tiny_store, tmp_path, f"train.init_from={source}"))
    run_of(dict(task.dataset.labels), source, task)
    run = RunFolder(tmp_path / "tiny")
    run.checkpoint(4).mkdir(parents=True)
    run.init_from.write_text(content, encoding="latin-1")
    found = starting_weights(task, task.network(), run)
    assert found is not None
    assert not [*found.adapted, *found.fresh, *found.unused]
    assert "is damaged" in caplog.text
    RunFolder(source).best.unlink()
    with pytest.raises(ConfigError, match="record of the weights") as caught:
        starting_weights(task, task.network(), run)
    assert caught.value.where == str(run.init_from)
