"""Artifacts over the limit of a server: a real MLflow behind a proxy that refuses large bodies."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from segresmamba.config import TrackingConfig
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import sync
from segresmamba.tracking.journal import Journal
from segresmamba.tracking.mlflow.state import UploadState, open_state
from tests.tracking.server import Server

LIMIT = 100_000
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length"}


class LimitingProxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on; for a body over LIMIT it answers 413, or only closes the connection."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    says_why = True

    def pass_on(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if size > LIMIT:
            self.close_connection = True
            if self.says_why:
                self.send_response(413)
                self.send_header("Content-Length", "0")
                self.end_headers()
            return
        body = self.rfile.read(size)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
        connection = http.client.HTTPConnection(urlsplit(self.upstream).netloc)
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in HOP_BY_HOP:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = pass_on

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy(server: Server) -> Iterator[type[LimitingProxy]]:
    server.start()
    server.wait()

    class Proxy(LimitingProxy):
        upstream = server.uri
        uri = ""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as front:
        threading.Thread(target=front.serve_forever, args=[0.01], daemon=True).start()
        Proxy.uri = f"http://127.0.0.1:{front.server_port}"
        yield Proxy
        front.shutdown()
    server.kill()


@pytest.mark.slow
def test_an_artifact_over_the_limit_is_told_and_holds_nothing_up(
    proxy: type[LimitingProxy], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    for proxy.says_why in (True, False):
        caplog.clear()
        run = tmp_path / f"run {proxy.says_why}"
        run.mkdir()
        config = TrackingConfig(uri=proxy.uri, experiment="limits")
        (run / "large.bin").write_bytes(bytes(50 * LIMIT))
        (run / "small.txt").write_text("fits")
        journal = Journal(RunFolder(run).journal, name=run.name)
        for name in ("large.bin", "small.txt"):
            journal.append("artifact", path=name, folder="")
        journal.append("metrics", step=0, epoch=None, values={"loss": 1.0})
        journal.close()
        open_state(run, config, tmp_path).save(run)
        sync(run)
        refusals = [m for m in caplog.messages if "refuses" in m]
        assert len(refusals) == 1
        assert str(run / "large.bin") in refusals[0]
        client, run_id = MlflowClient(proxy.uri), UploadState.load(run).run_id
        assert [file.path for file in client.list_artifacts(run_id)] == ["small.txt"]
        assert client.get_run(run_id).data.metrics == {"loss": 1.0}
