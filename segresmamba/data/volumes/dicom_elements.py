"""The elements of a DICOM file, looked at before a library reads them.

GDCM and pydicom take the memory that a length names. A file that is not well-formed GDCM reads in
one way after another, with lengths from other bytes, and a sequence in a sequence takes a piece of
its stack. So each element is stepped over here first, and its length must end inside what holds it.
"""

from __future__ import annotations

import logging
import os
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from struct import Struct
from typing import BinaryIO

from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

_DICOM_AT = 128  # bytes of preamble, which may hold anything
_FIRST_GROUPS = (b"\x02\0", b"\x08\0")
"""With one of these begins a file without a preamble that ITK takes for DICOM."""
_SHORT_KINDS = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT"}
_SHORT_KINDS |= {b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
_LONG_KINDS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT"}
_LONG_KINDS |= {b"UV"}
_TRANSFER_SYNTAX, _PIXELS = 0x00020010, 0x7FE00010
_MARKS = 0xFFFE  # the group of the marks that begin and end items
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNKNOWN_LENGTH = 0xFFFFFFFF
_DEEPEST = 100
"""GDCM calls itself for a sequence in a sequence: some thousands of them ended the process."""
_MAYBE_ITEMS = {b"", b"UN", b"OB", b"OW"}
_ITEM_BYTES = b"\xfe\xff\0\xe0"
_RLE = b"1.2.840.10008.1.2.5"
_RUNS = {count.to_bytes(4, "little") for count in range(1, 16)}
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_INFLATED_BYTES = 1 << 28  # 256 MiB; a deflated file may inflate to a thousand times its size
_BUFFER_BYTES = 1 << 15


@dataclass(frozen=True)
class _Syntax:
    """How elements are written."""

    header: Struct
    """Group, element, kind, a short length, a long length."""
    mark: Struct
    """Group, element, length."""
    explicit: bool = True
    """Whether each element says of what kind it is."""


_LITTLE = _Syntax(Struct("<HH2sHI"), Struct("<HHI"))
_BIG = _Syntax(Struct(">HH2sHI"), Struct(">HHI"))
_IMPLICIT = replace(_LITTLE, explicit=False)
_SYNTAXES = {b"1.2.840.10008.1.2": _IMPLICIT, b"1.2.840.10008.1.2.2": _BIG}
"""All others are little-endian and explicit."""


def is_sound_dicom(path: Path) -> bool:
    """Whether a file is DICOM, after a look at all its elements.

    Raises:
        DataError: If it has the mark of DICOM and is not well-formed.
    """
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        head = file.read(_DICOM_AT + 4)
        marked = head[_DICOM_AT:] == b"DICM"
        if not marked and head[:2] not in _FIRST_GROUPS:
            return False
        try:
            _walk(file, len(head) if marked else 0)
        except (EOFError, ValueError, zlib.error) as error:
            if not marked:
                logger.warning("%s begins like DICOM, and is left out: %s", path, error)
                return False
            raise DataError(
                "a DICOM file is damaged",
                where=path,
                got=str(error),
                remedy="copy or export it again; a tool such as dcmconv may write it anew",
            ) from error
    return True


def _walk(file: BinaryIO, at: int) -> None:
    """Step over the elements of a file; those about the file itself come first."""
    walker = _Walker(file)
    name = b""
    while walker.read(at, 2) == b"\x02\0":
        tag, kind, length, begin = walker.header(at, _LITTLE)
        if kind == b"SQ" or (tag == _TRANSFER_SYNTAX and name):
            raise ValueError(f"{_name(tag, at)} does not belong there")
        at = walker.end_of_value(tag, at, begin + length, walker.size)
        if tag == _TRANSFER_SYNTAX:
            name = walker.read(begin, length).partition(b"\0")[0].rstrip(b" ")
    syntax = _SYNTAXES.get(name, _LITTLE)
    if not name and walker.read(at + 4, 2) not in _SHORT_KINDS | _LONG_KINDS:
        syntax = _IMPLICIT
    if name == _DEFLATED:
        inflator = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = inflator.decompress(walker.read(at, walker.size), _INFLATED_BYTES + 1)
        if len(inflated) > _INFLATED_BYTES:
            raise ValueError(f"it inflates to more than {_INFLATED_BYTES} bytes")
        if not inflator.eof:
            raise EOFError("what it inflates to is cut off")
        walker, at = _Walker(BytesIO(inflated)), 0
    walker.is_rle = name == _RLE
    if walker.size - walker.elements(at, walker.size, syntax) > 3:
        raise ValueError("it has an item that is not in a sequence")


class _Walker:
    """Steps over elements; what it returns is where the next one begins."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        self.is_rle = False
        """Whether pixels are compressed by run lengths."""

    def read(self, at: int, count: int) -> bytes:
        """Up to so many bytes."""
        self._file.seek(at)
        return self._file.read(count)

    def header(self, at: int, syntax: _Syntax) -> tuple[int, bytes, int, int]:
        """Tag, kind, length and begin of the value of an element, or of a mark.

        Raises:
            EOFError, ValueError: If it is cut off, or of no kind.
        """
        head = self.read(at, 12)
        if len(head) < 8:
            raise EOFError(f"an element at byte {at} is cut off")
        group, element, kind, short, length = syntax.header.unpack(head.ljust(12, b"\0"))
        tag = group << 16 | element
        if group == _MARKS or not syntax.explicit:
            *_, length = syntax.mark.unpack_from(head)
            # GDCM corrects this length, which scanners of GE wrote, except in two elements.
            wrong = length == 13 and tag not in (0x00080070, 0x00080080)
            return tag, b"", 10 if wrong else length, at + 8
        if kind in _LONG_KINDS:
            return tag, kind, length, at + 12
        if kind not in _SHORT_KINDS:
            if syntax is _LITTLE and head[:8] == bytes(8):  # some programs add zeros at the end
                return 0, b"", 0, at + 8
            raise ValueError(f"{_name(tag, at)} is of the unknown kind (VR) {kind!r}")
        if group == 9 and kind == b"UL" and short == 6:  # the same for scanners of Siemens
            short = 4
        return tag, kind, short, at + 8

    def elements(self, at: int, end: int, syntax: _Syntax, depth: int = 0) -> int:
        """Step over elements up to a mark or the end, where GDCM ignores up to three bytes."""
        while end - at > 3:
            tag, kind, length, begin = self.header(at, syntax)
            if tag >> 16 == _MARKS:
                break
            known = length != _UNKNOWN_LENGTH
            limit = self.end_of_value(tag, at, begin + length, end) if known else end
            if depth and syntax.explicit and not kind:
                raise ValueError(f"{_name(tag, at)} is of no kind (VR)")
            if items := self._syntax_of_items(tag, kind, known, begin, syntax):
                at = self._items(begin, limit, known, items, depth + 1)
            elif known:
                at = limit
            elif tag == _PIXELS:
                at = self._fragments(begin, end, syntax)
            else:
                raise ValueError(f"{_name(tag, at)} has no length")
        return at

    def _syntax_of_items(
        self, tag: int, kind: bytes, known: bool, begin: int, syntax: _Syntax
    ) -> _Syntax | None:
        """How the items of an element are written; None if it has none."""
        if kind == b"SQ":
            return syntax
        if tag == _PIXELS:
            return None
        if not known:
            is_un = kind == b"UN" and syntax is _LITTLE
            return _IMPLICIT if is_un else syntax if not kind else None
        # Where GDCM expects a sequence, it takes such a value for one.
        is_one = kind in _MAYBE_ITEMS and self.read(begin, 4) == _ITEM_BYTES and _is_sequence(tag)
        return _IMPLICIT if is_one else None

    def end_of_value(self, tag: int, at: int, end: int, limit: int) -> int:
        """The end of a value.

        Raises:
            EOFError: If it lies outside of what holds the element.
        """
        if end > limit:
            raise EOFError(f"{_name(tag, at)} ends at byte {end}, and what holds it at {limit}")
        return end

    def _items(self, at: int, end: int, known: bool, syntax: _Syntax, depth: int) -> int:
        """Step over the items of a sequence, which ends at `end` or, if not known, at a mark."""
        if depth > _DEEPEST:
            raise ValueError(f"it has sequences in sequences, more than {_DEEPEST} deep")
        if syntax is _LITTLE and self.read(at, 4) == b"\xff\xfe\xe0\x00":
            syntax = _BIG  # scanners of Philips wrote so
        while at < end:
            tag, length = self._mark(at, end, syntax)
            at += 8
            if tag == _ITEM and length == _UNKNOWN_LENGTH:
                at = self.elements(at, end, syntax, depth)
                tag, _ = self._mark(at, end, syntax)
                if tag != _ITEM_END:
                    raise ValueError(f"{_name(tag, at)} is where an item should end")
                at += 8
            elif tag == _ITEM:
                item_end = self.end_of_value(tag, at, at + length, end)
                if (at := self.elements(at, item_end, syntax, depth)) != item_end:
                    raise ValueError(f"an item ends at byte {at}, not at {item_end}")
            elif tag != _SEQUENCE_END:
                raise ValueError(f"{_name(tag, at - 8)} is not an item")
            elif not known:
                return at
        if not known:
            raise EOFError(f"a sequence does not end before byte {end}")
        return at

    def _fragments(self, at: int, end: int, syntax: _Syntax) -> int:
        """Step over the pieces of compressed pixels; before them comes a table of their places."""
        is_table = True
        while True:
            tag, length = self._mark(at, end, syntax)
            at += 8
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM:
                raise ValueError(f"{_name(tag, at - 8)} is not a piece of compressed pixels")
            piece, at = at, self.end_of_value(tag, at - 8, at + length, end)
            # GDCM divides by the number of segments, without a look at it.
            if self.is_rle and not is_table and (length < 64 or self.read(piece, 4) not in _RUNS):
                raise ValueError(f"the run lengths at byte {piece} are not 1 to 15 segments")
            is_table = False

    def _mark(self, at: int, end: int, syntax: _Syntax) -> tuple[int, int]:
        """Tag and length of a mark."""
        if at + 8 > end:
            raise EOFError(f"what ends at byte {end} has no mark of its end")
        group, element, length = syntax.mark.unpack(self.read(at, 8))
        return group << 16 | element, length


def _is_sequence(tag: int) -> bool:
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    return dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"


def _name(tag: int, at: int) -> str:
    return f"element ({tag >> 16:04x},{tag & 0xFFFF:04x}) at byte {at}"
