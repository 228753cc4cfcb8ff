"""Headers of NRRD and MetaImage, checked before ITK reads them.

ITK's readers of these formats trust what a header says. They allocate what its sizes name, pass its
pattern of file names to `printf`, divide by numbers of it, and take memory that nothing has filled
for slices whose files are not listed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import SimpleITK as sitk  # noqa: N813

from segresmamba.data.untrusted import require_voxels

_NRRD, _META = "NrrdImageIO", "MetaImageIO"
READERS = {".nrrd": _NRRD, ".nhdr": _NRRD, ".mha": _META, ".mhd": _META}
"""ITK's reader for each file ending. It would choose by what is in a file, and hand any to GDCM."""
_HEADER_BYTES = 1 << 16
_LINE_BYTES = 4096
# In NRRD a comment and `key:=value` are text of any program; what else there is are fields.
_FREE_TEXT = re.compile(rb"#|[^:]*:=")
_FIELD_BYTES = 500
# A header may name another file, which holds the voxels, or several: in a list that follows, or by
# a pattern with the first number, the last, and the step, such as `slice%03d.raw 1 20 1`.
_DATA_FILE = re.compile(
    rb"^(?:data ?file\s*:|ElementDataFile\s*=)([^\r\n]*)", re.IGNORECASE | re.MULTILINE
)
_LIST = re.compile(rb"LIST(?:\s+(\d)D?)?")
_NUMBERED = re.compile(
    rb"([^%]*%(?:0?\d)?d[^%\s]*)\s+(\d{1,6})\s+(\d{1,6})\s+([1-9]\d{0,5})(?:\s+\d)?"
)
# ITK takes all distances for mm.
_UNITS = re.compile(
    rb"^(?:space units\s*:|DistanceUnits\s*=)([^\r\n]*)", re.IGNORECASE | re.MULTILINE
)
_MM = {b"mm", b"millimeter", b"millimeters", b"?"}
# For each dimension ITK's reader of MetaImage fills a place of an array of ten, and does not count.
_DIMENSIONS = re.compile(rb"^[^\S\n]*NDims\s*=([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_SOUND_DIMENSIONS = (b"2", b"3", b"4", b"5")


def voxel_files(path: Path) -> list[Path]:
    """The files in which the voxels lie, by a header: its own file, another, or one for each slice.

    Raises:
        OSError: If the header cannot be read.
    """
    place, rest = _place(_fields(_read(path)))
    return list(_files(path, place, rest))


def require_sound_header(path: Path) -> None:
    """Refuse a header that cannot be right, or at which ITK's reader would end the process.

    Raises:
        ValueError: If it is not one that can be read safely.
        EOFError: If the files are too short for the voxels that it names.
    """
    image_io, header = READERS[path.suffix.lower()], _read(path)
    if image_io == _NRRD:
        # The path of the file with the voxels may have letters of any language.
        _require_nrrd_lines(header, plain=path.suffix.lower() == ".nrrd")
    for number in _DIMENSIONS.findall(header):
        if number.strip() not in _SOUND_DIMENSIONS:
            raise ValueError(f"its header names {number.decode(errors='replace'):.40} dimensions")
    header = _fields(header)
    for units in _UNITS.findall(header):
        if others := [unit for unit in units.replace(b'"', b"").split() if unit.lower() not in _MM]:
            unit = others[0].decode(errors="replace")
            raise ValueError(f"its distances are in {unit:.40}; only mm are read")
    place, rest = _place(header)
    files, size = 0, 0
    for file in _files(path, place, rest):
        if not file.is_file():
            raise ValueError(f"its voxels should lie in {file}, which is not a file")
        files, size = files + 1, size + file.stat().st_size
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    shape = reader.GetSize()
    if image_io == _META:
        _require_slices(place, files, shape)
    component_bytes = sitk.Image([1, 1], reader.GetPixelID(), 1).GetSizeOfPixelComponent()
    voxel_bytes = component_bytes * reader.GetNumberOfComponents()
    require_voxels(size, shape, voxel_bytes, packed=True)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEADER_BYTES)


def _require_nrrd_lines(header: bytes, plain: bool) -> None:
    """Refuse lines at which ITK's reader of NRRD ends the whole process instead of failing."""
    lines, end, _ = header.replace(b"\r\n", b"\n").partition(b"\n\n")
    if not end and len(header) == _HEADER_BYTES:
        raise ValueError(f"its header has more than {_HEADER_BYTES} bytes")
    if plain and (not lines.isascii() or b"\0" in lines):
        raise ValueError("its header is not plain text")
    for line in lines.split(b"\n"):
        # What is wrong with a field is written to a buffer together with its value, unchecked.
        if len(line) > (_LINE_BYTES if _FREE_TEXT.match(line) else _FIELD_BYTES):
            begin = line[:20].decode(errors="replace")
            raise ValueError(f"a line of its header has {len(line)} bytes: {begin}")


def _fields(header: bytes) -> bytes:
    """A header of NRRD without the voxels after it; one of MetaImage as it is."""
    return re.split(rb"\r?\n\r?\n", header)[0] if header.startswith(b"NRRD") else header


def _place(header: bytes) -> tuple[bytes, bytes]:
    """What a header says about where its voxels lie, and the lines after that."""
    found = _DATA_FILE.search(header)
    return (found[1].strip(), header[found.end() :]) if found else (b"LOCAL", b"")


def _files(path: Path, place: bytes, rest: bytes) -> Iterator[Path]:
    names: Iterable[bytes] = [place]
    if place.upper() == b"LOCAL":
        names = [os.fsencode(path.name)]
    elif numbered := _NUMBERED.fullmatch(place):
        first, last, step = (int(number) for number in numbered.groups()[1:])
        names = (numbered[1] % number for number in range(first, last + 1, step))
    elif _LIST.fullmatch(place):
        names = rest.strip().splitlines()
    for name in names:
        yield path.parent / os.fsdecode(name.strip())


def _require_slices(place: bytes, files: int, shape: Sequence[int]) -> None:
    """Refuse several files of a MetaImage that are not one for each slice.

    ITK takes any number of them, and leaves slices without a file as they were in memory.
    """
    words = _LIST.fullmatch(place)
    if words is None and not _NUMBERED.fullmatch(place):
        if place.startswith(b"LIST") or b"%" in place:
            raise ValueError(f"its header names its files by {place.decode(errors='replace'):.40}")
        return
    axes = int(words[1] or 0) if words else 0
    if files != shape[-1] or axes not in {0, len(shape) - 1}:
        raise ValueError(f"its header names {files} files for {shape[-1]} slices")
