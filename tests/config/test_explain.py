"""Mistakes: each named by key, value and remedy, on one screen."""

from pathlib import Path

import pytest

from segresmamba.config import load_config, read_config
from segresmamba.config.explain import field_help
from segresmamba.config.schema import Config
from segresmamba.errors import ConfigError
from segresmamba.storage.run_folder import write_config

# words, where, got, and a part of the remedy
MISTAKES = [
    # unknown keys
    ("train.lrr=3", "train.lrr", "3", "did you mean train.lr?"),
    ("lr=3e-4", "lr", "0.0003", "did you mean train.lr?"),
    ("train.learning_rat=1", "train.learning_rat", "1", "did you mean train.lr?"),
    ("batchsize=4", "batchsize", "4", "did you mean train.batch_size?"),
    ("data.patch_size=[8,8,8]", "data.patch_size", "[8, 8, 8]", "did you mean data.patch?"),
    ("trian.lr=1", "trian.lr", "1", "did you mean train.lr? valid keys here: seed, run"),
    ("bogus.loss=dice", "bogus.loss", "dice", "did you mean loss? valid"),
    ("foo.bar.baz=1", "foo.bar.baz", "1", "valid keys here: seed, run, data"),
    ("model.init_filters=8", "model.init_filters", "8", "valid keys here: name, dims"),
    (
        "model=segresmamba_small model.name=segresnet",
        "model.dims",
        "[8, 16, 32, 64]",
        "as in model=NAME",
    ),
    # unknown presets and choices
    ("model=foo", "model", "foo", "choose one of dynunet, mednext, nnunet, resenc_unet, segmamba"),
    ("model=segresnets", "model", "segresnets", "did you mean segresnet?"),
    ("train=5", "train", "5", "choose one of default, sample"),
    ("model.name=vnet", "model.name", "vnet", "choose one of segresmamba, segresmamba_released"),
    ("model={}", "model", "{}", "choose one of"),
    ("train.precision=fp8", "train.precision", "fp8", "choose fp32, bf16 or fp16"),
    ("train.schedule=cosin", "train.schedule", "cosin", "did you mean cosine?"),
    # ill-typed values
    ("train.lr=abc", "train.lr", "abc", "Peak learning rate."),
    ("train.lr=inf", "train.lr", "inf", "Peak learning rate."),
    ("train.lr=true", "train.lr", "True", "Peak learning rate."),
    ("train.max_steps='3'", "train.max_steps", "3", "Optimizer steps"),
    ("train.max_steps=1.5", "train.max_steps", "1.5", "Optimizer steps"),
    ("train.max_steps=0", "train.max_steps", "0", "Optimizer steps"),
    ("train.zero_stage=7", "train.zero_stage", "7", "DeepSpeed ZeRO stage"),
    ("train.lr.x=1", "train.lr", "{'x': 1}", "Peak learning rate."),
    ("run=x", "run", "x", "Where the run lives."),
    ("run.name=2024", "run.name", "2024", "quote it: 'run.name=\"2024\"'"),
    ("run.name=true", "run.name", "True", "quote it: 'run.name=\"true\"'"),
    ("run.name=1e5", "run.name", "100000.0", "quote it: 'run.name=\"...\"'"),
    ("data.store=null", "data.store", "None", "Converted dataset"),
    ("data.regions={}", "data.regions", "{}", "Overlapping classes"),
    ("data.regions={all:[]}", "data.regions.all", "[]", "Overlapping classes"),
    (f"seed={2**64}", "seed", str(2**64), "Seed of the weights"),
    ("run.name=a/b", "run.name", "a/b", "Folder of the run below root: letters, digits"),
    ("data.patch=[1,2]", "data.patch.2", "nothing", "Size of a training crop"),
    ("data.patch=[1,2,-1]", "data.patch.2", "-1", "Size of a training crop"),
    ("data.store=", "data.store", "an empty text", "Converted dataset"),
    ("data.regions={WT:[0]}", "data.regions.WT.0", "0", "Overlapping classes"),
    # words that set no value
    ("nosuch", "nosuch", "nosuch", "write key=value"),
    ("data.store=/tmp/ü", "data.store", "data.store=/tmp/ü", "'data.store=\"/tmp/ü\"'"),
    ("+x=1", "x", "+x=1", "write x=1"),
    ("++train.lr=1", "train.lr", "++train.lr=1", "write train.lr=1"),
    ("~model", "model", "~model", "write model=VALUE"),
    ("model@x=segresnet", "model", "model@x=segresnet", "write model=segresnet"),
    ("train.lr=1,2", "train.lr", "1,2", "give one value"),
    ("seed=range(3)", "seed", "range(3)", "give one value"),
    ("data.store=${oc.env:NO_SUCH}", "overrides", "data.store=${oc.env:NO_SUCH}", "NO_SUCH"),
    # contradictions
    ("train.warmup_steps=30000", "train.warmup_steps", "30000, with train.max_steps=20000", ""),
    ("train.compile=true train.zero_stage=3", "train.compile", "true, with train.zero_stage=3", ""),
    ("train.accumulation=4", "train.batch_size", "2, with 1 x 1 ranks", "train.batch_size=4"),
    ("cluster.tasks_per_node=3", "train.batch_size", "2, with 1 x 3 ranks", "multiple of 3"),
    ("cluster.nodes=2", "cluster.nodes, cluster.tasks_per_node", "2, 1", "cluster=slurm on many"),
    ("cluster=debug cluster.tasks_per_node=2", "cluster.nodes, cluster.tasks_per_node", "1, 2", ""),
    ("cluster=slurm cluster.time_min=null", "cluster.time_min", "nothing", "cluster.time_min=60"),
    ("plan.strict=true", "plan.gpu_memory_gib", "nothing, with plan.strict=true", "=40"),
    ("cluster.time_min=1", "cluster.signal_delay_s", "120, with cluster.time_min=1", "below 60"),
]


@pytest.mark.parametrize(
    ("words", "where", "got", "remedy"), MISTAKES, ids=[m[0] for m in MISTAKES]
)
def test_a_mistake_names_key_value_and_remedy(
    words: str, where: str, got: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(words.split())
    assert caught.value.where == where
    assert caught.value.got.startswith(got)
    assert remedy in caught.value.remedy
    screen = caught.value.screen()
    assert len(screen.splitlines()) <= 24
    assert len(screen) < 24 * 80


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("train.learning_rat=1", "train.lr"),
        ("train.loss=dice", "loss"),
        ("model=segresnets", "segresnet"),
        ("train.schedule=cosin", "cosine"),
    ],
)
def test_what_was_meant_comes_before_the_long_list_of_all_choices(word: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([word])
    assert caught.value.remedy.startswith(f"did you mean {meant}? ")


def test_the_keyword_of_a_network_of_another_package_comes_first() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["model.target=torch.nn:Conv3d", "model.kernel_size=3"])
    assert caught.value.remedy.startswith(
        "a keyword of the class is given as model.kwargs.kernel_size=3; valid keys here: name"
    )


def test_a_huge_value_stays_on_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([f"train.lr=[{','.join(map(str, range(500)))}]"])
    assert len(caught.value.got) <= 160


def test_further_mistakes_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"\(then 1 more to correct\)"):
        load_config(["train.lr=abc", "train.zero_stage=9"])


@pytest.mark.parametrize(
    ("word", "example"),
    [
        ("data.patch=96", "data.patch=[96,96,96]"),
        ("data.patch=", "data.patch=[VALUE,VALUE,VALUE]"),
        ("train.freeze=downs", "train.freeze=[downs]"),
    ],
)
def test_a_value_that_has_to_be_a_list_is_shown_as_one(word: str, example: str) -> None:
    with pytest.raises(ConfigError, match="has to be a list") as caught:
        load_config([word])
    assert caught.value.remedy.startswith(f"write '{example}': ")


def test_a_run_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        read_config(tmp_path / "config.yaml")
    assert caught.value.where == str(tmp_path / "config.yaml")
    assert "No such file" in caught.value.got


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"train: [unclosed", ""),
        (b"\xff\xfe\x00", ""),
        (b"", ": the configuration"),
        (b"- a list\n", ": the configuration"),
        (b"data: {patch: [8, 8, 8]}\n", ": data.store"),
        (b"data: {store: 2024-01-01, patch: [8, 8, 8]}\nmodel: {}\n", ": model.name"),
    ],
)
def test_an_unreadable_configuration_file_is_named(
    tmp_path: Path, content: bytes, where: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert caught.value.where == f"{path}{where}"


def test_a_key_of_another_version_in_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_config(load_config(), path)
    path.write_text(path.read_text().partition("\n")[2] + "novelty: 1\n")
    with pytest.raises(ConfigError, match="unknown key") as caught:
        read_config(path)
    assert caught.value.where == f"{path}: novelty"


def test_every_field_has_its_help() -> None:
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    assert all(field_help(name) for name in sections)
    for name in ("run", "data", "augment", "train", "validation", "tracking", "cluster"):
        for field in sections[name].model_fields:
            assert field_help(f"{name}.{field}"), f"{name}.{field} has no docstring"
