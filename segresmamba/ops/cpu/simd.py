"""Vectors of LANES float32 as values inside compiled kernels.

Loops over channels use these explicit vectors because LLVM's vectoriser gives up on the backward
scan, whose many arrays might overlap (measured: 9 times slower). LLVM splits a vector where the
machine has narrower registers.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from segresmamba.ops.cpu.jit import FAST, inline
from segresmamba.ops.cpu.layout import LANES

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


class LanesType(types.Type):
    """Numba's type of a vector."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


Lanes = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _FLOATS)


def _binary(symbol: Any, instruction: str) -> None:
    """Give vectors an arithmetic operator."""

    @intrinsic
    def apply(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args, flags=FAST)

        return Lanes(Lanes, Lanes), generate

    def apply_to_lanes(a: Any, b: Any) -> Any:
        return apply(a, b)

    @overload(symbol)
    def resolve(a: Any, b: Any) -> Any:
        return apply_to_lanes if a == b == Lanes else None


_binary(operator.add, "fadd")
_binary(operator.sub, "fsub")
_binary(operator.mul, "fmul")
_binary(operator.truediv, "fdiv")


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, row: Any, column: Any) -> Any:
    """Address of array[row, column], the first of LANES contiguous values."""
    view = context.make_array(array_type)(context, builder, array)
    row_stride, _ = cgutils.unpack_tuple(builder, view.strides)
    offset = builder.add(builder.mul(row, row_stride), builder.mul(column, _I64(4)))
    address = builder.add(builder.ptrtoint(view.data, _I64), offset)
    return builder.inttoptr(address, _FLOATS.as_pointer())


@intrinsic
def load(typing: Any, array: Any, row: Any, column: Any) -> Any:
    """The vector array[row, column : column + LANES]; the array's rows must be contiguous."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], *args), align=4)

    return Lanes(array, types.int64, types.int64), generate


@intrinsic
def store(typing: Any, array: Any, row: Any, column: Any, value: Any) -> Any:
    """array[row, column : column + LANES] = value; the array's rows must be contiguous."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *place, vector = args
        builder.store(vector, _pointer(context, builder, signature.args[0], *place), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, Lanes), generate


@intrinsic
def transpose(typing: Any, array: Any, row: Any) -> Any:
    """Swap rows and columns of the square array[row : row + LANES, :LANES] in place.

    Interleaving the first half of the rows with the second log2(LANES) times turns rows into
    columns.
    """
    half = LANES // 2
    low = _INTS([lane // 2 + LANES * (lane % 2) for lane in range(LANES)])
    high = _INTS([half + lane // 2 + LANES * (lane % 2) for lane in range(LANES)])

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointers = [
            _pointer(context, builder, signature.args[0], args[0], row, _I64(0))
            for row in (builder.add(args[1], _I64(i)) for i in range(LANES))
        ]
        rows = [builder.load(pointer, align=4) for pointer in pointers]
        for _ in range(LANES.bit_length() - 1):
            pairs = zip(rows[:half], rows[half:], strict=True)
            rows = [builder.shuffle_vector(*pair, mask) for pair in pairs for mask in (low, high)]
        for vector, pointer in zip(rows, pointers, strict=True):
            builder.store(vector, pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def splat(typing: Any, scalar: Any) -> Any:
    """The scalar in every lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        undefined = _FLOATS(ir.Undefined)
        first = builder.insert_element(undefined, args[0], _I32(0))
        return builder.shuffle_vector(first, undefined, _INTS([0] * LANES))

    return Lanes(types.float32), generate


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    """Sum of all lanes, in any order."""

    # The one place that may reorder a sum: in order, every addition would wait for the one before.
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        signature = ir.FunctionType(_F32, [_F32, _FLOATS])
        reduce = cgutils.get_or_insert_function(builder.module, signature, name)
        return builder.call(reduce, [_F32(-0.0), args[0]], fastmath=(*FAST, "reassoc"))

    return types.float32(Lanes), generate


@intrinsic
def larger(typing: Any, vector: Any, bound: Any) -> Any:
    """The larger of vector and bound in each lane; NaN stays."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *args), args[1], args[0])

    return Lanes(Lanes, Lanes), generate


@intrinsic
def smaller(typing: Any, vector: Any, bound: Any) -> Any:
    """The smaller of vector and bound in each lane; NaN stays."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), args[1], args[0])

    return Lanes(Lanes, Lanes), generate


@intrinsic
def rounded(typing: Any, vector: Any) -> Any:
    """The nearest whole numbers."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        signature = ir.FunctionType(_FLOATS, [_FLOATS])
        name = f"llvm.rint.v{LANES}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)

    return Lanes(Lanes), generate


@intrinsic
def power_of_two(typing: Any, whole: Any) -> Any:
    """2 ** whole, for whole numbers from -127 (gives 0) to 128 (gives infinity)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        exponent = builder.add(builder.fptosi(args[0], _INTS), _INTS([127] * LANES))
        return builder.bitcast(builder.shl(exponent, _INTS([23] * LANES)), _FLOATS)

    return Lanes(Lanes), generate


_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
_LOG2E = np.float32(math.log2(math.e))
_LOW, _HIGH = np.float32(-127.0), np.float32(128.0)
# exp2(f) on [-0.5, 0.5]: minimax polynomial, relative error below 2e-8 before rounding.
_P6, _P5, _P4 = np.float32(1.5353362e-4), np.float32(1.3398874e-3), np.float32(9.6184373e-3)
_P3, _P2, _P1 = np.float32(5.5503324e-2), np.float32(2.4022648e-1), np.float32(6.9314718e-1)


@inline
def exp2(x: Any) -> Any:
    """2 ** x, infinite above 2 ** 127.5 and zero below 2 ** -126.5; NaN stays NaN."""
    x = smaller(larger(x, splat(_LOW)), splat(_HIGH))
    whole = rounded(x)
    f = x - whole
    p = splat(_P6) * f + splat(_P5)
    p = p * f + splat(_P4)
    p = p * f + splat(_P3)
    p = p * f + splat(_P2)
    p = p * f + splat(_P1)
    p = p * f + splat(_ONE)
    return p * power_of_two(whole)


@inline
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return splat(_ONE) / (splat(_ONE) + exp2(x * splat(-_LOG2E)))


@inline
def softplus(x: Any) -> Any:
    """max(x, 0) + log1p(exp(-|x|)), the logarithm as the series of 2 atanh(t / (2 + t))."""
    magnitude = larger(x, splat(_ZERO) - x)
    t = exp2(magnitude * splat(-_LOG2E))
    s = t / (splat(_TWO) + t)
    q = s * s
    p = splat(np.float32(1 / 13)) * q + splat(np.float32(1 / 11))
    p = p * q + splat(np.float32(1 / 9))
    p = p * q + splat(np.float32(1 / 7))
    p = p * q + splat(np.float32(1 / 5))
    p = p * q + splat(np.float32(1 / 3))
    p = p * q + splat(_ONE)
    return larger(x, splat(_ZERO)) + splat(_TWO) * s * p
