"""A network's output for a whole volume, by a sliding window with Gaussian weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segresmamba import data
from segresmamba.config.schema import ValidationConfig
from segresmamba.task.precision import Autocast

logger = logging.getLogger(__name__)


def predict_volume(
    network: nn.Module,
    image_CDHW: NDArray[np.generic],
    normalisation_C4: NDArray[np.floating],
    *,
    patch: Sequence[int],
    validation: ValidationConfig,
    device: torch.device,
    precision: str,
) -> Tensor:
    """Compute the logits of a volume of any size.

    The volume stays on the CPU; each window is moved to the device and normalised there, as a
    training crop is. A volume smaller than the patch is extended by its outermost voxels: zeros
    would suit MR, where air is 0, but not CT, where air is -1000.

    Args:
        network: The network, on `device`; its training mode is restored afterwards.
        image_CDHW: Intensities as stored.
        normalisation_C4: Low, high, mean and deviation of each channel, for `data.normalise`.
        patch: Window size (D, H, W), the size of the training crops.
        validation: Overlap of the windows, and how many are computed at once.
        device: Where the network computes.
        precision: Autocast type, one of fp32, bf16, fp16.

    Returns:
        Logits (K, D, H, W), float32, on `device`, or on the CPU if `device` cannot hold them.
    """
    # MONAI takes two seconds to import, which the start of a training need not wait for.
    from monai.inferers.utils import sliding_window_inference

    bounds_1C4 = torch.as_tensor(normalisation_C4, dtype=torch.float32, device=device)[None]
    autocast = Autocast(network, precision)

    def window_logits(window_BCDHW: Tensor) -> Tensor:
        logits_BKDHW: Tensor = autocast(data.normalise(window_BCDHW, bounds_1C4))
        return logits_BKDHW.float()

    def slide(stitch_device: torch.device) -> Tensor:
        logits_BKDHW: Tensor = sliding_window_inference(
            torch.from_numpy(np.asarray(image_CDHW, dtype=np.float32))[None],
            roi_size=tuple(patch),
            sw_batch_size=validation.window_batch,
            predictor=window_logits,
            overlap=validation.overlap,
            mode="gaussian",
            padding_mode="replicate",
            sw_device=device,
            device=stitch_device,
        )
        return logits_BKDHW[0]

    with evaluating(network):
        try:
            return slide(device)
        except torch.OutOfMemoryError:
            # The logits of a large CT with many classes take far more memory than its windows.
            logger.warning("the logits do not fit on %s: stitching them on the CPU", device)
        # Not inside the handler, where the error's traceback keeps the failed attempt's tensors.
        return slide(torch.device("cpu"))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the network has its former mode again."""
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)
