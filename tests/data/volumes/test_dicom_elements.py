"""A DICOM file passes only if each length in it ends inside what holds it.

What GDCM did with the refused files is in their tests: it read lengths from other bytes, and took
up to 2.3 GiB or ended the process.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from segresmamba.data.volumes.dicom_elements import is_sound_dicom
from segresmamba.errors import DataError
from tests.data.dicom import FrameSpec, elements_of, write_frames, write_report

PIXELS = b"\xe0\x7f\x10\x00"
ITEM, ITEM_END, SEQUENCE_END = (
    struct.pack("<HH", 0xFFFE, mark) for mark in (0xE000, 0xE00D, 0xE0DD)
)
UNKNOWN, NOTHING = b"\xff" * 4, bytes(4)
ABSURD = 0x55000000


def element(kind: bytes, value: bytes, length: int | None = None, tag: int = 0x70011010) -> bytes:
    """An explicit little-endian element, whose length may be a lie."""
    length = len(value) if length is None else length
    is_long = kind in (b"OB", b"UN", b"SQ")
    form, numbers = ("<HH2sHI", (0, length)) if is_long else ("<HH2sH", (length,))
    return struct.pack(form, tag >> 16, tag & 0xFFFF, kind, *numbers) + value


def implicit(value: bytes, length: int | None = None, tag: int = 0x70011010) -> bytes:
    length = len(value) if length is None else length
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length) + value


def sequence(*items: bytes, kind: bytes = b"SQ") -> bytes:
    """A sequence of unknown length with items of unknown length."""
    inside = b"".join(ITEM + UNKNOWN + one + ITEM_END + NOTHING for one in items)
    return element(kind, inside + SEQUENCE_END + NOTHING, 0xFFFFFFFF)


def known(content: bytes, length: int | None = None) -> bytes:
    """An item of known length."""
    return ITEM + struct.pack("<I", len(content) if length is None else length) + content


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Explicit, little-endian, with sequences in sequences."""
    plane_XY = np.arange(56, dtype=np.uint16).reshape(8, 7)
    return write_frames(tmp_path / "plain.dcm", [FrameSpec(plane_XY, 2.0 * z) for z in range(2)])


def changed(path: Path, extra: bytes, before: bytes = PIXELS) -> Path:
    """The file with other elements before its pixels, or at its end."""
    head, tag, tail = (
        path.read_bytes().rpartition(before) if before else (path.read_bytes(), b"", b"")
    )
    path.write_bytes(head + extra + tag + tail)
    return path


def written(path: Path, syntax: UID) -> Path:
    """The file in another transfer syntax."""
    dataset = pydicom.dcmread(path)
    for one in dataset.iterall():
        _ = one.value  # decoded before it is written in another way
    if syntax == RLELossless:
        dataset.compress(syntax)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].VR = "OB" if syntax == RLELossless else "OW"
    pydicom.dcmwrite(
        path, dataset, implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian, force_encoding=True,
    )  # fmt: skip
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        is_sound_dicom(path)
    assert caught.value.where == str(path)
    return str(caught.value.got)


SYNTAXES = [
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian, RLELossless,
]  # fmt: skip


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_sound_files_of_every_syntax_pass(plain: Path, syntax: UID) -> None:
    path = written(plain, syntax)
    assert is_sound_dicom(path)
    assert sitk.ReadImage(str(path), imageIO="GDCMImageIO").GetSize() == (8, 7, 2)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_file_that_is_cut_off_passes_only_between_elements(plain: Path, syntax: UID) -> None:
    content = written(plain, syntax).read_bytes()
    for length in range(200, len(content), 37):
        plain.write_bytes(content[:length])
        try:
            whole_elements = is_sound_dicom(plain)
        except DataError:
            continue
        assert whole_elements
        assert len(pydicom.dcmread(plain)) < len(pydicom.dcmread(io.BytesIO(content)))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_files_without_preamble_or_meta_information_pass(plain: Path, syntax: UID) -> None:
    content = elements_of(written(plain, syntax))
    for head in (b"", bytes(128) + b"DICM"):
        plain.write_bytes(head + content)
        assert is_sound_dicom(plain)


def test_a_report_passes(tmp_path: Path) -> None:
    write_report(tmp_path / "a.dcm", "1.2")
    assert is_sound_dicom(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    "content",
    [b"", b"x", bytes(200), b"\x08\0\x05\0OB", bytes(128) + b"DIC", b"x" * 999],
)
def test_other_files_are_no_dicom(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert not is_sound_dicom(tmp_path / "a")


def test_a_damaged_file_without_a_preamble_is_left_out_with_a_warning(
    plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain.write_bytes(elements_of(plain)[:-1])
    assert not is_sound_dicom(plain)
    assert "begins like DICOM, and is left out: element (7fe0,0010)" in caplog.text


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (element(b"OB", b"", ABSURD), "ends at byte"),
        (element(b"LO", b"abcd", 60_000), "ends at byte"),
        (element(b"SQ", b"", ABSURD), "ends at byte"),
        (sequence(element(b"OB", b"", ABSURD)), "ends at byte"),
        (sequence(sequence(element(b"OB", b"", ABSURD))), "ends at byte"),
        (sequence(implicit(b"", ABSURD), kind=b"UN"), "ends at byte"),
        (element(b"SQ", known(element(b"LO", b"abcd", 6))), "ends at byte"),
        (element(b"SQ", known(b"", ABSURD)), "ends at byte"),
        # An element of no kind. GDCM then reads all that follows in two other ways: 1.4 GiB.
        (element(b"\0\0", b""), "unknown kind"),
        (element(b"\0\0", b"abcd"), "unknown kind"),
        (element(b"AU", b"abcd"), "unknown kind"),
        (element(b"??", b"abcd"), "unknown kind"),
        (implicit(b"abcd"), "unknown kind"),
        (sequence(element(b"\0\0", b"abcd")), "unknown kind"),
        (sequence(bytes(8)), "no kind"),
        (element(b"OB", b"", 0xFFFFFFFF), "has no length"),
        (known(element(b"LO", b"abcd")), "not in a sequence"),
        (ITEM_END + NOTHING, "not in a sequence"),
        (element(b"SQ", element(b"LO", b"abcdefgh")), "is not an item"),
        (element(b"SQ", known(ITEM_END + NOTHING)), "an item ends at byte"),
        (element(b"SQ", ITEM + UNKNOWN + SEQUENCE_END + NOTHING, 0xFFFFFFFF), "should end"),
        (element(b"SQ", ITEM + UNKNOWN + ITEM + UNKNOWN, 0xFFFFFFFF), "should end"),
        (element(b"SQ", b"", 0xFFFFFFFF), "is not an item"),
        (element(b"SQ", b"abc"), "no mark of its end"),
    ],
)
def test_what_gdcm_would_read_in_another_way_is_refused(
    plain: Path, extra: bytes, reason: str
) -> None:
    assert reason in refusal(changed(plain, extra))


def test_the_first_element_without_a_kind_is_refused(plain: Path) -> None:
    """As the fuzzer made it: GDCM took 1.4 GiB."""
    content = plain.read_bytes().replace(b"\x08\0\x16\0UI", b"\x08\0\x16\0" + bytes(6) + b"UI")
    plain.write_bytes(content)
    assert re.search(r"element \(0008,0016\) at byte \d+ is of the unknown kind", refusal(plain))


@pytest.mark.parametrize("tag", [0x00020010, 0x00020013])
def test_meta_information_that_gdcm_would_leave_early_is_refused(plain: Path, tag: int) -> None:
    extra = element(b"SQ", b"", tag=0x00020014) + element(b"UI", b"1.2\0", tag=tag)
    assert "does not belong there" in refusal(changed(plain, extra, b"\x08\0\x16\0UI"))


@pytest.mark.parametrize("tail", [b"", b"\n", bytes(2), bytes(8), bytes(2048)])
def test_zeros_and_a_line_break_may_follow(plain: Path, tail: bytes) -> None:
    assert is_sound_dicom(changed(plain, tail, b""))
    assert sitk.ReadImage(str(plain), imageIO="GDCMImageIO").GetSize() == (8, 7, 2)


def test_zeros_may_not_follow_big_endian(plain: Path) -> None:
    """GDCM would then read the file as little-endian."""
    assert "unknown kind" in refusal(changed(written(plain, ExplicitVRBigEndian), bytes(8), b""))


def swapped(content: bytes) -> bytes:
    inside = struct.pack(">HH2sH", 0x2005, 0x1081, b"LO", len(content)) + content
    return struct.pack(">HHI", 0xFFFE, 0xE000, len(inside)) + inside


@pytest.mark.parametrize(
    "extra",
    [
        sequence(),
        sequence(b"", element(b"LO", b"abcd"), sequence(element(b"OB", b"ab"))),
        sequence(implicit(b"abcd"), kind=b"UN"),
        element(b"SQ", known(element(b"LO", b"abcd")) + ITEM + UNKNOWN + ITEM_END + NOTHING),
        element(b"SQ", known(element(b"LO", b"abcd")) + SEQUENCE_END + NOTHING),
        element(b"SQ", swapped(b"abcd"), tag=0x20051080),
        element(b"LO", b"abc"),
        element(b"UN", known(b"abcd")),
        # Lengths that scanners of Siemens wrote, and that GDCM corrects.
        element(b"UL", b"abcd", 6, tag=0x00091010),
    ],
)
def test_what_scanners_write_passes(plain: Path, extra: bytes) -> None:
    assert is_sound_dicom(changed(plain, extra))
    assert sitk.ReadImage(str(plain), imageIO="GDCMImageIO").GetSize() == (8, 7, 2)


def test_a_length_that_gdcm_corrects_is_corrected(plain: Path) -> None:
    """Scanners of GE wrote 13 for 10."""
    path = changed(written(plain, ImplicitVRLittleEndian), implicit(b"0123456789", 13))
    assert is_sound_dicom(path)
    assert sitk.ReadImage(str(plain), imageIO="GDCMImageIO").GetSize() == (8, 7, 2)


def nested(depth: int) -> bytes:
    begin = element(b"SQ", b"", 0xFFFFFFFF) + ITEM + UNKNOWN
    return begin * depth + (ITEM_END + NOTHING + SEQUENCE_END + NOTHING) * depth


def test_sequences_in_sequences_have_a_limit(plain: Path) -> None:
    """20,000 of them ended the process."""
    assert is_sound_dicom(changed(plain, nested(99)))
    assert "more than 100 deep" in refusal(changed(plain, nested(20_000)))


@pytest.mark.parametrize("kind", ["implicit", "UN", "OB"])
def test_a_sequence_that_is_written_as_a_value_is_looked_at(plain: Path, kind: str) -> None:
    deep = implicit(b"", 0xFFFFFFFF) + ITEM + UNKNOWN
    value = known(deep * 20_000 + (ITEM_END + NOTHING + SEQUENCE_END + NOTHING) * 20_000)
    tag = 0x00081140  # a sequence of the standard
    if kind == "implicit":
        path = changed(written(plain, ImplicitVRLittleEndian), implicit(value, tag=tag))
    else:
        path = changed(plain, element(kind.encode(), value, tag=tag))
    assert "more than 100 deep" in refusal(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda pieces: pieces[:-8], "no mark of its end"),
        (lambda pieces: pieces[:-20], "ends at byte"),
        (lambda pieces: pieces[:-8] + b"\xff\xd9" + pieces[-8:], "not a piece"),
        (lambda pieces: ITEM + struct.pack("<I", ABSURD) + pieces, "ends at byte"),
        (lambda pieces: ITEM + UNKNOWN + pieces, "ends at byte"),
        # GDCM divided by the number of segments, and the process ended.
        (lambda pieces: pieces.replace(b"\2\0\0\0\x40", b"\0\0\0\0\x40", 1), "1 to 15 segments"),
        (lambda pieces: pieces.replace(b"\2\0\0\0\x40", b"\x10\0\0\0\x40", 1), "1 to 15 segments"),
        (lambda pieces: known(b"") + known(bytes(4)) + pieces, "1 to 15 segments"),
    ],
)
def test_pieces_of_compressed_pixels_are_looked_at(
    plain: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    content = written(plain, RLELossless).read_bytes()
    at = content.rindex(PIXELS) + 12
    plain.write_bytes(content[:at] + change(content[at:]))
    assert reason in refusal(plain)


def test_what_a_deflated_file_inflates_to_has_a_limit(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(plain, DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr("segresmamba.data.volumes.dicom_elements._INFLATED_BYTES", 500)
    assert "inflates to more than 500 bytes" in refusal(path)


def test_an_icon_may_have_compressed_pixels_of_its_own(plain: Path) -> None:
    pieces = ITEM + NOTHING + known(b"\xff\xd8\xff\xd9") + SEQUENCE_END + NOTHING
    icon = element(b"OB", pieces, 0xFFFFFFFF, tag=0x7FE00010)
    assert is_sound_dicom(changed(plain, element(b"SQ", known(icon), tag=0x00880200)))
