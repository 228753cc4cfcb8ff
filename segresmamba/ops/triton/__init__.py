"""The triton backend: kernels that split the sequence (`segresmamba.ops.kernels.Kernels`)."""

import os

# Before Triton is imported: fused multiply-add, as in every other backend. Triton 3.10 turns it off
# by default.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

from segresmamba.ops.triton.ahead_of_time import compile_kernels
from segresmamba.ops.triton.scan import checkpoint_shape, scan_backward, scan_forward
from segresmamba.ops.triton.tri import tri_backward, tri_forward

__all__ = [
    "checkpoint_shape",
    "compile_kernels",
    "scan_backward",
    "scan_forward",
    "tri_backward",
    "tri_forward",
]
