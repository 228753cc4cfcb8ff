"""The one place that decides from its name whether a store is a folder, a zip file or a URL.

It is a module of its own because each kind of `Files` imports the base class in `files`.
"""

from __future__ import annotations

from pathlib import Path

from segresmamba.data.store.files import PATIENCE_S, Files
from segresmamba.data.store.local_files import LocalFiles, ZippedFiles


def files_at(path_or_url: str | Path, *, patience_s: float = PATIENCE_S) -> Files:
    """The files of the store at a path or URL. Nothing is read yet."""
    if "://" in str(path_or_url):
        # Not at the top: the server that reader processes fork from imports this module, and a
        # process that is forked after the import of remote_files is refused there.
        from segresmamba.data.store.remote_files import RemoteFiles

        return RemoteFiles(str(path_or_url), patience_s)
    path = Path(path_or_url)
    return ZippedFiles(path) if path.suffix == ".zip" else LocalFiles(path)
