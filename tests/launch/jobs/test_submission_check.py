"""What is refused before anything is started. Only the last tests ask in a process of its own."""

import shutil
import sys
from pathlib import Path

import pytest
from torch import Tensor, nn

from launch.__main__ import main
from launch.jobs.submission_check import check_path, require_trainable
from segresmamba.config import Config, load_config
from segresmamba.errors import ConfigError, LaunchError, UserError
from segresmamba.task import check
from segresmamba.task.check import first_error


class Looking(nn.Conv3d):
    """A network whose way depends on the numbers that it gets."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        return super().forward(x_BCDHW if x_BCDHW.max().item() > 0 else -x_BCDHW)


@pytest.fixture
def words(tmp_path: Path, tiny_store: Path) -> list[str]:
    """A run that can be trained."""
    words = ["data=custom", f"data.store={tiny_store}", "data.patch=[36,36,36]", "model.dims=[8,8]"]
    return [*words, f"run.root={tmp_path / 'runs'}"]


def error_of(*words: str) -> UserError:
    found = first_error([[load_config(words)]])
    assert found is not None
    assert isinstance(found[1], UserError)
    return found[1]


@pytest.mark.parametrize(
    ("word", "where"),
    [
        ("data.patch=[4,4,4]", "data.patch"),
        ("model.dims=[7,8]", "model.dims"),
        ("train.fold=9", "train.fold"),
        ("data.store=none.zarr", "none.zarr"),
        ("data.regions={all:[1,7]}", "data.regions.all"),
        ("loss.class_weights={liver:2}", "loss.class_weights"),
        ("train.freeze=[stem]", "train.freeze"),
        ("train.init_from=none.pt", "train.init_from"),
        ("loss.target=torch.nn:Linear", "loss.target"),
    ],
)
def test_what_would_end_a_job_is_an_error_that_names_it(
    words: list[str], word: str, where: str
) -> None:
    assert where in error_of(*words, word).where


def test_a_run_that_can_be_trained_is_none_and_nothing_is_written(
    words: list[str], tmp_path: Path
) -> None:
    assert first_error([[load_config(words)]]) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("network", "where"),
    [
        ("tests.models.test_plugins:Halving", None),
        ("tests.models.test_plugins:Valid", "model.target"),
        # Where shapes alone do not say it, the first step does.
        ("tests.launch.jobs.test_submission_check:Looking", None),
    ],
)
def test_a_network_of_another_package_is_refused_for_logits_of_a_wrong_size(
    words: list[str], network: str, where: str | None
) -> None:
    others = [word for word in words if not word.startswith("model.")]
    config = load_config([*others, f"model.target={network}", "data.patch=[35,36,36]"])
    found = first_error([[config]])
    assert (found and isinstance(found[1], UserError) and found[1].where) == where


def test_a_disk_without_space_for_the_checkpoints_is_refused_with_both_numbers(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1 << 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    error = error_of(*words, "train.keep_last=200")
    assert "run.root" in error.where
    assert "0.0 GiB free" in error.got
    assert "201 checkpoints" in error.got


def test_one_alternative_that_can_be_trained_is_enough(words: list[str]) -> None:
    good, bad = load_config(words), load_config([*words, "data.patch=[4,4,4]"])
    assert first_error([[bad, good], [good]]) is None
    found = first_error([[good], [bad, bad]])
    assert found is not None
    assert found[0] == 1


@pytest.mark.parametrize(
    ("folder", "key"),
    [
        ("a" * 256, "run.name"),
        ("a" * 256 + "/b", "run.name"),
        ("/".join(["a" * 200] * 20), "run.root"),
    ],
)
def test_a_path_that_no_file_system_takes_is_refused(tmp_path: Path, folder: str, key: str) -> None:
    with pytest.raises(LaunchError, match="too long") as caught:
        check_path(tmp_path / folder)
    assert caught.value.where == key
    check_path(tmp_path / ("a" * 255))


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["launch", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize(
    ("command", "where"),
    [
        (["train", "--dry-run"], "data.patch"),
        (["train", "cluster=slurm"], "data.patch"),
        (["sweep", "seed=0,1"], "trial 0: data.patch"),
    ],
)
def test_the_commands_ask_before_anything_is_written(
    command: list[str], where: str, words: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked: list[dict[str, list[Config]]] = []

    def answer(runs: dict[str, list[Config]]) -> None:
        asked.append(runs)
        raise ConfigError("no", where=f"{next(iter(runs))}: data.patch", got="", remedy="")

    monkeypatch.setattr("launch.__main__.require_trainable", answer)
    assert run(monkeypatch, *command, *words) == 2
    assert where in capsys.readouterr().err
    assert len(asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_process_of_its_own_says_the_same(words: list[str]) -> None:
    good, bad = load_config(words), load_config([*words, "data.patch=[4,4,4]"])
    with pytest.raises(ConfigError, match="single voxel") as caught:
        require_trainable({"trial 0": [good], "trial 1": [bad]})
    assert caught.value.where == "trial 1: data.patch"


def test_a_server_that_gives_no_answer_is_a_warning(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    require_trainable({"": [load_config([*words, "data.store=http://127.0.0.1:1/x.zarr"])]})
    assert "warning: not all could be checked here" in capsys.readouterr().err


def test_trials_that_differ_in_seed_name_and_learning_rate_are_checked_once(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Config] = []
    monkeypatch.setattr(check, "check", checked.append)
    trials = [
        [load_config([*words, f"seed={number}", f"run.name=t{number}", f"train.lr=0.{number}"])]
        for number in (1, 2, 3)
    ]
    assert first_error(trials) is None
    assert checked == trials[0]
