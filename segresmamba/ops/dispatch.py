"""Which implementation of the scan runs: chosen by name, or by a logged `auto`."""

from __future__ import annotations

import importlib.util
import logging
import os

import torch

from segresmamba.errors import BackendMissingError

logger = logging.getLogger(__name__)

INSTALL_COMMANDS = {
    "cpu": "pip install numba",
    "triton": "pip install 'triton>=3.6'",
    # Builds with the torch that is there, and so without isolation; replaces a build, installed or
    # cached, that lacks the kernels; leaves the other dependencies to the last step.
    "mamba_ssm": (
        "pip install ninja packaging setuptools wheel && "
        "CAUSAL_CONV1D_FORCE_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE "
        "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps "
        "causal-conv1d mamba-ssm && pip install mamba-ssm"
    ),
}
_MODULES = {
    "reference": (),
    "cpu": ("numba",),
    "triton": ("triton",),
    # A pure-Python build has the packages without the compiled modules, and fails to import.
    "mamba_ssm": ("mamba_ssm", "causal_conv1d", "selective_scan_cuda", "causal_conv1d_cuda"),
}
BACKENDS = tuple(_MODULES)

_logged: set[str] = set()


def available_backends() -> dict[str, str]:
    """Every backend with "ok", or with the command that installs it."""
    return {name: INSTALL_COMMANDS[name] if _missing(name) else "ok" for name in BACKENDS}


def resolve_backend(name: str, device: torch.device, *, float64: bool = False) -> str:
    """The backend that a call on this device uses.

    Args:
        name: One of BACKENDS, or "auto": triton on CUDA if it is installed, the compiled cpu
            kernels on the CPU, the reference elsewhere. What auto chose and why is logged once.
        device: Where the tensors are.
        float64: Double precision is asked for, which only the reference computes.

    Returns:
        One of BACKENDS.

    Raises:
        ValueError: Unknown name, or a backend that does not run on this device.
        NotImplementedError: float64 on a backend other than the reference.
        BackendMissingError: Asked for by name and not installed.
    """
    if name == "auto":
        return _choose(device, float64)
    if name not in BACKENDS:
        raise ValueError(f"unknown scan backend {name!r}; choose auto, {', '.join(BACKENDS)}")
    if missing := _missing(name):
        raise BackendMissingError(
            f"the scan backend {name} needs {missing}, which is not installed",
            where="backend",
            got=name,
            remedy=f"install it: {INSTALL_COMMANDS[name]}",
        )
    if not _runs_on(name, device):
        raise ValueError(
            f"the scan backend {name} does not run on {device.type} tensors; "
            "move them, or take backend='auto'"
        )
    if float64 and name != "reference":
        raise NotImplementedError(
            f"the scan backend {name} computes in float32; for float64 take backend='reference'"
        )
    return name


def _choose(device: torch.device, float64: bool) -> str:
    # On meta tensors an operator only works out shapes, as every kernel backend can.
    preferred = {"cuda": "triton", "cpu": "cpu", "meta": "cpu"}.get(device.type)
    level = logging.WARNING
    if float64:
        choice, reason = "reference", "kernels compute in float32 and the tensors are float64"
    elif preferred is None:
        choice, reason = "reference", f"no kernel runs on {device.type}; it is slow"
    elif missing := _missing(preferred):
        choice = "reference"
        reason = f"{missing} is not installed ({INSTALL_COMMANDS[preferred]}); it is slow"
    else:
        choice, reason, level = preferred, f"the tensors are on {device.type}", logging.INFO
    if not torch.compiler.is_compiling():
        _log_once(level, f"selective scan: backend {choice}, because {reason}")
    return choice


def _log_once(level: int, message: str) -> None:
    if message not in _logged:
        _logged.add(message)
        logger.log(level, message)


def _missing(name: str) -> str | None:
    """The first module that a backend needs and that is not installed."""
    for module in _MODULES[name]:
        if importlib.util.find_spec(module) is None:
            return module
    return None


def _runs_on(name: str, device: torch.device) -> bool:
    if name == "reference":
        return True
    if name == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return True
    return device.type == ("cpu" if name == "cpu" else "cuda")
