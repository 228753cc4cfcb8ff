from __future__ import annotations

from pathlib import Path

import pytest

from segresmamba.errors import ConfigError
from segresmamba.storage.foreign_folder import refuse_foreign_folder


def test_results_go_to_a_new_folder_or_one_of_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").touch()
    refuse_foreign_folder(tmp_path, "--out")
    refuse_foreign_folder(tmp_path / "new" / "deep", "--out")
    (tmp_path / "config.yaml").touch()  # of some other program
    refuse_foreign_folder(tmp_path, "--out")


@pytest.mark.parametrize("inside", [".", "deep"])
def test_a_file_is_refused_before_anything_is_computed(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="a file"):
        refuse_foreign_folder(tmp_path / "file" / inside, "--out")


def test_a_read_only_folder_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ConfigError, match="read-only"):
        refuse_foreign_folder(tmp_path / "new", "OUTPUT")
