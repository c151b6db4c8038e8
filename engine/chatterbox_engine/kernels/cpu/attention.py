"""Attention of all positions of a row to all of them, in float16.

A thread takes some queries of one head. The lanes of a vector are queries, so the softmax needs no sums across lanes:
scores are [keys, queries], and results [numbers of a head, queries].
"""

from __future__ import annotations

import ctypes
import math
from ctypes import c_int64
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from chatterbox_engine.kernels.cpu.launch import BEGUN, COUNTERS, DONE, Kernel, address, run
from chatterbox_engine.kernels.cpu.numbers import narrow
from chatterbox_engine.kernels.cpu.vectors import (
    FAST,
    FLOAT,
    HALF,
    I16,
    I32,
    at,
    bfloat16s_at,
    float16s_at,
    fmuladd,
    integers_at,
    interleaved,
    load,
    offset,
    spread,
    store_narrow,
    take,
    until,
)

QUERIES = 96
"""Queries whose attention is computed together: three vectors of float16."""
TILE = 8
"""Keys, or numbers of a head, whose sums with QUERIES are in registers together."""
RUN = 32
"""Products of float16 in the scores of an attention that are added in float16."""


class MixCall(ctypes.Structure):
    """out = softmax(query @ keys.T / sqrt(size)) @ values, for all positions of each row, float16"""

    _fields_ = (
        *COUNTERS,
        ("rows", c_int64),
        ("positions", c_int64),  # of the tensors
        ("heads", c_int64),
        ("size", c_int64),  # of a head
        ("blocks", c_int64),  # of QUERIES queries in a piece of work
        ("qkv", c_int64),  # [rows, positions, 3, heads, size]
        ("length", c_int64),  # [rows] int64, positions of each row
        ("out", c_int64),  # [rows, positions, heads, size]
    )


_CALL = np.dtype(MixCall)


@intrinsic
def tile_products(_context, factors, row, step, vectors, steps, result):  # type: ignore[no-untyped-def]
    """result[i] += sum over s < steps of factor[i, s] * vector[s], i < TILE, summed in float16.

    Arguments are addresses; row, step: bytes from a factor to that of the next i and s, each of which is a float16
    twice; vectors: [steps, QUERIES] float16; result: [TILE, QUERIES] float32.
    """

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        factors, row, step, vectors, steps, result = arguments
        lanes = 32  # of a vector of 64 bytes
        vector, pairs = ir.VectorType(HALF, lanes), ir.VectorType(I32, lanes // 2)
        multiply_add = fmuladd(builder, vector)
        zeros = ir.Constant(vector, [0.0] * lanes)
        columns = range(0, QUERIES, lanes)
        sums = [[cgutils.alloca_once_value(builder, zeros) for _ in columns] for _ in range(TILE)]
        starts = [offset(builder, factors, i, row) for i in range(TILE)]
        with cgutils.for_range(builder, steps) as loop:
            own = offset(builder, vectors, loop.index, 2 * QUERIES)
            loaded = [load(builder, offset(builder, own, column, 2), vector, 2) for column in columns]
            for start, totals in zip(starts, sums, strict=True):
                pair = load(builder, offset(builder, start, loop.index, step), I32, 4)
                factor = builder.bitcast(spread(builder, pair, pairs.count), vector)
                for total, value in zip(totals, loaded, strict=True):
                    builder.store(builder.call(multiply_add, [factor, value, builder.load(total)]), total)
        for i, totals in enumerate(sums):
            for column, total in zip(columns, totals, strict=True):
                narrow = builder.load(total)
                for half in range(0, lanes, 16):
                    mask = ir.Constant(ir.VectorType(I32, 16), list(range(half, half + 16)))
                    part = builder.shuffle_vector(narrow, narrow, mask)
                    wide = builder.fpext(part, ir.VectorType(FLOAT, 16))
                    address = offset(builder, result, i * QUERIES + column + half, 4)
                    before = load(builder, address, wide.type, 4)
                    pointer = builder.inttoptr(address, wide.type.as_pointer())
                    builder.store(builder.fadd(before, wide), pointer).align = 4
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@intrinsic
def weigh(_context, scores, positions, largest, scale, weights, total):  # type: ignore[no-untyped-def]
    """weights = 2^(scale * (scores - largest)) and the sums of them.

    Addresses of scores [positions, QUERIES], largest [QUERIES], the largest of each column, and total [QUERIES],
    float32, and of weights [positions, QUERIES] float16. 2^x is 2^n times Taylor's polynomial of 2^(x - n), where n is
    the nearest integer: of `x + 1.5 * 2^23` it is the last bits, which move to the exponent's place.
    """

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        scores, positions, largest, scale, weights, total = arguments
        lanes = 16
        vector, bits = ir.VectorType(FLOAT, lanes), ir.VectorType(I32, lanes)
        multiply_add = fmuladd(builder, vector)

        def constant(number: float) -> Any:
            return ir.Constant(vector, [number] * lanes)

        scales, magic = spread(builder, scale, lanes), constant(1.5 * 2**23)
        least = constant(-126.0)
        columns = range(0, QUERIES, lanes)
        shifts = []
        for column in columns:
            own = builder.fmul(load(builder, offset(builder, largest, column, 4), vector, 4), scales)
            shifts.append(builder.fneg(own))
        sums = [cgutils.alloca_once_value(builder, constant(0.0)) for _ in columns]
        with cgutils.for_range(builder, positions) as loop:
            row, kept = (offset(builder, it, loop.index, QUERIES * size) for it, size in ((scores, 4), (weights, 2)))
            for column, shift, added in zip(columns, shifts, sums, strict=True):
                score = load(builder, offset(builder, row, column, 4), vector, 4)
                x = builder.call(multiply_add, [score, scales, shift])
                x = builder.select(builder.fcmp_ordered(">", least, x), least, x)  # NaN stays
                rounded = builder.fadd(x, magic)
                rest = builder.fsub(x, builder.fsub(rounded, magic))
                y = constant(math.log(2) ** 5 / 120)
                for factor in (math.log(2) ** 4 / 24, math.log(2) ** 3 / 6, math.log(2) ** 2 / 2, math.log(2), 1.0):
                    y = builder.call(multiply_add, [y, rest, constant(factor)])
                exponent = builder.shl(builder.bitcast(rounded, bits), ir.Constant(bits, [23] * lanes))
                y = builder.bitcast(builder.add(builder.bitcast(y, bits), exponent), vector)
                builder.store(builder.fadd(builder.load(added), y), added)
                store_narrow(builder, y, offset(builder, kept, column, 2), types.int16)
        for column, added in zip(columns, sums, strict=True):
            own = builder.load(added)
            pointer = builder.inttoptr(offset(builder, total, column, 4), vector.as_pointer())
            builder.store(own, pointer).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32, types.int64, types.int64), generate


@intrinsic
def transpose(_context, source, source_step, last, target, target_step):  # type: ignore[no-untyped-def]
    """target[i][j] = source[j][i] of 16-bit numbers, i < 32, j < TILE.

    Addresses; bytes from one row to the next; last: the last row's address, which is repeated where there are fewer.
    """

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        source, source_step, last, target, target_step = arguments
        vector = ir.VectorType(I16, 32)
        rows = [until(builder, offset(builder, source, i, source_step), last) for i in range(TILE)]
        vectors = [load(builder, row, vector, 2) for row in rows]
        together = interleaved(builder, vectors)
        for i in range(vector.count):
            mask = ir.Constant(ir.VectorType(I32, TILE), list(range(i * TILE, i * TILE + TILE)))
            own = builder.shuffle_vector(together, together, mask)
            pointer = builder.inttoptr(offset(builder, target, i, target_step), own.type.as_pointer())
            builder.store(own, pointer).align = 2
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@njit
def _twice(source, step, rows, size, target):  # type: ignore[no-untyped-def]
    """Each of the 16-bit numbers twice: rows of `size` numbers, `step` bytes apart, to [rows, size] int32."""
    for row in range(rows):
        numbers = carray(at(source + row * step, bfloat16s_at(0)), size)
        for i in range(size):
            target[row, i] = np.int32(np.uint32(numbers[i]) * np.uint32(0x10001))


@njit(fastmath=True)
def _largest_of_columns(scores, largest):  # type: ignore[no-untyped-def]
    largest[:] = scores[0]
    for place in range(1, len(scores)):
        for i in range(QUERIES):
            largest[i] = max(largest[i], scores[place, i])


@njit(fastmath=FAST, error_model="numpy")
def _average(mixed, total, out):  # type: ignore[no-untyped-def]
    for i in range(QUERIES):
        total[i] = np.float32(1.0) / total[i]
    for place in range(len(mixed)):
        for i in range(QUERIES):
            out[place, i] = narrow(mixed[place, i] * total[i], out)


@njit
def _mix_queries(call, base, first, last, keys, values, query, scores, weights, mixed, totals):  # type: ignore[no-untyped-def]
    """Attention of the queries first .. last of a row and head, at most QUERIES, to all of its keys.

    base: the address of the head's first query; keys, values: [padded to TILE, size] int32, of `_twice`.
    """
    size, step = call.size, 3 * call.heads * call.size * 2  # bytes from one query to the next
    held = len(weights)
    query[:] = 0
    for begin in range(first, last, TILE):
        for place in range(0, size, 32):
            at_query, at_last = base + begin * step + place * 2, base + (last - 1) * step + place * 2
            transpose(at_query, step, at_last, query[place, begin - first :].ctypes.data, QUERIES * 2)
    scores[:] = np.float32(0.0)
    for key in range(0, held, TILE):
        for place in range(0, size, RUN):
            factors, vectors, sums = keys[key, place:].ctypes.data, query[place].ctypes.data, scores[key].ctypes.data
            tile_products(factors, size * 4, 4, vectors, min(RUN, size - place), sums)
    _largest_of_columns(scores[:held], totals[0])
    scale = np.float32(1.4426950408889634 / np.sqrt(size))  # log2(e)
    weigh(scores.ctypes.data, held, totals[0].ctypes.data, scale, weights.ctypes.data, totals[1].ctypes.data)
    mixed[:] = np.float32(0.0)
    for place in range(0, size, TILE):
        for key in range(0, held, 2 * RUN):
            factors, vectors = values[key, place:].ctypes.data, weights[key].ctypes.data
            tile_products(factors, 4, size * 4, vectors, min(2 * RUN, held - key), mixed[place].ctypes.data)
    _average(mixed, totals[1], query)


@njit
def _mix_rows(work):  # type: ignore[no-untyped-def]
    """A thread's pieces of a `MixCall`: some queries of one head of one row each."""
    call = work[0]
    rows, positions, heads, size = call.rows, call.positions, call.heads, call.size
    length = carray(integers_at(call.length), rows)
    parts = -(-positions // (QUERIES * call.blocks))
    padded = -(-positions // TILE) * TILE
    keys, values = np.zeros((padded, size), np.int32), np.zeros((padded, size), np.int32)
    query, scores = np.empty((size, QUERIES), np.int16), np.empty((padded, QUERIES), np.float32)
    weights, mixed = np.empty((positions, QUERIES), np.int16), np.empty((size, QUERIES), np.float32)
    totals = np.empty((2, QUERIES), np.float32)
    turned = np.empty((QUERIES, size), np.int16)
    out = carray(float16s_at(call.out), (rows, positions, heads, size))
    while True:
        piece = take(work.ctypes.data)
        if piece >= rows * heads * parts:
            break
        row, head, part = piece // parts // heads, piece // parts % heads, piece % parts
        held, begin = length[row], part * QUERIES * call.blocks
        end = min(positions, begin + QUERIES * call.blocks)
        if not 0 <= held <= positions:
            raise IndexError("a row has no such length")
        out[row, max(begin, held) : end, head] = np.int16(0)
        if begin >= held:
            continue
        step = heads * size * 2
        base = call.qkv + (row * positions * 3 * heads + head) * size * 2
        _twice(base + step, 3 * step, held, size, keys)
        _twice(base + 2 * step, 3 * step, held, size, values)
        filled = -(-held // TILE) * TILE
        for first in range(begin, min(end, held), QUERIES):
            last = min(first + QUERIES, end, held)
            _mix_queries(call, base, first, last, keys, values, query, scores[:filled], weights[:held], mixed, totals)
            for place in range(0, size, TILE):
                for column in range(0, QUERIES, 32):
                    at_query, at_last = query[place, column:].ctypes.data, query[place + TILE - 1, column:].ctypes.data
                    transpose(at_query, QUERIES * 2, at_last, turned[column, place:].ctypes.data, size * 2)
            out[row, first:last, head] = turned[: last - first]


@Kernel
def attention_kernel(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _CALL)
    take(work.ctypes.data + BEGUN)
    _mix_rows(work)
    take(work.ctypes.data + DONE)


def attention(qkv: Tensor, lengths: Tensor) -> Tensor:
    """Attention of every row to its own positions, in float16; zero after its length.

    qkv: [rows, positions, 3, heads, size], size a multiple of 32; lengths: [rows] int64, from 0 to positions. Returns
    [rows, positions, heads * size].
    """
    rows, positions, _, heads, size = qkv.shape
    assert qkv.dtype == torch.float16
    assert size % 32 == 0
    assert lengths.shape == (rows,)
    assert lengths.dtype == torch.int64
    qkv, lengths, out = qkv.contiguous(), lengths.contiguous(), qkv.new_empty(rows, positions, heads * size)
    blocks = -(-positions // QUERIES)
    call = MixCall(
        rows=rows,
        positions=positions,
        heads=heads,
        size=size,
        blocks=max(1, min(blocks, rows * heads * blocks // (4 * torch.get_num_threads()))),
        qkv=address(qkv),
        length=address(lengths),
        out=address(out),
    )
    run(attention_kernel, call)
    return out
