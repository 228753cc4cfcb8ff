"""The MLflow server of a folder of runs, and the login that it asks for.

`slurm/mlflow.sh` runs the server. Its address is in ROOT/mlflow-server.json, and the password of
its only user is in ROOT/mlflow-password, which nobody but the server's owner can read. So the
owner's runs log in by themselves. The runs of others in the same folder do without the server: they
write to the database that it shows.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from segresmamba.errors import warn_once
from segresmamba.storage.atomic import atomic_path
from segresmamba.storage.json_text import parse_json
from segresmamba.tracking.protocol import TrackingError

logger = logging.getLogger(__name__)

USER = "segresmamba"
SERVERS = ("http", "https")
SERVER_NAME = "mlflow-server.json"
"""A file in the folder of all runs with the address of its MLflow server, while one runs."""
PASSWORD_NAME = "mlflow-password"
"""A file in the folder of all runs with the password of that server."""


def make_password(root: Path) -> str:
    """The password of the server of a folder of runs, which is made if there is none.

    Raises:
        TrackingError: If others can read the file, it is not ours, or it cannot be written.
    """
    path = root / PASSWORD_NAME
    try:
        if not path.is_symlink() and not path.exists():
            with atomic_path(path) as new:
                fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(fd, "w") as file:
                    file.write(secrets.token_urlsafe(32))
        return _read_private(path)
    except OSError as error:
        raise TrackingError(
            "the password of the MLflow server cannot be used",
            where=path,
            got=error.strerror,
            remedy="delete the file, and start the server again: it makes another password",
        ) from error


def running_server(root: Path) -> str | None:
    """The address of the MLflow server of a folder of runs; None if none runs that lets us in.

    A file that cannot be read counts as no server, because training does without one.
    """
    path = root / SERVER_NAME
    try:
        server = parse_json(path.read_text())
        uri = str(server["uri"])
        parts = urlsplit(uri)
        if parts.scheme not in SERVERS or not parts.hostname or parts.port == 0:
            raise ValueError(f"{uri!r} is no address of a server")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        warn_once(
            logger,
            "%s cannot be read (%s): records go to the file mlflow.db instead; a server that runs "
            "writes its address there when it is started again",
            *(path, f"{type(error).__name__}: {error}"),
        )
        return None
    # The server of an earlier version has no user, and asks for no password.
    is_refused = "user" in server and server_password(root, uri) is None
    return None if is_refused else uri


def server_password(folder: Path, uri: str) -> str | None:
    """The password to log in with at `uri`; None if it is not our server of a folder of runs.

    Whoever may write to the folder can put another address there. So the password goes to no
    address that somebody else has written.

    Args:
        folder: The folder of all runs, or one below it: a sweep lies deeper than a run.
        uri: Address of a server.
    """
    for root in (folder.absolute(), *folder.absolute().parents):
        with suppress(OSError, ValueError, TypeError, KeyError):
            fd = os.open(root / SERVER_NAME, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(fd) as file:
                is_ours = os.fstat(fd).st_uid == os.geteuid()
                server = parse_json(file.read())
            if is_ours and "user" in server and server["uri"] == uri:
                return _read_private(root / PASSWORD_NAME)
    return None


def _read_private(path: Path) -> str:
    """The content of a file of ours that nobody else can read.

    Raises:
        OSError: If it is no such file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(fd) as file:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            raise PermissionError(1, "it belongs to another user", str(path))
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077:
            raise PermissionError(1, "other users can read it", str(path))
        if not (password := file.read().strip()):
            raise OSError(1, "it is empty", str(path))
        return password
