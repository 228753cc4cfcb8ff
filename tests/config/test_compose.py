"""Composition: presets and overrides in, a validated configuration out, and back from its file."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from segresmamba.config import Config, config_digest, load_config, presets, read_config, run_folder
from segresmamba.config.own_presets import config_folder
from segresmamba.errors import ConfigError
from segresmamba.storage.run_folder import write_config

# What a preset leaves to the user, by its mandatory keys.
NEEDED = {
    "data=brats": ["data.store=brats.zarr"],
    "data=custom": ["data.store=mine.zarr"],
    "tracking=server": ["tracking.uri=http://host:5000"],
}
PRESETS = [f"{group}={name}" for group, names in presets().items() for name in names]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_shipped_preset_composes_and_validates(preset: str) -> None:
    config = load_config([preset, *NEEDED.get(preset, [])])
    group, _, name = preset.partition("=")
    written = yaml.safe_load((config_folder() / group / f"{name}.yaml").read_text()) or {}
    written.pop("defaults", None)  # other presets that it builds on
    section = config.model_dump(mode="json")[group]
    assert {k: section[k] for k, v in written.items() if v != "???"} == {
        k: v for k, v in written.items() if v != "???"
    }


def test_every_shipped_file_is_the_root_or_a_preset() -> None:
    files = {str(path.relative_to(config_folder())) for path in config_folder().rglob("*.*")}
    expected = {f"{preset.replace('=', '/')}.yaml" for preset in PRESETS}
    assert files == expected | {"config.yaml"}


@pytest.mark.parametrize("preset", NEEDED)
def test_a_mandatory_value_is_asked_for_by_name(preset: str) -> None:
    key = NEEDED[preset][0].partition("=")[0]
    with pytest.raises(ConfigError, match="has to be given") as caught:
        load_config([preset])
    assert caught.value.where == key
    assert f"add {key}=VALUE" in caught.value.remedy


def test_overrides_win_over_presets() -> None:
    words = [
        "model=segresmamba_small",
        "model.dims=[8,8]",
        "train.lr=3e-4",
        "data.patch=[32,48,64]",
    ]
    config = load_config(words)
    assert config.model.dims == (8, 8)
    assert config.train.lr == 3e-4
    assert config.data.patch == (32, 48, 64)


def test_a_mapping_replaces_the_presets_mapping() -> None:
    config = load_config(["data=brats", "data.store=x", "data.regions={WT:[1,2]}"])
    assert config.data.regions == {"WT": (1, 2)}


def test_one_entry_of_a_mapping_can_be_set() -> None:
    config = load_config(["data=brats", "data.store=x", "data.regions.WT=[1]"])
    assert config.data.regions == {"TC": (1, 3), "WT": (1,), "ET": (3,)}


def test_environment_variables_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE", "/data/case.zarr")
    assert load_config(["data.store=${oc.env:STORE}"]).data.store == "/data/case.zarr"


def test_the_same_words_find_the_same_run_and_another_experiment_another() -> None:
    first = run_folder(load_config())
    assert first == run_folder(load_config(["cluster=debug", "tracking=none"]))
    assert first != run_folder(load_config(["train.lr=1e-3"]))
    assert run_folder(load_config(["run.root=out", "run.name=mine"])) == Path("out/mine")


@st.composite
def configs(draw: st.DrawFn) -> Config:
    fraction = st.floats(0, 1)
    positive = st.floats(1e-12, 1e12)
    size = st.tuples(*[st.integers(1, 512)] * 3)
    # What would end a line of a batch script is refused.
    one_line = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]))
    warmup = draw(st.integers(0, 10_000))
    regions = st.dictionaries(
        st.text(), st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple), min_size=1
    )
    train = {
        "warmup_steps": warmup,
        "max_steps": warmup + draw(st.integers(1, 10_000)),
        "lr": draw(positive),
        "zero_stage": draw(st.integers(0, 3)),
        "precision": draw(st.sampled_from(["fp32", "bf16", "fp16"])),
        "threads": draw(st.none() | st.integers(1, 64)),
    }
    return Config.model_validate(
        {
            "seed": draw(st.integers(0, 2**63)),
            "run": {"root": Path(draw(one_line))},
            "data": {
                "store": draw(st.text(min_size=1)),
                "patch": draw(size),
                "foreground_fraction": draw(fraction),
                "regions": draw(st.none() | regions),
            },
            "augment": {"gamma_range": sorted(draw(st.tuples(positive, positive)))},
            "model": draw(
                st.fixed_dictionaries({"name": st.just("segresnet"), "init_filters": size.map(min)})
                | st.fixed_dictionaries({"name": st.just("segresmamba"), "dims": size})
            ),
            "train": train,
            "tracking": {"uri": draw(st.none() | st.text())},
            "cluster": {"setup": draw(st.lists(st.text()).map(tuple))},
        }
    )


PROPOSED = "data: {patch: [32, 48, 64]}\nmodel: {dims: [8, 16]}\ntrain: {lr: 3e-4, batch_size: 4}\n"


def test_a_file_of_settings_wins_over_presets_and_the_command_line_over_the_file(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(PROPOSED)
    config = load_config([f"config={file}", "train.batch_size=6"])
    assert config.data.patch == (32, 48, 64)
    assert config.model.model_dump()["dims"] == (8, 16)
    assert (config.train.lr, config.train.batch_size) == (3e-4, 6)
    assert config.train.warmup_steps == load_config().train.warmup_steps
    # A preset that the command names replaces its section of the file.
    assert load_config([f"config={file}", "model=segresnet"]).model.name == "segresnet"
    assert load_config([f"config={file}", "data=custom", "data.store=x"]).data.patch[0] == 128


def test_the_file_beside_a_store_is_used_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "mine.zarr"
    assert load_config([f"data.store={store}"]).train.lr == 1e-4
    (tmp_path / "mine.zarr.yaml").write_text(PROPOSED)
    assert load_config([f"data.store={store}/"]).train.lr == 3e-4
    assert [record.message.count("mine.zarr.yaml") for record in caplog.records] == [1]
    assert load_config([f"data.store={store}", "config=null"]).train.lr == 1e-4


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("cluster: {setup: [rm -r x]}", "cluster.setup"),
        ("tracking: {uri: http://elsewhere}", "tracking.uri"),
        ("model: {target: 'subprocess:Popen'}", "model.target"),
        ("seed: 3", "seed"),
        ("model: '${oc.decode:{target:a}}'", "model"),
        ("augment: {list: [{target: a}]}", "augment.list"),
    ],
)
def test_a_file_beside_a_store_does_not_choose_what_code_runs(
    tmp_path: Path, text: str, key: str
) -> None:
    (tmp_path / "mine.yaml").write_text("cluster: {tasks_per_node: 2}")
    assert load_config([f"data.store={tmp_path / 'mine'}"]).cluster.world_size == 2
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match="not trusted") as caught:
        load_config([f"data.store={tmp_path / 'mine'}"])
    assert caught.value.where.endswith(f"mine.yaml: {key}")
    load_config([f"data.store={tmp_path / 'mine'}", "config=null"])


def test_any_text_may_be_the_name_of_a_store() -> None:
    assert load_config([f"data.store={'x' * 5000}"]).data.store == "x" * 5000


@pytest.mark.parametrize("text", [None, "[1, 2]", "a: [", "\x00"])
def test_a_file_of_settings_that_cannot_be_read_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match="file of settings") as caught:
        load_config([f"config={file}"])
    assert str(file) in str(caught.value.where)


def test_an_unknown_key_in_a_file_of_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {learning_rate: 1}")
    with pytest.raises(ConfigError, match="unknown key"):
        load_config([f"config={tmp_path / 'mine.yaml'}"])


@settings(deadline=None, max_examples=50)  # each write waits for the disk
@given(config=configs())
def test_a_written_configuration_reads_back_the_same(
    config: Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    write_config(config, path)
    read = read_config(path)
    assert read == config
    assert config_digest(read) == config_digest(config)
    assert {file.name for file in path.parent.iterdir()} <= {"config.yaml", "secrets.json"}


def test_one_changed_or_lost_character_of_a_written_configuration_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config.yaml"
    write_config(load_config(), path)
    written = path.read_text()
    assert read_config(path).seed == 0
    assert "not what the run wrote" not in caplog.text
    for changed in (written.replace("seed: 0", "seed: 1"), written[:-1]):
        path.write_text(changed)
        caplog.clear()
        read_config(path)
        assert f"{path} is not what the run wrote" in caplog.text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    write_config(load_config(), path)

    def full_disk(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_config(load_config(["seed=1"]), path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    assert read_config(path).seed == 0


def test_configuration_needs_no_torch() -> None:
    code = (
        "import sys, segresmamba.config as c; c.load_config();"
        "heavy = {'torch', 'mlflow', 'deepspeed', 'submitit', 'codecarbon', 'monai', 'numpy'};"
        "sys.exit(f'imported {found}' if (found := heavy & set(sys.modules)) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_patch_that_no_operator_can_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="more voxels than") as caught:
        load_config(["data=custom", "data.store=x", "data.patch=[100000,100000,100000]"])
    assert caught.value.where == "data.patch"


def test_a_key_below_a_list_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"give the whole of data\.patch"):
        load_config(["data=custom", "data.store=none", "data.patch.patch=[32,32,32]"])


def test_a_partition_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.partition"):
        load_config(["data=sample", "cluster=slurm", "cluster.partition=[null]"])
