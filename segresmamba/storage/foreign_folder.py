"""Folders that something else lies in, so that no command writes its results among that."""

from __future__ import annotations

import os
from pathlib import Path

from segresmamba.errors import ConfigError

# Files, all of which a folder of this kind has.
_KINDS: dict[tuple[str, ...], str] = {
    ("zarr.json",): "a store, or another Zarr group",
    (".zgroup",): "a Zarr group",
    ("config.yaml", "journal.jsonl"): "a run",
    ("config.yaml", "best"): "a run",
    ("model.json",): "a model folder",
    ("manifest.json",): "a sweep",
}


def refuse_foreign_folder(out: Path, where: str) -> None:
    """Refuse to write results into a store, a run, a sweep or a model, before they are computed.

    Args:
        out: The folder, which need not exist.
        where: The argument or option that names it.

    Raises:
        ConfigError: If it is one of them, or a file, or if nothing can be written there.
    """
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            "the output folder cannot be written",
            where=f"{where}: {out}",
            got=f"{existing} is " + ("read-only" if existing.is_dir() else "a file"),
            remedy="name a folder that you can write to",
        )
    for names, kind in _KINDS.items():
        if all((out / name).exists() for name in names):
            raise ConfigError(
                "the output folder holds something else",
                where=f"{where}: {out}",
                got=f"{kind} ({', '.join(names)})",
                remedy="name a new folder; it may lie inside a run's folder",
            )
