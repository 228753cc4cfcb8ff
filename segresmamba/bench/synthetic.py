"""Batches of noise, with the shapes and types of a dataset's batches."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import torch

from segresmamba import data
from segresmamba.bench.result import REFERENCE_CLASSES
from segresmamba.config import Config


def synthetic_labels(config: Config) -> dict[str, int]:
    """Label values without a dataset: up to the highest in the regions, or two and background."""
    regions = config.data.regions or {"": tuple(range(1, REFERENCE_CLASSES))}
    highest = max(value for members in regions.values() for value in members)
    return {"background": 0} | {f"class {value}": value for value in range(1, highest + 1)}


def synthetic_batches(config: Config, channels: int, labels: int) -> Iterator[data.Batch]:
    """Yield the same batch again and again, in the form in which a reader yields it.

    Args:
        config: The run's configuration, for the size of the batch.
        channels: Number of channels of the image.
        labels: Number of label values, background included.
    """
    size = (config.train.batch_size, *config.data.patch)
    generator = torch.Generator().manual_seed(config.seed)
    batch = data.Batch(
        image_BCDHW=torch.randn(size[0], channels, *size[1:], generator=generator),
        normalisation_BC4=torch.tensor([-inf, inf, 0, 1]).expand(size[0], channels, 4),
        label_BDHW=torch.randint(labels, size, generator=generator, dtype=torch.uint8),
        index_B=torch.arange(size[0]),
        case_ids=("synthetic",) * size[0],
    )
    while True:
        yield batch
