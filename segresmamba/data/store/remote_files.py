"""A store behind a URL: S3, Google Cloud, Azure or HTTP, through the obstore library.

Credentials and settings come from the environment, by the names that the providers' own tools use
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, ...).
"""

from __future__ import annotations

import base64
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np
import obstore
from obstore.exceptions import (
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import from_url
from typing_extensions import override

from segresmamba.data.store.files import PATIENCE_S, Blob, Buffer, ByteRange, Files
from segresmamba.errors import DataError, StoreAwayError
from segresmamba.redaction import VARIABLE, redacted
from segresmamba.secrets import hide_url, reveal

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_ROUND_S = 10.0
"""How long obstore repeats a request by itself. After each such round the process obeys Ctrl-C, the
log says what it waits for, and requests are repeated that obstore gives up at once (status 429)."""
_PAUSE_S = (0.2, 5.0)
"""Shortest and longest pause between two attempts."""
_PAUSE_GROWTH = 4
"""obstore draws each pause between the shortest one and this many times the one before. With its
default of 2, pauses grow by 0.05 s on average, and 8 retries end after 2 s."""
_MANY = 10**6
_PASSING = re.compile(r"status code: (5(?!01)\d\d|408|429)|(?<!Generic )HTTP error")
"""In obstore's message: the server has trouble, could not be reached, or cut its answer. Its status
501 is not among them: it will never know the request."""
_GAP_BYTES = 1 << 19  # 512 KiB
"""Parts of a file that lie closer than this are fetched by one request. Reading the gap as well
costs no more than another request."""
_METADATA_PATHS = ("/latest/", "/computeMetadata/", "/metadata/identity/")
"""Paths of a cloud machine's metadata service. obstore asks it if it finds no credentials."""
_SETTINGS = ("AWS_", "GOOGLE_", "AZURE_", VARIABLE)
"""Prefixes of the environment variables that obstore reads, and the variable of our secrets."""
_runtime_process = os.getpid()
"""Process that imported this module. Its threads make the requests, and a fork has no threads."""


class RemoteFiles(Files):
    """A store behind a URL. A forked process cannot read from it, see `_explained`."""

    def __init__(self, url: str, patience_s: float = PATIENCE_S) -> None:
        self.where = hide_url(url)
        self._patience_s = patience_s
        self._waiting = False
        with self._explained(""):
            self._store = _connect(self.where, min(patience_s, _ROUND_S))

    def __reduce__(self) -> tuple[Any, ...]:
        # The settings travel along: the server that readers fork from keeps the environment that
        # it was started with.
        settings = {name: os.environ[name] for name in os.environ if name.startswith(_SETTINGS)}
        return _reopened, (self.where, self._patience_s, settings)

    @override
    def read(self, name: str) -> bytes:
        return self._ask(name, lambda store: bytes(obstore.get(store, name).bytes()))

    @override
    def blob(self, name: str) -> Blob:
        return _Object(self, name)

    @override
    def sizes(self, folder: str) -> dict[str, int]:
        def listed(store: Any) -> dict[str, int]:
            pages = obstore.list(store, prefix=folder)
            return {item["path"]: item["size"] for page in pages for item in page}

        return self._ask(folder, listed)

    @override
    def folders(self) -> list[str]:
        return sorted(
            self._ask("", lambda store: obstore.list_with_delimiter(store)["common_prefixes"])
        )

    @override
    def copy(self, name: str, target: Path) -> None:
        def download(store: Any) -> None:
            with target.open("wb") as file:
                for part in obstore.get(store, name):
                    file.write(part)

        self._ask(name, download)

    @override
    def zarr_array(self, name: str) -> Any:
        import zarr
        from zarr.storage import ObjectStore

        # Zarr makes the requests itself, so obstore alone has to be patient.
        store = ObjectStore(_connect(self.where, self._patience_s), read_only=True)
        return zarr.open_array(store, path=name, mode="r")

    def _ask(self, name: str, request: Callable[[Any], Answer]) -> Answer:
        """Make a request, and repeat it for `patience_s` while it fails for a passing reason."""
        end_s = time.monotonic() + self._patience_s
        failures = 0
        while True:
            with self._explained(name):
                try:
                    answer = request(self._store)
                    self._waiting = False
                    return answer
                except BaseError as error:
                    if not _may_pass(error) or time.monotonic() >= end_s:
                        raise
                    if not self._waiting:  # said once in each outage
                        logger.warning(
                            "%s: the server gives no answer; asking again for up to %g s "
                            "(data.patience_s): %s",
                            *(self.join(name), self._patience_s, _message(error)),
                        )
                    self._waiting = True
            time.sleep(min(2**failures, _PAUSE_S[1]) * random.uniform(0.2, 1))
            failures += 1

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Refuse to wait for threads that this process lacks; turn obstore's errors into ours."""
        if os.getpid() != _runtime_process:
            raise DataError(
                "a forked process cannot read from a URL that its parent has read from",
                where=self.join(name),
                got="the start method fork",
                remedy="start processes with multiprocessing's forkserver or spawn",
            )
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" not in str(error):
                raise FileNotFoundError(2, "not there", self.join(name)) from error
            raise self._error("there is no such bucket", name, error) from error
        except BaseError as error:
            raise self._error("the server of a store gives no answer", name, error) from error

    def _error(self, problem: str, name: str, error: Exception) -> DataError:
        got = _message(error)
        remedy = "check the URL, and that this machine can reach the server, then run again"
        if problem == "there is no such bucket":
            remedy = "correct the URL, or AWS_ENDPOINT_URL if the bucket is not Amazon's"
        elif _lacks_credentials(error):
            problem, got = "a store needs credentials, and there are none", "no credentials found"
            remedy = (
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (Google Cloud: "
                "GOOGLE_APPLICATION_CREDENTIALS), or AWS_SKIP_SIGNATURE=true for a public bucket"
            )
        elif isinstance(error, PermissionDeniedError | UnauthenticatedError):
            problem = "the server of a store refuses access"
            remedy = "check the credentials in the environment and their right to read the bucket"
        elif isinstance(error, NotSupportedError) and "Range" in str(error):
            problem = "the server of a store gives files only as a whole"
            remedy = (
                "serve the store by a server that knows range requests, such as nginx, Apache or "
                "S3 (Python's http.server does not), or copy the store here and name the folder"
            )
        elif "recognise URL" in str(error):
            problem = "a store's URL is of an unknown kind"
            remedy = "give a folder, a .zip file, or a URL with s3://, gs://, az:// or https://"
        kind = StoreAwayError if isinstance(error, BaseError) and _may_pass(error) else DataError
        return kind(problem, where=self.join(name), got=got, remedy=remedy)


class _Object(Blob):
    """One file behind a URL."""

    def __init__(self, files: RemoteFiles, name: str) -> None:
        self._files, self._name = files, name

    @override
    def tail(self, count: int) -> bytes:
        options: Any = {"range": {"suffix": count}}
        part = self._files._ask(
            self._name,
            lambda store: bytes(obstore.get(store, self._name, options=options).bytes()),
        )
        if len(part) < count:
            raise OSError(f"{len(part)} bytes long, too short for its index")
        return part

    @override
    def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[Buffer]:
        if not ranges:
            return
        starts, lengths = zip(*ranges, strict=True)
        parts = self._files._ask(
            self._name,
            lambda store: obstore.get_ranges(
                store, self._name, starts=starts, lengths=lengths, coalesce=_GAP_BYTES
            ),
        )
        if any(len(part) < length for part, length in zip(parts, lengths, strict=True)):
            raise OSError("too short for what its index names")
        for part in parts:
            yield np.frombuffer(memoryview(part), np.uint8)


def _reopened(url: str, patience_s: float, settings: dict[str, str]) -> RemoteFiles:
    os.environ.update(settings)
    return RemoteFiles(url, patience_s)


def _connect(url: str, patience_s: float) -> Any:
    """Connect to a URL through obstore, which repeats a request that fails for so long.

    Args:
        url: The URL, with markers for its secrets.
        patience_s: For how long.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", ""))
    plain = url.startswith("http://") or endpoint.startswith("http://")
    shortest, longest = (timedelta(seconds=seconds) for seconds in _PAUSE_S)
    address, headers = _split_login(reveal(url))
    return from_url(
        address,
        client_options={"allow_http": plain, "connect_timeout": "5s", "default_headers": headers},
        retry_config={
            "backoff": {"init_backoff": shortest, "max_backoff": longest, "base": _PAUSE_GROWTH},
            "max_retries": _MANY,  # the time alone ends it
            "retry_timeout": timedelta(seconds=patience_s),
        },
    )


def _split_login(url: str) -> tuple[str, dict[str, str]]:
    """The URL of a web server without its login, and the header for it: obstore drops a login."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at or parts.scheme not in ("http", "https"):
        return url, {}
    user, _, password = login.partition(":")
    code = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"authorization": f"Basic {code}"}


def _may_pass(error: BaseError) -> bool:
    """Whether a request that failed so may succeed later."""
    return _PASSING.search(str(error)) is not None and not _lacks_credentials(error)


def _lacks_credentials(error: Exception) -> bool:
    """Without credentials obstore asks the metadata service, and reports only its silence."""
    return any(path in str(error) for path in _METADATA_PATHS)


def _message(error: Exception) -> str:
    """An error's text without obstore's debug output and the tags of the server's XML."""
    message = redacted(re.sub(r"<[^>]*>", " ", str(error).split("Debug source")[0]))
    return " ".join(message.split())[:300]
