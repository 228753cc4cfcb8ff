"""The output folder of a conversion: refuse what is not ours, keep two converters apart."""

from __future__ import annotations

import fcntl
import getpass
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from segresmamba.data.store import layout
from segresmamba.data.store.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    CaseRecord,
    Manifest,
    newer_version,
)
from segresmamba.errors import DataError
from segresmamba.storage.atomic import remove_leftovers, write_text

logger = logging.getLogger(__name__)

_ROOT = "zarr.json"
_LOCK = ".lock"
_EARLIER = {"spacing": "keep", "spacing_mm": None, "crop": False, "dtype": "auto"}
"""Policy of stores whose version had none."""


class StoreFolder:
    """A store while it is being written.

    Its root group says from the first moment on what it is a conversion of, as far as cases of two
    conversions could not stand side by side.
    """

    def __init__(
        self, path: Path, header: dict[str, Any], case_ids: set[str], *, overwrite: bool
    ) -> None:
        self.path = path
        self._header = header
        self._case_ids = case_ids
        self._overwrite = overwrite

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Prepare the folder and hold it against other converters.

        Raises:
            DataError: If it cannot be written, is held, or has content of another origin.
        """
        if ":/" in str(self.path):
            raise DataError(
                "a store is written to a folder",
                where=self.path,
                got="a URL",
                remedy="convert to a folder, and copy that to the bucket with the provider's tool "
                "(aws s3 cp --recursive STORE URL)",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        with self._lock(fcntl.LOCK_EX):
            try:
                self._prepare()
                yield
            finally:
                (self.path / _LOCK).unlink(missing_ok=True)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Hold a prepared folder together with others who join it, against those who do not.

        Raises:
            DataError: As `locked`.
        """
        with self._lock(fcntl.LOCK_SH):
            self._require_same(self.read_header(self.path) or {})
            yield

    def withdraw_manifest(self) -> None:
        """Until the next one is written, the store counts as not converted."""
        (self.path / MANIFEST).unlink(missing_ok=True)

    def write_manifest(self, manifest: Manifest) -> None:
        """Make the store complete.

        Raises:
            DataError: If it cannot be written.
        """
        try:
            write_text(self.path / MANIFEST, manifest.model_dump_json(indent=1))
        except OSError as error:
            raise self._unwritable(error) from error

    def remove_if_without_cases(self) -> None:
        """Leave nothing behind where nothing was achieved."""
        if not any(entry.is_dir() for entry in self.path.iterdir()):
            for name in (_ROOT, _LOCK):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    @staticmethod
    def read_record(case: Path) -> CaseRecord | None:
        """The record in a case's group, or None if there is no finished case."""
        try:
            attributes = json.loads((case / _ROOT).read_bytes())["attributes"]
            return CaseRecord.model_validate(attributes[layout.RECORD])
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            return None

    @staticmethod
    def read_header(path: Path) -> dict[str, Any] | None:
        """What a store that has begun says it is a conversion of; None if there is none."""
        try:
            root = json.loads((path / _ROOT).read_bytes())
            header: dict[str, Any] = root["attributes"][layout.RECORD]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return header

    @classmethod
    def begun(cls, path: Path) -> dict[str, Any]:
        """The same of a store that is to go on; empty if there is none.

        Raises:
            DataError: If this version cannot go on with it.
        """
        header = cls.read_header(path) or {}
        if (version := header.get("schema_version", 0)) > SCHEMA_VERSION:
            raise newer_version(path / _ROOT, version)
        if not layout.is_known(codec := header.get("codec", layout.CODEC)):
            raise DataError(
                "the store's codec is none that this version writes",
                where=path / _ROOT,
                got=codec,
                remedy="go on with the version that began it, or convert all cases anew with "
                "`segresmamba convert --overwrite`",
            )
        return header

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        """Hold the lock file, which says who does."""
        try:
            # Locks of NFS want a file, and one that is open for writing.
            file = (self.path / _LOCK).open("ab+", buffering=0)
        except OSError as error:
            raise self._unwritable(error) from error
        with file:
            self._flock(file, kind)
            holder = (
                f"{getpass.getuser()} on {socket.gethostname()}, process {os.getpid()}, since "
                f"{time.strftime('%Y-%m-%d %H:%M:%S')}"
            )
            with suppress(OSError):  # a full disk: what is written next will say so
                file.truncate(0)
                file.write(holder.encode())
            yield

    def _flock(self, file: FileIO, kind: int) -> None:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(file.fileno()), (self.path / _LOCK).stat())
        except (BlockingIOError, FileNotFoundError):
            ours = False
        except OSError as error:  # some network file systems have no locks
            logger.warning(
                "%s cannot be locked (%s): do not run two conversions", self.path, error.strerror
            )
            return
        if not ours:
            file.seek(0)
            raise DataError(
                "another conversion is writing to this store",
                where=self.path,
                got=file.read().decode() or "locked",
                remedy="wait for it to end, or end it; then the same command goes on",
            )

    def _prepare(self) -> None:
        found = self.read_header(self.path)
        if found is None:
            self._require_only(set())
        elif self._overwrite:
            self._empty()
        else:
            self._require_same(found)
        self._require_only({_ROOT, MANIFEST, *self._case_ids})
        try:
            remove_leftovers(self.path)
            for unfinished in self.path.glob(".*.tmp"):  # cases, which earlier versions named so
                shutil.rmtree(unfinished)
            root = {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": {layout.RECORD: self._header},
            }
            write_text(self.path / _ROOT, json.dumps(root, indent=1))
        except OSError as error:
            raise self._unwritable(error) from error

    def _require_same(self, found: dict[str, Any]) -> None:
        channels = len(self._header["channel_names"])
        before = {**_EARLIER, "intensity": ["zscore"] * channels, **found}
        for key, wanted in self._header.items():
            if key != "schema_version" and before.get(key) != wanted:
                raise DataError(
                    "the store is a conversion of something else, or under another policy",
                    where=f"{self.path / _ROOT}: {key}",
                    got=f"{before.get(key)}, now {wanted}",
                    remedy="choose another folder, give what the store was begun with, or convert "
                    "all cases anew with --overwrite",
                )

    def _require_only(self, expected: set[str]) -> None:
        there = {entry.name for entry in self.path.iterdir() if entry.name[0] != "."}
        if others := sorted(there - expected):
            raise DataError(
                "the output folder holds something else",
                where=self.path,
                got=", ".join(others[:10]) + (", ..." if len(others) > 10 else ""),
                remedy="choose another folder; or remove these, if they are cases that the source "
                "no longer has",
            )

    def _empty(self) -> None:
        """Remove all that a conversion can have written, and nothing else."""
        (self.path / MANIFEST).unlink(missing_ok=True)
        for entry in self.path.iterdir():
            if self.read_record(entry) is not None:
                shutil.rmtree(entry)

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            "the output folder cannot be written",
            where=self.path,
            got=error.strerror,
            remedy="choose a folder that you may write to, or free disk space and run again; "
            "finished cases are not redone",
        )
