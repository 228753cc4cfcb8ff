"""The cpu backend: compiled kernels, run by plain threads (`segresmamba.ops.kernels.Kernels`)."""

from segresmamba.ops.cpu.scan import checkpoint_shape, scan_backward, scan_forward
from segresmamba.ops.cpu.tri import tri_backward, tri_forward

__all__ = ["checkpoint_shape", "scan_backward", "scan_forward", "tri_backward", "tri_forward"]
