"""Selective state-space scans of long sequences, and of one volume in three orders.

`selective_scan` and `tri_scan` are the operators; `selective_scan_ref` is the readable oracle.
Backends: reference (PyTorch, any device), cpu (compiled), triton (CUDA), mamba_ssm (stock kernels).
"""

from segresmamba.ops.dispatch import BACKENDS, available_backends, resolve_backend
from segresmamba.ops.reference import selective_scan_ref, tri_scan_ref
from segresmamba.ops.scan import selective_scan
from segresmamba.ops.tri import tri_scan

__all__ = [
    "BACKENDS",
    "available_backends",
    "resolve_backend",
    "selective_scan",
    "selective_scan_ref",
    "tri_scan",
    "tri_scan_ref",
]
