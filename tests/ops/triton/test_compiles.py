"""Kernels compile for a Hopper GPU, which needs no GPU; the interpreter accepts more than that."""

from __future__ import annotations

import multiprocessing

import pytest

HALF = ("x_ptr", "u_ptr", "delta_ptr", "gate_ptr", "dy_ptr", "y_ptr")
UNIT = ("x_token", "u_token", "delta_token", "gate_token", "y_token", "B_token", "C_token")
ROWS = {"ROWS": 4, "CHUNK": 128, "num_warps": 1}
CONV = {"ROWS": 4, "CHUNK": 256}
WALK = {"LANES": 32, "STATES": 16, "CHUNK": 128, "STEP": 8, "num_warps": 1}
SCAN = {"GATED": True, "SOFTPLUS": True, "REVERSE": False}
KERNELS = [
    ("states", "chunk_ends", WALK | SCAN | {"ADJOINT": False}),
    ("states", "chunk_ends", WALK | SCAN | {"ADJOINT": True}),
    ("states", "pass_states", {"BACKWARDS": True, "ROWS": 4, "BLOCK": 256}),
    ("outputs", "chunk_outputs", WALK | SCAN | {"ADD": True}),
    ("gradients", "chunk_gradients", ROWS | SCAN | {"ADD": True, "LAST": False}),
    ("conv", "convolve", CONV | {"REVERSE": True, "WIDTH": 4}),
    ("conv", "convolve_gradients", CONV | {"REVERSE": False, "WIDTH": 4}),
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
    options = {"num_warps": constants.get("num_warps", 4)}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return len(compiled.asm["cubin"])


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


@pytest.mark.parametrize(("module", "name", "constants"), KERNELS)
def test_kernel_compiles_for_hopper(compiler, module, name, constants):
    assert compiler.apply(_compile, (module, name, constants)) > 0
