"""The list of settings: complete, true to the presets, narrow enough, and instant."""

import subprocess
import sys

import pytest

from segresmamba.config import load_config, presets
from segresmamba.config.networks import NETWORKS
from segresmamba.config.settings import groups, listing
from segresmamba.config.suggest import all_keys
from segresmamba.errors import ConfigError

SETTINGS = [setting for group in groups() for setting in group.settings]


def test_every_setting_is_listed_and_helped() -> None:
    sections = {key.partition(".")[0] for key in all_keys() if "." in key}
    assert {setting.key for setting in SETTINGS} == set(all_keys()) - sections - {"model.name"}
    assert all(setting.help and setting.kind for setting in SETTINGS)
    titles = {group.title for group in groups()}
    assert {f"model={name}" for name in NETWORKS} <= titles


def test_the_defaults_shown_are_those_of_a_run_without_a_word() -> None:
    shown = [one for group in groups() if "=" not in group.title for one in group.settings]
    words = [f"{one.key}={one.default}" for one in shown]
    written = load_config(words).model_dump(mode="json")
    default = load_config().model_dump(mode="json")
    assert written["data"].pop("foreground_fraction") == pytest.approx(1 / 3, rel=1e-5)
    default["data"].pop("foreground_fraction")
    assert written == default


@pytest.mark.parametrize("width", [80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(map(len, listing(None, width).splitlines())) <= min(width, 100)


def test_a_key_narrows_the_list() -> None:
    head, *lines = listing("train.precision", 80).splitlines()
    assert head.startswith(f"train [presets: {', '.join(presets()['train'])}]: ")
    assert lines[-2:] == [
        "  train.precision=bf16   (fp32 | bf16 | fp16)",
        "      Number format of autocast. The parameters are fp32 with each of them.",
    ]
    assert listing("lr", 80) == listing("train.lr", 80)
    assert "train.max_skipped_share" in listing("train.max", 80)
    assert "train.lr" not in listing("train.max", 80)
    assert listing("unet", 80) == listing("model=unet", 80)
    assert listing("unet", 80).count("\n  model.") == 2
    assert "model=unet " in listing("model", 80)


def test_a_mistyped_key_is_answered_with_the_one_that_is_meant() -> None:
    with pytest.raises(ConfigError, match=r"did you mean train\.lr\?"):
        listing("train.learning_rat", 80)


def test_the_list_needs_no_torch() -> None:
    code = (
        "import sys; from segresmamba.cli.main import main; sys.argv = ['x', 'settings', 'train'];"
        "import atexit;"
        "atexit.register(lambda: print({'torch', 'numpy', 'mlflow'} & set(sys.modules)));"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "train.lr=0.0001   (number > 0)" in done.stdout
    assert done.stdout.endswith("set()\n")
