"""Backends are chosen by name or by a logged auto; what is missing names its install command."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch

from segresmamba.errors import BackendMissingError
from segresmamba.ops import BACKENDS, available_backends, dispatch, resolve_backend, selective_scan
from tests.ops.operands import scan_operands

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def without(monkeypatch):
    """Make modules look as if they were not installed."""

    def hide(*modules):
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: None if name in modules else find_spec(name, *rest),
        )

    return hide


def test_auto_takes_the_compiled_kernels_on_the_cpu_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "_logged", set())
    with caplog.at_level(logging.INFO, "segresmamba.ops"):
        assert [resolve_backend("auto", CPU) for _ in range(3)] == ["cpu"] * 3
    assert caplog.messages == ["selective scan: backend cpu, because the tensors are on cpu"]


def test_auto_takes_triton_on_cuda(monkeypatch):
    monkeypatch.setattr(dispatch, "_missing", lambda name: None)
    assert resolve_backend("auto", CUDA) == "triton"


def test_auto_falls_back_to_the_reference_and_says_what_to_install(without, monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "_logged", set())
    without("numba", "triton", "mamba_ssm")
    with caplog.at_level(logging.INFO, "segresmamba.ops"):
        assert resolve_backend("auto", CPU) == "reference"
        assert resolve_backend("auto", CUDA) == "reference"
        assert resolve_backend("auto", torch.device("mps")) == "reference"
    assert "cpu needs numba, which is not installed (pip install numba)" in caplog.messages[0]
    assert "needs triton, which is not installed (pip install 'triton>=3.6')" in caplog.messages[1]
    assert "no kernel runs on mps" in caplog.messages[2]


def test_a_compiler_is_looked_for_once_and_not_in_every_step(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(dispatch, "missing_build_tool", lambda: asked.append(1))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # of which nothing is known yet
    assert {resolve_backend("auto", CUDA) for _ in range(3)} == {"triton"}
    assert len(asked) == 1


def test_auto_without_a_compiler_names_it_and_takes_the_next_backend(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(dispatch, "_logged", set())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = importlib.util.find_spec("triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: found)  # all packages are there
    assert resolve_backend("auto", CUDA) == "mamba_ssm"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "backend mamba_ssm, because triton needs a C compiler (no gcc" in caplog.text
    with pytest.raises(BackendMissingError, match="triton needs a C compiler") as caught:
        resolve_backend("triton", CUDA)
    assert "apt-get install gcc" in caught.value.screen()
    assert "apt-get install gcc" in available_backends()["triton"]


def test_missing_backends_name_their_install_command(without):
    without("numba", "triton", "mamba_ssm")
    for name, command in [
        ("cpu", "pip install numba"),
        ("triton", "pip install 'triton>=3.6'"),
        ("mamba_ssm", "--no-deps causal-conv1d mamba-ssm && pip install mamba-ssm"),
    ]:
        with pytest.raises(BackendMissingError) as caught:
            resolve_backend(name, CUDA)
        assert command in caught.value.screen()
        assert command in available_backends()[name]


@pytest.mark.parametrize("compiled", ["selective_scan_cuda", "causal_conv1d_cuda"])
def test_a_build_of_mamba_ssm_without_its_kernels_is_missing(monkeypatch, compiled):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == compiled else object()
    )
    with pytest.raises(BackendMissingError, match=f"needs {compiled}") as caught:
        resolve_backend("mamba_ssm", CUDA)
    # Pip would take the build that is installed or cached for the one asked for.
    assert "--no-cache-dir --force-reinstall --no-deps" in caught.value.screen()


def test_available_backends_lists_every_backend():
    assert tuple(available_backends()) == BACKENDS
    assert available_backends()["reference"] == available_backends()["cpu"] == "ok"


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"'cuda'; choose auto, reference, cpu, triton, mamba_ssm"):
        selective_scan(**scan_operands(), backend="cuda")


def test_a_backend_that_does_not_run_on_the_device_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "_missing", lambda name: None)
    for name, device in [("cpu", CUDA), ("triton", CPU), ("mamba_ssm", CPU)]:
        with pytest.raises(ValueError, match=rf"{name} does not run on {device.type} tensors"):
            resolve_backend(name, device)


def test_double_precision_is_left_to_the_reference():
    o = scan_operands(dtype=torch.float64)
    assert selective_scan(**o).dtype == torch.float64
    with pytest.raises(NotImplementedError, match="take backend='reference'"):
        selective_scan(**o, backend="cpu")
