"""The meaning of the channels of a network's output: exclusive labels, or overlapping regions.

Each exclusive label has a channel, background first, and a softmax decides among them. A region is
a union of labels (BraTS: whole tumour = {1, 2, 3}) with its own sigmoid. Regions may nest or
overlap, but a prediction is one label volume, so `decode` turns them back into labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from segresmamba.config import Config
from segresmamba.errors import ConfigError, DataError


@dataclass(frozen=True)
class Classes:
    """The classes that are trained and reported.

    Args:
        members: Label values of each reported class, in the order of the report. An exclusive
            class has one value; background is not reported.
        values: All label values in ascending order, background (0) first.
        exclusive: Whether a voxel belongs to at most one class (softmax) or any number (sigmoid).
    """

    members: Mapping[str, tuple[int, ...]]
    values: tuple[int, ...]
    exclusive: bool

    @classmethod
    def from_labels(cls, config: Config, labels: Mapping[str, int]) -> Classes:
        """The classes that `config.data.regions` makes of a dataset's labels.

        Args:
            config: The run's configuration.
            labels: Name to value of each label, background = 0 among them.

        Raises:
            DataError: If the dataset declares no label besides the background.
            ConfigError: If a region holds a value that the dataset does not declare.
        """
        foreground = {name: (value,) for name, value in labels.items() if value != 0}
        if not foreground:
            raise DataError(
                "there is nothing to segment: the dataset declares no label besides the background",
                where=config.data.store,
                got=dict(labels),
                remedy="declare the labels in the source's dataset.json and convert again",
            )
        values = (0, *sorted(value for (value,) in foreground.values()))
        regions = config.data.regions
        if regions is None:
            return cls(members=foreground, values=values, exclusive=True)
        declared = ", ".join(f"{value} ({name})" for name, value in labels.items() if value)
        for name, members in regions.items():
            if unknown := sorted(set(members) - set(values)):
                raise ConfigError(
                    f"region {name} holds label values that the dataset does not declare",
                    where=f"data.regions.{name}",
                    got=unknown,
                    remedy=f"choose among {declared}",
                )
        return cls(members=regions, values=values, exclusive=False)

    @property
    def channels(self) -> int:
        """Channels of the network's output."""
        return len(self.values) if self.exclusive else len(self.members)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The name of each channel of the output."""
        if not self.exclusive:
            return tuple(self.members)
        # The channels of exclusive labels are in the order of the values.
        return ("background", *sorted(self.members, key=lambda name: self.members[name]))

    def encode(self, label_BDHW: Tensor) -> Tensor:
        """The target that the output is trained on.

        Returns:
            Exclusive: channel indices, int64 (B, D, H, W). Regions: masks, float32 (B, K, D, H, W).
        """
        if self.exclusive:
            # The values are in ascending order, so the position of a value is its channel.
            values = _on_device(self.values, label_BDHW.device)
            return torch.searchsorted(values, label_BDHW.long().contiguous())
        masks = [
            torch.isin(label_BDHW, _on_device(members, label_BDHW.device))
            for members in self.members.values()
        ]
        return torch.stack(masks, dim=1).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities from logits (K, ...): of exclusive labels, or of each region by itself."""
        return logits.softmax(0) if self.exclusive else logits.sigmoid()

    def decode(self, logits_KDHW: Tensor) -> Tensor:
        """The most probable label volume.

        Exclusive labels: the largest channel. Regions: each label belongs to some of the regions.
        Under independent sigmoids its log-likelihood is the sum of the logits of its regions, plus
        a constant of the voxel; background has no region and scores 0. If the regions whose logit
        is above 0 are those of some label, the result is this label. If not (enhancing tumour
        outside the whole tumour), it is the most likely label. Labels that belong to the same
        regions are written as the smallest of them.

        Args:
            logits_KDHW: The network's output for one volume.

        Returns:
            Label values, int64 (D, H, W), on the device of the logits.
        """
        if self.exclusive:
            return _on_device(self.values, logits_KDHW.device)[_argmax(logits_KDHW)]
        regions = self.members.values()
        codes = {
            tuple(float(value in members) for members in regions): value
            for value in reversed(self.values)  # so that the smallest value stays
        }
        codes_VK = torch.tensor(list(codes), dtype=logits_KDHW.dtype, device=logits_KDHW.device)
        values = torch.tensor(list(codes.values()), device=logits_KDHW.device)
        return values[_argmax(torch.einsum("vk,kdhw->vdhw", codes_VK, logits_KDHW))]

    def decode_probabilities(self, probabilities_KDHW: Tensor) -> Tensor:
        """Like `decode`, from what `probabilities` gives, or from a mean of such."""
        if self.exclusive:
            return self.decode(probabilities_KDHW)
        return self.decode(torch.logit(probabilities_KDHW, eps=1e-6))


@cache  # a copy from the host in every step would make it wait for the device
def _on_device(values: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # whoever asks first, training may use it
        return torch.tensor(values, device=device)


def _argmax(scores_KDHW: Tensor) -> Tensor:
    """The first of the largest channels, int64.

    On a CPU torch's own argmax over the first axis takes several times as long.
    """
    if scores_KDHW.device.type != "cpu":
        return scores_KDHW.argmax(0)
    best_DHW = scores_KDHW[0].clone()
    index_DHW = torch.zeros(best_DHW.shape, dtype=torch.int64)
    for number, score_DHW in enumerate(scores_KDHW[1:], start=1):
        index_DHW.masked_fill_(score_DHW > best_DHW, number)
        torch.maximum(best_DHW, score_DHW, out=best_DHW)
    return index_DHW
