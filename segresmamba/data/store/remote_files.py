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

import numpy as np
import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url
from typing_extensions import override

from segresmamba.data.store.files import Blob, Buffer, ByteRange, Files
from segresmamba.errors import DataError

_RETRIES = 8
"""Retries of a request, with growing pauses: about 25 s in all, so that training survives a server
that restarts."""
_GAP_BYTES = 1 << 19  # 512 KiB
"""Parts of a file that lie closer than this are fetched by one request. Reading the gap as well
costs no more than another request."""
_METADATA_PATHS = ("/latest/", "/computeMetadata/", "/metadata/identity/")
"""Paths of a cloud machine's metadata service. obstore asks it if it finds no credentials."""
_SETTINGS = ("AWS_", "GOOGLE_", "AZURE_")
"""Prefixes of the environment variables that obstore reads."""
_runtime_process = os.getpid()
"""Process that imported this module. Its threads make the requests, and a fork has no threads."""


class RemoteFiles(Files):
    """A store behind a URL. A forked process cannot read from it, see `_explained`."""

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
        # The settings travel along: the server that readers fork from keeps the environment that
        # it was started with.
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
    def zarr_array(self, name: str) -> Any:
        import zarr
        from zarr.storage import ObjectStore

        return zarr.open_array(ObjectStore(self._store, read_only=True), path=name, mode="r")

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
        # obstore's message without its debug output and the tags of the server's XML.
        message = re.sub(r"<[^>]*>", " ", str(error).split("Debug source")[0])
        got = " ".join(message.split())[:300]
        remedy = "check the URL, and that this machine can reach the server, then run again"
        if problem == "there is no such bucket":
            remedy = "correct the URL, or AWS_ENDPOINT_URL if the bucket is not Amazon's"
        elif any(path in str(error) for path in _METADATA_PATHS):
            # Without credentials obstore asks the metadata service, and reports only its silence.
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
    """One file behind a URL."""

    def __init__(self, files: RemoteFiles, name: str) -> None:
        self._files, self._name = files, name

    @override
    def tail(self, count: int) -> bytes:
        with self._files._explained(self._name):
            options: Any = {"range": {"suffix": count}}
            part = bytes(obstore.get(self._files._store, self._name, options=options).bytes())
        if len(part) < count:
            raise OSError(f"{len(part)} bytes long, too short for its index")
        return part

    @override
    def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[Buffer]:
        if not ranges:
            return
        starts, lengths = zip(*ranges, strict=True)
        with self._files._explained(self._name):
            parts = obstore.get_ranges(
                self._files._store, self._name, starts=starts, lengths=lengths, coalesce=_GAP_BYTES
            )
        if any(len(part) < length for part, length in zip(parts, lengths, strict=True)):
            raise OSError("too short for what its index names")
        for part in parts:
            yield np.frombuffer(memoryview(part), np.uint8)


def _reopened(url: str, settings: dict[str, str]) -> RemoteFiles:
    os.environ.update(settings)
    return RemoteFiles(url)
