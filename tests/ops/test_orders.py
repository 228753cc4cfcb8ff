"""Scan orders: pure, invertible, and the ones of the paper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segresmamba.ops.orders import ORDERS, invert, order_map, scan_order_indices

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(sizes, st.sampled_from(ORDERS))
def test_inverse_restores_storage_order(size, order):
    slices, width = size
    tokens = torch.randn(slices * width)
    indices = scan_order_indices(order, slices * width, slices)
    assert torch.equal(tokens[indices][invert(indices)], tokens)


@given(sizes)
def test_inter_slice_puts_token_j_of_slice_i_at_position_j_times_slices_plus_i(size):
    slices, width = size
    indices = scan_order_indices("inter_slice", slices * width, slices)
    for i in range(slices):
        for j in range(width):
            assert indices[j * slices + i] == i * width + j


def test_orders_of_a_small_volume():
    assert scan_order_indices("forward", 6, 3).tolist() == [0, 1, 2, 3, 4, 5]
    assert scan_order_indices("reverse", 6, 3).tolist() == [5, 4, 3, 2, 1, 0]
    assert scan_order_indices("inter_slice", 6, 3).tolist() == [0, 2, 4, 1, 3, 5]


def test_one_slice_is_the_forward_order():
    assert torch.equal(scan_order_indices("inter_slice", 7), torch.arange(7))
    assert order_map("inter_slice", 1) == order_map("forward", 5)


@pytest.mark.parametrize("num_slices", [0, -1, 5, 7])
def test_slices_that_do_not_divide_are_refused(num_slices):
    with pytest.raises(ValueError, match=rf"num_slices={num_slices} for 6 tokens"):
        scan_order_indices("inter_slice", 6, num_slices)
