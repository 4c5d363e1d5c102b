"""Two operations that loops do not express, as vector code for any processor: transpose a tile, weigh rows.

Both are written in LLVM's portable vector instructions, which become AVX, NEON or plain code. They work at offsets into
flat arrays and check no bounds. Compiled kernels hold copies of them, and numba's cache watches only the file of the
kernel: after a change here, touch `kernels.py`.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES: Final = 16


def _transpose(typing_context: Any, source: Any, at: Any, step: Any, target: Any, to: Any, to_step: Any) -> Any:
    """target[to + j * to_step + i] = source[at + i * step + j] for i, j in 0..15, in registers.

    Four rounds of interleaving row r with row r + 8 transpose a 16 x 16 matrix.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(context.get_data_type(signature.args[0].dtype), LANES)
        lanes = ir.VectorType(ir.IntType(32), LANES)
        low = ir.Constant(lanes, [lane for k in range(8) for lane in (k, 16 + k)])
        high = ir.Constant(lanes, [lane for k in range(8, 16) for lane in (k, 16 + k)])

        def pointers(array: int) -> list[Any]:
            data = context.make_array(signature.args[array])(context, builder, args[array]).data
            start, stride = args[array + 1], args[array + 2]
            offsets = [builder.add(start, builder.mul(stride, ir.Constant(stride.type, r))) for r in range(LANES)]
            return [builder.bitcast(builder.gep(data, [offset]), vector.as_pointer()) for offset in offsets]

        rows = [builder.load(pointer, align=1) for pointer in pointers(0)]
        for _ in range(4):
            pairs = [(rows[r], rows[r + 8]) for r in range(8)]
            rows = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in (low, high)]
        for row, pointer in zip(rows, pointers(3), strict=True):
            builder.store(row, pointer, align=1)
        return context.get_dummy_value()

    return types.void(source, at, step, target, to, to_step), generate


def _weigh(lanes: int, blocks: int) -> Any:
    """Return the operation target[to + x] = clamp(round(sum_k w[k] / 2^14 * source[at + k * pitch + x])).

    It covers lanes * blocks values of x.

    8-bit pixels are summed in 16 bits: (s * 2^7 * w) >> 16 keeps five fractional bits, and SIMD units multiply so in
    one instruction; flooring loses half a last bit per tap on average, which the start of the sum gives back.
    16-bit pixels are summed in float32.
    """

    def weigh(
        typing_context: Any, source: Any, at: Any, pitch: Any, weight: Any, count: Any, target: Any, to: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            element = context.get_data_type(signature.args[0].dtype)
            narrow = element.width == 8
            pixel = ir.VectorType(element, lanes)
            inner = ir.VectorType(ir.IntType(16) if narrow else ir.FloatType(), lanes)
            wide = ir.VectorType(ir.IntType(32), lanes)
            data = [context.make_array(signature.args[n])(context, builder, args[n]).data for n in (0, 3, 5)]
            count = args[4]

            def splat(value: Any, vector: Any) -> Any:
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
                zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
                return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

            def constant(value: float, vector: Any = inner) -> Any:
                return ir.Constant(vector, [value] * lanes)

            def place(array: Any, start: Any, block: int) -> Any:
                offset = builder.add(start, ir.Constant(start.type, block * lanes))
                return builder.bitcast(builder.gep(array, [offset]), pixel.as_pointer())

            if narrow:
                half = builder.lshr(count, ir.Constant(count.type, 1))
                begin = splat(builder.trunc(builder.add(half, ir.Constant(count.type, 16)), ir.IntType(16)), inner)
            else:
                begin = constant(0.5)
            sums = [cgutils.alloca_once_value(builder, begin) for _ in range(blocks)]
            for total in sums:
                builder.store(begin, total)
            with cgutils.for_range(builder, count) as loop:
                start = builder.add(args[1], builder.mul(loop.index, args[2]))
                w = builder.load(builder.gep(data[1], [loop.index]))
                if narrow:
                    factor = builder.sext(splat(w, inner), wide)
                else:
                    scaled = builder.fmul(builder.sitofp(w, ir.FloatType()), ir.Constant(ir.FloatType(), 2.0**-14))
                    factor = splat(scaled, inner)
                for block, total in enumerate(sums):
                    values = builder.load(place(data[0], start, block), align=1)
                    if narrow:
                        shifted = builder.shl(builder.zext(values, inner), constant(7))
                        product = builder.mul(builder.sext(shifted, wide), factor)
                        term = builder.trunc(builder.ashr(product, constant(16, wide)), inner)
                        builder.store(builder.add(builder.load(total), term), total)
                    else:
                        term = builder.fmul(builder.uitofp(values, inner), factor)
                        builder.store(builder.fadd(builder.load(total), term), total)
            for block, total in enumerate(sums):
                value = builder.load(total)
                if narrow:
                    value = builder.ashr(value, constant(5))
                    value = builder.select(builder.icmp_signed("<", value, constant(0)), constant(0), value)
                    value = builder.select(builder.icmp_signed(">", value, constant(255)), constant(255), value)
                    value = builder.trunc(value, pixel)
                else:
                    low, high = constant(0.0), constant(65535.0)
                    value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
                    value = builder.select(builder.fcmp_ordered(">", value, high), high, value)
                    value = builder.fptoui(value, pixel)
                builder.store(value, place(data[2], args[6], block), align=1)
            return context.get_dummy_value()

        return types.void(source, at, pitch, weight, count, target, to), generate

    return intrinsic(weigh)


transpose_tile: Any = intrinsic(_transpose)
weigh_64: Any = _weigh(32, 2)
weigh_16: Any = _weigh(16, 1)
