"""Compiles the kernels of a network's scans before its first step.

Each rank would compile them at its first step otherwise, all at once, into a cache in a home folder
that the nodes share. Here one rank of a node compiles them, into a cache of that node.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from segresmamba import models
from segresmamba.errors import ConfigError
from segresmamba.models.tom import TriOrientedMamba
from segresmamba.task.precision import tokens_dtype
from segresmamba.task.ranks import Ranks

logger = logging.getLogger(__name__)

_VARIABLE = "TRITON_CACHE_DIR"


def warm_up(network: nn.Module, precision: str, ranks: Ranks) -> None:
    """Compile what the scans of a network run on a GPU; nothing for other scans and devices.

    Every rank calls this, and waits for the others before it uses the network. The first rank of
    each node compiles.

    Args:
        network: The network, on any device.
        precision: Autocast type: fp32, bf16 or fp16.
        ranks: This process.
    """
    device = ranks.device
    if device.type != "cuda" or models.scan_backend(network, device) != "triton":
        return
    _use_node_cache(fill=ranks.is_node_main)
    if ranks.is_node_main:
        started_s = time.monotonic()
        compile_scans(network, precision, device)
        taken_s = time.monotonic() - started_s
        where = os.environ.get(_VARIABLE, "Triton's own cache")
        logger.info("the kernels of the scans are ready after %.1f s, in %s", taken_s, where)


def compile_scans(
    network: nn.Module, precision: str, device: torch.device, capability: int | None = None
) -> None:
    """Compile the Triton kernels of a network's scans.

    Args:
        network: The network, on any device.
        precision: Autocast type: fp32, bf16 or fp16.
        device: The GPU; meta with a capability.
        capability: Compute capability of GPUs that are not here, such as 90 for 9.0.
    """
    from segresmamba.ops.triton import compile_kernels

    layers = (module for module in network.modules() if isinstance(module, TriOrientedMamba))
    sizes = {(layer.A_log_KEN.shape[2], layer.conv_weight_KEW.shape[2]) for layer in layers}
    for states, width in sorted(sizes):
        compile_kernels(tokens_dtype(precision), states, width, device, capability)


def capability_number(text: str) -> int:
    """A compute capability as Triton takes it: 90 for "9.0".

    Raises:
        ConfigError: If it is not one.
    """
    major, dot, minor = text.partition(".")
    if not (dot and major.isdecimal() and minor.isdecimal() and len(minor) == 1):
        raise ConfigError(
            "this is not a compute capability",
            where="--capability",
            got=text,
            remedy="give both numbers, such as 9.0; `nvidia-smi --query-gpu=compute_cap "
            "--format=csv` shows it",
        )
    return int(major + minor)


def _use_node_cache(*, fill: bool) -> None:
    """Let Triton keep its kernels in a folder of this node, unless TRITON_CACHE_DIR names another.

    A cache that cannot be written, as in a read-only container image, is copied to the node if
    `fill` is set, which one rank of a node does.
    """
    given = Path(os.environ[_VARIABLE]) if _VARIABLE in os.environ else None
    if given is not None:
        existing = next(path for path in (given, *given.absolute().parents) if path.exists())
        if os.access(existing, os.W_OK):
            return
    folder = Path(tempfile.gettempdir(), f"segresmamba-triton-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    # Another user could put anything there, and we would run it.
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        logger.warning("%s is not ours: Triton keeps its kernels elsewhere", folder)
        return
    if fill and given is not None and given.is_dir():
        try:
            shutil.copytree(given, folder, dirs_exist_ok=True)
        except OSError as error:  # what is missing is compiled
            logger.warning("%s cannot be copied to %s: %.200s", given, folder, error)
    os.environ[_VARIABLE] = str(folder)
