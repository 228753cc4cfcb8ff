"""The page and its volumes over HTTP, for browsers on this machine alone.

The server listens on 127.0.0.1, which every user of the machine can reach, so all addresses begin
with a random word. It hands out what it knows by name, never a path that a request gives.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
from dataclasses import dataclass, field
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from segresmamba.data.volumes import geometry
from segresmamba.errors import ConfigError, UserError
from segresmamba.view.cases import CaseList
from segresmamba.view.niivue import PAGE, SCRIPT, require_niivue
from segresmamba.view.volumes import Grid

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
# A web page elsewhere can make its own name mean 127.0.0.1, but it cannot change the name that the
# browser sends. With `ssh -L` the port is another one than ours.
_OUR_NAMES = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?")
_PATH = re.compile(r"/([^/]*)/([^?]*)(?:\?.*)?")
_VOLUME = re.compile(r"cases/(\d+)/(channel|label)/([\w-]+)\.nii", re.ASCII)
_FILES = {
    "": (PAGE / "page.html", "text/html; charset=utf-8"),
    "page.css": (PAGE / "page.css", "text/css; charset=utf-8"),
    "page.js": (PAGE / "page.js", "text/javascript; charset=utf-8"),
    "labels.js": (PAGE / "labels.js", "text/javascript; charset=utf-8"),
    "niivue.js": (SCRIPT, "text/javascript; charset=utf-8"),
    "niivue-LICENSE.txt": (PAGE / "niivue-LICENSE.txt", "text/plain; charset=utf-8"),
}
_TEXT = "text/plain; charset=utf-8"
_EVERY_ANSWER = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class _Answer:
    content: bytes
    kind: str = _TEXT
    status: HTTPStatus = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)


class ViewServer(ThreadingHTTPServer):
    """Serves cases until it is closed.

    Args:
        shown: The cases.
        port: The port; 0 takes a free one.

    Raises:
        UserError: If NiiVue is not installed, or the port is taken.
    """

    daemon_threads = True

    def __init__(self, shown: CaseList, port: int = 0) -> None:
        require_niivue()
        self.shown = shown
        self.word = secrets.token_urlsafe(16)
        try:
            super().__init__((_HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(
                "the server cannot listen at this port",
                where="--port",
                got=f"{port}: {error.strerror}",
                remedy="leave --port out, and a free port is taken",
            ) from error

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{_HOST}:{self.server_port}/{self.word}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what went wrong with a connection; a browser that closes one is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            logger.exception("a request failed")

    def answer(self, name: str) -> _Answer:
        """What stands behind a name below the random word."""
        if name in _FILES:
            path, kind = _FILES[name]
            return _Answer(path.read_bytes(), kind)
        if name == "cases.json":
            index = {
                "title": self.shown.title,
                "label_names": self.shown.label_names,
                "ignore_value": self.shown.ignore_value,
                "cases": [
                    {
                        "name": case.name,
                        "dice": case.dice,
                        "channels": list(case.channels),
                        "labels": list(case.labels),
                    }
                    for case in self.shown.cases
                ],
            }
            return _Answer(json.dumps(index).encode(), "application/json")
        volume = _VOLUME.fullmatch(name)
        if volume is None or int(volume[1]) >= len(self.shown.cases):
            return _NOT_FOUND
        case, group, which = self.shown.cases[int(volume[1])], volume[2], volume[3]
        if group == "label":
            read = case.labels.get(which)
        else:
            numbered = {str(number): one for number, one in enumerate(case.channels.values())}
            read = numbered.get(which)
        if read is None:
            return _NOT_FOUND
        try:
            image = read()
        except UserError as error:
            return _Answer(error.screen().encode(), status=HTTPStatus.UNPROCESSABLE_ENTITY)
        affine = geometry.in_mm(image.affine, image.header)
        difference = case.grid.difference(Grid(image.shape, affine))
        headers = {"X-Other-Grid": difference} if difference else {}
        return _Answer(image.to_bytes(), "application/octet-stream", headers=headers)


_NOT_FOUND = _Answer(b"there is nothing of that name here", status=HTTPStatus.NOT_FOUND)


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version = "segresmamba"
    sys_version = ""

    def do_GET(self) -> None:
        answer = self._answer()
        self.send_response(answer.status)
        headers = {"Content-Type": answer.kind, "Content-Length": str(len(answer.content))}
        for name, value in (headers | _EVERY_ANSWER | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.content)

    def _answer(self) -> _Answer:
        if not _OUR_NAMES.fullmatch(self.headers.get("Host", "")):
            return _Answer(
                b"this server answers to 127.0.0.1 and localhost only", status=HTTPStatus.FORBIDDEN
            )
        if compare_digest(self.path.encode(), f"/{self.server.word}".encode()):
            # Typed without its last character. A path alone keeps the port of an `ssh -L`.
            return _Answer(
                b"", status=HTTPStatus.MOVED_PERMANENTLY, headers={"Location": f"{self.path}/"}
            )
        asked = _PATH.fullmatch(self.path)
        if asked is None or not compare_digest(asked[1].encode(), self.server.word.encode()):
            return _NOT_FOUND
        try:
            return self.server.answer(asked[2])
        except Exception:
            logger.exception("%s cannot be shown", asked[2])
            return _Answer(
                b"this cannot be shown; the terminal says why",
                status=HTTPStatus.INTERNAL_SERVER_ERROR,
            )

    def log_message(self, format: str, *args: object) -> None:
        """Keep each request out of the terminal."""
        logger.debug(format, *args)
