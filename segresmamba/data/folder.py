"""The output folder of a conversion: refuse what is not ours, keep two converters apart."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from segresmamba.data import layout
from segresmamba.data.manifest import MANIFEST, SCHEMA_VERSION, CaseRecord
from segresmamba.data.source import SourceDataset
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

_ROOT = "zarr.json"


class StoreFolder:
    """A store while it is being written.

    Its root group says from the first moment on what it is a conversion of, as far as cases of two
    conversions could not stand side by side.
    """

    def __init__(self, path: Path, dataset: SourceDataset, *, overwrite: bool) -> None:
        self.path = path
        self._case_ids = {case.case_id for case in dataset.cases}
        self._overwrite = overwrite
        self._header = {
            "schema_version": SCHEMA_VERSION,
            "channel_names": list(dataset.channel_names),
            "labels": dataset.labels,
            "codec": layout.CODEC,
            "chunk_DHW": list(layout.CHUNK_DHW),
        }

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Prepare the folder and hold it against other converters.

        Raises:
            DataError: If it cannot be written, is held, or has content of another origin.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._lock(handle)
            self._prepare()
            yield
        finally:
            os.close(handle)

    def withdraw_manifest(self) -> None:
        """Until the next one is written, the store counts as not converted."""
        (self.path / MANIFEST).unlink(missing_ok=True)

    def remove_if_without_cases(self) -> None:
        """Leave nothing behind where nothing was achieved."""
        if not any(entry.is_dir() for entry in self.path.iterdir()):
            (self.path / _ROOT).unlink(missing_ok=True)
            self.path.rmdir()

    @staticmethod
    def read_record(case: Path) -> CaseRecord | None:
        """The record in a case's group, or None if there is no finished case."""
        try:
            attributes = json.loads((case / _ROOT).read_bytes())["attributes"]
            return CaseRecord.model_validate(attributes[layout.RECORD])
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            return None

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                "another conversion is writing to this store",
                where=self.path,
                got="locked",
                remedy="wait for it to end, or end it",
            ) from error
        except OSError as error:  # some network file systems have no locks
            logger.warning(
                "%s cannot be locked (%s): do not run two conversions", self.path, error.strerror
            )

    def _prepare(self) -> None:
        found = self._found_header()
        if found is None:
            self._require_only(set())
        elif self._overwrite:
            self._empty()
        else:
            self._require_same(found)
        self._require_only({_ROOT, MANIFEST, *self._case_ids})
        try:
            for unfinished in self.path.glob(".*.tmp"):
                shutil.rmtree(unfinished)
            root = {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": {layout.RECORD: self._header},
            }
            temporary = self.path / f".{_ROOT}"
            temporary.write_text(json.dumps(root, indent=1))
            temporary.replace(self.path / _ROOT)
        except OSError as error:
            raise self._unwritable(error) from error

    def _found_header(self) -> dict[str, Any] | None:
        try:
            root = json.loads((self.path / _ROOT).read_bytes())
            header: dict[str, Any] = root["attributes"][layout.RECORD]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return header

    def _require_same(self, found: dict[str, Any]) -> None:
        for key, wanted in self._header.items():
            if found.get(key) != wanted:
                raise DataError(
                    "the store is a conversion of something else",
                    where=f"{self.path / _ROOT}: {key}",
                    got=f"{found.get(key)}, now {wanted}",
                    remedy="choose another folder, or convert all cases anew with --overwrite",
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
            remedy="choose a folder that you may write to",
        )
