"""Stores in a folder or a zip file of this machine."""

from __future__ import annotations

import os
import shutil
import struct
import zipfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from typing_extensions import override

from segresmamba.data.store.files import Blob, Buffer, ByteRange, Files
from segresmamba.errors import DataError

_ZIP_HEADER = struct.Struct("<26xHH")  # lengths of the name and of the extra field


class LocalFiles(Files):
    """A folder."""

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
    def _zarr_store(self) -> Any:
        from zarr.storage import LocalStore

        return LocalStore(self._path, read_only=True)


class ZippedFiles(Files):
    """A zip file whose members are stored, not compressed: parts of them can be read.

    It holds the content of the store's folder, or the folder itself.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.where = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return ZippedFiles, (self._path,)

    @cached_property
    def _archived(self) -> list[zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
        except zipfile.BadZipFile as error:
            raise DataError(
                "a store is no zip file, or a truncated one",
                where=self._path,
                got=str(error),
                remedy="copy it again, or make it anew from the folder",
            ) from error
        packed = [one.filename for one in members if one.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise DataError(
                "the members of a zipped store must not be compressed again",
                where=self._path,
                got=f"{packed[0]} is",
                remedy="delete it and make it anew, from inside the store's folder, with "
                f"compression 0: zip -0 -q -r {self._path.absolute()} .",
            )
        return members

    @cached_property
    @override
    def _folder(self) -> str:
        tops = {PurePosixPath(member.filename).parts[0] for member in self._archived}
        return f"{tops.pop()}/" if len(tops) == 1 else ""

    @cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        """By their name in the store."""
        return {one.filename.removeprefix(self._folder): one for one in self._archived}

    @override
    def read(self, name: str) -> bytes:
        member = self._member(name)
        with zipfile.ZipFile(self._path) as archive:
            return archive.read(member)

    @override
    def blob(self, name: str) -> Blob:
        member = self._member(name)
        with self._path.open("rb") as file:
            file.seek(member.header_offset)
            lengths = _ZIP_HEADER.unpack(file.read(_ZIP_HEADER.size))
        first = member.header_offset + _ZIP_HEADER.size + sum(lengths)
        return _FilePart(self._path, first, member.file_size)

    @override
    def sizes(self, folder: str) -> dict[str, int]:
        inside = f"{folder}/"
        return {
            name: member.file_size
            for name, member in self._members.items()
            if name.startswith(inside)
        }

    @override
    def folders(self) -> list[str]:
        paths = [PurePosixPath(name) for name in self._members]
        return sorted({path.parts[0] for path in paths if len(path.parts) > 1})

    @override
    def copy(self, name: str, target: Path) -> None:
        member = self._member(name)
        with (
            zipfile.ZipFile(self._path) as archive,
            archive.open(member) as source,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(source, file)

    @override
    def _zarr_store(self) -> Any:
        from zarr.storage import ZipStore

        return ZipStore(self._path, read_only=True)

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise FileNotFoundError(2, "not in the zip file", self.join(name))
        return self._members[name]


class _FilePart(Blob):
    """Bytes of a local file, read with pread.

    Not mapped into memory: a fault of a file system then is an error here, not the end of the
    process by SIGBUS, and a network file system is asked for few large parts, not for pages.
    """

    def __init__(self, path: Path, first: int, size: int) -> None:
        self._path, self._first, self._size = path, first, size
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    @override
    def tail(self, count: int) -> bytes:
        if count > self._size:
            raise OSError(f"{self._size} bytes long, too short for its index")
        return os.pread(self._handle, count, self._first + self._size - count)

    @override
    def spans(self, spans: Sequence[ByteRange]) -> Iterator[Buffer]:
        runs = list(_runs(spans))
        if not runs:
            return
        space = memoryview(bytearray(max(last - first for first, last, _ in runs)))
        for first, last, inside in runs:
            part = space[: last - first]
            if last > self._size or os.preadv(self._handle, [part], self._first + first) < len(
                part
            ):
                raise OSError(f"{self._size} bytes long, byte {last} is to be read")
            for offset, count in inside:
                yield part[offset - first : offset - first + count]


def _runs(spans: Sequence[ByteRange]) -> Iterator[tuple[int, int, list[ByteRange]]]:
    """Spans that follow one another in the file: their first byte, the one after them, and they."""
    run: list[ByteRange] = []
    last = -1
    for first, count in spans:
        if first != last and run:
            yield run[0][0], last, run
            run = []
        run.append((first, count))
        last = first + count
    if run:
        yield run[0][0], last, run
