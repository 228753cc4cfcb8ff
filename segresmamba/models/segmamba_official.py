"""State dicts of the official SegMamba (github.com/ge-xing/SegMamba, model_segmamba/segmamba.py).

Its names and ours, for stage i and Mamba layer j:

    vit.downsample_layers.i.*         downs.i.*
    vit.gscs.i.proj, proj2, -3, -4    blocks.i.0.wide.0, wide.3, narrow.0, merge.0
    vit.stages.i.j.norm, mamba        blocks.i.(j + 1), its tensors stacked over the scan orders
    vit.mlps.i.fc1, fc2               skips.i.1, 3
    encoder1 to encoder5              lifts.0 to lifts.4
    decoder5 to decoder2              ups.0 to ups.3
    decoder1, out                     refine, head
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from segresmamba.models.segmamba import SegMamba
from segresmamba.models.state_dicts import refuse_differences, renamed

logger = logging.getLogger(__name__)

# Our name -> the official name.
_NAMES = (
    (r"downs\.0\.(.+)", r"vit.downsample_layers.0.0.\1"),
    (r"downs\.(.+)", r"vit.downsample_layers.\1"),
    (r"blocks\.(\d+)\.0\.wide\.0\.(.+)", r"vit.gscs.\1.proj.\2"),
    (r"blocks\.(\d+)\.0\.wide\.3\.(.+)", r"vit.gscs.\1.proj2.\2"),
    (r"blocks\.(\d+)\.0\.narrow\.0\.(.+)", r"vit.gscs.\1.proj3.\2"),
    (r"blocks\.(\d+)\.0\.merge\.0\.(.+)", r"vit.gscs.\1.proj4.\2"),
    (r"skips\.(\d+)\.1\.(.+)", r"vit.mlps.\1.fc1.\2"),
    (r"skips\.(\d+)\.3\.(.+)", r"vit.mlps.\1.fc2.\2"),
    (r"refine\.(.+)", r"decoder1.\1"),
    (r"head\.(.+)", r"out.\1"),
)
_LAYER = re.compile(r"blocks\.(\d+)\.(\d+)\.(\w+)")
# Our layers stack the parameters of the three scan orders in one tensor; the official layers have a
# tensor for each order, its name without ending, with _b (backward) and with _s (slices).
_LAYER_NAMES = {
    "norm_weight": ("norm.weight",),
    "norm_bias": ("norm.bias",),
    "in_proj_weight": ("mamba.in_proj.weight",),
    "out_proj_weight": ("mamba.out_proj.weight",),
    "A_log_KEN": ("mamba.A_log", "mamba.A_b_log", "mamba.A_s_log"),
    "D_KE": ("mamba.D", "mamba.D_b", "mamba.D_s"),
} | {
    ours: tuple(f"mamba.{module}{order}.{leaf}" for order in ("", "_b", "_s"))
    for ours, module, leaf in (
        ("conv_weight_KEW", "conv1d", "weight"),
        ("conv_bias_KE", "conv1d", "bias"),
        ("x_proj_weight_KPE", "x_proj", "weight"),
        ("dt_proj_weight_KER", "dt_proj", "weight"),
        ("dt_bias_KE", "dt_proj", "bias"),
    )
}
# Biases before an instance norm, which subtracts them together with the mean.
_CANCELLED = re.compile(r"vit\.gscs\.\d+\.proj\d?\.bias")


def load_official_segmamba_state_dict(
    model: SegMamba, state_dict: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Load the weights of the official SegMamba.

    Args:
        model: A network with the channels, dims and depths of the weights. It stays unchanged if
            they are refused.
        state_dict: State dict of the official `SegMamba`, with its own keys.

    Returns:
        The keys that are not loaded: biases that an instance norm cancels, so that the network
        computes the same without them. A log line gives their number.

    Raises:
        ValueError: If this is the state dict of another network. The message has the first keys
            and shapes that differ.
    """
    # Everything is checked before anything is loaded: a refused state dict changes no weight.
    ours = model.state_dict()
    sources = {name: _official_names(name) for name in ours}
    expected = {
        key: _official_shape(name, ours[name]) for name, keys in sources.items() for key in keys
    }
    cancelled = tuple(key for key in state_dict if _CANCELLED.fullmatch(key))
    used = {key: value for key, value in state_dict.items() if key not in cancelled}
    refuse_differences(expected, used, "the official SegMamba at these channels, dims and depths")
    model.load_state_dict(
        {
            # A tensor with one source becomes a stack of one, which reshape takes apart again.
            name: torch.stack([used[key] for key in keys]).reshape(ours[name].shape)
            for name, keys in sources.items()
        }
    )
    logger.info(
        "loaded %d of %d tensors; instance norms cancel the other %d, biases of vit.gscs.*",
        len(used),
        len(state_dict),
        len(cancelled),
    )
    return cancelled


def _official_names(name: str) -> tuple[str, ...]:
    """The official names of the tensors that one of ours stacks."""
    match = _LAYER.fullmatch(name)
    if match and match[3] in _LAYER_NAMES:
        layer = f"vit.stages.{match[1]}.{int(match[2]) - 1}"
        return tuple(f"{layer}.{leaf}" for leaf in _LAYER_NAMES[match[3]])
    if match := re.fullmatch(r"(lifts|ups)\.(\d+)\.(.+)", name):
        # The official decoders are numbered from the finest, ours from the coarsest.
        number = int(match[2])
        official = f"encoder{number + 1}" if match[1] == "lifts" else f"decoder{5 - number}"
        return (f"{official}.{match[3]}",)
    return (renamed(name, _NAMES),)


def _official_shape(name: str, ours: Tensor) -> tuple[int, ...]:
    """The shape of each official tensor that one of ours stacks."""
    leaf = name.rpartition(".")[2]
    if leaf == "conv_weight_KEW":
        _, inner, width = ours.shape
        return inner, 1, width  # nn.Conv1d has an axis for the one input channel of each group
    return tuple(ours.shape[1:] if leaf.endswith(("_KE", "_KEN", "_KPE", "_KER")) else ours.shape)
