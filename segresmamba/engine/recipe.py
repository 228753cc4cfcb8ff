"""What a run trains with besides its network, checked before its folder is made."""

from __future__ import annotations

from segresmamba.data.stream.own_augmentation import own_augmentation
from segresmamba.planner.simulation import count_outputs
from segresmamba.task.losses import SegmentationLoss
from segresmamba.task.task import Task


def checked_loss(task: Task) -> SegmentationLoss:
    """The loss of a run.

    Raises:
        ConfigError: If the loss or the augmentation cannot be trained with: code of another package
            that does not work, or more weights than the network has outputs.
    """
    config = task.config
    own_augmentation(config.augment)
    loss = task.loss()
    if config.loss.deep_supervision is not None:
        channels = len(task.dataset.channel_names)
        loss.level_weights(count_outputs(config, channels, task.classes.channels))
    return loss
