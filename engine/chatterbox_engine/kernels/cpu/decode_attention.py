"""Attention of one new position of each row to the positions of a pool."""

from __future__ import annotations

import ctypes
from ctypes import c_int64

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from chatterbox_engine.kernels.cpu.dots import dots
from chatterbox_engine.kernels.cpu.launch import BEGUN, COUNTERS, DONE, Kernel, address, run
from chatterbox_engine.kernels.cpu.numbers import narrow, rotate, softmax
from chatterbox_engine.kernels.cpu.vectors import (
    FLOAT,
    I64,
    LANES,
    VECTOR,
    at,
    bfloat16s_at,
    float16s_at,
    floats_at,
    fmuladd,
    integers_at,
    load,
    load_wide,
    offset,
    prefetch,
    spread,
    take,
    until,
)

HEADS = 8
"""Heads in a piece of work of a step's attention where there are few rows for the threads; else all of a row: they are
neighbours in memory, so their keys are read in one go."""
PLACES = 8
"""Positions whose keys, or values, are read together for a head."""


class AttendCall(ctypes.Structure):
    """out = softmax(query @ keys.T / sqrt(head_dim)) @ values, for the one new position of each row"""

    _fields_ = (
        *COUNTERS,
        ("rows", c_int64),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("together", c_int64),  # heads in a piece of work
        ("positions", c_int64),  # of the pool
        ("qkv", c_int64),  # [rows, 3, heads, head_dim]
        ("rotation", c_int64),  # [rows, 2, head_dim / 2]
        ("keys", c_int64),  # [positions, heads, head_dim]
        ("values", c_int64),  # [positions, heads, head_dim]
        ("start", c_int64),  # [rows] int64
        ("position", c_int64),  # [rows] int64
        ("out", c_int64),  # [rows, heads, head_dim]
    )


_CALL = np.dtype(AttendCall)


scores_of = dots(1, PLACES)


@intrinsic
def mix(_context, value, value_step, last, weights, result, size, values):  # type: ignore[no-untyped-def]
    """Adds PLACES rows by their weights: result[i] += sum over p < PLACES of weight[p] * value[p][i], i < size.

    value, weights, result: addresses of the first ones; value_step: bytes from one row to the next; last: the last
    row's address, which is repeated where there are fewer; weights, result are float32; values: any array of the
    values' type. The PLACES rows after these are prefetched.
    """
    kind, width = values.dtype, values.dtype.bitwidth // 8

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        value, value_step, last, weights, result, size = arguments[:6]
        multiply_add = fmuladd(builder)
        rows = [until(builder, offset(builder, value, place, value_step), last) for place in range(PLACES)]
        factors = [
            spread(builder, load(builder, offset(builder, weights, place, 4), FLOAT, 4), LANES)
            for place in range(PLACES)
        ]
        step = ir.Constant(I64, LANES)
        with cgutils.for_range(builder, builder.sdiv(size, step)) as loop:
            first = builder.mul(loop.index, step)
            address = offset(builder, result, first, 4)
            total = load(builder, address, VECTOR, 4)
            for row, factor in zip(rows, factors, strict=True):
                place = offset(builder, row, first, width)
                prefetch(builder, offset(builder, place, PLACES, value_step))
                total = builder.call(multiply_add, [factor, load_wide(builder, place, kind), total])
            builder.store(total, builder.inttoptr(address, VECTOR.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, values), generate


@njit
def _score(query, keys, scores):  # type: ignore[no-untyped-def]
    """scores[i, p] = query[i] @ keys[p, i], padded to a multiple of PLACES; keys: [positions, heads, head_dim]."""
    size, step, vector = keys.shape[2], keys.strides[0], LANES * keys.itemsize
    for first in range(0, len(keys), PLACES):
        for i in range(keys.shape[1]):
            scores[i, first : first + PLACES] = np.float32(0.0)
            at_first, at_last = keys[first, i].ctypes.data, keys[len(keys) - 1, i].ctypes.data
            result = scores[i, first:].ctypes.data
            fetched, row = at_first + PLACES * step, query[i].ctypes.data
            scores_of(row, 0, 1, at_first, step, at_last, 1, fetched, vector, size, 1, result, query, keys)


@njit
def _mix_values(scores, values, mixed):  # type: ignore[no-untyped-def]
    """mixed[i] = sum over positions p of scores[i, p] * values[p, i]; values: [positions, heads, head_dim]; scores are
    0 after the last position."""
    mixed[:] = np.float32(0.0)
    size, step = values.shape[2], values.strides[0]
    for first in range(0, len(values), PLACES):
        for i in range(values.shape[1]):
            at_first, at_last = values[first, i].ctypes.data, values[len(values) - 1, i].ctypes.data
            mix(at_first, step, at_last, scores[i, first:].ctypes.data, mixed[i].ctypes.data, size, values)


@njit
def _attend(work, kind):  # type: ignore[no-untyped-def]
    """A thread's pieces of an `AttendCall`: some heads of one row each. kind: a pointer of the tensors' type.

    Row r owns the positions start[r] .. start[r] + position[r] of the pool, the last of which is new. For each head:

        query = rotate(qkv[r, 0]) / sqrt(head_dim)
        keys[last], values[last] = rotate(qkv[r, 1]), qkv[r, 2]
        scores = softmax(keys @ query)
        out[r] = sum over positions p of scores[p] * values[p]
    """
    call = work[0]
    rows, heads, size, positions = call.rows, call.heads, call.head_dim, call.positions
    qkv, out = carray(at(call.qkv, kind), (rows, 3, heads, size)), carray(at(call.out, kind), (rows, heads, size))
    rotated, rotation = call.rotation != 0, carray(at(call.rotation, kind), (rows, 2, size // 2))
    pool = (positions, heads, size)
    keys, values = carray(at(call.keys, kind), pool), carray(at(call.values, kind), pool)
    start, position = carray(integers_at(call.start), rows), carray(integers_at(call.position), rows)
    scale = np.float32(1.0 / np.sqrt(size))
    groups = -(-heads // call.together)
    most = -(-heads // groups)
    query, mixed = np.empty((most, size), np.float32), np.empty((most, size), np.float32)
    key = np.empty(size, np.float32)
    longest = position.max() + 1 if rows else 0
    scores = np.empty((most, longest + PLACES), np.float32)
    while True:
        piece = take(work.ctypes.data)
        if piece >= rows * groups:
            break
        row, base = piece // groups, piece % groups * most
        count, held = min(most, heads - base), position[row] + 1
        if start[row] < 0 or held < 1 or start[row] + held > positions:
            raise IndexError("a row's positions are not in the pool")
        first, last = start[row], start[row] + held
        own_keys, own_values = keys[first:last, base : base + count], values[first:last, base : base + count]
        for i in range(count):
            rotate(qkv[row, 0, base + i], rotation[row], rotated, query[i])
            rotate(qkv[row, 1, base + i], rotation[row], rotated, key)
            for j in range(size):
                query[i, j] *= scale
                own_keys[held - 1, i, j] = narrow(key[j], keys)
                own_values[held - 1, i, j] = qkv[row, 2, base + i, j]
        _score(query, own_keys, scores)
        for i in range(count):
            softmax(scores[i, :held])
            scores[i, held : held + PLACES] = np.float32(0.0)
        _mix_values(scores, own_values, mixed)
        for i in range(count):
            for j in range(size):
                out[row, base + i, j] = narrow(mixed[i, j], out)


@Kernel
def _decode_attention_float32(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _CALL)
    take(work.ctypes.data + BEGUN)
    _attend(work, floats_at(0))
    take(work.ctypes.data + DONE)


@Kernel
def _decode_attention_bfloat16(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _CALL)
    take(work.ctypes.data + BEGUN)
    _attend(work, bfloat16s_at(0))
    take(work.ctypes.data + DONE)


@Kernel
def _decode_attention_float16(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _CALL)
    take(work.ctypes.data + BEGUN)
    _attend(work, float16s_at(0))
    take(work.ctypes.data + DONE)


KERNELS = {
    torch.float32: _decode_attention_float32,
    torch.bfloat16: _decode_attention_bfloat16,
    torch.float16: _decode_attention_float16,
}
"""By the type of the tensors."""


def decode_attention(
    qkv: Tensor, rotation: Tensor | None, keys: Tensor, values: Tensor, start: Tensor, position: Tensor
) -> Tensor:
    """As `attention.decode_attention`; keys, values: a layer's, [positions, heads, head_dim]."""
    qkv, rotation = qkv.contiguous(), None if rotation is None else rotation.contiguous()
    start, position = start.contiguous(), position.contiguous()
    assert qkv.dtype == keys.dtype == values.dtype
    assert start.dtype == position.dtype == torch.int64
    rows, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(rows, heads, head_dim)
    call = AttendCall(
        rows=rows,
        heads=heads,
        head_dim=head_dim,
        together=heads if rows >= 4 * torch.get_num_threads() else HEADS,
        positions=len(keys),
        qkv=address(qkv),
        rotation=address(rotation),
        keys=address(keys),
        values=address(values),
        start=address(start),
        position=address(position),
        out=address(out),
    )
    run(KERNELS[qkv.dtype], call)
    return out
