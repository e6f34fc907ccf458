"""Arithmetic that numba's own operators cannot express, as single LLVM instructions.

Numba computes every small integer in 64 bits, which makes a vector of sixteen 16-bit lanes one of
four; and it has no fused multiply-add. Written this way, LLVM vectorizes the loops around them.

numba's cache watches only the file of the function that it compiled: after a change here, remove
the ``*.nbi`` files beside it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

I16, I32, F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


@intrinsic
def fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` in float32, rounded once: the machine's instruction, or libm's ``fmaf``."""

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


def _subset_sum(first_bit: int) -> Any:
    @intrinsic
    def subset_sum(context: Any, byte: Any, q0: Any, q1: Any, q2: Any, q3: Any) -> Any:
        def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
            total = None
            for k, q in enumerate(args[1:]):
                bit = builder.and_(args[0], ir.Constant(ir.IntType(8), 1 << (first_bit + k)))
                is_set = builder.icmp_unsigned("!=", bit, ir.Constant(ir.IntType(8), 0))
                term = builder.select(is_set, q, ir.Constant(I16, 0))
                total = term if total is None else builder.add(total, term)
            return total

        return types.int16(types.uint8, *[types.int16] * 4), generate

    return subset_sum


subset_sum_b1 = _subset_sum(0)  # sum of the q whose bit is set in the low nibble, int16
subset_sum_b2 = _subset_sum(4)  # the same for the high nibble


@intrinsic
def add16(context: Any, a: Any, b: Any) -> Any:
    """int16 addition; sums of 64 activations stay within 64 * 127 = 8128."""

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.add(*args)

    return types.int16(types.int16, types.int16), generate


@intrinsic
def scaled_sums(context: Any, c1: Any, s1: Any, c2: Any, s2: Any) -> Any:
    """``float32(c1 * s1 + c2 * s2)``, exact: below 2 * 127 * 8128 < 2^24."""

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, c, d = (builder.sext(arg, I32) for arg in args)
        return builder.sitofp(builder.add(builder.mul(a, b), builder.mul(c, d)), F32)

    return types.float32(types.int8, types.int16, types.int8, types.int16), generate


@intrinsic
def scaled_sum(context: Any, c1: Any, s1: Any) -> Any:
    """``float32(c1 * s1)``, exact."""

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sitofp(builder.mul(*(builder.sext(arg, I32) for arg in args)), F32)

    return types.float32(types.int8, types.int16), generate


@intrinsic
def add_products(context: Any, total: Any, a: Any, q: Any, b: Any, r: Any) -> Any:
    """``total + a * q + b * r`` in int32; the two products fit int16 together (2 * 127^2)."""

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        products = [
            builder.mul(builder.sext(code, I16), activation)
            for code, activation in ((args[1], args[2]), (args[3], args[4]))
        ]
        return builder.add(args[0], builder.sext(builder.add(*products), I32))

    signature = types.int32(types.int32, types.int8, types.int16, types.int8, types.int16)
    return signature, generate


@intrinsic
def level_f32(context: Any, byte: Any, bit1: Any, c1: Any, c2: Any) -> Any:
    """``float32(c1 * b1 + c2 * b2)``, the planes' bits taken with masks ``bit1``, ``bit1 << 4``."""

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, bit1, c1, c2 = args
        zero = ir.Constant(ir.IntType(8), 0)
        bit2 = builder.shl(bit1, ir.Constant(ir.IntType(8), 4))
        chosen = [
            builder.select(builder.icmp_unsigned("!=", builder.and_(byte, bit), zero), c, zero)
            for bit, c in ((bit1, c1), (bit2, c2))
        ]
        return builder.sitofp(builder.add(*chosen), F32)

    return types.float32(types.uint8, types.uint8, types.int8, types.int8), generate


@intrinsic
def to_f32(context: Any, value: Any) -> Any:
    """float32 of a float32, or of a float16 given as its uint16 bits; exact."""

    def widen(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        half = builder.zext(args[0], I32)
        # Exponent and fraction move up by 13 bits; 2^112 corrects the bias and normalizes
        # subnormals. Infinity and NaN lack the bits of float32's larger exponent.
        magnitude = builder.shl(builder.and_(half, I32(0x7FFF)), I32(13))
        scaled = builder.fmul(builder.bitcast(magnitude, F32), F32(2.0**112))
        exponent = builder.and_(half, I32(0x7C00))
        special = builder.select(
            builder.icmp_unsigned("==", exponent, I32(0x7C00)), I32(0x7F800000), I32(0)
        )
        sign = builder.shl(builder.and_(half, I32(0x8000)), I32(16))
        bits = builder.or_(builder.or_(builder.bitcast(scaled, I32), special), sign)
        return builder.bitcast(bits, F32)

    if value == types.float32:
        return types.float32(types.float32), lambda _context, _builder, _signature, args: args[0]
    return types.float32(types.uint16), widen
