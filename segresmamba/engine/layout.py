"""The memory layout in which the convolutions of a network are faster on this GPU.

It depends on the GPU, the sizes of the layers and cuDNN, and no rule tells it beforehand. So a run
that leaves `train.channels_last` open measures both layouts before its first step.
"""

from __future__ import annotations

import logging

import torch
from torch import nn

from segresmamba.engine.distributed import from_main, micro_batch
from segresmamba.task.memory_errors import ran_out
from segresmamba.task.precision import Autocast, set_gpu_arithmetic
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import Task, keep_channels_last

logger = logging.getLogger(__name__)

_WARM_UP, _TIMED = 2, 5


def choose_layout(task: Task, network: nn.Module, ranks: Ranks) -> str | None:
    """Give the convolutions of a network the faster layout, the same on every rank (collective).

    Args:
        task: What is trained.
        network: Its network, as it was built.
        ranks: This process.

    Returns:
        "channels_last" or "channels_first"; None if there was nothing to choose: on a CPU, for a
        compiled network, or where `train.channels_last` says it.
    """
    train = task.config.train
    if ranks.device.type != "cuda" or train.channels_last is not None or train.compile:
        return None
    try:
        first_s = _step_s(task, network, ranks)
        hooks = keep_channels_last(network)
        last_s = _step_s(task, network, ranks)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        # What comes next runs out too, and then says what would fit.
        first_s, last_s, hooks = 0.0, 0.0, []
    wins = from_main(last_s < first_s)
    if not wins:
        for hook in hooks:
            hook.remove()
    choice = "channels_last" if wins else "channels_first"
    logger.info("a step takes %.4g s channels first, %.4g s last: %s", first_s, last_s, choice)
    return choice


def _step_s(task: Task, network: nn.Module, ranks: Ranks) -> float:
    """The mean time of a forward and a backward pass on noise; the network stays as it was."""
    set_gpu_arithmetic(task.config.train)
    network.to(ranks.device).train()
    kept = {name: value.clone() for name, value in network.named_buffers()}
    shape = (micro_batch(task.config, ranks.world_size), len(task.dataset.channel_names))
    step = Autocast(network, task.config.train.precision)
    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    with torch.random.fork_rng(devices=[ranks.device]):
        x_BCDHW = torch.randn(*shape, *task.config.data.patch, device=ranks.device)
        for number in range(_WARM_UP + _TIMED):
            if number == _WARM_UP:
                start.record()
            outputs = step(x_BCDHW)
            levels = [outputs] if isinstance(outputs, torch.Tensor) else outputs
            torch.autograd.backward([level.float().mean() for level in levels])
            network.zero_grad()
        end.record()
    end.synchronize()
    for name, value in network.named_buffers():
        value.copy_(kept[name])
    return float(start.elapsed_time(end)) / 1e3 / _TIMED
