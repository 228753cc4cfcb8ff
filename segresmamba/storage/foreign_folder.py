"""Folders that something else lies in, so that no command writes its results among that."""

from __future__ import annotations

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
    """Refuse to write results into a store, a run, a sweep or a model.

    Args:
        out: The folder, which need not exist.
        where: The argument or option that names it.

    Raises:
        ConfigError: If it is one of them.
    """
    for names, kind in _KINDS.items():
        if all((out / name).exists() for name in names):
            raise ConfigError(
                "the output folder holds something else",
                where=f"{where}: {out}",
                got=f"{kind} ({', '.join(names)})",
                remedy="name a new folder; it may lie inside a run's folder",
            )
