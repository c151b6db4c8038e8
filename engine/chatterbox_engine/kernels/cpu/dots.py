"""Scalar products of several rows and several rows of weights, whose sums stay in registers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from chatterbox_engine.kernels.cpu.vectors import (
    FLOAT,
    HALVES,
    I64,
    LANES,
    VECTOR,
    added_lanes,
    fmuladd,
    load,
    load_wide,
    offset,
    prefetch,
    until,
)

ROWS, OUTPUTS = 4, 3
"""Rows of inputs and of weights in one call of `few_dots`: twelve sums, three vectors of weights and one of inputs are
sixteen registers."""
MANY_ROWS = 2 * ROWS if LANES == 16 else ROWS
"""Rows of inputs in one call of `many_dots`: AVX-512 has 32 registers. Weights are then loaded and widened half as
often, which is about 1.2 times as fast from 6 rows on."""
BLOCKS = 2
"""Such blocks of rows that are multiplied with a few outputs in turn: all of them stay in the first cache."""
PIECE = 8 * OUTPUTS
"""Outputs in a piece of work of a product: their weights stay in the cache while its rows are multiplied with them."""
DEPTH = 1024
"""Inputs that are multiplied before the next outputs are: those of a few rows stay in the first cache."""


def dots(count: int, outputs: int) -> Any:
    """The intrinsic that multiplies blocks of `count` rows of inputs with groups of `outputs` rows of weights:

        result[block, o, r] += sum over i < inputs of row[block, r][i] * weight[o][i]

    row, weight, result: addresses of the first ones; row_step, weight_step: bytes from one to the next; last: the last
    weight's address, which is repeated where a group has fewer; result: [blocks, PIECE, count] float32. Weights of the
    group `ahead` groups further on are prefetched, fetch_step bytes of each per iteration; those after the last group
    are at `fetched`. rows, weights: any arrays of their types. Rows are float32, or float16 like the weights: then this
    sum is float16.

    An iteration takes the next inputs, a vector of them. It loads `outputs` vectors of weights, then a vector of each
    row in turn, and adds their products to count x outputs vectors of sums, which LLVM keeps in registers:

        row[0] i..i+lanes  *  weight[0], [1], [2] i..i+lanes   ->  sum[0, 0], sum[0, 1], sum[0, 2]
        row[1]             *  the same                         ->  sum[1, 0], sum[1, 1], sum[1, 2]
        ...

    At the end the lanes of each sum are added up.
    """

    @intrinsic
    def multiply(  # type: ignore[no-untyped-def]
        _context,
        row,
        row_step,
        blocks,
        weight,
        weight_step,
        last,
        ahead,
        fetched,
        fetch_step,
        inputs,
        groups,
        result,
        rows,
        weights,
    ):
        def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            _groups(builder, arguments[:12], count, outputs, rows.dtype, weights.dtype)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12, rows, weights), generate

    return multiply


def _groups(builder: Any, arguments: list[Any], count: int, outputs: int, row_kind: Any, kind: Any) -> None:
    """The code of `dots`. row_kind, kind: numba's types of the rows' and of the weights' numbers."""
    row, row_step, blocks, weight, weight_step, last, ahead, fetched, fetch_step, inputs, groups, result = arguments
    in_half, row_size, size = row_kind == types.int16, row_kind.bitwidth // 8, kind.bitwidth // 8
    vector = HALVES if in_half else VECTOR
    group_step = builder.mul(weight_step, ir.Constant(I64, outputs))
    iterations = builder.sdiv(inputs, ir.Constant(I64, vector.count))

    def weight_at(address: Any) -> Any:
        return load(builder, address, vector, 2) if in_half else load_wide(builder, address, kind)

    with cgutils.for_range(builder, groups) as group, cgutils.for_range(builder, blocks) as block:
        own_row = offset(builder, row, builder.mul(block.index, row_step), count)
        own = offset(builder, weight, group.index, group_step)
        later = builder.add(group.index, ahead)
        beyond = offset(builder, fetched, builder.sub(later, groups), group_step)
        beyond = offset(builder, beyond, builder.mul(block.index, iterations), fetch_step)
        among = builder.icmp_signed("<", later, groups)
        following = builder.select(among, offset(builder, weight, later, group_step), beyond)
        sums = _products(
            builder,
            iterations,
            vector,
            [(offset(builder, own_row, i, row_step), row_size) for i in range(count)],
            [(until(builder, offset(builder, own, i, weight_step), last), size) for i in range(outputs)],
            weight_at,
            [(offset(builder, following, i, weight_step), fetch_step) for i in range(outputs)],
        )
        own_result = offset(builder, result, block.index, 4 * count * PIECE)
        _add_sums(builder, sums, offset(builder, own_result, group.index, 4 * count * outputs))


def _products(
    builder: Any,
    iterations: Any,
    vector: Any,
    rows: list[tuple[Any, int]],
    matrix: list[tuple[Any, int]],
    weight_at: Callable[[Any], Any],
    fetched: list[tuple[Any, Any]],
) -> list[list[Any]]:
    """Vectors whose lanes add up to the products, those of all rows for each output.

    rows, matrix: addresses, and bytes of a number; fetched: addresses, and bytes that are prefetched in an iteration.
    """
    multiply_add = fmuladd(builder, vector)
    sums = [[cgutils.alloca_once(builder, vector) for _ in rows] for _ in matrix]
    for total in chain.from_iterable(sums):
        builder.store(ir.Constant(vector, [0.0] * vector.count), total)
    with cgutils.for_range(builder, iterations) as loop:
        first = builder.mul(loop.index, ir.Constant(I64, vector.count))
        factors = [weight_at(offset(builder, address, first, size)) for address, size in matrix]
        for address, step in fetched:
            prefetch(builder, offset(builder, address, loop.index, step))
        for number, (address, size) in enumerate(rows):
            values = load(builder, offset(builder, address, first, size), vector, size)
            for factor, totals in zip(factors, sums, strict=True):
                total = totals[number]
                builder.store(builder.call(multiply_add, [values, factor, builder.load(total)]), total)
    return [[builder.load(total) for total in totals] for totals in sums]


def _add_sums(builder: Any, sums: list[list[Any]], result: Any) -> None:
    """Adds the lanes of vectors [outputs][rows] to float32 [outputs, rows] at an address."""
    together = sums if len(sums[0]) > 1 else [list(chain.from_iterable(sums))]  # of a single row all outputs
    for number, vectors in enumerate(together):
        added = added_lanes(builder, vectors)
        wide = ir.VectorType(FLOAT, len(vectors))
        added = added if added.type == wide else builder.fpext(added, wide)
        address = offset(builder, result, number * len(vectors), 4)
        total = builder.fadd(load(builder, address, wide, 4), added)
        builder.store(total, builder.inttoptr(address, wide.as_pointer())).align = 4


few_dots, many_dots = dots(ROWS, OUTPUTS), dots(MANY_ROWS, OUTPUTS)
