"""Sums become results: the steps after the scalar products that need LLVM's vectors."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from chatterbox_engine.kernels.cpu.dots import MANY_ROWS, PIECE, ROWS
from chatterbox_engine.kernels.cpu.vectors import (
    FLOAT,
    I32,
    I64,
    fmuladd,
    interleaved,
    load,
    load_wide,
    offset,
    spread,
    store_narrow,
)


def _turns(rows: int) -> Any:
    """The intrinsic that turns sums by output and row into results by row and output:

        turned[r, o] = sum[o, r] * factor[r] + bias[o]

    Arguments are addresses of float32: [PIECE, rows], [rows], [PIECE] and [rows, PIECE].
    """
    some = 8  # outputs at a time: their vectors are interleaved until all outputs of a row are neighbours

    @intrinsic
    def turn(_context, sums, factors, bias, turned):  # type: ignore[no-untyped-def]
        def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            sums, factors, bias, turned = arguments
            vector = ir.VectorType(FLOAT, rows)
            multiply_add, factor = fmuladd(builder, vector), load(builder, factors, vector, 4)
            for first in range(0, PIECE, some):
                vectors = []
                for output in range(first, first + some):
                    own = load(builder, offset(builder, sums, output * rows, 4), vector, 4)
                    added = load(builder, offset(builder, bias, output, 4), FLOAT, 4)
                    vectors.append(builder.call(multiply_add, [own, factor, spread(builder, added, rows)]))
                together = interleaved(builder, vectors)
                for row in range(rows):
                    mask = ir.Constant(ir.VectorType(I32, some), list(range(row * some, row * some + some)))
                    own = builder.shuffle_vector(together, together, mask)
                    address = offset(builder, turned, row * PIECE + first, 4)
                    builder.store(own, builder.inttoptr(address, own.type.as_pointer())).align = 4
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return turn


turn_few, turn_many = _turns(ROWS), _turns(MANY_ROWS)


@intrinsic
def store_piece(_context, sums, residual, out, numbers):  # type: ignore[no-untyped-def]
    """out[i] = sums[i] + residual[i], i < PIECE; arguments are addresses, of float32 and of numbers of the type of the
    array `numbers`; no residual where its address is 0."""
    kind, lanes = numbers.dtype, 8

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        sums, residual, out = arguments[:3]
        size = kind.bitwidth // 8
        there = builder.icmp_unsigned("!=", residual, ir.Constant(I64, 0))
        for first in range(0, PIECE, lanes):
            vector = load(builder, offset(builder, sums, first, 4), ir.VectorType(FLOAT, lanes), 4)
            total = cgutils.alloca_once_value(builder, vector)
            with builder.if_then(there):
                before = load_wide(builder, offset(builder, residual, first, size), kind, lanes)
                builder.store(builder.fadd(vector, before), total)
            store_narrow(builder, builder.load(total), offset(builder, out, first, size), kind)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, numbers), generate
