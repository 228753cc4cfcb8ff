"""Networks side by side: real processes on a real store, and what is made of their results."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from segresmamba.bench import bench, default_models, suite
from segresmamba.bench.memory import PeakMemory
from segresmamba.bench.picture import draw, picture
from segresmamba.bench.report import write_csv, write_markdown
from segresmamba.bench.result import PAPER, Result, Setting
from segresmamba.bench.synthetic import synthetic_batches, synthetic_labels
from segresmamba.bench.worker import Measurement
from segresmamba.errors import ConfigError
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import sync
from tests.engine.tiny import tiny_config

SETTING = Setting("a processor", (64, 64, 64), 1, "fp32", 3, "sample.zarr", "Python, torch")


@pytest.fixture(autouse=True)
def _no_gpu_in_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def settings(store: Path, root: Path) -> list[str]:
    return [
        "data=custom", f"data.store={store}", "data.patch=[36,36,36]", "data.workers=0",
        "train.threads=1", "tracking=none", f"run.root={root}",
    ]  # fmt: skip


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def _inside_another_job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A rank of two, whose port is taken: the shell of a training job."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        place = {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, str(value))
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_inside_another_job")
def test_one_network_is_measured_and_another_fails(tmp_path: Path, tiny_store: Path) -> None:
    # Inside its last stage segresmamba has two tokens of this patch, which make no four slices.
    slices = ["model.dims=[8,8]", "model.num_slices=4", "data.patch=[12,4,4]"]
    found = bench(
        ["segresmamba_paper", "segresmamba"],
        [*settings(tiny_store, tmp_path / "runs"), *slices],
        out=tmp_path / "out",
        steps=1,
    )
    good, bad = found.results
    assert (good.status, good.note) == ("ok", "")
    assert good.scan_backend == "cpu"
    assert good.saved_gib
    assert good.peak_gib
    # Weights, gradients and two moments of AdamW are in the peak, each 4 bytes a parameter.
    assert good.peak_gib > good.saved_gib + 16 * (good.trained_parameters or 0) / 2**30
    assert good.step_s
    assert good.loaded_step_s
    assert 0 <= (good.data_wait_s or 0) < good.loaded_step_s
    assert good.wh_per_1000_steps is None  # energy is off
    assert bad.status == "failed"
    assert "ConfigError: segresmamba cannot be built" in bad.note
    assert bad.reference_gmacs  # what was found before
    assert bad.step_s is None
    assert [file.suffix for file in found.files] == [".csv", ".md", ".png"]
    assert all(file.stat().st_size for file in found.files)
    (journal,) = (tmp_path / "runs").glob("*-segresmamba_paper/journal.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    logged = {key for record in records for key in record.get("values", {})}
    assert {"bench/step_s", "bench/peak_gib", "device", "versions", "model"} <= logged
    assert records[-1]["status"] == "finished"


def test_ctrl_c_keeps_the_finished_rows_and_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_store: Path
) -> None:
    run = suite._run

    def first_at_once(folder: RunFolder, measurement: Measurement) -> Result:
        if measurement.model == "segresmamba_small":
            return Result(measurement.model, trained_parameters=1, step_s=1.0, peak_gib=1.0)
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
        return run(folder, measurement)

    monkeypatch.setattr(suite, "_run", first_at_once)
    words = settings(tiny_store, tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        bench(["segresmamba_small", "segresnet", "segresmamba"], words, out=tmp_path, steps=1)
    assert [(row["model"], row["status"]) for row in read_csv(tmp_path / "networks_cpu.csv")] == [
        ("segresmamba_small", "ok"),
        ("segresnet", "interrupted"),
    ]
    lines = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if line and any(str(tmp_path) in word for word in line)]


@pytest.mark.parametrize(
    ("code", "log", "status", "says"),
    [
        (-signal.SIGKILL, "", "out of memory", "SIGKILL"),
        (-signal.SIGABRT, "what():  std::bad_alloc\n", "out of memory", "SIGABRT"),
        (-signal.SIGSEGV, "loading\n", "failed", "SIGSEGV: loading"),
        (1, "Traceback\nImportError: no such thing\n", "failed", "ImportError: no such thing"),
    ],
)
def test_a_process_that_died_is_a_row_that_says_how(
    code: int, log: str, status: str, says: str
) -> None:
    found, note = suite._verdict(code, log)
    assert found == status
    assert says in note


def test_nothing_runs_if_one_setting_is_wrong(tmp_path: Path, tiny_store: Path) -> None:
    words = [*settings(tiny_store, tmp_path / "runs"), "model.init_filters=8"]
    with pytest.raises(ConfigError):
        bench(["segresnet", "segresmamba"], words, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_fold_that_the_store_lacks_is_refused_and_not_replaced_by_noise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_store: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample.zarr").symlink_to(tiny_store)
    monkeypatch.chdir(tmp_path)
    words = ["data.patch=[32,32,32]", "tracking=none", "train.fold=9"]
    with pytest.raises(ConfigError, match="no such fold"):
        bench(["segresnet"], words, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_each_network_is_a_run_of_its_own_in_mlflow(
    tmp_path: Path, tiny_store: Path, database: Path
) -> None:
    from mlflow import MlflowClient

    shutil.copy(database, tmp_path / "mlflow.db")
    words = [*settings(tiny_store, tmp_path), "tracking=sqlite"]
    for result in (Result("segresnet", step_s=2.0), Result("unet", "out of memory", "why")):
        (config,) = suite._configurations([result.model], words, "cpu").values()
        folder = RunFolder.from_config(config)
        folder.enter(config)
        hint = suite._track(config, folder, result, SETTING)
        sync(folder.path)  # what a busy machine had no time to send
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert f"sqlite:///{tmp_path}/mlflow.db" in hint
    experiment = client.get_experiment_by_name("segresmamba-bench")
    assert experiment is not None
    runs = {run.data.tags["model"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"segresnet", "unet"}
    assert runs["segresnet"].data.metrics["bench/step_s"] == 2.0
    assert runs["segresnet"].data.tags["device"] == SETTING.device
    assert runs["segresnet"].info.status == "FINISHED"
    assert (runs["unet"].info.status, runs["unet"].data.tags["note"]) == ("FAILED", "why")


def test_the_papers_co2_is_its_time_times_a_constant() -> None:
    rates = [paper.co2_kg / paper.epoch_s for paper in PAPER.values()]
    assert max(rates) / min(rates) < 1.001


def test_every_network_at_full_size_is_a_default() -> None:
    assert {"segresmamba", "segresnet"} <= set(default_models())
    assert "segresmamba_small" not in default_models()


def test_the_peak_is_remembered_after_the_memory_is_free() -> None:
    memory = PeakMemory(torch.device("cpu"))
    before = memory.gib()
    torch.ones(1 << 26).sum()
    after = memory.gib()
    assert before is not None
    assert after is not None
    assert 0.24 < after - before < 0.3


def test_noise_stands_in_for_the_labels_of_regions(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, "data.regions={WT: [1, 2, 4], TC: [1, 4]}")
    labels = synthetic_labels(config)
    assert sorted(labels.values()) == [0, 1, 2, 3, 4]
    batch = next(synthetic_batches(config, 3, len(labels)))
    assert batch.image_BCDHW.shape == (2, 3, 32, 32, 32)
    assert batch.label_BDHW.unique().tolist() == [0, 1, 2, 3, 4]


def test_the_tables_leave_empty_what_was_not_measured(tmp_path: Path) -> None:
    rows = [
        Result("swinunetr_checkpointed", "out of memory", "1 | 2", trained_parameters=62_191_941)
    ]
    write_markdown(tmp_path / "table.md", rows, SETTING)
    write_csv(tmp_path / "table.csv", rows, SETTING)
    text = (tmp_path / "table.md").read_text()
    assert "| swinunetr_checkpointed | 62.19 |  |" in text
    assert "out of memory: 1 \\| 2 |" in text
    assert "| 62.19 | 7.68 | 321.39 | 13.61 | with gradient checkpointing |" in text
    (row,) = read_csv(tmp_path / "table.csv")
    assert (row["peak_gib"], row["paper_memory_gb"], row["patch"]) == ("", "7.68", "64 x 64 x 64")
    assert not draw(tmp_path / "table.png", rows, SETTING)
    assert not (tmp_path / "table.png").exists()


def test_names_in_the_picture_do_not_overlap() -> None:
    rows = [
        Result(f"network_{index}", step_s=step_s, peak_gib=gib, trained_parameters=millions * 10**6)
        for index, (step_s, gib, millions) in enumerate(
            [(1.2, 2.1, 68), (1.1, 1.9, 111), (1.15, 2.0, 60), (4.1, 6.5, 67), (4.4, 6.6, 10),
             (2.1, 2.4, 19), (4.6, 7.0, 62), (1.3, 2.7, 102), (0.9, 1.9, 31), (2.2, 2.5, 102)]
        )
    ]  # fmt: skip
    figure = picture(rows, SETTING)
    assert figure is not None
    axes = figure.axes[0]
    assert sorted(text.get_text() for text in axes.texts) == sorted(row.model for row in rows)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    # Between its two neighbours there is no room for a name, but below them there is.
    crowded = next(text for text in axes.texts if text.get_text() == "network_2")
    assert crowded.arrow_patch is not None
    assert "(s)" in axes.get_xlabel()
    assert "(GiB)" in axes.get_ylabel()
