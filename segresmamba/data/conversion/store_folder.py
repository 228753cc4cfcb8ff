"""The output folder of a conversion.

It keeps two conversions apart, and refuses a folder that holds anything but this conversion.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, PositiveInt, ValidationError

from segresmamba.data.records import Spacing
from segresmamba.data.store import layout
from segresmamba.data.store.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    CaseRecord,
    Manifest,
    manifest_text,
    newer_version,
)
from segresmamba.errors import DataError
from segresmamba.storage.atomic import remove_leftovers, write_text
from segresmamba.storage.json_text import parse_json
from segresmamba.storage.locks import try_lock
from segresmamba.storage.user import user_name

_ROOT = "zarr.json"
_LOCK = ".lock"
# What versions without policies did: the default of keys that a store's header lacks.
_EARLIER: dict[str, Any] = {
    "spacing": "keep",
    "spacing_mm": None,
    "crop": False,
    "dtype": "auto",
    "clip": [],
}


class _Begun(BaseModel):
    """What a conversion that goes on takes from the store's header."""

    schema_version: int = 0
    codec: str = layout.CODEC
    chunk_DHW: tuple[PositiveInt, PositiveInt, PositiveInt] = layout.CHUNK_DHW
    spacing_mm: Spacing | None = None
    clip: tuple[tuple[float, float] | None, ...] = ()


class StoreFolder:
    """A store while it is being written.

    From the first moment its root group holds a header: all that cases must have in common to be in
    one store.
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
        """Prepare the folder and keep other conversions out of it.

        Raises:
            DataError: If it cannot be written, is locked, or holds something else.
        """
        # As a Path, the URL s3://bucket is s3:/bucket.
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
        with self._lock(shared=False):
            try:
                self._prepare()
                yield
            finally:
                (self.path / _LOCK).unlink(missing_ok=True)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Share a prepared folder with other processes that join it, and keep all others out.

        Raises:
            DataError: As `locked`.
        """
        # The lock file stays at the end: other processes may still share it.
        with self._lock(shared=True):
            self._require_same(self.read_header(self.path) or {})
            yield

    def withdraw_manifest(self) -> None:
        """Remove the manifest: until the next one is written, the store counts as not converted."""
        (self.path / MANIFEST).unlink(missing_ok=True)

    def write_manifest(self, manifest: Manifest) -> None:
        """Make the store complete.

        Raises:
            DataError: If it cannot be written.
        """
        try:
            write_text(self.path / MANIFEST, manifest_text(manifest))
        except OSError as error:
            raise self._unwritable(error) from error

    def remove_if_without_cases(self) -> None:
        """Remove the folder of a conversion that has converted no case."""
        if not any(entry.is_dir() for entry in self.path.iterdir()):
            for name in (_ROOT, _LOCK):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    @staticmethod
    def read_record(case: Path) -> CaseRecord | None:
        """The record in a case's group, or None if there is no finished case.

        A record that this version cannot read counts as none, so that the case is converted again.
        """
        try:
            attributes = parse_json((case / _ROOT).read_bytes())["attributes"]
            return CaseRecord.model_validate(attributes[layout.RECORD])
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            return None

    @staticmethod
    def read_header(path: Path) -> dict[str, Any] | None:
        """The header of a store that has been begun; None if there is no such store."""
        try:
            header = parse_json((path / _ROOT).read_bytes())["attributes"][layout.RECORD]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return header if isinstance(header, dict) else None

    @classmethod
    def resumed_header(cls, path: Path) -> dict[str, Any]:
        """The header of a store whose conversion goes on; empty if it has not begun.

        Raises:
            DataError: If this version cannot go on with it.
        """
        header = cls.read_header(path) or {}
        # The version comes first: what a newer version wrote need not fit the fields of this one.
        version = header.get("schema_version", 0)
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise newer_version(path / _ROOT, version)
        try:
            begun = _Begun.model_validate(header)
        except ValidationError as error:
            raise DataError(
                "the header of a store is damaged",
                where=path / _ROOT,
                got=" ".join(str(error).split())[:200],
                remedy="convert to another folder, or all cases anew with --overwrite",
            ) from error
        if not layout.is_known(begun.codec):
            raise DataError(
                "this version cannot write the store's codec",
                where=path / _ROOT,
                got=begun.codec,
                remedy="go on with the version that began it, or convert all cases anew with "
                "`segresmamba convert --overwrite`",
            )
        return header

    @contextmanager
    def _lock(self, *, shared: bool) -> Iterator[None]:
        """Hold the lock file, and write into it who holds it."""
        path = self.path / _LOCK
        try:
            # Locks of NFS need a file, not a folder, and one that is open for writing.
            file = path.open("ab+", buffering=0)
        except OSError as error:
            raise self._unwritable(error) from error
        with file:
            try:
                # A conversion that ends removes the file; the lock of a removed file is of no use.
                locked = try_lock(file.fileno(), path, shared=shared) and os.path.samestat(
                    os.fstat(file.fileno()), path.stat()
                )
            except FileNotFoundError:
                locked = False
            if not locked:
                file.seek(0)
                raise DataError(
                    "another conversion is writing to this store",
                    where=self.path,
                    got=file.read().decode() or "locked",
                    remedy="wait for it to end, or end it; then the same command goes on",
                )
            holder = (
                f"{user_name()} on {socket.gethostname()}, process {os.getpid()}, since "
                f"{time.strftime('%Y-%m-%d %H:%M:%S')}"
            )
            with suppress(OSError):  # if the disk is full, what is written next reports it
                file.truncate(0)
                file.write(holder.encode())
            yield

    def _prepare(self) -> None:
        """Check or empty what is there, and write the header."""
        found = self.read_header(self.path)
        if found is None:
            self._require_only(set())
        elif not self._overwrite:
            self._require_same(found)
        else:
            (self.path / MANIFEST).unlink(missing_ok=True)
            for entry in self.path.iterdir():
                if self.read_record(entry) is not None:  # nothing but cases may be removed
                    shutil.rmtree(entry)
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
        before = _EARLIER | {"intensity": ["zscore"] * channels} | found
        # A version with another schema may go on, if everything that concerns cases is the same.
        for key, wanted in self._header.items():
            if key != "schema_version" and before.get(key) != wanted:
                raise DataError(
                    "the store was converted from another source or under another policy",
                    where=f"{self.path / _ROOT}: {key}",
                    got=f"{before.get(key)}, now {wanted}",
                    remedy="choose another folder, use the source and options that the store was "
                    "begun with, or convert all cases anew with --overwrite",
                )

    def _require_only(self, expected: set[str]) -> None:
        # Hidden names are the lock, leftovers, and what file systems and file managers leave.
        there = {entry.name for entry in self.path.iterdir() if entry.name[0] != "."}
        if others := sorted(there - expected):
            raise DataError(
                "the output folder holds something else",
                where=self.path,
                got=", ".join(others[:10]) + (", ..." if len(others) > 10 else ""),
                remedy="choose another folder; or remove these, if they are cases that the source "
                "no longer has",
            )

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            "the output folder cannot be written",
            where=self.path,
            got=error.strerror,
            remedy="choose a folder that you may write to, or free disk space and run again; "
            "finished cases are not redone",
        )
