"""Says which weights no gradient reaches: training would leave them as they began, without a word.

Networks of users have them by mistake, after a detach() or in a branch that `forward` does not
call. They also take memory, and count in the number of parameters.
"""

from __future__ import annotations

import logging

from torch import nn

logger = logging.getLogger(__name__)


class UnreachedWeights:
    """Watches the first step of a network, and then takes its hooks away.

    Args:
        network: The network, with frozen weights marked as such.
    """

    def __init__(self, network: nn.Module) -> None:
        trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self._sizes = {name: weight.numel() for name, weight in trained}
        self._hooks = [
            weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda _, name=name: self._reach(name)
            )
            for name, weight in trained
        ]

    def _reach(self, name: str) -> None:
        self._sizes.pop(name, None)

    def warn(self) -> None:
        """After the first step: log the weights that got no gradient. Later calls do nothing."""
        if self._hooks and self._sizes:
            logger.warning(
                "%d of %d weight tensors of the network got no gradient in the first step: %s%s "
                "(%d parameters). Is a part not called, or behind detach() or no_grad()? "
                "If this is intended, name them in train.freeze",
                *(len(self._sizes), len(self._hooks), ", ".join(list(self._sizes)[:3])),
                *(", ..." if len(self._sizes) > 3 else "", sum(self._sizes.values())),
            )
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
