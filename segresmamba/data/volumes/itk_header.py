"""Headers of NRRD and MetaImage, checked before ITK reads them.

ITK's readers of these formats trust what a header says. They allocate what its sizes name, pass its
pattern of file names to `printf`, divide by numbers of it, and take memory that nothing has filled
for slices whose files are not listed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
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
_LIST = re.compile(rb"LIST(?:\s+(\d))?")
_NUMBERED = re.compile(rb"([^%]*%(?:0?\d)?d[^%\s]*)((?:\s+\d{1,6}){3,4})")
# For each dimension ITK's reader of MetaImage fills a place of an array of ten, and does not count.
_DIMENSIONS = re.compile(rb"^[^\S\n]*NDims\s*=([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_SOUND_DIMENSIONS = (b"2", b"3", b"4", b"5")


def require_sound_header(path: Path) -> None:
    """Refuse a header that cannot be right, or at which ITK's reader would end the process.

    Raises:
        ValueError: If it is not one that can be read safely.
        EOFError: If the files are too short for the voxels that it names.
    """
    image_io = READERS[path.suffix.lower()]
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if image_io == _NRRD:
        # The path of the file with the voxels may have letters of any language.
        _require_nrrd_lines(header, plain=path.suffix.lower() == ".nrrd")
        header = re.split(rb"\r?\n\r?\n", header)[0]
    for number in _DIMENSIONS.findall(header):
        if number.strip() not in _SOUND_DIMENSIONS:
            raise ValueError(f"its header names {number.decode(errors='replace'):.40} dimensions")
    found = _DATA_FILE.search(header)
    place, rest = (found[1].strip(), header[found.end() :]) if found else (b"LOCAL", b"")
    files = [path] if place.upper() == b"LOCAL" else _existing(path.parent, _names(place, rest))
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    shape = reader.GetSize()
    if image_io == _META:
        _require_slices(place, len(files), shape)
    component_bytes = sitk.Image([1, 1], reader.GetPixelID(), 1).GetSizeOfPixelComponent()
    voxel_bytes = component_bytes * reader.GetNumberOfComponents()
    size = sum(file.stat().st_size for file in files)
    require_voxels(size, shape, voxel_bytes, packed=True)


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


def _names(place: bytes, rest: bytes) -> Iterable[bytes]:
    """The names of the files with the voxels.

    Args:
        place: What the header says about where they are.
        rest: The lines of the header after that.
    """
    if numbered := _NUMBERED.fullmatch(place):
        first, last, step, *_ = map(int, numbered[2].split())
        return (numbered[1] % number for number in range(first, last + 1, step))
    return rest.strip().splitlines() if _LIST.fullmatch(place) else [place]


def _existing(folder: Path, names: Iterable[bytes]) -> list[Path]:
    files = []
    for name in names:
        files.append(folder / os.fsdecode(name.strip()))
        if not files[-1].is_file():
            raise ValueError(f"its voxels should lie in {files[-1]}, which is not a file")
    return files


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
