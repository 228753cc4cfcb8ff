"""A server that answers S3's GET requests from the files of a folder, each after a delay.

    python benchmarks/streaming_server.py FOLDER PORT LATENCY_MS

The kernel sends byte ranges straight from the page cache, so that the server takes as little as
possible of the cores that it shares with the readers. It does not check signatures.
"""

from __future__ import annotations

import http.server
import os
import re
import sys
import time
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Otherwise the end of an answer waits 40 ms for the client to acknowledge its beginning.
    disable_nagle_algorithm = True
    folder: Path
    latency_s: float

    def do_GET(self) -> None:
        time.sleep(self.latency_s)
        path = self.folder / self.path.split("?")[0].lstrip("/")
        if not path.is_file():
            self._answer(404)
            return
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        first, last = 0, size - 1
        if asked and asked[1]:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
        elif asked:
            first = max(size - int(asked[2]), 0)
        self._answer(206 if asked else 200, last + 1 - first, f"bytes {first}-{last}/{size}")
        self.wfile.flush()
        with path.open("rb") as file:
            while first <= last:
                first += os.sendfile(
                    self.connection.fileno(), file.fileno(), first, last + 1 - first
                )

    def _answer(self, status: int, length: int = 0, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"unchanged"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


if __name__ == "__main__":
    Handler.folder, Handler.latency_s = Path(sys.argv[1]), float(sys.argv[3]) / 1e3
    Server(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
