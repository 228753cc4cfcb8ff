"""Chooses the implementation of the scans: by name, or by `auto`, which logs its choice.

Looks only at whether modules can be found and imports none of them: a doctor's report and the help
of a command must not wait for numba or Triton.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import cache
from typing import NamedTuple

import torch

from segresmamba.build_tools import INSTALL_BUILD_TOOLS, missing_build_tool
from segresmamba.errors import BackendMissingError

logger = logging.getLogger(__name__)

INSTALL_COMMANDS = {
    "cpu": "pip install numba",
    "triton": "pip install 'triton>=3.6'",
    # Without isolation, so that the kernels are built for the torch that is installed. The forced
    # reinstall without cache replaces a build that lacks the kernels. The last step adds the
    # other dependencies. mamba-ssm's main branch leaves the kernels of Mamba-1 out of a build
    # unless MAMBA_KEEP_CUDA_BUILD asks for them; its releases ignore the variable.
    "mamba_ssm": (
        "pip install ninja packaging setuptools wheel && "
        "CAUSAL_CONV1D_FORCE_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE "
        "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps "
        "causal-conv1d mamba-ssm && pip install mamba-ssm  "
        "# needs nvcc of the CUDA release that torch was built for"
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
# What auto tries, in this order. On meta tensors an operator only works out shapes, which every
# kernel backend can do.
_PREFERRED = {"cuda": ("triton", "mamba_ssm"), "cpu": ("cpu",), "meta": ("cpu",)}

_logged: set[str] = set()


def available_backends() -> dict[str, str]:
    """Every backend with "ok", or with the command that installs what it lacks."""
    found = {name: _missing(name) for name in BACKENDS}
    return {name: missing.remedy if missing else "ok" for name, missing in found.items()}


def resolve_backend(name: str, device: torch.device, *, float64: bool = False) -> str:
    """The backend that a call on this device uses.

    Args:
        name: One of BACKENDS, or "auto". That is the first that is usable of triton and mamba_ssm
            on CUDA, cpu on the CPU, and the reference on other devices or where nothing else is
            usable. What auto chose and why is logged once; as a warning if it is not the first.
        device: Where the tensors are.
        float64: Whether the tensors are in double precision, which only the reference computes.

    Returns:
        One of BACKENDS.

    Raises:
        ValueError: If the name is unknown, or the backend does not run on this device.
        NotImplementedError: If a backend other than the reference is to compute float64.
        BackendMissingError: If the named backend is not installed.
    """
    return _resolve(name, device, float64)


def _resolve(name: str, device: torch.device, float64: bool) -> str:
    if name == "auto":
        return _choose(device, float64)
    if name not in BACKENDS:
        raise ValueError(f"unknown scan backend {name!r}; choose auto, {', '.join(BACKENDS)}")
    if missing := _missing(name):
        raise BackendMissingError(
            f"the scan backend {name} needs {missing.what}, which is not installed",
            where="backend",
            got=name,
            remedy=f"install it: {missing.remedy}",
        )
    runs_anywhere = name == "reference" or (name == "triton" and _interpreted())
    if not runs_anywhere and device.type != ("cpu" if name == "cpu" else "cuda"):
        raise ValueError(
            f"the scan backend {name} does not run on {device.type} tensors; "
            "move them, or take backend='auto'"
        )
    if float64 and name != "reference":
        raise NotImplementedError(
            f"the scan backend {name} computes in float32; for float64 take backend='reference'"
        )
    return name


# torch.compile then calls it while it traces: it could not trace how a compiler is looked for.
# This is all that `torch.compiler.assume_constant_result` does, but that imports torch._dynamo,
# which takes every command that builds a network two seconds.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _choose(device: torch.device, float64: bool) -> str:
    candidates = _PREFERRED.get(device.type, ())
    choice = next((name for name in candidates if not _missing(name)), "reference")
    level = logging.WARNING
    if float64:
        choice, reason = "reference", "kernels compute in float32 and the tensors are float64"
    elif not candidates:
        reason = f"no kernel runs on {device.type}; it is slow"
    elif missing := _missing(candidates[0]):
        reason = f"{candidates[0]} needs {missing.what}, which is not installed ({missing.remedy})"
        reason += "; it is slow" if choice == "reference" else ""
    else:
        reason, level = f"the tensors are on {device.type}", logging.INFO
    message = f"selective scan: backend {choice}, because {reason}"
    if message not in _logged:
        _logged.add(message)
        logger.log(level, message)
    return choice


class _Missing(NamedTuple):
    """Something that a backend needs and that is not installed."""

    what: str
    remedy: str


def _missing(name: str) -> _Missing | None:
    """The first thing that a backend needs and that is not installed."""
    for module in _MODULES[name]:
        if importlib.util.find_spec(module) is None:
            return _Missing(module, INSTALL_COMMANDS[name])
    if name == "triton" and not _interpreted():
        tool = _missing_build_tool(os.environ.get("CC"), os.environ.get("PATH"))
        return _Missing(tool, INSTALL_BUILD_TOOLS) if tool else None
    return None


@cache  # every scan asks, in every step, and a PATH may lie on a slow file system
def _missing_build_tool(compiler: str | None, path: str | None) -> str | None:
    """What is missing with these values of CC and PATH."""
    return missing_build_tool()


def _interpreted() -> bool:
    """Whether Triton interprets its kernels, which works on any device and compiles nothing."""
    return os.environ.get("TRITON_INTERPRET") == "1"
