"""Chooses the implementation of the scans: by name, or by `auto`, which logs its choice.

Looks only at whether modules can be found and imports none of them: a doctor's report and the help
of a command must not wait for numba or Triton.
"""

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
    # Without isolation, so that the kernels are built for the torch that is installed. The forced
    # reinstall without cache replaces a build that lacks the kernels. The last step adds the
    # other dependencies.
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
    # A build without kernels has both packages but not the two compiled modules.
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
        name: One of BACKENDS, or "auto". That is triton on CUDA, cpu on the CPU, and the reference
            on other devices or where the kernels are not installed. What auto chose and why is
            logged once.
        device: Where the tensors are.
        float64: Whether the tensors are in double precision, which only the reference computes.

    Returns:
        One of BACKENDS.

    Raises:
        ValueError: If the name is unknown, or the backend does not run on this device.
        NotImplementedError: If a backend other than the reference is to compute float64.
        BackendMissingError: If the named backend is not installed.
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
    # On meta tensors an operator only works out shapes, which every kernel backend can do.
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
    message = f"selective scan: backend {choice}, because {reason}"
    # While torch.compile traces, a call of the logger would break the graph.
    if not torch.compiler.is_compiling() and message not in _logged:
        _logged.add(message)
        logger.log(level, message)
    return choice


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
