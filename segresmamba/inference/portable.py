"""A network in a form that other runtimes compute: ONNX, or PyTorch's exported program.

It maps one normalised window (1, C, D, H, W) to its logits. Everything around it (voxel size,
normalisation, windows, labels) is described by the model folder that it lies in.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from segresmamba.errors import BackendMissingError, ConfigError, UserError
from segresmamba.models.tom import TriOrientedMamba

Form = Literal["onnx", "pt2", "bundle", "nnunet"]
"""The last two are not of the network alone, see `inference.bundle`, `inference.export_nnunet`."""
Portable = Literal["onnx", "pt2"]
Logits = npt.NDArray[Any]
_TOLERANCE = 1e-3
"""Largest difference to the logits of the network itself, as a share of the largest of them."""


def checked_form(name: str) -> Form:
    """The form of this name.

    Raises:
        ConfigError: If there is none.
    """
    forms: dict[str, Form] = {form: form for form in get_args(Form)}
    if name in forms:
        return forms[name]
    raise ConfigError(
        "there is no such form",
        where="--to",
        got=name,
        remedy=f"choose {', '.join(forms)}, or leave --to out",
    )


def write_portable(network: nn.Module, x_BCDHW: Tensor, path: Path, form: Portable) -> None:
    """Write a network, and compare what is written with it on a window.

    Args:
        network: The network, on the CPU.
        x_BCDHW: A normalised window, as the network gets them.
        path: The file to write.
        form: onnx, or pt2 for `torch.export.load`.

    Raises:
        ConfigError: If the network has operators that this form lacks.
        BackendMissingError: If a library is not installed.
        UserError: If what was written computes something else.
    """
    if any(isinstance(module, TriOrientedMamba) for module in network.modules()):
        voxels = x_BCDHW[0, 0].numel()
        raise ConfigError(
            f"a network with selective scans cannot be written as {form}",
            where="--to",
            got=f"{form}: it has no such operator, and a scan written out is a step for each token "
            f"of a window of {voxels:,} voxels",
            remedy="leave --to out: segresmamba itself computes the model folder",
        )
    network.eval()
    write = _write_onnx if form == "onnx" else _write_pt2
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about PyTorch's own code
        expected = network(x_BCDHW).numpy()
        found = write(network, x_BCDHW, path)
    apart = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not apart <= _TOLERANCE:
        raise UserError(
            f"the network written as {form} computes other logits",
            where=path.name,
            got=f"a difference of {apart:.2g} of the largest logit",
            remedy="leave --to out, or try another form; please report it",
        )


def _write_onnx(network: nn.Module, x_BCDHW: Tensor, path: Path) -> Logits:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - the exporter imports it
    except ImportError as error:
        raise BackendMissingError(
            "writing ONNX needs libraries that are not installed",
            where="--to",
            got=error,
            remedy="pip install 'segresmamba[export]'",
        ) from error
    program = torch.onnx.export(
        network,
        (x_BCDHW,),
        input_names=["image"],
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits: Logits = session.run(None, {"image": x_BCDHW.numpy()})[0]
    return logits


def _write_pt2(network: nn.Module, x_BCDHW: Tensor, path: Path) -> Logits:
    torch.export.save(torch.export.export(network, (x_BCDHW,)), path)
    logits: Tensor = torch.export.load(path).module()(x_BCDHW)
    return logits.numpy()
