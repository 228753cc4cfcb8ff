"""State dicts of the released SegResMamba (github.com/badhandas/SegResMamba, model/segresmamba.py).

The released forward pass calls no Mamba layer and only the decoder of its SegResNet
(tests/models/fixtures/README.md says how that was found out). So only the weights that it does use
have a place here. Its names and ours, for stage i and decoder level j:

    vit.downsample_layers.i.*       downs.i.*
    vit.gscs.i.proj, proj3, -4, -5  blocks.i.branch.0, 3, 7, 10
    vit.gscs.i.mamba_layer.*        never called
    vit.stages.i.0                  blocks.i.after.0
    vit.mlps.i.fc1, fc2             skips.i.1, 3
    segresnet.up_samples.j.0.conv   ups.j.0
    segresnet.up_layers.j.0.*       decoders.j.*
    segresnet.*, everything else    never called
    out                             head
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from segresmamba.models.segresmamba import SegResMamba
from segresmamba.models.state_dicts import refuse_differences, renamed

logger = logging.getLogger(__name__)

# Our name -> the released name.
_NAMES = (
    (r"downs\.0\.(weight|bias)", r"vit.downsample_layers.0.0.\1"),
    (r"downs\.(\d+)\.(.+)", r"vit.downsample_layers.\1.\2"),
    (r"blocks\.(\d+)\.branch\.0\.(.+)", r"vit.gscs.\1.proj.\2"),
    (r"blocks\.(\d+)\.branch\.3\.(.+)", r"vit.gscs.\1.proj3.\2"),
    (r"blocks\.(\d+)\.branch\.7\.(.+)", r"vit.gscs.\1.proj4.\2"),
    (r"blocks\.(\d+)\.branch\.10\.(.+)", r"vit.gscs.\1.proj5.\2"),
    (r"blocks\.(\d+)\.after\.0\.(.+)", r"vit.stages.\1.0.\2"),
    (r"skips\.(\d+)\.1\.(.+)", r"vit.mlps.\1.fc1.\2"),
    (r"skips\.(\d+)\.3\.(.+)", r"vit.mlps.\1.fc2.\2"),
    (r"ups\.(\d+)\.0\.(.+)", r"segresnet.up_samples.\1.0.conv.\2"),
    (r"decoders\.(\d+)\.(.+)", r"segresnet.up_layers.\1.0.\2"),
    (r"head\.(.+)", r"out.\1"),
)
# The first group is the name of the module.
_NEVER_CALLED = re.compile(
    r"(vit\.gscs\.\d+\.mamba_layer|segresnet\.(?:convInit|down_layers|conv_final))\."
)


def with_our_names(state_dict: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a state dict by our names, if it has those of the released code.

    Args:
        state_dict: Any state dict.
        names: The names of a `SegResMamba`'s weights.

    Returns:
        The state dict itself, if it has other names.
    """
    theirs = {name: renamed(name, _NAMES) for name in names}
    found = {name: state_dict[key] for name, key in theirs.items() if key in state_dict}
    return found if len(found) > len(state_dict.keys() & theirs.keys()) else dict(state_dict)


def load_released_state_dict(
    model: SegResMamba, state_dict: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Load the weights of the released code into a network built as "segresmamba_released".

    Args:
        model: A network with the channels and dims of the weights. It stays unchanged if they are
            refused.
        state_dict: State dict of the released `SegResMamba`, with its own keys.

    Returns:
        The keys that are not loaded, because the released forward pass never uses them: its Mamba
        layers and the encoder of its SegResNet. A log line gives their number.

    Raises:
        ValueError: If this is the state dict of another network. The message has the first keys
            and shapes that differ.
    """
    # Everything is checked before anything is loaded: a refused state dict changes no weight.
    ours = model.state_dict()
    theirs = {renamed(name, _NAMES): name for name in ours}
    unused = {key: found[1] for key in state_dict if (found := _NEVER_CALLED.match(key))}
    used = {key: value for key, value in state_dict.items() if key not in unused}
    refuse_differences(
        {key: tuple(ours[name].shape) for key, name in theirs.items()},
        used,
        "the released SegResMamba at these channels and dims",
    )
    model.load_state_dict({theirs[key]: value for key, value in used.items()})
    logger.info(
        "loaded %d of %d tensors; the released forward pass never uses the other %d: %s",
        len(used),
        len(state_dict),
        len(unused),
        ", ".join(sorted(set(unused.values()))) or "none",
    )
    return tuple(unused)
