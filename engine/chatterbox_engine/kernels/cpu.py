"""Kernels for a CPU, in numba, where torch and its libraries are slow.

numba compiles the loops for the processor that it finds and caches the code, in `NUMBA_CACHE_DIR` or beside this file.
It compiles a cached kernel again when this file changes, and would miss a change of a file that it imports: so all
kernels are here. The innermost loop of a product is written in LLVM's vectors, because its speed depends on what stays
in registers.

A kernel is a C function of one argument, the address of a call: a `ctypes.Structure` with its work counters, sizes and
addresses of tensors by name. Each thread of torch's own OpenMP team runs it, and takes the next piece of work by the
counter `next` until none is left: a thread that another process delays leaves the pieces it has not begun to the
others. `begun` and `done` count threads, as an exception in a thread does not propagate.

The order in which products are added does not depend on the number of rows: a row has the same bits regardless of the
batch. Tensors are float32, or all of a call bfloat16, which needs no hardware support; sums are float32.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from torch import Tensor

from chatterbox_engine.kernels.shapes import Activation

LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8
"""Floats per vector."""
ROWS, OUTPUTS = 4, 3
"""Rows of inputs and of weights in one call of `few_dots`: twelve sums, three vectors of weights and one of inputs are
sixteen registers."""
MANY_ROWS = 2 * ROWS if LANES == 16 else ROWS
"""Rows of inputs in one call of `many_dots`: AVX-512 has 32 registers. Weights are then loaded and widened half as
often, which is about 1.2 times as fast from 6 rows on."""
PIECE = 8 * OUTPUTS
"""Outputs in a piece of work of a product: their weights stay in the cache while all rows are multiplied with them."""
DEPTH = 1024
"""Inputs that are multiplied before the next outputs are: those of a few rows stay in the first cache."""
HEADS = 8
"""Heads in a piece of work of the attention at most: they are neighbours in memory, so their keys are read in one
go."""
PLACES = 8
"""Positions whose keys, or values, are read together for a head."""
NEAR = 4
"""Places to each side of the one that most attention is on, of which the centre of mass is taken."""
NUMBERS = 1 << 14
"""Numbers in a piece of work of an activation."""

_FAST = {"reassoc", "contract", "nsz"}  # LLVM may reorder sums; NaN and infinity keep their meaning
_I16, _I32, _I64, _FLOAT = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)


# The arguments of each kernel, one table each. Addresses are 0 where a tensor is absent. `size` is that of a number in
# bytes: 4 for float32, 2 for bfloat16.

_COUNTERS = [("next", c_int64), ("begun", c_int64), ("done", c_int64)]


class ProjectCall(ctypes.Structure):
    """out = residual + activation(norm(x) @ weight.T + bias)"""

    _fields_ = (
        *_COUNTERS,
        ("size", c_int64),
        ("rows", c_int64),
        ("inputs", c_int64),
        ("outputs", c_int64),  # of the result: the matrix has twice as many for swiglu
        ("x", c_int64),  # [rows, inputs]
        ("weight", c_int64),  # [outputs or 2 outputs, inputs]
        ("bias", c_int64),  # [outputs]
        ("gain", c_int64),  # [inputs]
        ("shift", c_int64),  # [inputs]
        ("residual", c_int64),  # [rows, outputs], may be out
        ("out", c_int64),  # [rows, outputs]
        ("norm", c_int64),  # 0, _NORM or _SHIFTED_NORM
        ("activation", c_int64),  # one of _ACTIVATIONS
        ("eps", c_float),
    )


class AttendCall(ctypes.Structure):
    """out = softmax(query @ keys.T / sqrt(head_dim)) @ values, for the one new position of each row"""

    _fields_ = (
        *_COUNTERS,
        ("size", c_int64),
        ("rows", c_int64),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("positions", c_int64),  # of the pool
        ("qkv", c_int64),  # [rows, 3, heads, head_dim]
        ("rotation", c_int64),  # [rows, 2, head_dim / 2]
        ("keys", c_int64),  # [positions, heads, head_dim]
        ("values", c_int64),  # [positions, heads, head_dim]
        ("start", c_int64),  # [rows] int64
        ("position", c_int64),  # [rows] int64
        ("out", c_int64),  # [rows, heads, head_dim]
    )


class AlignCall(ctypes.Structure):
    """out = where some heads look in the text at each row's newest position"""

    _fields_ = (
        *_COUNTERS,
        ("size", c_int64),
        ("utterances", c_int64),
        ("rows", c_int64),
        ("slots", c_int64),
        ("layers", c_int64),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("positions", c_int64),  # of the pool
        ("longest", c_int64),  # positions of a row
        ("named", c_int64),  # heads that are read
        ("readings", c_int64),  # numbers of a result
        ("pool", c_int64),  # [layers, 2, positions, heads, head_dim]
        ("picked", c_int64),  # [named, 2] int64, layer and head
        ("queries", c_int64),  # [rows, named, head_dim]
        ("rotation", c_int64),  # [longest, 2, head_dim / 2]
        ("slot", c_int64),  # [utterances] int64
        ("row", c_int64),  # [utterances] int64
        ("start", c_int64),  # [rows] int64
        ("prompt", c_int64),  # [slots] int64
        ("step", c_int64),  # [slots] int64
        ("text", c_int64),  # [2, slots] int64, the text's first position and the one after its last
        ("out", c_int64),  # [utterances, readings] float32
    )


class SnakeCall(ctypes.Structure):
    """active = y + sin(alpha y)^2 inverse where the mask is True, else 0; y = x + change"""

    _fields_ = (
        *_COUNTERS,
        ("positions", c_int64),
        ("channels", c_int64),
        ("x", c_int64),  # [positions, channels]
        ("change", c_int64),  # [positions, channels], overwritten by y
        ("mask", c_int64),  # [positions] bool
        ("alpha", c_int64),  # [channels]
        ("inverse", c_int64),  # [channels]
        ("active", c_int64),  # [positions, channels]
    )


_PROJECT, _ATTEND, _SNAKE = np.dtype(ProjectCall), np.dtype(AttendCall), np.dtype(SnakeCall)
_ALIGN = np.dtype(AlignCall)
"""The same tables for numba."""
_BEGUN, _DONE = ctypes.sizeof(c_int64), 2 * ctypes.sizeof(c_int64)
"""Offsets of the counters after `next`."""


# LLVM instructions that numba does not expose. bfloat16 is uint16 to it.


def _number_to_pointer(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
    return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))


def _pointer_to(numba_type: Any) -> Any:
    @intrinsic
    def pointer(_context, address):  # type: ignore[no-untyped-def]
        return types.CPointer(numba_type)(types.int64), _number_to_pointer

    return pointer


floats_at, bfloat16s_at = _pointer_to(types.float32), _pointer_to(types.uint16)
booleans_at, integers_at = _pointer_to(types.uint8), _pointer_to(types.int64)


@intrinsic
def at(_context, address, kind):  # type: ignore[no-untyped-def]
    """The address as a pointer of the same type as `kind`."""
    return kind(types.int64, kind), _number_to_pointer


@intrinsic
def take(_context, counter):  # type: ignore[no-untyped-def]
    """Increments the number at an address atomically and returns what it was: every thread gets another one."""

    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def float_of(_context, bits):  # type: ignore[no-untyped-def]
    return types.float32(types.int32), lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], _FLOAT)


@intrinsic
def bits_of(_context, number):  # type: ignore[no-untyped-def]
    return types.int32(types.float32), lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], _I32)


def _function(builder: Any, name: str, result: Any, *parameters: Any) -> Any:
    """LLVM's function of this name, declared once in a module."""
    declared = builder.module.globals.get(name)
    return declared or ir.Function(builder.module, ir.FunctionType(result, parameters), name)


def _offset(builder: Any, address: Any, numbers: Any, size: int) -> Any:
    """The address that many numbers of `size` bytes further on."""
    return builder.add(address, builder.mul(numbers, ir.Constant(_I64, size)))


def _load(builder: Any, address: Any, kind: Any, size: int) -> Any:
    """What is at an address that is a multiple of `size` bytes."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = size
    return value


def _load_weights(builder: Any, address: Any, bfloat16: bool) -> Any:
    """A vector of weights in float32."""
    if not bfloat16:
        return _load(builder, address, _VECTOR, 4)
    wide = builder.zext(_load(builder, address, ir.VectorType(_I16, LANES), 2), ir.VectorType(_I32, LANES))
    return builder.bitcast(builder.shl(wide, ir.Constant(wide.type, [16] * LANES)), _VECTOR)


def _table(builder: Any, table: Any, size: int) -> list[Any]:
    """The addresses in a table of int64."""
    return [_load(builder, _offset(builder, table, ir.Constant(_I64, i), 8), _I64, 8) for i in range(size)]


def _multiply_add(builder: Any) -> Any:
    """LLVM's function of three vectors: the product of the first two, added to the third."""
    return _function(builder, f"llvm.fmuladd.v{LANES}f32", _VECTOR, _VECTOR, _VECTOR, _VECTOR)


def _added_lanes(builder: Any, vectors: list[Any]) -> Any:
    """A vector of the sums of the lanes of each vector; their number is a power of two, at most LANES.

    Halves of the lanes are added to each other, then halves of these, ...; those of two vectors at a time, while there
    are two: [a0 .. a15], [b0 .. b15] -> [a0 + a8, .., a7 + a15, b0 + b8, .., b7 + b15].
    """
    width = LANES  # of a sum's lanes in each vector
    while width > 1:
        half = width // 2
        size = vectors[0].type.count
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True)) if len(vectors) > 1 else [(vectors[0], vectors[0])]
        begins = range(0, size * min(2, len(vectors)), width)
        halves = [[begin + i + shift for begin in begins for i in range(half)] for shift in (0, half)]
        masks = [ir.Constant(ir.VectorType(_I32, len(lanes)), lanes) for lanes in halves]
        vectors = [builder.fadd(*(builder.shuffle_vector(*pair, mask) for mask in masks)) for pair in pairs]
        width = half
    return vectors[0]


def _dots(count: int, outputs: int) -> Any:
    """The intrinsic that multiplies `count` rows of inputs with `outputs` rows of weights:

        result[o, r] += sum over i < inputs of row[r][i] * weight[o][i]

    table: the address of int64 addresses: the rows, the weights, result; rows are float32, result is [outputs, count]
    float32; ahead: how many weights further those of the next call are, which are prefetched; weights: any array of the
    weights' type.

    An iteration takes the next LANES inputs. It loads `outputs` vectors of weights, then a vector of each row in turn,
    and adds their products to count x outputs vectors of sums, which LLVM keeps in registers:

        row[0] i..i+LANES  *  weight[0], [1], [2] i..i+LANES   ->  sum[0, 0], sum[0, 1], sum[0, 2]
        row[1]             *  the same                         ->  sum[1, 0], sum[1, 1], sum[1, 2]
        ...

    At the end the lanes of each sum are added up.
    """
    together = count if count > 1 else outputs  # sums that are neighbours in the result

    @intrinsic
    def multiply(_context, table, inputs, ahead, weights):  # type: ignore[no-untyped-def]
        bfloat16, size = weights.dtype == types.uint16, weights.dtype.bitwidth // 8

        def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            table, inputs, ahead = arguments[:3]

            multiply_add = _multiply_add(builder)
            byte = ir.IntType(8).as_pointer()
            prefetch = _function(builder, "llvm.prefetch.p0", ir.VoidType(), byte, _I32, _I32, _I32)
            for_reading = [ir.Constant(_I32, flag) for flag in (0, 3, 1)]

            addresses = _table(builder, table, count + outputs + 1)
            rows, matrix, results = addresses[:count], addresses[count:-1], addresses[-1]
            zeros = ir.Constant(_VECTOR, [0.0] * LANES)
            sums = [[cgutils.alloca_once_value(builder, zeros) for _ in matrix] for _ in rows]
            step = ir.Constant(_I64, LANES)
            with cgutils.for_range(builder, builder.sdiv(inputs, step)) as loop:
                first = builder.mul(loop.index, step)
                factors = [_load_weights(builder, _offset(builder, weight, first, size), bfloat16) for weight in matrix]
                for weight in matrix:
                    following = _offset(builder, _offset(builder, weight, first, size), ahead, size)
                    builder.call(prefetch, [builder.inttoptr(following, byte), *for_reading])
                for row, row_sums in zip(rows, sums, strict=True):
                    values = _load(builder, _offset(builder, row, first, 4), _VECTOR, 4)
                    for total, factor in zip(row_sums, factors, strict=True):
                        builder.store(builder.call(multiply_add, [values, factor, builder.load(total)]), total)
            ordered = [builder.load(row_sums[output]) for output in range(outputs) for row_sums in sums]
            for first in range(0, len(ordered), together):
                added = _added_lanes(builder, ordered[first : first + together])
                address = _offset(builder, results, ir.Constant(_I64, first), 4)
                before = _load(builder, address, added.type, 4)
                builder.store(builder.fadd(before, added), builder.inttoptr(address, added.type.as_pointer())).align = 4
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, weights), generate

    return multiply


few_dots, many_dots, scores_of = _dots(ROWS, OUTPUTS), _dots(MANY_ROWS, OUTPUTS), _dots(1, PLACES)


@intrinsic
def mix(_context, table, size, values):  # type: ignore[no-untyped-def]
    """Adds PLACES rows by their weights: result[i] += sum over p < PLACES of weight[p] * value[p][i], i < size.

    table: the address of int64 addresses: value 0 .. PLACES - 1, the weights, [PLACES] float32, and the result, [size]
    float32; values: any array of the values' type.
    """
    bfloat16, width = values.dtype == types.uint16, values.dtype.bitwidth // 8

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        multiply_add = _multiply_add(builder)
        *rows, weights, result = _table(builder, arguments[0], PLACES + 2)
        spread = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
        empty, none = ir.Constant(_VECTOR, ir.Undefined), ir.Constant(_I32, 0)
        factors = []
        for place in range(PLACES):
            weight = _load(builder, _offset(builder, weights, ir.Constant(_I64, place), 4), _FLOAT, 4)
            factors.append(builder.shuffle_vector(builder.insert_element(empty, weight, none), empty, spread))
        step = ir.Constant(_I64, LANES)
        with cgutils.for_range(builder, builder.sdiv(arguments[1], step)) as loop:
            first = builder.mul(loop.index, step)
            address = _offset(builder, result, first, 4)
            total = _load(builder, address, _VECTOR, 4)
            for row, factor in zip(rows, factors, strict=True):
                value = _load_weights(builder, _offset(builder, row, first, width), bfloat16)
                total = builder.call(multiply_add, [factor, value, total])
            builder.store(total, builder.inttoptr(address, _VECTOR.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, values), generate


# Functions of one number, which LLVM vectorises.


def _wide(_number: Any) -> Any:
    """A float32, or the bits of a bfloat16, as float32."""


@overload(_wide)
def _wide_of(number):  # type: ignore[no-untyped-def]
    if number == types.uint16:
        return lambda number: float_of(np.int32(number) << np.int32(16))
    return lambda number: number


def _narrow(_number: Any, _like: Any) -> Any:
    """A float32 as the array `like` stores it: as it is, or the bits of the nearest bfloat16."""


@overload(_narrow)
def _narrow_of(number, like):  # type: ignore[no-untyped-def]
    if like.dtype != types.uint16:
        return lambda number, like: number

    def rounded(number, like):  # type: ignore[no-untyped-def]
        bits = bits_of(number)
        return np.uint16((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16))

    return rounded


@njit(fastmath=_FAST)
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x of a float32, clamped to -87 .. 87: a power of two times Taylor's polynomial."""
    x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    whole = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    x = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)  # ln 2 in two parts
    y = np.float32(1.0 / 5040.0)
    y = y * x + np.float32(1.0 / 720.0)
    y = y * x + np.float32(1.0 / 120.0)
    y = y * x + np.float32(1.0 / 24.0)
    y = y * x + np.float32(1.0 / 6.0)
    y = y * x + np.float32(0.5)
    y = y * x + np.float32(1.0)
    y = y * x + np.float32(1.0)
    return y * float_of((np.int32(whole) + np.int32(127)) << np.int32(23))


@njit(fastmath=_FAST, error_model="numpy")
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return np.float32(1.0) / (np.float32(1.0) + _exp(-x))


@njit(fastmath=_FAST)
def _sine_squared(x):  # type: ignore[no-untyped-def]
    """sin(x)^2 of a float32. Its period is pi, which is subtracted in three parts (Cody and Waite)."""
    whole = np.floor(x * np.float32(0.3183098861837907) + np.float32(0.5))
    x = x - whole * np.float32(3.140625)
    x = x - whole * np.float32(9.67502593994140625e-4)
    x = x - whole * np.float32(1.5099579909783765e-7)
    square = x * x
    y = np.float32(-1.0 / 39916800.0)
    y = y * square + np.float32(1.0 / 362880.0)
    y = y * square - np.float32(1.0 / 5040.0)
    y = y * square + np.float32(1.0 / 120.0)
    y = y * square - np.float32(1.0 / 6.0)
    y = x + x * square * y
    return y * y


# Kernels, each after its parts. Those for both types choose by themselves: numba does not cache a function that takes
# another one as an argument.


def _compiled(kernel: Any) -> Any:
    """The C function, cached if numba finds a folder that it can write to."""
    declared = types.void(types.voidptr)
    try:
        return cfunc(declared, cache=True)(kernel)
    except RuntimeError:  # no such folder: a read-only installation and no home
        return cfunc(declared)(kernel)


_NORM, _SHIFTED_NORM = 1, 2
_ACTIVATIONS: dict[Activation, int] = {"none": 0, "gelu": 1, "swiglu": 2}
_GELU, _SWIGLU = _ACTIVATIONS["gelu"], _ACTIVATIONS["swiglu"]


@njit(fastmath=_FAST, error_model="numpy")
def _prepare(x, gain, shift, eps, norm, prepared):  # type: ignore[no-untyped-def]
    """A row in float32, normalised: x [inputs] to prepared [inputs]."""
    size = np.float32(len(x))
    for i in range(len(x)):
        prepared[i] = _wide(x[i])
    if norm == _SHIFTED_NORM:
        total = np.float32(0.0)
        for value in prepared:
            total += value
        mean = total / size
        for i in range(len(x)):
            prepared[i] -= mean
    if norm:
        squares = np.float32(0.0)
        for value in prepared:
            squares += value * value
        factor = np.float32(1.0) / np.sqrt(squares / size + eps)
        for i in range(len(x)):
            prepared[i] *= factor * _wide(gain[i])
    if norm == _SHIFTED_NORM:
        for i in range(len(x)):
            prepared[i] += _wide(shift[i])


@njit(fastmath=_FAST)
def _finish(sums, up, bias, has_bias, activation, residual, has_residual, out):  # type: ignore[no-untyped-def]
    """The results of one row's outputs from their sums; up: the second half of SwiGLU's sums, of which `sums` is the
    gate."""
    if has_bias:
        for i in range(len(out)):
            sums[i] += _wide(bias[i])
    if activation == _GELU:
        for i in range(len(out)):
            y = sums[i]
            sums[i] = y * _sigmoid(np.float32(1.5957691216057308) * (y + np.float32(0.044715) * y * y * y))
    if activation == _SWIGLU:
        for i in range(len(out)):
            sums[i] = sums[i] * _sigmoid(sums[i]) * up[i]
    if has_residual:
        for i in range(len(out)):
            sums[i] += _wide(residual[i])
    for i in range(len(out)):
        out[i] = _narrow(sums[i], out)


@njit
def _add_products(prepared, weight, table, sums, base, first, last):  # type: ignore[no-untyped-def]
    """The products of the rows from `base` on with the outputs first .. last of each half of the matrix.

    prepared: [rows, inputs]; weight: [halves * outputs, inputs]; table: as `few_dots` takes it; sums: [halves, PIECE,
    block], overwritten.
    """
    rows, inputs = prepared.shape
    halves, _, block = sums.shape
    outputs = len(weight) // halves
    sums[:] = np.float32(0.0)
    for begin in range(0, inputs, DEPTH):
        depth = min(DEPTH, inputs - begin)
        for i in range(block):  # padded by repeating the last row
            table[i] = prepared[min(base + i, rows - 1), begin:].ctypes.data
        for half in range(halves):
            for output in range(first, last, OUTPUTS):
                for i in range(OUTPUTS):
                    place = half * outputs + min(output + i, outputs - 1)
                    table[block + i] = weight[place, begin:].ctypes.data
                table[-1] = sums[half, output - first :].ctypes.data
                if block == ROWS:
                    few_dots(table.ctypes.data, depth, OUTPUTS * inputs, weight)
                else:
                    many_dots(table.ctypes.data, depth, OUTPUTS * inputs, weight)


@njit
def _products(work, kind):  # type: ignore[no-untyped-def]
    """A thread's pieces of a `ProjectCall`: PIECE outputs of all rows each. kind: a pointer of the tensors' type."""
    call = work[0]
    rows, inputs, outputs, activation = call.rows, call.inputs, call.outputs, call.activation
    has_bias, has_residual = call.bias != 0, call.residual != 0
    halves = 2 if activation == _SWIGLU else 1
    x, weight = carray(at(call.x, kind), (rows, inputs)), carray(at(call.weight, kind), (halves * outputs, inputs))
    bias = carray(at(call.bias, kind), outputs)
    gain, shift = carray(at(call.gain, kind), inputs), carray(at(call.shift, kind), inputs)
    residual, out = carray(at(call.residual, kind), (rows, outputs)), carray(at(call.out, kind), (rows, outputs))
    prepared = np.empty((rows, inputs), np.float32)  # by every thread, which is faster than waiting for another
    for row in range(rows):
        _prepare(x[row], gain, shift, call.eps, call.norm, prepared[row])
    block = MANY_ROWS if rows > ROWS else ROWS
    sums, own = np.empty((halves, PIECE, block), np.float32), np.empty((2, PIECE), np.float32)
    table = np.empty(block + OUTPUTS + 1, np.int64)
    while True:
        first = take(work.ctypes.data) * PIECE
        if first >= outputs:
            break
        last = min(first + PIECE, outputs)
        for base in range(0, rows, block):
            _add_products(prepared, weight, table, sums, base, first, last)
            for row in range(base, min(base + block, rows)):
                for half in range(halves):
                    for i in range(last - first):
                        own[half, i] = sums[half, i, row - base]
                before, after = residual[row, first:last], out[row, first:last]
                _finish(own[0], own[1], bias[first:last], has_bias, activation, before, has_residual, after)


@_compiled
def _project(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _PROJECT)
    take(work.ctypes.data + _BEGUN)
    if work[0].size == 4:
        _products(work, floats_at(0))
    else:
        _products(work, bfloat16s_at(0))
    take(work.ctypes.data + _DONE)


@njit(fastmath=_FAST)
def _rotate(vector, rotation, rotated, result):  # type: ignore[no-untyped-def]
    """A query or key of one head in float32, with RoPE in transformers' half-split form if `rotated`."""
    half = len(vector) // 2
    for i in range(half):
        first, second = _wide(vector[i]), _wide(vector[half + i])
        if rotated:
            cos, sin = _wide(rotation[0, i]), _wide(rotation[1, i])
            first, second = first * cos - second * sin, second * cos + first * sin
        result[i], result[half + i] = first, second


@njit(fastmath=_FAST)
def _product(query, key):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for i in range(len(query)):
        total += query[i] * _wide(key[i])
    return total


@njit(fastmath=True)
def _largest(x):  # type: ignore[no-untyped-def]
    largest = x[0]
    for value in x:
        largest = max(largest, value)
    return largest


@njit(fastmath=_FAST, error_model="numpy")
def _softmax(scores):  # type: ignore[no-untyped-def]
    largest, total = _largest(scores), np.float32(0.0)
    for i in range(len(scores)):
        scores[i] = _exp(scores[i] - largest)
    for score in scores:
        total += score
    for i in range(len(scores)):
        scores[i] /= total


@njit
def _score(query, keys, table, scores, stride):  # type: ignore[no-untyped-def]
    """scores[i, p] = query[i] @ keys[p, i], padded to a multiple of PLACES; keys: [positions, heads, head_dim], of
    which one position is `stride` numbers after the other."""
    for first in range(0, len(keys), PLACES):
        for i in range(keys.shape[1]):
            scores[i, first : first + PLACES] = np.float32(0.0)
            table[0], table[PLACES + 1] = query[i].ctypes.data, scores[i, first:].ctypes.data
            for j in range(PLACES):  # padded by repeating the last one
                table[1 + j] = keys[min(first + j, len(keys) - 1), i].ctypes.data
            scores_of(table.ctypes.data, keys.shape[2], PLACES * stride, keys)


@njit
def _mix_values(scores, values, table, mixed):  # type: ignore[no-untyped-def]
    """mixed[i] = sum over positions p of scores[i, p] * values[p, i]; values: [positions, heads, head_dim]; scores are
    0 after the last position."""
    mixed[:] = np.float32(0.0)
    for first in range(0, len(values), PLACES):
        for i in range(values.shape[1]):
            table[PLACES], table[PLACES + 1] = scores[i, first:].ctypes.data, mixed[i].ctypes.data
            for j in range(PLACES):
                table[j] = values[min(first + j, len(values) - 1), i].ctypes.data
            mix(table.ctypes.data, values.shape[2], values)


@njit
def _attend(work, kind):  # type: ignore[no-untyped-def]
    """A thread's pieces of an `AttendCall`: up to HEADS heads of one row each. kind: a pointer of the tensors' type.

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
    groups = -(-heads // HEADS)
    most = -(-heads // groups)
    query, mixed = np.empty((most, size), np.float32), np.empty((most, size), np.float32)
    key = np.empty(size, np.float32)
    scores = np.empty((most, position.max() + 1 + PLACES), np.float32)
    table = np.empty(PLACES + 2, np.int64)
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
            _rotate(qkv[row, 0, base + i], rotation[row], rotated, query[i])
            _rotate(qkv[row, 1, base + i], rotation[row], rotated, key)
            for j in range(size):
                query[i, j] *= scale
                own_keys[held - 1, i, j] = _narrow(key[j], keys)
                own_values[held - 1, i, j] = qkv[row, 2, base + i, j]
        _score(query, own_keys, table, scores, heads * size)
        for i in range(count):
            _softmax(scores[i, :held])
            scores[i, held : held + PLACES] = np.float32(0.0)
        _mix_values(scores, own_values, table, mixed)
        for i in range(count):
            for j in range(size):
                out[row, base + i, j] = _narrow(mixed[i, j], out)


@_compiled
def _decode_attention(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _ATTEND)
    take(work.ctypes.data + _BEGUN)
    if work[0].size == 4:
        _attend(work, floats_at(0))
    else:
        _attend(work, bfloat16s_at(0))
    take(work.ctypes.data + _DONE)


@njit(fastmath=_FAST, error_model="numpy")
def _read(attention, frame, out):  # type: ignore[no-untyped-def]
    """The numbers of `types.Reading` of a mean attention over the text, [text] float32, in step `frame`."""
    size, place, strict, mass, earlier = len(attention), 0, 0, np.float32(0.0), np.float32(0.0)
    for i in range(size):
        mass += attention[i]
        if attention[i] > attention[place]:
            place = i
        if i <= frame:
            if attention[i] > attention[strict]:
                strict = i
            if i < size - 5:
                earlier = max(earlier, attention[i])
    near, moment = np.float32(0.0), np.float32(0.0)
    for i in range(max(0, place - NEAR), min(size, place + NEAR + 1)):
        near += attention[i]
        moment += attention[i] * np.float32(i)
    out[0], out[1] = place, moment / near if near > 0 else place
    out[2], out[3] = mass, attention[place] if size else 0.0
    out[4], out[5] = strict, earlier
    for i in range(3):
        at_end = size - 3 + i
        out[6 + i] = attention[at_end] if 0 <= at_end <= frame else 0.0


@njit
def _align(work, kind):  # type: ignore[no-untyped-def]
    """A thread's pieces of an `AlignCall`: an utterance each. kind: a pointer of the tensors' type."""
    call = work[0]
    size, named, longest = call.head_dim, call.named, call.longest
    pool = carray(at(call.pool, kind), (call.layers, 2, call.positions, call.heads, size))
    picked = carray(integers_at(call.picked), (named, 2))
    queries = carray(at(call.queries, kind), (call.rows, named, size))
    rotated, rotation = call.rotation != 0, carray(at(call.rotation, kind), (longest, 2, size // 2))
    slots, rows = carray(integers_at(call.slot), call.utterances), carray(integers_at(call.row), call.utterances)
    start, text = carray(integers_at(call.start), call.rows), carray(integers_at(call.text), (2, call.slots))
    prompt, step = carray(integers_at(call.prompt), call.slots), carray(integers_at(call.step), call.slots)
    out = carray(floats_at(call.out), (call.utterances, call.readings))
    scale, query = np.float32(1.0 / np.sqrt(size)), np.empty(size, np.float32)
    scores, attention = np.empty(longest, np.float32), np.empty(longest, np.float32)
    while True:
        piece = take(work.ctypes.data)
        if piece >= call.utterances:
            break
        slot, row = slots[piece], rows[piece]
        first, held, begin, end = start[row], prompt[slot] + step[slot], text[0, slot], text[1, slot]
        if first < 0 or held < 1 or first + held > call.positions or not 0 <= begin <= end <= held <= longest:
            raise IndexError("a row's positions are not in the pool")
        attention[: end - begin] = np.float32(0.0)
        for i in range(named):
            keys = pool[picked[i, 0], 0, first : first + held, picked[i, 1]]
            _rotate(queries[row, i], rotation[held - 1], rotated, query)
            for j in range(size):
                query[j] *= scale
            for place in range(held):
                scores[place] = _product(query, keys[place])
            _softmax(scores[:held])
            for j in range(end - begin):
                attention[j] += scores[begin + j] / np.float32(named)
        _read(attention[: end - begin], step[slot], out[piece])


@_compiled
def _alignment(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _ALIGN)
    take(work.ctypes.data + _BEGUN)
    if work[0].size == 4:
        _align(work, floats_at(0))
    else:
        _align(work, bfloat16s_at(0))
    take(work.ctypes.data + _DONE)


@njit(fastmath=_FAST)
def _activate(values, alpha, inverse, active):  # type: ignore[no-untyped-def]
    for i in range(len(values)):
        active[i] = values[i] + _sine_squared(values[i] * alpha[i]) * inverse[i]


@_compiled
def _snake(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _SNAKE)
    take(work.ctypes.data + _BEGUN)
    call = work[0]
    positions, channels = call.positions, call.channels
    changed, masked = call.change != 0, call.mask != 0
    shape = (positions, channels)
    x, sums = carray(floats_at(call.x), shape), carray(floats_at(call.change), shape)
    active = carray(floats_at(call.active), shape)
    alpha, inverse = carray(floats_at(call.alpha), channels), carray(floats_at(call.inverse), channels)
    inside = carray(booleans_at(call.mask), positions)
    block = max(1, NUMBERS // channels)
    while True:
        first = take(work.ctypes.data) * block
        if first >= positions:
            break
        for position in range(first, min(first + block, positions)):
            values = x[position]
            if changed:
                values = sums[position]
                for i in range(channels):
                    values[i] += x[position, i]
            if not masked or inside[position]:
                _activate(values, alpha, inverse, active[position])
            else:
                active[position] = np.float32(0.0)
    take(work.ctypes.data + _DONE)


# What the engine calls.

_openmp = ctypes.CDLL(None)  # torch's own
_openmp.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
_PAUSE_SOFTLY = 1  # keeping its settings


def _run(kernel: Any, call: Any) -> None:
    """Runs a kernel on as many threads as torch would use.

    Raises RuntimeError when a thread has not done its part; its exception has been printed.
    """
    _openmp.GOMP_parallel(kernel.address, ctypes.addressof(call), torch.get_num_threads(), 0)
    if call.begun != call.done:
        raise RuntimeError(f"{call.begun - call.done} of {call.begun} threads of a kernel failed")


def _address(tensor: Tensor | None) -> int:
    """Where a tensor's numbers are; 0 without one."""
    if tensor is None:
        return 0
    assert tensor.device.type == "cpu"
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def release_threads() -> None:
    """Ends the OpenMP team of the calling thread; its next parallel region makes a new one.

    libgomp counts the threads of all teams, and if they are more than the cores, none of them busy-waits. Then each
    region of one network waits for the system's scheduler twice, because of another's idle team.
    """
    _openmp.omp_pause_resource_all(_PAUSE_SOFTLY)


def project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 0.0,
    activation: Activation = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """A `linear.Projection` of x, [rows, inputs], inputs a multiple of CPU_GRAIN. Returns [rows, outputs]: `residual`,
    which is overwritten, or a new tensor without one."""
    assert all(it is None or it.dtype == x.dtype for it in (weight, bias, gain, shift, residual)), "all of one type"
    assert bias is None or activation != "swiglu", "a gate has no bias"
    rows, inputs = x.shape
    outputs = len(weight) // (2 if activation == "swiglu" else 1)
    x = x.contiguous()
    out = x.new_empty(rows, outputs) if residual is None else residual
    call = ProjectCall(
        size=x.element_size(),
        rows=rows,
        inputs=inputs,
        outputs=outputs,
        x=_address(x),
        weight=_address(weight),
        bias=_address(bias),
        gain=_address(gain),
        shift=_address(shift),
        residual=_address(residual),
        out=_address(out),
        norm=0 if gain is None else _NORM if shift is None else _SHIFTED_NORM,
        activation=_ACTIVATIONS[activation],
        eps=eps,
    )
    _run(_project, call)
    return out


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
        size=qkv.element_size(),
        rows=rows,
        heads=heads,
        head_dim=head_dim,
        positions=len(keys),
        qkv=_address(qkv),
        rotation=_address(rotation),
        keys=_address(keys),
        values=_address(values),
        start=_address(start),
        position=_address(position),
        out=_address(out),
    )
    _run(_decode_attention, call)
    return out


def snake(
    x: Tensor, alpha: Tensor, inverse: Tensor, mask: Tensor | None, *, change: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `s3gen.snake_cuda.snake`; `change` is overwritten by the sum."""
    assert x.dtype == torch.float32
    x, active = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    change = None if change is None else change.contiguous()
    rows, positions, channels = x.shape
    call = SnakeCall(
        positions=rows * positions,
        channels=channels,
        x=_address(x),
        change=_address(change),
        mask=_address(mask),
        alpha=_address(alpha),
        inverse=_address(inverse),
        active=_address(active),
    )
    _run(_snake, call)
    return x if change is None else change, active


def alignment(
    pool: Tensor,
    picked: Tensor,
    queries: Tensor,
    rotation: Tensor | None,
    places: tuple[Tensor, Tensor, Tensor],
    prompt: Tensor,
    step: Tensor,
    text: Tensor,
    out: Tensor,
    longest: int,
) -> None:
    """As `alignment_cuda.score` and `reduce`, without the logits; longest: positions of a row at most."""
    slot, row, start = (place.contiguous() for place in places)
    assert queries.dtype == pool.dtype
    layers, _, positions, heads, head_dim = pool.shape
    call = AlignCall(
        size=pool.element_size(),
        utterances=len(slot),
        rows=len(start),
        slots=len(prompt),
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        positions=positions,
        longest=longest,
        named=len(picked),
        readings=out.shape[1],
        pool=_address(pool),
        picked=_address(picked),
        queries=_address(queries),
        rotation=_address(rotation),
        slot=_address(slot),
        row=_address(row),
        start=_address(start),
        prompt=_address(prompt),
        step=_address(step),
        text=_address(text),
        out=_address(out),
    )
    _run(_alignment, call)
