"""What an evaluation hands to the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation."""

    table: Table
    files: tuple[Path, ...]
    """results.json, results.csv and results.md."""
    overlays: Path | None
    """The folder of the pictures, if any were drawn."""
    failed: Mapping[str, str]
    """What is wrong with each case that could not be scored."""
    notes: tuple[str, ...] = ()
    """What was decided on the cases."""
    ui_hint: str = ""
    """Where MLflow shows them."""

    @property
    def results(self) -> Path:
        """The JSON file."""
        return self.files[0]
