"""Passwords and tokens are in no file, log or pickle; who needs one still gets it."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.jobs.train_job import TrainJob
from launch.slurm import script
from launch.sweeps.grammar import hide_secrets
from segresmamba import secrets
from segresmamba.config import load_config, read_config
from segresmamba.data import open_dataset
from segresmamba.errors import ConfigError, DataError, UserError
from segresmamba.redaction import VARIABLE, redacted
from segresmamba.storage.run_folder import write_config
from segresmamba.tracking.mlflow.state import UploadState
from tests.data.server import FailingServer, failing_server
from tests.engine.tiny import TINY
from tests.launch.conftest import REPOSITORY

CANARY = "canary7f3a9"
SETUP = f'"echo {CANARY}4 > /dev/null"'
WORDS = [
    f"cluster.env={{HF_TOKEN:{CANARY}2,NCCL_DEBUG:INFO,N:{CANARY}3}}",
    f"cluster.setup=['module load cuda',{SETUP}]",
]


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of what an earlier test has hidden."""
    monkeypatch.setenv(VARIABLE, "")


@pytest.fixture
def server(tiny_store: Path) -> Iterator[FailingServer]:
    with failing_server(tiny_store) as started:
        yield started


def secret_url(server: FailingServer) -> str:
    return server.url.replace("://", f"://me:{CANARY}1@")


def files_with_canary(*folders: Path) -> list[str]:
    """Every file that holds the canary, whatever kind it is; files for their owner are left out."""
    return [
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
        and CANARY.encode() in path.read_bytes()
        and not (path.name == secrets.FILE and path.stat().st_mode & 0o077 == 0)
    ]


def test_a_configuration_holds_markers_and_its_folder_the_secrets(tmp_path: Path) -> None:
    config = load_config([*WORDS, f"data.store=https://me:{CANARY}1@host/store.zarr"])
    assert CANARY not in f"{config!r}{config.model_dump_json()}"
    assert CANARY.encode() not in pickle.dumps(TrainJob(config))
    assert config.data.store == "https://me:***@host/store.zarr"
    assert config.cluster.env == {
        "HF_TOKEN": "***HF_TOKEN***", "NCCL_DEBUG": "INFO", "N": "***N***",
    }  # fmt: skip
    assert config.cluster.setup[0] == "module load cuda"
    write_config(config, tmp_path / "config.yaml")
    assert not files_with_canary(tmp_path)
    os.environ[VARIABLE] = ""
    assert read_config(tmp_path / "config.yaml") == config
    assert secrets.reveal(config.data.store) == f"https://me:{CANARY}1@host/store.zarr"
    assert secrets.reveal(str(config.cluster.env["HF_TOKEN"])) == f"{CANARY}2"
    assert f"{CANARY}4" in secrets.reveal(config.cluster.setup[1])


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        (f"https://{CANARY}@host/x", "https://***@host/x"),
        (f"https://h/x?v=1&sig={CANARY}&b=2", "https://h/x?v=1&sig=***&b=2"),
        (f"https://h/x?X-Amz-Security-Token={CANARY}", "https://h/x?X-Amz-Security-Token=***"),
        (f"s3://me:a@{CANARY}@bucket/x", "s3://me:***@bucket/x"),
        ("abfss://container@account/x", "abfss://container@account/x"),
        ("s3://bucket/store.zarr", "s3://bucket/store.zarr"),
        ("http://[", "http://["),
    ],
)
def test_what_is_secret_in_a_url_is_hidden(url: str, hidden: str) -> None:
    assert secrets.hide_url(url) == hidden
    assert secrets.hide_url(hidden) == hidden
    assert secrets.reveal(hidden) == url if "***" in hidden else url == hidden


def test_overrides_of_a_sweep_have_markers_that_load_the_same_configuration() -> None:
    stores = f"data.store=https://me:{CANARY}1@a/x,https://me:{CANARY}5@b/x"
    single = f"cluster.env.WANDB_API_KEY={CANARY}"
    hidden = hide_secrets([*WORDS, single, stores, "train.lr=1e-3"])
    assert CANARY not in " ".join(hidden)
    assert "NCCL_DEBUG" in hidden[0]
    assert hidden[-1] == "train.lr=1e-3"
    assert load_config(hidden[:2]) == load_config(WORDS)
    assert load_config([hidden[2]]) == load_config([single])
    assert secrets.reveal("https://me:***@b/x") == f"https://me:{CANARY}5@b/x"


def test_a_batch_script_asks_for_secrets_and_stops_without_them(tmp_path: Path) -> None:
    config = load_config([*WORDS, "cluster=slurm"])
    write_config(config, tmp_path / "config.yaml")
    os.environ[VARIABLE] = ""
    lines = script.environment(config.cluster, tmp_path)
    lines.remove("module load cuda")  # this machine has no `module`
    assert CANARY not in " ".join(lines)
    shell = "\n".join([*lines, 'echo "$HF_TOKEN $NCCL_DEBUG $N"'])
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout == f"{CANARY}2 INFO {CANARY}3\n"
    (tmp_path / secrets.FILE).unlink()
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "a secret of this run is not known here" in done.stderr


@pytest.mark.parametrize("mine", [True, False])
def test_only_the_owners_file_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: bool
) -> None:
    (tmp_path / secrets.FILE).write_text(json.dumps({"***A***": "b"}))
    os.chown(tmp_path / secrets.FILE, 12345 if os.geteuid() == 0 and not mine else -1, -1)
    if not mine and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    secrets.recall(tmp_path)
    if mine:
        assert secrets.reveal("***A***") == "b"
    else:
        with pytest.raises(ConfigError, match="not known here"):
            secrets.reveal("***A***")


def test_a_message_shows_no_secret() -> None:
    load_config(WORDS)
    error = UserError(
        "it failed", where=f"https://me:pw@host/{CANARY}2", got=f"password='{CANARY}'", remedy="x"
    )
    assert CANARY not in error.screen()
    assert ":pw@" not in error.screen()
    assert redacted("step 100  loss 0.5, key a=b, author me") == (
        "step 100  loss 0.5, key a=b, author me"
    )


def test_a_store_is_read_with_its_password_and_named_without(server: FailingServer) -> None:
    dataset = open_dataset(secret_url(server))
    assert CANARY not in dataset.where
    login = base64.b64encode(f"me:{CANARY}1".encode()).decode()
    assert server.logins == {f"Basic {login}"}
    assert pickle.loads(pickle.dumps(dataset)).digest == dataset.digest
    server.fault, server.failures = "403", 1
    with pytest.raises(DataError) as error:
        open_dataset(secret_url(server))
    assert CANARY not in error.value.screen()


def test_a_mistake_beside_a_secret_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        [*WORDS, "train.lr=x"],
        [f"data.store=https://me:{CANARY}@h/x,https://me:{CANARY}@i/x"],
        [f"cluster.env={{A_TOKEN:{CANARY}"],
        [f"cluster.env=[A_TOKEN={CANARY}]"],
    ):
        monkeypatch.setattr(sys, "argv", ["launch", "train", *words])
        with pytest.raises(SystemExit):
            main()
        shown = capsys.readouterr()
        assert "error:" in shown.err
        assert CANARY not in shown.out + shown.err


def test_a_job_on_slurm_leaves_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, body in {
        "sbatch": "echo Submitted batch job 4711", "squeue": "exit 0", "srun": "exit 1",
    }.items():  # fmt: skip
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    store = f"data.store=https://me:{CANARY}1@host/x.zarr"
    words = ["cluster=slurm", *WORDS, store, f"run.root={tmp_path}/runs", "run.name=one"]
    for more in (["train", "--dry-run"], ["train"]):
        monkeypatch.setattr(sys, "argv", ["launch", *more, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    shown = capsys.readouterr()
    assert CANARY not in shown.out + shown.err
    assert not files_with_canary(tmp_path)
    kept = json.loads((tmp_path / "runs/one/logs" / secrets.FILE).read_text())
    assert {CANARY in secret for secret in kept.values()} == {True}
    assert len(kept) == 4


@pytest.mark.slow
def test_a_sweep_of_real_runs_leaves_no_secret_and_can_be_resumed(
    server: FailingServer, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial is a job with a rank and a reader; MLflow gets its run and its model, too."""
    store, runs = f"data.store={secret_url(server)}", tmp_path / "runs"
    runs.mkdir()
    shutil.copy(database, runs)
    words = [word for word in TINY if not word.startswith("tracking")]
    words += [store, *WORDS, f"run.root={runs}", "data.workers=1", "tracking.emissions=false"]
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))

    def launch(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "launch", *words],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert CANARY not in done.stdout + done.stderr
        assert not files_with_canary(tmp_path)
        login = base64.b64encode(f"me:{CANARY}1".encode()).decode()
        assert server.logins == {f"Basic {login}"}

    launch("sweep", "--name", "s", *words)
    (run,) = (path.parent for path in runs.glob("*/journal.jsonl"))
    assert (run / "best" / "config.yaml").exists()
    assert UploadState.load(run).run_id  # MLflow has it
    # Another shell, which knows no secret, trains what is missing.
    shutil.rmtree(run)
    server.logins.clear()
    launch("resume", str(runs / "sweeps" / "s"))
    assert (run / "best" / "weights.safetensors").exists()
    assert server.logins
    dataset = open_dataset(read_config(run / "config.yaml").data.store)
    dataset[dataset.case_ids[0]].crop((0, 0, 0), (8, 8, 8))
