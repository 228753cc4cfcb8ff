"""MLflow's server behind a login: `python -m segresmamba.tracking.mlflow.server ROOT OPTION...`.

MLflow's own login needs packages that MLflow does not bring, and asks for the rights of each user.
Here there is one user, who may do everything, and all others may do nothing. `slurm/mlflow.sh` runs
this. The options are those of `mlflow server`, which is what runs behind the login; one of them is
`--app-name segresmamba`.

Without a password the server lets nobody in.
"""

from __future__ import annotations

import hmac
import json
import os
import sys
from base64 import b64encode
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from segresmamba.errors import UserError
from segresmamba.tracking.mlflow.login import USER, make_password

ROOT_VARIABLE = "SEGRESMAMBA_MLFLOW_ROOT"
# The entry point of the app, as in pyproject.toml.
GROUP, NAME, APP = "mlflow.app", "segresmamba", "segresmamba.tracking.mlflow.server:app"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]


class LoginGuard:
    """Passes a request on only if it carries the login; `/health` is answered to everybody.

    Args:
        app: The application behind it.
        password: The password of `USER`; None refuses every request.
    """

    def __init__(self, app: AsgiApp, password: str | None) -> None:
        self._app = app
        login = f"{USER}:{password}".encode() if password else None
        self._expected = b"Basic " + b64encode(login) if login else None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI wants it."""
        given = [value for name, value in scope.get("headers", ()) if name == b"authorization"]
        login = self._expected
        is_known = login and len(given) == 1 and hmac.compare_digest(given[0], login)
        if scope["type"] == "lifespan" or is_known:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["path"] == "/health":
            await _answer(send, 200, b"OK")
        else:
            await _answer(send, 401, b"This MLflow server asks for a login.\n")


def app() -> LoginGuard:
    """The application that uvicorn serves."""
    from mlflow.server import app as pages
    from mlflow.server.fastapi_app import app as server

    root = os.environ.get(ROOT_VARIABLE)
    if root is None:
        return LoginGuard(server, None)
    pages.before_request(lambda: refuse_outside(Path(root)))
    follow_no_links_out(Path(root))
    return LoginGuard(server, make_password(Path(root)))


def refuse_outside(root: Path) -> tuple[dict[str, str], int] | None:
    """MLflow's answer to an experiment whose artifacts would lie outside the folder of all runs.

    MLflow reads and deletes whatever lies in the folder of an experiment's artifacts.
    """
    from flask import request

    if not request.path.endswith("/experiments/create"):
        return None
    body = request.get_json(force=True, silent=True)
    if isinstance(body, str):  # MLflow also takes JSON in a JSON text
        body = json.loads(body)
    names = ("artifact_location", "artifactLocation")
    asked = [body[name] for name in names if body.get(name)] if isinstance(body, dict) else []
    if all(lies_below(str(place), root) for place in asked):
        return None
    message = f"artifacts lie below {root}, not in {asked[0]}"
    return {"error_code": "PERMISSION_DENIED", "message": message}, 403


def follow_no_links_out(root: Path) -> None:
    """Let MLflow touch no artifact that lies, with all links followed, outside a folder."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    def guarded(touch: Callable[..., Any]) -> Callable[..., Any]:
        def touch_inside(self: Any, *given: Any, **named: Any) -> Any:
            asked = given[0] if given else named.get("artifact_path", named.get("path"))
            if not lies_below(os.path.join(self.artifact_dir, asked or ""), root):
                raise MlflowException("a link leads out of the folder", PERMISSION_DENIED)
            return touch(self, *given, **named)

        return touch_inside

    for name in ("get_local_path", "download_artifacts", "list_artifacts", "delete_artifacts"):
        touch = getattr(LocalArtifactRepository, name)
        setattr(LocalArtifactRepository, name, guarded(touch))


def lies_below(place: str, root: Path) -> bool:
    """Whether a path or a file URI lies below a folder, with all links followed."""
    parts = urlsplit(place)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        return False
    path = Path(unquote(parts.path))
    return path.is_absolute() and path.resolve().is_relative_to(root.resolve())


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="MLflow"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> int:
    """Make the password if there is none, and run `mlflow server` behind the login."""
    root, *options = sys.argv[1:]
    try:
        make_password(Path(root))
    except UserError as error:
        sys.stderr.write(error.screen() + "\n")
        return 2
    os.environ[ROOT_VARIABLE] = root
    # They would be eight processes for what tracking does not use.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    _register()
    from mlflow.cli import cli

    cli(["server", *options])
    return 0


def _register() -> None:
    """Let MLflow know the app by its name, also where an earlier version's metadata is installed.

    MLflow reads the names of apps when its command line is imported.
    """
    from mlflow.utils import plugins

    installed = plugins._get_entry_points

    def entry_points(group: str) -> list[EntryPoint]:
        found = [entry for entry in installed(group) if entry.name != NAME]
        return [*found, EntryPoint(NAME, APP, group)] if group == GROUP else found

    plugins._get_entry_points = entry_points


if __name__ == "__main__":
    sys.exit(main())
