"""What arrives in MLflow, on an SQLite store."""

from __future__ import annotations

import http.server
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from segresmamba.config import TrackingConfig, load_config
from segresmamba.errors import ConfigError
from segresmamba.storage.run_folder import RunFolder, write_config
from segresmamba.tracking import MlflowSource, TrackingError, open_tracker, read_history, sync
from segresmamba.tracking.energy.ledger import Ledger
from segresmamba.tracking.journal import Journal, read_header
from segresmamba.tracking.mlflow.state import UploadState, open_state

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TABLES = ("runs", "params", "tags", "metrics", "latest_metrics", "experiments")


def client(run: Path) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(UploadState.load(run).uri)


def in_mlflow(run: Path) -> Run:
    return client(run).get_run(UploadState.load(run).run_id)


def history(run: Path, key: str) -> list[tuple[int, float]]:
    points = client(run).get_metric_history(UploadState.load(run).run_id, key)
    return [(point.step, point.value) for point in points]


def rows(run: Path) -> dict[str, list[Any]]:
    """Everything that the database holds."""
    database = sqlite3.connect(run.parent / "mlflow.db")
    try:
        return {name: sorted(database.execute(f"select * from {name}"), key=str) for name in TABLES}
    finally:
        database.close()


def log(journal: Journal, steps: range, offset: float = 0.0) -> None:
    for step in steps:
        journal.append("metrics", step=step, epoch=step / 10, values={"train/loss": offset + step})


def log_a_run(journal: Journal, folder: Path) -> None:
    journal.append("status", status="running", host="node", pid=1)
    journal.append("params", values={"train": {"lr": 1e-4, "threads": None}})
    journal.append("tags", values={"scan_backend": "cpu"})
    log(journal, range(5))
    (folder / "overlays").mkdir()
    (folder / "overlays" / "case.png").write_bytes(b"picture")
    journal.append("artifact", path="overlays/case.png", folder="overlays")
    journal.append("status", status="finished")


def test_everything_arrives(run: Path, journal: Journal) -> None:
    log_a_run(journal, run)
    state = sync(run)
    found = in_mlflow(run)
    assert state.sent_bytes == RunFolder(run).journal.stat().st_size
    assert found.info.run_name == "my run"
    assert found.info.status == "FINISHED"
    assert found.info.start_time == read_header(RunFolder(run).journal).time_ms
    assert found.data.params == {"train.lr": "0.0001", "train.threads": "null"}
    assert found.data.tags["scan_backend"] == "cpu"
    assert history(run, "train/loss") == [(step, float(step)) for step in range(5)]
    assert history(run, "epoch") == [(step, step / 10) for step in range(5)]
    stored = run.parent / "mlartifacts" / found.info.run_id / "artifacts" / "overlays" / "case.png"
    assert stored.read_bytes() == b"picture"


@pytest.mark.parametrize("name", ["50%", "a%41b", "why?", "#1 a b"])
def test_a_folder_of_runs_may_have_any_name(tmp_path: Path, database: Path, name: str) -> None:
    root = tmp_path / "above" / name
    (root / "run").mkdir(parents=True)
    shutil.copy(database, root / "mlflow.db")
    open_state(root / "run", TrackingConfig(), root).save(root / "run")
    journal = Journal(RunFolder(root / "run").journal, name="my run")
    log_a_run(journal, root / "run")
    journal.close()
    sync(root / "run")
    assert len(history(root / "run", "train/loss")) == 5
    assert list((root / "mlartifacts").rglob("case.png"))
    assert MlflowSource(UploadState.load(root / "run").uri).histories("segresmamba", tmp_path / "d")


def test_the_users_of_a_shared_folder_may_write_to_its_database(database: Path) -> None:
    assert database.stat().st_mode & 0o777 == 0o664


def test_repeating_a_sync_changes_nothing(run: Path, journal: Journal) -> None:
    log_a_run(journal, run)
    sync(run)
    before = rows(run)
    sync(run)
    assert rows(run) == before


def test_a_crash_before_the_cursor_moved_duplicates_nothing(run: Path, journal: Journal) -> None:
    journal.append("params", values={"lr": 1})
    log(journal, range(3))
    journal.append("metrics", step=3, epoch=None, values={"train/loss": math.nan, "hd95": math.inf})
    sync(run)
    early = RunFolder(run).mlflow.read_text()
    log_a_run(journal, run)
    log(journal, range(5, 8))
    sync(run)
    before = rows(run)
    RunFolder(run).mlflow.write_text(early)  # what a crash right after sending leaves
    sync(run)
    assert rows(run) == before


@pytest.mark.parametrize("rest", ["", '{"uri": "sqli', '{"uri": 1}'])
def test_a_lost_state_is_found_again_in_mlflow(run: Path, journal: Journal, rest: str) -> None:
    log_a_run(journal, run)
    uri = UploadState.load(run).uri
    write_config(load_config([f"tracking.uri='{uri}'"]), run / "config.yaml")
    first = sync(run)
    before = rows(run)
    RunFolder(run).mlflow.write_text(rest)
    assert sync(run).run_id == first.run_id
    assert rows(run) == before


def test_a_server_that_has_gone_is_not_waited_for(run: Path, journal: Journal) -> None:
    """The job of slurm/mlflow.sh has ended; the database that it showed is still there."""
    write_config(load_config(), run / "config.yaml")
    database = UploadState.load(run).uri
    UploadState(uri="http://127.0.0.1:9", experiment="segresmamba", artifacts="").save(run)
    journal.append("tags", values={"a": "b"})
    assert sync(run).uri == database


def test_a_folder_that_says_nowhere_to_send_it_is_refused(run: Path, journal: Journal) -> None:
    RunFolder(run).mlflow.unlink()
    with pytest.raises(ConfigError) as error:
        sync(run)
    assert error.value.where == str(run / "config.yaml")


def test_steps_trained_again_after_a_resume_arrive_once(run: Path, journal: Journal) -> None:
    log(journal, range(6))
    sync(run)
    log(journal, range(3, 9), offset=0.5)
    sync(run)
    assert [step for step, _ in history(run, "train/loss")] == list(range(9))
    assert history(run, "train/loss")[5] == (5, 5.0)


def test_another_attempt_takes_the_place_of_the_run_which_becomes_its_child(
    run: Path, journal: Journal, tmp_path: Path
) -> None:
    write_config(load_config(), run / "config.yaml")
    log(journal, range(6))
    first = sync(run).run_id
    journal.append("attempt", step=2)
    log(journal, range(3, 8), offset=0.5)
    second = sync(run).run_id
    assert history(run, "train/loss") == [(s, s + 0.5 * (s > 2)) for s in range(8)]
    earlier = client(run).get_run(first)
    assert earlier.info.run_name == "my run, attempt 1"
    assert earlier.data.tags["segresmamba.superseded"] == "attempt 2 goes on from step 2"
    assert earlier.data.tags["mlflow.parentRunId"] == second
    points = client(run).get_metric_history(first, "train/loss")
    assert [(point.step, point.value) for point in points] == [(s, float(s)) for s in range(6)]
    source = MlflowSource(UploadState.load(run).uri)
    (shown,) = source.histories("segresmamba", tmp_path / "downloads")
    assert shown.curves == read_history(run).curves
    before = rows(run)
    RunFolder(run).mlflow.unlink()
    assert sync(run).run_id == second
    assert {name: rows(run)[name] for name in TABLES if name != "runs"} == {
        name: before[name] for name in TABLES if name != "runs"
    }


def test_a_journal_that_begins_again_goes_on_as_the_same_run_in_mlflow(
    run: Path, journal: Journal
) -> None:
    log(journal, range(5))
    first = sync(run)
    journal.close()
    RunFolder(run).journal.write_bytes(b"")  # as a power loss may leave it
    tracker = open_tracker(run, TrackingConfig(), root=run.parent, run_name="run")
    tracker.metrics({"train/loss": 5.0}, step=5)
    tracker.close("preempted")
    assert sync(run).run_id == first.run_id
    assert [step for step, _ in history(run, "train/loss")] == list(range(6))


def test_a_damaged_first_line_makes_no_second_run(run: Path, journal: Journal) -> None:
    log(journal, range(2))
    first = sync(run)
    journal.close()
    path = RunFolder(run).journal
    path.write_bytes(b"x" + path.read_bytes()[1:])
    for _ in range(2):
        assert sync(run).run_id == first.run_id
        tracker = open_tracker(run, TrackingConfig(), root=run.parent, run_name="run")
        tracker.close("preempted")
    assert in_mlflow(run).data.tags["damaged_journal"] == "1 damaged (line 1), 1 missing"


def test_a_second_evaluation_of_a_finished_run_arrives(run: Path, journal: Journal) -> None:
    for dice in (0.8, 0.9):
        journal.append("metrics", step=7, epoch=None, values={"evaluation/dice": dice})
        journal.append("status", status="finished")
    sync(run)
    assert history(run, "evaluation/dice") == [(7, 0.8), (7, 0.9)]


def test_not_a_number_and_infinity_arrive(run: Path, journal: Journal) -> None:
    journal.append("metrics", step=0, epoch=None, values={"loss": math.nan, "hd95": math.inf})
    sync(run)
    assert math.isnan(history(run, "loss")[0][1])
    assert history(run, "hd95")[0][1] > 1e308  # the largest number that SQL has


def test_a_record_beyond_the_limits_of_a_request_arrives_whole(run: Path, journal: Journal) -> None:
    journal.append("params", values={f"p{index}": index for index in range(250)})
    journal.append("tags", values={f"t{index}": "x" for index in range(250)})
    journal.append(
        "metrics", step=0, epoch=None, values={f"m{index}": index for index in range(2500)}
    )
    sync(run)
    data = in_mlflow(run).data
    assert len(data.params) == 250
    assert sum(key.startswith("t") for key in data.tags) == 250
    assert len(data.metrics) == 2500


def test_a_setting_too_long_for_a_param_arrives_as_a_file(run: Path, journal: Journal) -> None:
    journal.append("params", values={"data": {"cases": "c" * 6001}, "short": "s" * 6000})
    sync(run)
    found = in_mlflow(run)
    assert found.data.params == {"data.cases": "params/data.cases.txt", "short": "s" * 6000}
    stored = run.parent / "mlartifacts" / found.info.run_id / "artifacts" / "params"
    assert (stored / "data.cases.txt").read_text() == "c" * 6001


def test_a_setting_changed_by_a_resume_becomes_a_tag(
    run: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    journal.append("params", values={"nodes": 1, "lr": 2})
    sync(run)
    journal.append("params", values={"nodes": 4, "lr": 2})
    sync(run)
    assert in_mlflow(run).data.params == {"nodes": "1", "lr": "2"}
    assert in_mlflow(run).data.tags["changed.nodes"] == "4"
    assert "changed nodes from 1 to 4" in caplog.text
    journal.append("params", values={"nodes": 1, "lr": 2})
    sync(run)
    assert in_mlflow(run).data.tags["changed.nodes"] == "1"


def test_a_class_name_that_mlflow_forbids_is_spelled_otherwise(run: Path, journal: Journal) -> None:
    journal.append("metrics", step=0, epoch=None, values={"dice/tumour (core)": 0.5})
    sync(run)
    assert history(run, "dice/tumour _core_") == [(0, 0.5)]


def test_a_file_that_is_gone_holds_nothing_up(
    run: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    journal.append("artifact", path="gone.png", folder="")
    log(journal, range(2))
    sync(run)
    assert len(history(run, "train/loss")) == 2
    assert "gone.png does not exist any more" in caplog.text


def test_a_received_run_sends_no_file_from_outside_its_folder(
    run: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """The journal of a run that somebody else has sent may name any file of the reader."""
    secret = run.parent / "id_rsa"
    secret.write_text("TOP-SECRET")
    (run / "link").symlink_to(secret)
    (run / "overlays").mkdir()
    (run / "overlays" / "deep").symlink_to(run.parent)
    (run / "emissions.json").symlink_to(secret)
    (run / "round").symlink_to(run / "round")
    (run / "kept").mkdir()
    (run / "kept" / "a.txt").write_text("mine")
    (run / "kept" / "link").symlink_to(run / "kept" / "a.txt")
    os.mkfifo(run / "pipe")
    refused = [str(secret), "../id_rsa", "kept/../../id_rsa", "link", "overlays", "round", "pipe"]
    for path in refused:
        journal.append("artifact", path=path, folder="")
    model = {"step": 1, "loader": "os", "requirements": [], "register": None}
    journal.append("model", path=str(run.parent), **model)
    journal.append("artifact", path="kept", folder="")
    journal.append("status", status="finished")
    sync(run)
    stored = [path for path in (run.parent / "mlartifacts").rglob("*") if path.is_file()]
    assert sorted(path.name for path in stored) == ["a.txt", "link"]
    assert {path.read_text() for path in stored} == {"mine"}
    for path in [*refused, str(run.parent), "emissions.json"]:
        assert f"MLflow does not get {path}: " in caplog.text
    assert in_mlflow(run).info.status == "FINISHED"


def test_the_dataset_arrives_once_with_its_digest(run: Path, journal: Journal) -> None:
    digest = "9c1e" * 16
    for _ in range(2):  # a resume records it again
        journal.append("dataset", name="spleen", digest=digest, source="s.zarr", profile={"n": 9})
    sync(run)
    (found,) = in_mlflow(run).inputs.dataset_inputs
    assert found.dataset.name == "spleen"
    assert found.dataset.digest == digest[:36]
    assert '"s.zarr"' in found.dataset.source
    assert '"n": 9' in found.dataset.profile


def test_the_energy_ledger_arrives_as_it_is_last(run: Path, journal: Journal) -> None:
    ledger = Ledger(run)
    key = ledger.claim({})
    for energy_kwh in (1.0, 2.0):
        ledger.update(key, {"energy_kwh": energy_kwh})
        sync(run)
    stored = in_mlflow(run).info.run_id, "artifacts", RunFolder(run).emissions.name
    assert '"energy_kwh": 2.0' in (run.parent / "mlartifacts").joinpath(*stored).read_text()


def record_model(journal: Journal, folder: Path, register: str | None) -> None:
    (folder / "best").mkdir(exist_ok=True)
    (folder / "best" / "weights.pt").write_bytes(b"weights")
    journal.append(
        "model",
        path="best",
        step=7,
        loader="segresmamba.errors",  # only loading calls it
        requirements=["segresmamba"],
        register=register,
    )


def test_the_best_model_arrives_once_and_is_registered_once(run: Path, journal: Journal) -> None:
    record_model(journal, run, "spleen")
    first = sync(run)
    early = UploadState.load(run)
    early.sent_bytes = 0  # as if it had crashed right after sending
    early.save(run)
    sync(run)
    (model,) = client(run).search_logged_models([first.experiment_id])
    assert (str(model.status), model.source_run_id) == ("READY", first.run_id)
    assert [output.model_id for output in in_mlflow(run).outputs.model_outputs] == [model.model_id]
    (version,) = client(run).search_model_versions("name = 'spleen'")
    assert (version.version, version.run_id) in ((1, first.run_id), ("1", first.run_id))

    from mlflow.models import get_model_info

    stored = next((run.parent / "mlartifacts").rglob("MLmodel"))
    signature = get_model_info(str(stored.parent)).signature
    assert signature.inputs.input_names() == ["image"]
    assert next(stored.parent.rglob("weights.pt")).read_bytes() == b"weights"


def test_a_model_is_not_registered_unless_asked(run: Path, journal: Journal) -> None:
    record_model(journal, run, None)
    state = sync(run)
    assert len(client(run).search_logged_models([state.experiment_id])) == 1
    assert len(client(run).search_registered_models()) == 0


@pytest.mark.parametrize("where", ["log_model_artifacts", "finalize_logged_model"])
def test_an_upload_of_a_model_that_was_cut_is_finished(
    run: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from mlflow import MlflowClient

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    record_model(journal, run, "spleen")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, where, cut)
        with pytest.raises(KeyboardInterrupt):
            sync(run)
    state = sync(run)
    (model,) = client(run).search_logged_models([state.experiment_id])
    assert str(model.status) == "READY"
    assert [output.model_id for output in in_mlflow(run).outputs.model_outputs] == [model.model_id]
    assert len(client(run).search_model_versions("name = 'spleen'")) == 1


@pytest.mark.parametrize(
    ("status", "shown"), [("finished", "FINISHED"), ("failed", "FAILED"), ("preempted", "KILLED")]
)
def test_the_end_of_a_run_shows(run: Path, journal: Journal, status: str, shown: str) -> None:
    journal.append("status", status=status)
    sync(run)
    assert in_mlflow(run).info.status == shown
    assert in_mlflow(run).data.tags["segresmamba.state"] == status
    journal.append("status", status="running", host="node", pid=1)
    sync(run)
    assert in_mlflow(run).info.status == "RUNNING"


def test_a_journal_cut_by_a_power_loss_arrives_up_to_the_cut(
    run: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    log(journal, range(3))
    with RunFolder(run).journal.open("ab") as file:
        file.write(b'{"kind": "metr')
    sync(run)
    assert len(history(run, "train/loss")) == 3
    assert len(caplog.messages) == 1
    assert "middle of a record" in caplog.text


def test_another_mlflow_gets_the_whole_journal(
    run: Path, journal: Journal, database: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log(journal, range(3))
    sync(run)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "other.db"
    shutil.copy(database, elsewhere)
    open_state(run, TrackingConfig(uri=f"sqlite:///{elsewhere}"), run.parent).save(run)
    log(journal, range(3, 5))
    sync(run)
    assert [step for step, _ in history(run, "train/loss")] == list(range(5))


def test_a_run_that_mlflow_has_lost_is_rebuilt(
    run: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    log(journal, range(3))
    sync(run)
    database = sqlite3.connect(run.parent / "mlflow.db")
    for table in ("tags", "metrics", "latest_metrics", "runs"):
        database.execute(f"delete from {table}")
    database.commit()
    database.close()
    log(journal, range(3, 5))
    sync(run)
    assert [step for step, _ in history(run, "train/loss")] == list(range(5))
    assert "rebuilding" in caplog.text


def test_a_database_that_was_replaced_is_filled_though_nothing_is_new(
    run: Path, journal: Journal, database: Path
) -> None:
    log(journal, range(3))
    sync(run)
    shutil.copy(database, run.parent / "mlflow.db")
    sync(run)
    assert [step for step, _ in history(run, "train/loss")] == list(range(3))


def test_a_deleted_run_is_not_brought_back_behind_the_users_back(
    run: Path, journal: Journal
) -> None:
    log(journal, range(2))
    run_id = sync(run).run_id
    client(run).delete_run(run_id)
    RunFolder(run).mlflow.unlink()
    open_state(run, TrackingConfig(), run.parent).save(run)
    with pytest.raises(TrackingError, match="run was deleted") as error:
        sync(run)
    assert f"mlflow runs restore --run-id {run_id}" in error.value.remedy


def test_a_deleted_run_refuses_more(run: Path, journal: Journal) -> None:
    log(journal, range(2))
    run_id = sync(run).run_id
    client(run).delete_run(run_id)
    with pytest.raises(TrackingError, match="run was deleted"):
        sync(run)  # nothing is new, but it is not true either that MLflow has everything
    log(journal, range(2, 4))
    with pytest.raises(TrackingError, match="run was deleted") as error:
        sync(run)
    assert f"mlflow runs restore --run-id {run_id}" in error.value.remedy


def test_a_deleted_experiment_names_the_way_back(run: Path, journal: Journal) -> None:
    experiment_id = client(run).create_experiment("segresmamba")
    client(run).delete_experiment(experiment_id)
    log(journal, range(2))
    with pytest.raises(TrackingError, match="experiment was deleted") as error:
        sync(run)
    assert f"mlflow experiments restore -x {experiment_id}" in error.value.remedy
    client(run).restore_experiment(experiment_id)
    client(run).set_experiment_tag(experiment_id, "mlflow.note.content", "mine")
    sync(run)
    tags = client(run).get_experiment(experiment_id).tags
    assert tags["mlflow.note.content"] == "mine"  # what a user wrote stays
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert len(history(run, "train/loss")) == 2


def test_an_experiment_deleted_in_mid_run_ends_the_upload_with_the_way_back(
    run: Path, journal: Journal
) -> None:
    log(journal, range(2))
    experiment_id = sync(run).experiment_id
    client(run).delete_experiment(experiment_id)
    log(journal, range(2, 4))
    with pytest.raises(TrackingError, match="experiment was deleted") as error:
        sync(run)
    assert f"mlflow experiments restore -x {experiment_id}" in error.value.remedy
    client(run).restore_experiment(experiment_id)
    sync(run)
    assert [step for step, _ in history(run, "train/loss")] == list(range(4))


@pytest.fixture
def answering(run: Path) -> Iterator[type[http.server.BaseHTTPRequestHandler]]:
    """A server that answers everything with `code`; the run is sent to it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        code = 500

        def answer(self) -> None:
            self.send_response(self.code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        open_state(run, TrackingConfig(uri=uri), run.parent).save(run)
        yield Handler
        server.shutdown()


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_server_that_refuses_is_an_error_of_the_user(
    run: Path, journal: Journal, answering: Any, code: int
) -> None:
    answering.code = code
    with pytest.raises(TrackingError, match="MLflow refuses this run") as error:
        sync(run)
    assert error.value.where.startswith("http://127.0.0.1:")
    assert str(code) in error.value.got


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_in_trouble_is_worth_another_try(
    run: Path, journal: Journal, answering: Any, code: int
) -> None:
    answering.code = code
    with pytest.raises(Exception, match=str(code)) as error:
        sync(run)
    assert not isinstance(error.value, TrackingError)


RUNS = 10
FIRST_USE = """
import os, pathlib, sys
import mlflow.store.db.utils, mlflow.store.tracking.sqlalchemy_store
from segresmamba.tracking import sync
root = pathlib.Path(sys.argv[1])
children = []
for folder in sorted(root.glob("run*")):
    pid = os.fork()
    if pid == 0:
        try:
            sync(folder)
        except BaseException as error:
            print(folder.name, type(error).__name__, str(error)[:300], flush=True)
            os._exit(1)
        os._exit(0)
    children.append(pid)
sys.exit(any(os.waitpid(pid, 0)[1] for pid in children))
"""


@pytest.mark.slow
def test_many_runs_may_be_the_first_to_use_a_database(tmp_path: Path) -> None:
    (tmp_path / ".part-node-1-mlflow.db").write_text("left behind by a first use that was killed")
    folders = [tmp_path / f"run{index}" for index in range(RUNS)]
    for folder in folders:
        folder.mkdir()
        journal = Journal(RunFolder(folder).journal, name=folder.name)
        log(journal, range(3))
        journal.close()
        open_state(folder, TrackingConfig(group="sweep"), tmp_path).save(folder)
    started = subprocess.run(
        [sys.executable, "-c", FIRST_USE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode == 0, started.stdout + started.stderr
    assert not (tmp_path / ".part-node-1-mlflow.db").exists()
    assert len({UploadState.load(folder).run_id for folder in folders}) == RUNS
    assert len({UploadState.load(folder).parent_id for folder in folders}) == 1
    assert len({UploadState.load(folder).experiment_id for folder in folders}) == 1
    for folder in folders:
        assert len(history(folder, "train/loss")) == 3


def test_importing_the_package_does_not_import_mlflow() -> None:
    code = "import sys, segresmamba.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
