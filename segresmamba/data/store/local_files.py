"""Stores in a folder or a zip file of this machine."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from typing_extensions import override

from segresmamba.data.store.files import Blob, Buffer, ByteRange, Files
from segresmamba.data.untrusted import stays_inside
from segresmamba.errors import DataError

_GROUP = "zarr.json"
_ZIP_HEADER = struct.Struct("<26xHH")
"""Lengths of the name and of the extra field in a member's local header."""


class LocalFiles(Files):
    """A store in a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.where = str(path)

    @override
    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    @override
    def blob(self, name: str) -> Blob:
        path = self._path / name
        return _FilePart(path, 0, path.stat().st_size)

    @override
    def sizes(self, folder: str) -> dict[str, int]:
        found = (self._path / folder).rglob("*")
        return {
            path.relative_to(self._path).as_posix(): path.stat().st_size
            for path in sorted(found)
            if path.is_file()
        }

    @override
    def folders(self) -> list[str]:
        return sorted(path.name for path in self._path.iterdir() if path.is_dir())

    @override
    def copy(self, name: str, target: Path) -> None:
        shutil.copyfile(self._path / name, target)

    @override
    def zarr_array(self, name: str) -> Any:
        import zarr
        from zarr.storage import LocalStore

        return zarr.open_array(LocalStore(self._path, read_only=True), path=name, mode="r")


class ZippedFiles(Files):
    """A store in a zip file. Its members are not compressed, so parts of them can be read.

    The zip file holds either the content of the store's folder or the folder itself.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.where = str(path)
        self._directory: dict[str, zipfile.ZipInfo] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the directory: a reader process reads it again, and gets fewer bytes sent.
        return ZippedFiles, (self._path,)

    @override
    def read(self, name: str) -> bytes:
        with self._open(name) as member:
            return member.read()

    @override
    def blob(self, name: str) -> Blob:
        member = self._member(name)
        with self._path.open("rb") as file:
            # The local header's extra field may be longer than the directory's, so ask the file.
            file.seek(member.header_offset)
            lengths = _ZIP_HEADER.unpack(file.read(_ZIP_HEADER.size))
        first = member.header_offset + _ZIP_HEADER.size + sum(lengths)
        return _FilePart(self._path, first, member.file_size)

    @override
    def sizes(self, folder: str) -> dict[str, int]:
        inside = f"{folder}/"
        return {
            name: member.file_size
            for name, member in self._members().items()
            if name.startswith(inside)
        }

    @override
    def folders(self) -> list[str]:
        paths = [PurePosixPath(name) for name in self._members()]
        return sorted({path.parts[0] for path in paths if len(path.parts) > 1})

    @override
    def copy(self, name: str, target: Path) -> None:
        with self._open(name) as member, target.open("wb") as file:
            shutil.copyfileobj(member, file)

    @override
    def zarr_array(self, name: str) -> Any:
        import zarr
        from zarr.storage import ZipStore

        # The folder in the zip file that holds the store may come before the name.
        metadata = self._member(f"{name}/zarr.json").filename
        store = ZipStore(self._path, read_only=True)
        return zarr.open_array(store, path=metadata.removesuffix("/zarr.json"), mode="r")

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        member = self._member(name)
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(member) as file:
                yield file
        except (zipfile.BadZipFile, EOFError, RuntimeError) as error:  # damaged, or encrypted
            raise OSError(errno.EIO, str(error), self.join(name)) from error

    def _member(self, name: str) -> zipfile.ZipInfo:
        members = self._members()
        if name not in members:
            raise FileNotFoundError(2, "not in the zip file", self.join(name))
        return members[name]

    def _members(self) -> dict[str, zipfile.ZipInfo]:
        """The zip file's members by their name in the store, read once."""
        if self._directory is not None:
            return self._directory
        try:
            with zipfile.ZipFile(self._path) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
        except zipfile.BadZipFile as error:
            raise DataError(
                "the store is not a zip file, or it is truncated",
                where=self._path,
                got=str(error),
                remedy="copy it again, or make it anew from the folder",
            ) from error
        if not any(PurePosixPath(member.filename).name == _GROUP for member in members):
            raise DataError(
                "there is no converted dataset in the zip file",
                where=self._path,
                got=", ".join(member.filename for member in members[:3]) or "no files",
                remedy="if these are images, such as a DICOM series, unpack it and name the "
                f"folder: unzip {self._path} -d {self._path.with_suffix('')}",
            )
        packed = [one.filename for one in members if one.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise DataError(
                "the members of a zipped store must not be compressed again",
                where=self._path,
                got=f"{packed[0]} is",
                remedy="delete it and make it anew, from inside the store's folder, with "
                f"compression 0: zip -0 -q -r {self._path.absolute()} .",
            )
        for member in members:  # a copy of the store would write them elsewhere
            link = stat.S_ISLNK(member.external_attr >> 16)
            if link or not stays_inside(member.filename):
                raise DataError(
                    "a zipped store must not hold links or lead outside itself",
                    where=self._path,
                    got=f"{member.filename!r}" + (", a link" if link else ""),
                    remedy="take the store from somebody whom you trust, or make the zip file anew "
                    "from inside the store's folder",
                )
        tops = {PurePosixPath(member.filename).parts[0] for member in members}
        folder = f"{tops.pop()}/" if len(tops) == 1 else ""
        self._directory = {one.filename.removeprefix(folder): one for one in members}
        return self._directory


class _FilePart(Blob):
    """A part of a local file, read with pread.

    The file is not mapped into memory. A fault of the file system is then an OSError and not the
    end of the process by SIGBUS, and a network file system gets few large requests instead of one
    for each page.
    """

    def __init__(self, path: Path, first: int, size: int) -> None:
        self._path, self._first, self._size = path, first, size
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):  # not if os.open failed
            os.close(self._handle)

    @override
    def tail(self, count: int) -> bytes:
        if count > self._size:
            raise OSError(f"{self._size} bytes long, too short for its index")
        return os.pread(self._handle, count, self._first + self._size - count)

    @override
    def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[Buffer]:
        runs = list(_adjacent(ranges))
        if not runs:
            return
        # One buffer serves all runs: it is overwritten when the next run is read.
        space = np.empty(max(last - first for first, last, _ in runs), np.uint8)
        for first, last, inside in runs:
            part = space[: last - first]
            # A file that was cut after it was opened gives fewer bytes and no error.
            if last > self._size or os.preadv(self._handle, [part.data], self._first + first) < len(
                part
            ):
                raise OSError(
                    f"the file has {self._size} bytes, but its index points to byte {last}"
                )
            for offset, count in inside:
                yield part[offset - first : offset - first + count]


def _adjacent(ranges: Sequence[ByteRange]) -> Iterator[tuple[int, int, list[ByteRange]]]:
    """Group ranges that follow one another in the file, so that one call reads each group.

    Yields:
        The group's first byte, the byte after its last, and its ranges.
    """
    run: list[ByteRange] = []
    last = -1
    for first, count in ranges:
        if first != last and run:
            yield run[0][0], last, run
            run = []
        run.append((first, count))
        last = first + count
    if run:
        yield run[0][0], last, run
