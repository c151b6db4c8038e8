"""Kernels of our own for a CPU, in numba: what torch and its libraries are slow at there.

numba compiles the loops for the processor that it finds and keeps the code, in `NUMBA_CACHE_DIR` or beside this file;
it notices changes of this file alone, so they are all here. The innermost loop of a product is written in LLVM's own
vectors, as what counts in it is what stays in registers. A kernel is a C function of one array of int64: counters, then
numbers and addresses of tensors. Each thread of torch's own OpenMP team runs it, and takes the next piece of work by
the first counter until none is left: a thread that another process holds up leaves what it has not begun to the others.
The other two count the threads that have begun and those that are done, as what a thread raises goes no further.

In which order a result's products are added does not depend on how many results there are: a row has the same bits in
any company. Tensors are float32, or all of a call bfloat16, which needs no hardware for it; sums are float32.
"""

from __future__ import annotations

import ctypes
import struct
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
"""Floats of a vector."""
ROWS, OUTPUTS = 4, 3
"""Of one turn over a matrix: twelve sums, three vectors of weights and one of inputs are sixteen registers."""
PIECE = 8 * OUTPUTS
"""Outputs of a piece of work: their weights stay in the cache while all rows are multiplied with them."""
HEADS = 6
"""Of a piece of attention: neighbours in memory, which reads them in one go."""
NUMBERS = 1 << 14
"""Of a piece of an activation."""

_FAST = {"reassoc", "contract", "nsz"}  # LLVM may add in another order, but NaN and infinity stay
_I16, _I32, _I64, _FLOAT = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)


# LLVM instructions that numba has no words for. bfloat16 is uint16 to it.


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
    """The address as a pointer of the kind of another one."""
    return kind(types.int64, kind), _number_to_pointer


@intrinsic
def take(_context, counter):  # type: ignore[no-untyped-def]
    """The number at an address, which becomes one more; the threads get different ones."""

    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "monotonic")

    return types.int64(types.int64), generate


_BEGUN, _DONE = 8, 16
"""Where the other counters are, in bytes behind the first one."""


@intrinsic
def float_of(_context, bits):  # type: ignore[no-untyped-def]
    return types.float32(types.int32), lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], _FLOAT)


@intrinsic
def bits_of(_context, number):  # type: ignore[no-untyped-def]
    return types.int32(types.float32), lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], _I32)


@intrinsic
def dots(_context, table, inputs, weights):  # type: ignore[no-untyped-def]
    """The dot products of four rows and three rows of weights, `inputs` long.

    table: int64, the addresses of the rows of float32, of the weights and of the results, [4, PIECE] float32, of which
    three of a row are written; weights: an array of their type.
    """
    bfloat16, size = weights.dtype == types.uint16, weights.dtype.bitwidth // 8

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        table, inputs = arguments[:2]
        known = builder.module.globals

        def function(name: str, result: Any, *parameters: Any) -> Any:
            return known.get(name) or ir.Function(builder.module, ir.FunctionType(result, parameters), name)

        def behind(address: Any, numbers: Any, size: int) -> Any:
            return builder.add(address, builder.mul(numbers, ir.Constant(_I64, size)))

        def load(address: Any, kind: Any, size: int) -> Any:
            value = builder.load(builder.inttoptr(address, kind.as_pointer()))
            value.align = size
            return value

        def load_weights(address: Any) -> Any:
            if not bfloat16:
                return load(address, _VECTOR, 4)
            wide = builder.zext(load(address, ir.VectorType(_I16, LANES), 2), ir.VectorType(_I32, LANES))
            return builder.bitcast(builder.shl(wide, ir.Constant(wide.type, [16] * LANES)), _VECTOR)

        multiply_add = function(f"llvm.fmuladd.v{LANES}f32", _VECTOR, _VECTOR, _VECTOR, _VECTOR)
        add_up = function(f"llvm.vector.reduce.fadd.v{LANES}f32", _FLOAT, _FLOAT, _VECTOR)
        byte = ir.IntType(8).as_pointer()
        prefetch = function("llvm.prefetch.p0", ir.VoidType(), byte, _I32, _I32, _I32)
        for_reading = [ir.Constant(_I32, flag) for flag in (0, 3, 1)]

        addresses = [load(behind(table, ir.Constant(_I64, i), 8), _I64, 8) for i in range(ROWS + OUTPUTS + 1)]
        rows, matrix, results = addresses[:ROWS], addresses[ROWS:-1], addresses[-1]
        zeros = ir.Constant(_VECTOR, [0.0] * LANES)
        sums = [[cgutils.alloca_once_value(builder, zeros) for _ in matrix] for _ in rows]  # registers in the end
        step = ir.Constant(_I64, LANES)
        with cgutils.for_range(builder, builder.sdiv(inputs, step)) as loop:
            place = builder.mul(loop.index, step)
            factors = [load_weights(behind(one, place, size)) for one in matrix]
            for one in matrix:  # memory brings the next turn's weights meanwhile
                coming = behind(behind(one, place, size), inputs, OUTPUTS * size)
                builder.call(prefetch, [builder.inttoptr(coming, byte), *for_reading])
            for row, totals in zip(rows, sums, strict=True):
                values = load(behind(row, place, 4), _VECTOR, 4)
                for total, factor in zip(totals, factors, strict=True):
                    builder.store(builder.call(multiply_add, [values, factor, builder.load(total)]), total)
        for row, totals in enumerate(sums):
            for output, total in enumerate(totals):
                arguments = [ir.Constant(_FLOAT, 0.0), builder.load(total)]
                place = behind(results, ir.Constant(_I64, row * PIECE + output), 4)
                added = builder.call(add_up, arguments, fastmath=("reassoc",))
                builder.store(added, builder.inttoptr(place, _FLOAT.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, weights), generate


# Functions of one number, of which LLVM makes vectors.


def _wide(_number: Any) -> Any:
    """A float32, or the bits of a bfloat16, as float32."""


@overload(_wide)
def _wide_of(number):  # type: ignore[no-untyped-def]
    if number == types.uint16:
        return lambda number: float_of(np.int32(number) << np.int32(16))
    return lambda number: number


def _narrow(_number: Any, _like: Any) -> Any:
    """A float32 as an array holds it: as it is, or the bits of the nearest bfloat16."""


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
    """e^x of a float32, or of what is nearest within 87 of zero: a power of two times Taylor's polynomial."""
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
    """sin(x)^2 of a float32. Its period is pi, which is taken away in three parts (Cody and Waite)."""
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


# Kernels, each behind its parts. `given` is the array of numbers and addresses.
# Those for both types choose by themselves: numba keeps no code of a function that is given another one.


def _compiled(kernel: Any) -> Any:
    """The C function, kept where numba finds a folder to write to."""
    declared = types.void(types.CPointer(types.int64))
    try:
        return cfunc(declared, cache=True)(kernel)
    except RuntimeError:  # there is none: a read-only installation and no home
        return cfunc(declared)(kernel)


_NORM, _SHIFTED_NORM = 1, 2
_THEN: dict[Activation, int] = {"none": 0, "gelu": 1, "swiglu": 2}
_GELU, _SWIGLU = _THEN["gelu"], _THEN["swiglu"]


@njit(fastmath=_FAST, error_model="numpy")
def _prepare(x, gain, shift, eps, norm, prepared):  # type: ignore[no-untyped-def]
    """A row as float32, normalised."""
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
def _finish(sums, gated, bias, has_bias, then, to, added, out):  # type: ignore[no-untyped-def]
    """Sums of a row to its results; gated: what SwiGLU's first sums are the gate of."""
    if has_bias:
        for i in range(len(out)):
            sums[i] += _wide(bias[i])
    if then == _GELU:
        for i in range(len(out)):
            y = sums[i]
            sums[i] = y * _sigmoid(np.float32(1.5957691216057308) * (y + np.float32(0.044715) * y * y * y))
    if then == _SWIGLU:
        for i in range(len(out)):
            sums[i] = sums[i] * _sigmoid(sums[i]) * gated[i]
    if added:
        for i in range(len(out)):
            sums[i] += _wide(to[i])
    for i in range(len(out)):
        out[i] = _narrow(sums[i], out)


@njit
def _products(given, kind):  # type: ignore[no-untyped-def]
    rows, inputs, outputs, x_at, weight_at, bias_at, gain_at, shift_at, eps_bits, norm, then, to_at, out_at = given[
        3:-1
    ]
    x = carray(at(x_at, kind), (rows, inputs))
    halves = 2 if then == _SWIGLU else 1
    weight = carray(at(weight_at, kind), (halves * outputs, inputs))
    bias = carray(at(bias_at, kind), outputs)
    gain, shift = carray(at(gain_at, kind), inputs), carray(at(shift_at, kind), inputs)
    to, out = carray(at(to_at, kind), (rows, outputs)), carray(at(out_at, kind), (rows, outputs))
    prepared = np.empty((rows, inputs), np.float32)  # by every thread, which is quicker than to wait for another
    for row in range(rows):
        _prepare(x[row], gain, shift, float_of(np.int32(eps_bits)), norm, prepared[row])
    sums = np.empty((2, ROWS, PIECE), np.float32)
    table = np.empty(ROWS + OUTPUTS + 1, np.int64)
    while True:
        first = take(given.ctypes.data) * PIECE
        if first >= outputs:
            break
        last = min(first + PIECE, outputs)
        for base in range(0, rows, ROWS):
            for i in range(ROWS):  # what there is not is the last one once more
                table[i] = prepared[min(base + i, rows - 1)].ctypes.data
            for half in range(halves):
                for output in range(first, last, OUTPUTS):
                    for i in range(OUTPUTS):
                        table[ROWS + i] = weight[half * outputs + min(output + i, outputs - 1)].ctypes.data
                    table[-1] = sums[half, 0, output - first :].ctypes.data
                    dots(table.ctypes.data, inputs, weight)
            for row in range(base, min(base + ROWS, rows)):
                own, added = sums[:, row - base], to[row, first:last]
                _finish(own[0], own[1], bias[first:last], bias_at != 0, then, added, to_at != 0, out[row, first:last])


@_compiled
def _project(arguments):  # type: ignore[no-untyped-def]
    given = carray(arguments, 17)
    take(given.ctypes.data + _BEGUN)
    if given[-1] == 4:
        _products(given, floats_at(0))
    else:
        _products(given, bfloat16s_at(0))
    take(given.ctypes.data + _DONE)


@njit(fastmath=_FAST)
def _turn(vector, rotation, rotated, turned):  # type: ignore[no-untyped-def]
    """A query or key of one head as float32, rotated in transformers' half-split form where there is a rotation."""
    half = len(vector) // 2
    for i in range(half):
        first, second = _wide(vector[i]), _wide(vector[half + i])
        if rotated:
            cos, sin = _wide(rotation[0, i]), _wide(rotation[1, i])
            first, second = first * cos - second * sin, second * cos + first * sin
        turned[i], turned[half + i] = first, second


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


@njit(fastmath=_FAST)
def _add_share(share, value, mixed):  # type: ignore[no-untyped-def]
    for i in range(len(mixed)):
        mixed[i] += share * _wide(value[i])


@njit
def _attend(given, kind):  # type: ignore[no-untyped-def]
    rows, heads, size, positions, qkv_at, rotation_at, keys_at, values_at, start_at, position_at, out_at = given[3:-1]
    qkv, out = carray(at(qkv_at, kind), (rows, 3, heads, size)), carray(at(out_at, kind), (rows, heads, size))
    rotation = carray(at(rotation_at, kind), (rows, 2, size // 2))
    pool = (positions, heads, size)
    keys, values = carray(at(keys_at, kind), pool), carray(at(values_at, kind), pool)
    start, position = carray(integers_at(start_at), rows), carray(integers_at(position_at), rows)
    scale = np.float32(1.0 / np.sqrt(size))
    query, mixed = np.empty((HEADS, size), np.float32), np.empty((HEADS, size), np.float32)
    key = np.empty(size, np.float32)
    scores = np.empty((HEADS, position.max() + 1), np.float32)
    groups = -(-heads // HEADS)
    while True:
        piece = take(given.ctypes.data)
        if piece >= rows * groups:
            break
        row, base = piece // groups, piece % groups * HEADS
        count, held = min(HEADS, heads - base), position[row] + 1
        if start[row] < 0 or held < 1 or start[row] + held > positions:
            raise IndexError("a row's positions are not in the pool")
        own_keys, own_values = keys[start[row] : start[row] + held], values[start[row] : start[row] + held]
        for i in range(count):
            _turn(qkv[row, 0, base + i], rotation[row], rotation_at != 0, query[i])
            _turn(qkv[row, 1, base + i], rotation[row], rotation_at != 0, key)
            for j in range(size):
                query[i, j] *= scale
                own_keys[held - 1, base + i, j] = _narrow(key[j], keys)
                own_values[held - 1, base + i, j] = qkv[row, 2, base + i, j]
        for place in range(held):
            for i in range(count):
                scores[i, place] = _product(query[i], own_keys[place, base + i])
        for i in range(count):
            _softmax(scores[i, :held])
            mixed[i] = np.float32(0.0)
        for place in range(held):
            for i in range(count):
                _add_share(scores[i, place], own_values[place, base + i], mixed[i])
        for i in range(count):
            for j in range(size):
                out[row, base + i, j] = _narrow(mixed[i, j], out)


@_compiled
def _decode_attention(arguments):  # type: ignore[no-untyped-def]
    given = carray(arguments, 15)
    take(given.ctypes.data + _BEGUN)
    if given[-1] == 4:
        _attend(given, floats_at(0))
    else:
        _attend(given, bfloat16s_at(0))
    take(given.ctypes.data + _DONE)


@njit(fastmath=_FAST)
def _activate(values, alpha, inverse, active):  # type: ignore[no-untyped-def]
    for i in range(len(values)):
        active[i] = values[i] + _sine_squared(values[i] * alpha[i]) * inverse[i]


@_compiled
def _snake(arguments):  # type: ignore[no-untyped-def]
    given = carray(arguments, 11)
    take(given.ctypes.data + _BEGUN)
    positions, channels, x_at, change_at, mask_at, alpha_at, inverse_at, active_at = given[3:]
    shape = (positions, channels)
    x, sums, active = (
        carray(floats_at(x_at), shape),
        carray(floats_at(change_at), shape),
        carray(floats_at(active_at), shape),
    )
    alpha, inverse = carray(floats_at(alpha_at), channels), carray(floats_at(inverse_at), channels)
    inside = carray(booleans_at(mask_at), positions)
    block = max(1, NUMBERS // channels)
    while True:
        first = take(given.ctypes.data) * block
        if first >= positions:
            break
        for position in range(first, min(first + block, positions)):
            values = x[position]
            if change_at != 0:
                values = sums[position]
                for i in range(channels):
                    values[i] += x[position, i]
            if mask_at == 0 or inside[position]:
                _activate(values, alpha, inverse, active[position])
            else:
                active[position] = np.float32(0.0)
    take(given.ctypes.data + _DONE)


# What the engine calls.

_openmp = ctypes.CDLL(None)  # torch's own
_openmp.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
_PAUSE_SOFTLY = 1  # keeping its settings


def _run(kernel: Any, *arguments: int | Tensor | None) -> None:
    """Runs a kernel on as many threads as torch would take. Of a tensor it is told the address, and 0 for none.

    Raises RuntimeError when a thread has not done its part; what it raised has been printed.
    """
    tensors = [it for it in arguments if isinstance(it, Tensor)]
    assert all(it.device.type == "cpu" and it.is_contiguous() for it in tensors), "a kernel reads memory as it lies"
    numbers = [it.data_ptr() if isinstance(it, Tensor) else it or 0 for it in arguments]
    given = (ctypes.c_int64 * (3 + len(numbers)))(0, 0, 0, *numbers)
    _openmp.GOMP_parallel(kernel.address, given, torch.get_num_threads(), 0)
    _, begun, done, *_ = given
    if begun != done:
        raise RuntimeError(f"{begun - done} of {begun} threads of a kernel failed")


def release_threads() -> None:
    """Ends the OpenMP team of the calling thread; its next region makes a new one.

    libgomp counts the threads of all teams, and where they are more than the cores none of them waits awake. Then each
    region of one network waits for the system's scheduler twice, because of another's team that has nothing to do.
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
    then: Activation = "none",
    to: Tensor | None = None,
) -> Tensor:
    """As `linear.project`, of x [rows, inputs], inputs a multiple of `linear.CPU_GRAIN`; new, [rows, outputs]."""
    assert all(it is None or it.dtype == x.dtype for it in (weight, bias, gain, shift, to)), "all of one type"
    assert bias is None or then != "swiglu", "no gate has a bias"
    rows, inputs = x.shape
    outputs = len(weight) // (2 if then == "swiglu" else 1)
    x, to = x.contiguous(), None if to is None else to.contiguous()
    out = x.new_empty(rows, outputs)
    norm = 0 if gain is None else _NORM if shift is None else _SHIFTED_NORM
    (eps_bits,) = struct.unpack("=i", struct.pack("=f", eps))
    numbers = (eps_bits, norm, _THEN[then])
    _run(_project, rows, inputs, outputs, x, weight, bias, gain, shift, *numbers, to, out, x.element_size())
    return out


def decode_attention(
    qkv: Tensor, rotation: Tensor | None, keys: Tensor, values: Tensor, start: Tensor, position: Tensor
) -> Tensor:
    """As `attention.decode_attention`; keys, values: a layer's, [positions, heads, head_dim]."""
    qkv, rotation = qkv.contiguous(), None if rotation is None else rotation.contiguous()
    assert qkv.dtype == keys.dtype == values.dtype
    assert start.dtype == position.dtype == torch.int64
    rows, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(rows, heads, head_dim)
    tensors = (qkv, rotation, keys, values, start.contiguous(), position.contiguous(), out)
    _run(_decode_attention, rows, heads, head_dim, len(keys), *tensors, qkv.element_size())
    return out


def snake(
    x: Tensor, alpha: Tensor, inverse: Tensor, mask: Tensor | None, *, change: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `s3gen.snake_cuda.snake`; the change becomes the sum."""
    assert x.dtype == torch.float32
    x, active = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    change = None if change is None else change.contiguous()
    rows, positions, width = x.shape
    _run(_snake, rows * positions, width, x, change, mask, alpha, inverse, active)
    return x if change is None else change, active
