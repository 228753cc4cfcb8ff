"""The server of slurm/mlflow.sh: who knows the password may do everything, all others nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segresmamba.config import TrackingConfig
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import MlflowSource, TrackingError, sync, tracking_uri
from segresmamba.tracking.journal import Journal
from segresmamba.tracking.mlflow import client as clients
from segresmamba.tracking.mlflow.login import make_password, server_password
from segresmamba.tracking.mlflow.server import APP, LoginGuard, lies_below
from segresmamba.tracking.mlflow.state import UploadState, open_state
from tests.tracking.server import Server

SCRIPT = Path(__file__).parents[3] / "slurm" / "mlflow.sh"
CREATE = "/api/2.0/mlflow/experiments/create"


class GuardedServer(Server):
    """The server as slurm/mlflow.sh starts it, and its address where runs look for it."""

    def command(self) -> list[str]:
        """The command of the script, on the loopback address."""
        text = SCRIPT.read_text().replace("\\\n", " ")
        (words,) = re.findall(r'^"\$python" (-m \S*server .*) &$', text, re.MULTILINE)
        values = {"root": str(self.folder), "port": str(self.port), "node": socket.gethostname()}
        values["escaped"] = values["root"]
        for name, value in values.items():
            words = words.replace(f"${name}", value)
        words = words.replace('"', "").replace("--host 0.0.0.0", "--host 127.0.0.1")
        return [sys.executable, *words.split()]

    @property
    def login(self) -> str:
        """The header of a browser that was given the password."""
        password = (self.folder / "mlflow-password").read_text()
        return f"Basic {b64encode(f'segresmamba:{password}'.encode()).decode()}"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[GuardedServer]:
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copy(database, folder / "mlflow.db")
    server = GuardedServer(folder)
    server.start()
    try:
        server.wait()
        address = {"uri": server.uri, "job": "1", "user": "segresmamba"}
        (folder / "mlflow-server.json").write_text(json.dumps(address))
        yield server
    finally:
        server.kill()


def ask(server: Server, path: str, body: Any = None, login: str | None = None) -> tuple[int, str]:
    """Status and text of an answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": login} if login else {})
    request = urllib.request.Request(server.uri + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


WRONG_LOGINS = [None, "Basic c2VncmVzbWFtYmE6", "Basic YWRtaW46cGFzc3dvcmQ=", "x"]


@pytest.mark.parametrize("login", WRONG_LOGINS)
def test_a_stranger_is_refused_everywhere(guarded: GuardedServer, login: str | None) -> None:
    for path, body in [
        ("/", None),
        ("/get-artifact?path=id_rsa&run_uuid=0", None),
        ("//health", None),
        ("/graphql", {"query": "{test}"}),
        ("/ajax-api/2.0/mlflow/experiments/search", {"max_results": 1}),
        ("/api/2.0/mlflow/runs/delete", {"run_id": "0"}),
        (CREATE, {"name": "stranger", "artifact_location": "file:///"}),
    ]:
        assert ask(guarded, path, body, login)[0] == 401, path
    assert ask(guarded, "/health", login=login) == (200, "OK")


def test_the_owners_run_arrives_and_no_file_of_it_has_the_password(guarded: GuardedServer) -> None:
    root, run = guarded.folder, guarded.folder / "run"
    run.mkdir()
    open_state(run, TrackingConfig(), root).save(run)
    journal = Journal(RunFolder(run).journal, name="my run")
    journal.append("metrics", step=1, epoch=None, values={"loss": 0.5})
    journal.append("status", status="finished")
    journal.close()
    state = sync(run)
    assert state.uri == guarded.uri
    assert state.sent_bytes == RunFolder(run).journal.stat().st_size

    query = f"/api/2.0/mlflow/runs/get?run_id={state.run_id}"
    status, text = ask(guarded, query, login=guarded.login)
    assert (status, json.loads(text)["run"]["info"]["status"]) == (200, "FINISHED")
    assert "segresmamba" in MlflowSource(guarded.uri, root).experiments()

    file = root / "mlflow-password"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    written = [path for path in root.rglob("*") if path.is_file() and path != file]
    assert [path for path in written if file.read_bytes() in path.read_bytes()] == []


def test_artifacts_lie_below_the_folder_of_all_runs(guarded: GuardedServer, tmp_path: Path) -> None:
    (guarded.folder / "way out").symlink_to(tmp_path)
    for number, place in enumerate((f"file://{tmp_path}", f"{guarded.folder}/way out/x", "s3://b")):
        for name in ("artifact_location", "artifactLocation"):
            body = {"name": f"outside {number}", name: place}
            assert ask(guarded, CREATE, body, guarded.login)[0] == 403
    inside = {"name": "inside", "artifact_location": f"file://{guarded.folder}/mlartifacts/9"}
    assert ask(guarded, CREATE, inside, guarded.login)[0] == 200


def test_no_link_is_followed_out_of_the_folder(guarded: GuardedServer, tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text("TOP-SECRET")
    place = guarded.folder / "mlartifacts" / "links"
    body = {"name": "links", "artifact_location": f"file://{place}"}
    number = json.loads(ask(guarded, CREATE, body, guarded.login)[1])["experiment_id"]
    body = {"experiment_id": number, "start_time": 0}
    answer = ask(guarded, "/api/2.0/mlflow/runs/create", body, guarded.login)[1]
    run = json.loads(answer)["run"]["info"]["run_id"]
    artifacts = place / run / "artifacts"
    artifacts.mkdir(parents=True)
    (artifacts / "mine.txt").write_text("mine")
    (artifacts / "way out").symlink_to(tmp_path)
    (artifacts / "key").symlink_to(tmp_path / "id_rsa")
    get = f"/get-artifact?run_uuid={run}&path="
    assert ask(guarded, f"{get}mine.txt", login=guarded.login) == (200, "mine")
    for path in ("way%20out/id_rsa", "key"):
        status, text = ask(guarded, get + path, login=guarded.login)
        assert status >= 400
        assert "TOP-SECRET" not in text
    listed = f"/api/2.0/mlflow/artifacts/list?run_id={run}&path=way%20out"
    assert "id_rsa" not in ask(guarded, listed, login=guarded.login)[1]
    shutil.rmtree(artifacts)
    artifacts.symlink_to(tmp_path)
    assert "TOP-SECRET" not in ask(guarded, f"{get}id_rsa", login=guarded.login)[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine_gets_neither_the_password_nor_an_answer(
    guarded: GuardedServer,
) -> None:
    # The folders above would keep the other user out, so the password is copied as it lies there.
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        shutil.copy2(guarded.folder / "mlflow-password", place)
        code = (
            "import sys, urllib.request, urllib.error\n"
            "try: print(open(sys.argv[1]).read())\n"
            "except PermissionError: print('no password')\n"
            "try: print(urllib.request.urlopen(sys.argv[2], timeout=60).read())\n"
            "except urllib.error.HTTPError as error: print(error.code)\n"
        )
        url = f"{guarded.uri}/ajax-api/2.0/mlflow/experiments/search"
        done = subprocess.run(
            ["python3", "-c", code, f"{place}/mlflow-password", url],
            user=65534, cwd="/", env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["no password", "401"]


def test_the_run_of_another_user_writes_to_the_database_that_the_server_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_password(tmp_path)
    server = {"uri": "http://n1:22291", "job": "8", "user": "segresmamba"}
    (tmp_path / "mlflow-server.json").write_text(json.dumps(server))
    assert tracking_uri(TrackingConfig(), tmp_path) == "http://n1:22291"
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert tracking_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert server_password(tmp_path, "http://n1:22291") is None


def test_the_password_goes_to_no_other_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(clients, "_login", {})
    password = make_password(tmp_path)
    server = {"uri": "http://n1:22291", "job": "8", "user": "segresmamba"}
    (tmp_path / "mlflow-server.json").write_text(json.dumps(server))

    def login(uri: str) -> list[str | None]:
        clients.connect(UploadState(uri=uri, experiment="e", artifacts=""), tmp_path / "run")
        return [os.environ.get(name) for name in names]

    assert login("http://n1:22291") == ["segresmamba", password]
    assert login("http://n2:22291") == [None, None]


def test_a_password_that_others_can_read_is_refused(tmp_path: Path) -> None:
    password = make_password(tmp_path)
    assert make_password(tmp_path) == password
    (tmp_path / "mlflow-password").chmod(0o644)
    with pytest.raises(TrackingError, match="other users can read it"):
        make_password(tmp_path)
    (tmp_path / "mlflow-password").unlink()
    (tmp_path / "mlflow-password").symlink_to("/dev/zero")
    with pytest.raises(TrackingError, match="cannot be used"):
        make_password(tmp_path)


def test_without_a_password_nobody_gets_in() -> None:
    answers: list[Any] = []

    async def inside(*_: Any) -> None:
        raise AssertionError("somebody got in")

    async def send(message: Any) -> None:
        answers.append(message.get("status", message.get("code")))

    async def visit() -> None:
        guard = LoginGuard(inside, None)
        none = f"Basic {b64encode(b'segresmamba:None').decode()}".encode()
        headers = [(b"authorization", none)]
        await guard({"type": "http", "path": "/", "headers": headers}, inside, send)
        await guard({"type": "websocket", "path": "/", "headers": headers}, inside, send)

    asyncio.run(visit())
    assert answers == [401, None, 1008]


def test_mlflow_knows_the_login_by_its_name() -> None:
    project = tomllib.loads((SCRIPT.parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["mlflow.app"] == {"segresmamba": APP}
    assert "--app-name segresmamba" in SCRIPT.read_text()


def test_links_are_followed_before_a_place_is_compared(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    assert lies_below(str(root / "mlartifacts"), root)
    assert lies_below((root / "a b").as_uri(), root)
    for place in (f"{root}/../x", "relative", f"file://host{root}", str(tmp_path), "s3://bucket"):
        assert not lies_below(place, root)
