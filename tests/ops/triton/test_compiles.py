"""Kernels compile for a Hopper GPU, which needs no GPU; the interpreter accepts more than that."""

from __future__ import annotations

import multiprocessing

import pytest

HALF = (
    "x_ptr",
    "u_ptr",
    "delta_ptr",
    "gate_ptr",
    "B_ptr",
    "C_ptr",
    "matrix_ptr",
    "dy_ptr",
    "y_ptr",
)
UNIT = ("matrix_token", "B_token", "C_token")
TILE = {"ROWS": 4, "CHUNK": 256}
SCAN = TILE | {"GATED": True, "SOFTPLUS": True, "REVERSE": False}
KERNELS = [
    ("states", "chunk_ends", SCAN | {"ADJOINT": False}),
    ("states", "chunk_ends", SCAN | {"ADJOINT": True}),
    ("states", "pass_states", {"BACKWARDS": True, "ROWS": 4, "BLOCK": 256}),
    ("outputs", "chunk_outputs", SCAN | {"ADD": True}),
    ("gradients", "chunk_gradients", SCAN | {"ADD": True, "LAST": False}),
    ("conv", "convolve", TILE | {"REVERSE": True, "WIDTH": 4}),
    ("conv", "convolve_gradients", TILE | {"REVERSE": False, "WIDTH": 4}),
]


def _compile(module: str, name: str, constants: dict[str, object]) -> int:
    """Size of the GPU code of a kernel for bfloat16 operands."""
    from importlib import import_module

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(import_module(f"segresmamba.ops.triton.{module}"), name)
    signature, known = {}, {}
    for index, argument in enumerate(kernel.arg_names):
        if argument in constants or argument in UNIT:
            signature[argument] = "constexpr"
            known[(index,)] = constants.get(argument, 1)
        elif argument.endswith("_ptr"):
            signature[argument] = "*bf16" if argument in HALF else "*fp32"
        else:
            signature[argument] = "i32"
    source = ASTSource(kernel, signature, known)
    return len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"])


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """A process of its own, because this one interprets kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            yield pool


@pytest.mark.parametrize(("module", "name", "constants"), KERNELS)
def test_kernel_compiles_for_hopper(compiler, module, name, constants):
    assert compiler.apply(_compile, (module, name, constants)) > 0
