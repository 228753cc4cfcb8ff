"""A store behind a URL: S3, Google Cloud, Azure or HTTP, through the obstore library.

Credentials and settings come from the environment, by the names that the providers' own tools use
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, ...).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url
from typing_extensions import override

from segresmamba.data.store.files import Blob, Buffer, ByteRange, Files
from segresmamba.errors import DataError

_RETRIES = 8
"""Of a request, ever longer apart: some 25 s in all. A server that restarts costs no training."""
_GAP_BYTES = 1 << 19  # 512 KiB
"""Parts of a file that lie closer are fetched together: a request costs the server as much."""
_METADATA_PATHS = ("/latest/", "/computeMetadata/", "/metadata/identity/")
"""Of a cloud machine's own service, which the library asks for credentials when it found none."""
_SETTINGS = ("AWS_", "GOOGLE_", "AZURE_")
"""How names of environment variables begin that the library looks at."""
_runtime_of = os.getpid()
"""The process whose threads carry out the requests: that which imported this module."""


class RemoteFiles(Files):
    """What lies behind a URL. Requests are made by threads, so a forked process cannot read on."""

    def __init__(self, url: str) -> None:
        self.where = url
        endpoint = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", ""))
        plain = url.startswith("http://") or endpoint.startswith("http://")
        with self._explained(""):
            self._store: Any = from_url(
                url,
                client_options={"allow_http": plain, "connect_timeout": "5s"},
                retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(minutes=2)},
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # With the settings: the server that readers fork from keeps the environment of its start.
        settings = {name: os.environ[name] for name in os.environ if name.startswith(_SETTINGS)}
        return _reopened, (self.where, settings)

    @override
    def read(self, name: str) -> bytes:
        with self._explained(name):
            return bytes(obstore.get(self._store, name).bytes())

    @override
    def blob(self, name: str) -> Blob:
        return _Object(self, name)

    @override
    def sizes(self, folder: str) -> dict[str, int]:
        with self._explained(folder):
            pages = obstore.list(self._store, prefix=folder)
            return {item["path"]: item["size"] for page in pages for item in page}

    @override
    def folders(self) -> list[str]:
        with self._explained(""):
            return sorted(obstore.list_with_delimiter(self._store)["common_prefixes"])

    @override
    def copy(self, name: str, target: Path) -> None:
        with self._explained(name), target.open("wb") as file:
            for part in obstore.get(self._store, name):
                file.write(part)

    @override
    def _zarr_store(self) -> Any:
        from zarr.storage import ObjectStore

        return ObjectStore(self._store, read_only=True)

    def tail(self, name: str, count: int) -> bytes:
        """The last bytes of a file."""
        with self._explained(name):
            part = bytes(
                obstore.get(self._store, name, options={"range": {"suffix": count}}).bytes()
            )
        if len(part) < count:
            raise OSError(f"{len(part)} bytes long, too short for its index")
        return part

    def spans(self, name: str, spans: Sequence[ByteRange]) -> list[Buffer]:
        """Parts of a file, fetched at once; those near one another by one request."""
        if not spans:
            return []
        starts, lengths = zip(*spans, strict=True)
        with self._explained(name):
            parts = obstore.get_ranges(
                self._store, name, starts=starts, lengths=lengths, coalesce=_GAP_BYTES
            )
        if any(len(part) < length for part, length in zip(parts, lengths, strict=True)):
            raise OSError("too short for what its index names")
        return [memoryview(part) for part in parts]

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        if os.getpid() != _runtime_of:
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
        got = _in_short(error)
        remedy = "see that the URL is right and the server can be reached from here, then run again"
        if problem == "there is no such bucket":
            remedy = "correct the URL, or AWS_ENDPOINT_URL if the bucket is not Amazon's"
        elif any(path in str(error) for path in _METADATA_PATHS):
            problem, got = "a store needs credentials, and there are none", "no credentials found"
            remedy = (
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (Google Cloud: "
                "GOOGLE_APPLICATION_CREDENTIALS), or AWS_SKIP_SIGNATURE=true for a public bucket"
            )
        elif isinstance(error, PermissionDeniedError | UnauthenticatedError):
            problem = "the server of a store refuses access"
            remedy = "check the credentials in the environment and their right to read the bucket"
        elif "recognise URL" in str(error):
            problem = "a store's URL is of an unknown kind"
            remedy = "give a folder, a .zip file, or a URL with s3://, gs://, az:// or https://"
        return DataError(problem, where=self.join(name), got=got, remedy=remedy)


class _Object(Blob):
    """A file behind a URL."""

    def __init__(self, files: RemoteFiles, name: str) -> None:
        self._files, self._name = files, name

    @override
    def tail(self, count: int) -> bytes:
        return self._files.tail(self._name, count)

    @override
    def spans(self, spans: Sequence[ByteRange]) -> Iterator[Buffer]:
        return iter(self._files.spans(self._name, spans))


def _in_short(error: Exception) -> str:
    """What the library says, without its own inner workings and the server's XML."""
    said = re.sub(r"<[^>]*>", " ", str(error).split("Debug source")[0])
    return " ".join(said.split())[:300]


def _reopened(url: str, settings: dict[str, str]) -> RemoteFiles:
    os.environ.update(settings)
    return RemoteFiles(url)
