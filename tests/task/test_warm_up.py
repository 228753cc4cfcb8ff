"""One rank of a node compiles the kernels of the scans, into a folder of that node."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from segresmamba import models
from segresmamba.errors import ConfigError
from segresmamba.models import SegResMamba
from segresmamba.task import warm_up
from segresmamba.task.ranks import Ranks


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a node keeps its kernels, when no cache is named."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    return tmp_path / f"segresmamba-triton-{os.getuid()}"


def ranks(local_rank: int, device: str = "cuda") -> Ranks:
    return Ranks(local_rank, 2, local_rank, 2, torch.device(device))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where kernels would have been compiled on a GPU."""
    made: list[str] = []
    monkeypatch.setattr(models, "scan_backend", lambda *_: "triton")
    monkeypatch.setattr(
        warm_up, "compile_scans", lambda *_: made.append(os.environ["TRITON_CACHE_DIR"])
    )
    return made


def network() -> SegResMamba:
    return SegResMamba(dims=(8, 16), d_state=4)


def test_the_first_rank_of_a_node_compiles_into_a_folder_of_the_node(
    node: Path, compiled: list[str]
) -> None:
    warm_up.warm_up(network(), "bf16", ranks(1))
    assert (compiled, os.environ["TRITON_CACHE_DIR"]) == ([], str(node))
    warm_up.warm_up(network(), "bf16", ranks(0))
    assert compiled == [str(node)]
    assert node.stat().st_mode & 0o777 == 0o700


def test_other_scans_and_devices_need_no_kernels(
    node: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up.warm_up(network(), "bf16", ranks(0, "cpu"))
    monkeypatch.setattr(models, "scan_backend", lambda *_: "mamba_ssm")
    warm_up.warm_up(network(), "bf16", ranks(0))
    assert not compiled
    assert not node.exists()


def test_a_cache_that_is_named_is_used(
    node: Path, compiled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "not" / "yet"))
    warm_up.warm_up(network(), "bf16", ranks(0))
    assert compiled == [str(tmp_path / "not" / "yet")]
    assert not node.exists()


def test_a_cache_that_cannot_be_written_is_copied_to_the_node(
    node: Path, compiled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    (image / "KEY").mkdir(parents=True)
    (image / "KEY" / "convolve.cubin").write_bytes(b"code")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(image))
    monkeypatch.setattr(os, "access", lambda *_: False)
    warm_up.warm_up(network(), "bf16", ranks(0))
    assert compiled == [str(node)]
    assert (node / "KEY" / "convolve.cubin").read_bytes() == b"code"


def test_a_cache_that_cannot_be_copied_either_is_compiled_anew(
    node: Path,
    compiled: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise shutil.Error([("kernel", "copy", "[Errno 28] No space left on device")])

    image = tmp_path / "image"
    image.mkdir()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(image))
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(shutil, "copytree", full)
    warm_up.warm_up(network(), "bf16", ranks(0))
    assert compiled == [str(node)]
    assert f"{image} cannot be copied to {node}" in caplog.text


def test_a_folder_of_another_user_is_not_used(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    warm_up._use_node_cache(fill=True)
    assert "TRITON_CACHE_DIR" not in os.environ
    assert "is not ours" in caplog.text


def test_what_is_compiled_follows_from_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("segresmamba.ops.triton.compile_kernels", lambda *sizes: made.append(sizes))
    warm_up.compile_scans(network(), "bf16", torch.device("meta"), 90)
    warm_up.compile_scans(torch.nn.Linear(2, 2), "bf16", torch.device("meta"), 90)
    assert made == [(torch.bfloat16, 4, 4, torch.device("meta"), 90)]


@pytest.mark.parametrize("text", ["9", "9.", "sm_90", "9.0a", ""])
def test_a_capability_has_two_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="not a compute capability"):
        warm_up.capability_number(text)


def test_a_capability_as_triton_takes_it() -> None:
    assert [warm_up.capability_number(text) for text in ("8.0", "9.0", "10.0")] == [80, 90, 100]
