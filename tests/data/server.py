"""Servers of stores: a real S3 server by moto, and one that fails as it is told."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import obstore
from obstore.store import S3Store

from launch.ports import free_port

KEYS = {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
BUCKET = "bucket"


@contextmanager
def s3_server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a server with an empty bucket; yield its address and its process."""
    port = free_port(f"s3 {os.getpid()}")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port, process)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=60).close()
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("moto's server does not start")


def upload(folder: Path, endpoint: str, prefix: str) -> str:
    """Copy a folder into the bucket and return its URL."""
    store = S3Store(
        BUCKET,
        prefix=prefix,
        endpoint=endpoint,
        access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region=KEYS["AWS_REGION"],
        client_options={"allow_http": True},
    )
    for path in folder.rglob("*"):
        if path.is_file():
            obstore.put(store, path.relative_to(folder).as_posix(), path.read_bytes())
    return f"s3://{BUCKET}/{prefix}"


class FailingServer(ThreadingHTTPServer):
    """Serves a folder by HTTP, ranges included, and fails as many requests as it is told.

    Attributes:
        fault: A status such as "503", "reset" (the connection), "cut" (half of the answer), or
            "whole" (the whole file where a part is asked for).
        failures: How many requests still fail.
        asked: How many requests there were.
        logins: What the requests had as Authorization.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.fault, self.failures, self.asked = folder, "503", 0, 0
        self.logins = set[str | None]()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/store.zarr"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that break: that is what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FailingServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.logins.add(self.headers.get("Authorization"))
        failing = self.server.failures > 0
        self.server.failures -= failing
        if failing and self.server.fault == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            os.close(self.connection.detach())
            self.close_connection = True
            return
        if failing and self.server.fault not in ("cut", "whole"):
            self._answer(int(self.server.fault), b"")
            return
        path = self.server.folder / self.path.removeprefix("/store.zarr/")
        if not path.is_file():
            self._answer(404, b"")
            return
        content, span = path.read_bytes(), self.headers.get("Range", "")
        if failing and self.server.fault == "whole":
            span = ""
        total = len(content)
        first, _, last = span.removeprefix("bytes=").partition("-")
        begin = int(first) if first else max(0, total - int(last or total))
        end = min(int(last) + 1, total) if first and last else total
        status, headers = (206, f"bytes {begin}-{end - 1}/{total}") if span else (200, "")
        self._answer(
            status, content[begin:end], headers, cut=failing and self.server.fault == "cut"
        )

    def _answer(self, status: int, body: bytes, span: str = "", *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"same"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        if span:
            self.send_header("Content-Range", span)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut


@contextmanager
def failing_server(folder: Path) -> Iterator[FailingServer]:
    """A server of this store that answers every request, until it is told to fail."""
    with FailingServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
