from __future__ import annotations

import pytest
import torch

from segresmamba.task.memory_errors import ran_out


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "GET was unable to find an engine to execute this computation",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    ],
)
def test_what_libraries_say_when_memory_runs_out(text: str) -> None:
    assert ran_out(RuntimeError(text))


def test_errors_of_their_own_class_need_no_words() -> None:
    assert ran_out(MemoryError())
    assert ran_out(torch.OutOfMemoryError())
    assert not ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"))
