"""Where a store lies: in a folder, in a zip file, or behind a URL."""

from __future__ import annotations

from pathlib import Path

from segresmamba.data.store.files import Files
from segresmamba.data.store.local_files import LocalFiles, ZippedFiles


def files_of(path_or_url: str | Path) -> Files:
    """The files of a store, as its name tells: a URL, a zip file, or a folder."""
    if "://" in str(path_or_url):
        from segresmamba.data.store.remote_files import RemoteFiles

        return RemoteFiles(str(path_or_url))
    path = Path(path_or_url)
    return ZippedFiles(path) if path.suffix == ".zip" else LocalFiles(path)
