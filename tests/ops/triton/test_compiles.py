"""Kernels compile for a GPU without having one, and few of them serve a whole network."""

from __future__ import annotations

import multiprocessing
from collections import Counter

import pytest
import torch

# (channels, side of the feature map) of the Mamba layers of the default network at 128^3.
LAYERS = [
    (48, 64), (48, 32), (96, 32), (96, 16), (192, 16), (192, 8), (384, 8), (384, 4),
]  # fmt: skip


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """A process of its own, because this one interprets kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        pool = multiprocessing.get_context("spawn").Pool(1)
    # This process has its environment back: what it imports from here on is interpreted.
    with pool:
        yield pool


def _specialisations(batch: int, warmed: bool) -> set[tuple[str, str]]:
    """Names and keys of the kernels that Triton would compile for a training step, or warms up."""
    from triton import knobs

    from segresmamba.ops.triton import compile_kernels, tri_backward, tri_forward
    from segresmamba.ops.triton.ahead_of_time import _compiling_for
    from tests.ops.layers import layer_operands

    found = set()

    def note(*, key, fn, **_):
        found.add((fn.name, key))
        return True  # and do not compile

    knobs.runtime.jit_cache_hook = note
    if warmed:
        compile_kernels(torch.bfloat16, 16, 4, torch.device("meta"), 90)
    else:
        with _compiling_for(90):
            for channels, side in LAYERS:
                operands, dy_BDL = layer_operands(channels, batch, side, torch.bfloat16)
                tri_forward(operands, side)
                tri_backward(dy_BDL, operands, side)
    knobs.runtime.jit_cache_hook = None
    return found


@pytest.mark.parametrize("batch", [1, 4])
def test_twelve_kernels_serve_all_layers_and_are_those_of_the_warm_up(compiler, batch):
    needed = compiler.apply(_specialisations, (batch, False))
    assert len(needed) <= 12, Counter(name for name, _ in needed)
    assert compiler.apply(_specialisations, (batch, True)) == needed


def _compile(dtype: torch.dtype, states: int, capability: int) -> set[str]:
    """The kernels for which there is GPU code after a warm-up."""
    import os
    from pathlib import Path

    from segresmamba.ops.triton import compile_kernels

    compile_kernels(dtype, states, 4, torch.device("meta"), capability)
    return {path.stem for path in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin")}


def test_kernels_compile_for_hopper(compiler):
    assert compiler.apply(_compile, (torch.bfloat16, 16, 90)) == {
        "chunk_ends", "pass_states", "chunk_outputs", "chunk_gradients", "convolve",
        "convolve_gradients",
    }  # fmt: skip
