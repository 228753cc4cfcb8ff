"""Which errors say that memory ran out: torch's own are not the only ones."""

from __future__ import annotations

import torch

_SAYINGS = (
    # The allocators of torch and of C++.
    *("can't allocate memory", "bad_alloc", "out of memory"),
    # NVIDIA's libraries take workspaces beside the memory of tensors.
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUSPARSE_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    # What torch says when no algorithm of cuDNN got the workspace that it asked for.
    "was unable to find an engine to execute this computation",
)


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or says_ran_out(str(error))


def says_ran_out(text: str) -> bool:
    """Whether an error message, from any library, says that memory ran out."""
    return any(part in text for part in _SAYINGS)
