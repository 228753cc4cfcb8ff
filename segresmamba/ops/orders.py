"""The three orders in which a volume is read as a sequence.

A volume is stored as L tokens, raster order (D, H, W). An order says which stored token stands at
each position of the sequence that is scanned:

    forward      position p reads token p
    reverse      position p reads token L - 1 - p
    inter_slice  the tokens are cut into S equal slices of M = L / S tokens; position j * S + i
                 reads token j of slice i, that is i * M + j: the slice index runs fastest

The inter-slice order is that of SegMamba (Xing et al., MICCAI 2024). With S = 1 it is the forward
order, so a pair (slices, reverse) describes every order. Kernels take that pair and compute token
numbers as they go, instead of reading a permuted copy.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Order = Literal["forward", "reverse", "inter_slice"]
ORDERS: tuple[Order, ...] = ("forward", "reverse", "inter_slice")


class OrderMap(NamedTuple):
    """An order as the kernels take it."""

    slices: int
    """Number of slices whose tokens are interleaved; 1 leaves them in a row."""
    reverse: bool
    """Read the sequence from its end."""


def order_map(order: Order, num_slices: int) -> OrderMap:
    """The pair that describes an order to the kernels."""
    return OrderMap(num_slices if order == "inter_slice" else 1, order == "reverse")


def scan_order_indices(order: Order, length: int, num_slices: int = 1) -> Tensor:
    """Tokens in the order in which they are scanned.

    Args:
        order: One of ORDERS.
        length: Number of tokens L.
        num_slices: Slices S of the inter-slice order; must divide L.

    Returns:
        int64 tensor (L,); x[..., indices] is the sequence in that order.

    Raises:
        ValueError: If num_slices does not divide length.
    """
    check_slices(length, num_slices)
    tokens = torch.arange(length)
    if order == "reverse":
        return tokens.flip(0)
    slices = order_map(order, num_slices).slices
    return tokens.view(slices, -1).T.reshape(-1)


def invert(indices: Tensor) -> Tensor:
    """The inverse permutation: indexing a sequence with it gives the storage order back."""
    inverse = torch.empty_like(indices)
    inverse[indices] = torch.arange(len(indices), device=indices.device)
    return inverse


def check_slices(length: int, num_slices: int) -> None:
    """Refuse a slice count that does not cut the sequence into equal slices.

    Raises:
        ValueError: With both numbers.
    """
    if num_slices < 1 or length % num_slices:
        raise ValueError(
            f"num_slices must divide the number of tokens: got num_slices={num_slices} for "
            f"{length} tokens; take a divisor, such as the depth of the feature map"
        )
