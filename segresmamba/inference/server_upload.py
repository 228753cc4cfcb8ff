"""Writes what a client of the model server sends: NIfTI, or a zip file of a DICOM series."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path
from typing import IO

from segresmamba.errors import DataError

_COPY = 1 << 20  # bytes
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_DICOM_START = bytes(128) + b"DICM"


def write_upload(file: IO[bytes], folder: Path, number: int, max_bytes: int) -> Path:
    """Write a file of a client, or the DICOM files of a zip file, under names of ours.

    Args:
        file: What the client sent.
        folder: A folder for this request.
        number: Number of the channel, which becomes the name.
        max_bytes: The most that a zip file may unpack to.

    Returns:
        The NIfTI file, or the folder of the series.

    Raises:
        DataError: If a zip file is damaged, unpacks to more, or has no DICOM file.
    """
    start = file.read(len(_ZIP))
    file.seek(0)
    if start == _ZIP:
        return _unpacked(file, folder / str(number), max_bytes)
    path = folder / f"{number}.nii{'.gz' if start.startswith(_GZIP) else ''}"
    with path.open("wb") as to:
        shutil.copyfileobj(file, to, _COPY)
    return path


def _unpacked(packed: IO[bytes], folder: Path, max_bytes: int) -> Path:
    """Write the DICOM files of a zip file into a folder.

    Raises:
        DataError: If it is damaged, unpacks to more than this, or has no DICOM file.
    """
    folder.mkdir()
    left = max_bytes
    try:
        with zipfile.ZipFile(packed) as archive:
            for number, member in enumerate(archive.infolist()):
                left -= member.file_size  # no more is read of it, whatever it has
                if left < 0:
                    raise DataError(
                        "the series is larger than this server takes",
                        where=folder,
                        got=f"more than {max_bytes} bytes unpacked",
                        remedy="send one series; --max-gib raises the limit",
                    )
                with archive.open(member) as file:
                    if file.read(len(_DICOM_START))[128:] != _DICOM_START[128:]:
                        continue
                    with (folder / f"{number}.dcm").open("wb") as to:
                        # The first 128 bytes mean nothing in DICOM, and something in other formats.
                        to.write(_DICOM_START)
                        shutil.copyfileobj(file, to, _COPY)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise DataError(
            "the zip file is damaged or encrypted",
            where=folder,
            got=str(error),
            remedy="pack the files of the series again, without a password",
        ) from error
    if not any(folder.iterdir()):
        raise DataError(
            "the zip file has no DICOM file",
            where=folder,
            got="no file with the mark DICM",
            remedy="pack the files of one DICOM series; send other images as NIfTI",
        )
    return folder
