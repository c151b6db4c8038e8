"""Products of a matrix with what stands before and after them.

Products of float16 are added in float16 at first, DEPTH of them for an output, because a processor that multiplies
float16 does twice as many of these multiply-adds as of float32's. Rounding every sum to eleven bits costs less than
rounding every factor to bfloat16's eight. A row is scaled by a power of two before, to at most 1/4: no sum exceeds
float16's range, whatever the row's size, with weights up to 255. Weights below 1e-4 lose precision.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64
from typing import Any

import numpy as np
import torch
from numba import carray, njit, types
from numba.extending import overload
from torch import Tensor

from chatterbox_engine.kernels.cpu.dots import BLOCKS, DEPTH, MANY_ROWS, OUTPUTS, PIECE, ROWS, few_dots, many_dots
from chatterbox_engine.kernels.cpu.launch import BEGUN, COUNTERS, DONE, Kernel, address, run
from chatterbox_engine.kernels.cpu.numbers import narrow, sigmoid, wide
from chatterbox_engine.kernels.cpu.results import store_piece, turn_few, turn_many
from chatterbox_engine.kernels.cpu.vectors import (
    CACHE_LINE,
    FAST,
    LANES,
    at,
    bfloat16s_at,
    bits_of,
    float16s_at,
    float_of,
    floats_at,
    take,
)
from chatterbox_engine.kernels.shapes import Activation

AHEAD = 3
"""Groups of outputs ahead of the current one whose weights are prefetched for a single block of rows."""
TOGETHER = 1 << 18
"""Inputs of the rows in a piece of work of a product: they stay in the second cache."""


class ProjectCall(ctypes.Structure):
    """out = residual + activation(norm(x) @ weight.T + bias)"""

    _fields_ = (
        *COUNTERS,
        ("rows", c_int64),
        ("inputs", c_int64),
        ("outputs", c_int64),  # of the result: the matrix has twice as many for swiglu
        ("run", c_int64),  # rows that are `step` apart, after which the next ones are `next_run` further on
        ("step", c_int64),  # in bytes
        ("next_run", c_int64),  # in bytes
        ("x", c_int64),  # [rows, inputs], float32 in any case if `wide_rows`
        ("weight", c_int64),  # [outputs or 2 outputs, inputs]
        ("bias", c_int64),  # [outputs]
        ("gain", c_int64),  # [inputs]
        ("shift", c_int64),  # [inputs]
        ("residual", c_int64),  # [rows, outputs], may be out
        ("out", c_int64),  # [rows, outputs], both float32 in any case if `wide_results`
        ("wide_rows", c_int64),
        ("wide_results", c_int64),
        ("norm", c_int64),  # 0, _NORM or _SHIFTED_NORM
        ("activation", c_int64),  # one of _ACTIVATIONS
        ("eps", c_float),
    )


_CALL = np.dtype(ProjectCall)
"""The same table for numba."""


_NORM, _SHIFTED_NORM = 1, 2
_ACTIVATIONS: dict[Activation, int] = {"none": 0, "gelu": 1, "swiglu": 2}
_GELU, _SWIGLU = _ACTIVATIONS["gelu"], _ACTIVATIONS["swiglu"]


@njit(fastmath=FAST, error_model="numpy")
def _prepare(x, gain, shift, eps, norm, prepared):  # type: ignore[no-untyped-def]
    """A row in float32, normalised: x [inputs] to prepared [inputs]."""
    size, mean, squares = np.float32(len(x)), np.float32(0.0), np.float32(0.0)
    for i in range(len(x)):
        prepared[i] = wide(x[i])
    if norm == _SHIFTED_NORM:
        for i in range(len(x)):
            mean += prepared[i]
        mean /= size
    if norm:
        for i in range(len(x)):
            squares += (prepared[i] - mean) * (prepared[i] - mean)
        factor = np.float32(1.0) / np.sqrt(squares / size + eps)
        for i in range(len(x)):
            prepared[i] = (prepared[i] - mean) * factor * wide(gain[i])
    if norm == _SHIFTED_NORM:
        for i in range(len(x)):
            prepared[i] += wide(shift[i])


def _room_for(_numbers: Any, _weight: Any) -> Any:
    """An array of zeros for rows as their products with a matrix take them, at the beginning of a cache line."""


@overload(_room_for)
def _room_for_of(numbers, weight):  # type: ignore[no-untyped-def]
    kind = np.int16 if weight.dtype == types.int16 else np.float32

    def room(numbers, weight):  # type: ignore[no-untyped-def]
        space = np.zeros(numbers + CACHE_LINE, kind)
        first = -space.ctypes.data % CACHE_LINE // space.itemsize
        return space[first : first + numbers]

    return room


def _scale(_row: Any, _kept: Any) -> Any:
    """The factor that a float32 row is multiplied with before it is kept, and that of its products' sums."""


@overload(_scale, jit_options={"fastmath": FAST})
def _scale_of(row, kept):  # type: ignore[no-untyped-def]
    if kept.dtype == types.float32:
        return lambda row, kept: (np.float32(1.0), np.float32(1.0))

    def power_of_two(row, kept):  # type: ignore[no-untyped-def]
        largest = np.int32(0)
        for i in range(len(row)):
            largest = max(largest, np.int32(bits_of(row[i]) & np.int32(0x7FFFFFFF)))
        # the largest number becomes 1/8 to 1/4, of a row beyond 2^124 more
        exponent = min(np.int32(largest & np.int32(0x7F800000)), np.int32(0x7D000000))
        return float_of(np.int32(0x7D800000) - exponent), float_of(exponent + np.int32(0x01800000))

    return power_of_two


@njit(fastmath=FAST)
def _keep(row, factor, kept):  # type: ignore[no-untyped-def]
    for i in range(len(row)):
        kept[i] = narrow(row[i] * factor, kept)


@njit(fastmath=FAST, error_model="numpy")
def _activate_sums(sums, up, activation):  # type: ignore[no-untyped-def]
    """up: the second half of SwiGLU's sums, of which `sums` is the gate."""
    if activation == _GELU:
        for i in range(len(sums)):
            y = sums[i]
            sums[i] = y * sigmoid(np.float32(1.5957691216057308) * (y + np.float32(0.044715) * y * y * y))
    if activation == _SWIGLU:
        for i in range(len(sums)):
            sums[i] = sums[i] * sigmoid(sums[i]) * up[i]


@njit
def _store_rows(turned, count, call, above, first, kind, size):  # type: ignore[no-untyped-def]
    """Stores `count` rows from `above` on of the outputs from `first` on, plus the residual. turned: [1 or 2, rows,
    PIECE]; kind: a pointer of the results' type; size: bytes of one."""
    outputs, residual, out = call.outputs, call.residual, call.out
    columns = min(PIECE, outputs - first)
    for i in range(count):
        place = ((above + i) * outputs + first) * size
        before, after = carray(at(residual + place, kind), columns), carray(at(out + place, kind), columns)
        if columns == PIECE:
            store_piece(turned.ctypes.data + i * PIECE * 4, residual + place if residual else 0, out + place, after)
        else:
            for j in range(columns):
                after[j] = narrow(turned[0, i, j] + wide(before[j]) if residual else turned[0, i, j], after)


@njit
def _prepare_rows(call, first, count, x_kind, gain, shift, own, rows, prepared, factors):  # type: ignore[no-untyped-def]
    """`count` rows from `first` on as the products take them, and the factors of their sums, [rows].

    x_kind: a pointer of x's type; own: [inputs] float32, overwritten; prepared: room for `rows` rows: DEPTH inputs of
    each, the next DEPTH of each, ...: neighbours in memory, which have different places in the cache.
    """
    inputs = call.inputs
    for i in range(count):
        run, place = divmod(first + i, call.run)
        x = carray(at(call.x + run * call.next_run + place * call.step, x_kind), inputs)
        _prepare(x, gain, shift, call.eps, call.norm, own)
        factor, factors[i] = _scale(own, prepared)
        for begin in range(0, inputs, DEPTH):
            depth = min(DEPTH, inputs - begin)
            kept = begin * rows + i * depth
            _keep(own[begin : begin + depth], factor, prepared[kept : kept + depth])


@njit
def _add_products(prepared, rows, weight, sums, base, first, last, following):  # type: ignore[no-untyped-def]
    """The products of the rows from `base` on with the outputs first .. last of each half of the matrix.

    prepared: as `_prepare_rows` leaves them; weight: [halves * outputs, inputs]; sums: [halves, blocks, PIECE, block],
    overwritten; following: the first of the outputs after these, whose weights arrive in the cache in equal parts while
    the blocks of rows are multiplied; of a single block, a few outputs earlier.
    """
    inputs = weight.shape[1]
    halves, _, _, block = sums.shape
    outputs, blocks = len(weight) // halves, rows // block
    sums[:] = np.float32(0.0)
    groups, some = -(-(last - first) // OUTPUTS), min(sums.shape[1], (rows - base) // block)
    step, size, row_size = weight.strides[0], weight.itemsize, prepared.itemsize
    vector = LANES * (4 if row_size == 2 else size)  # bytes of weights in an iteration
    ahead, fetch_step = (min(AHEAD, groups), vector) if blocks == 1 else (groups, vector // blocks)
    for begin in range(0, inputs, DEPTH):
        depth = min(DEPTH, inputs - begin)
        row, row_step = prepared.ctypes.data + (begin * rows + base * depth) * row_size, depth * row_size
        for half in range(halves):
            matrix = weight.ctypes.data + half * outputs * step + begin * size
            own, end = matrix + first * step, matrix + (last - 1) * step
            fetch = matrix + following * step + base // block * depth // blocks * size
            out = sums.ctypes.data + half * sums.strides[0]
            if block == ROWS:
                few_dots(
                    row, row_step, some, own, step, end, ahead, fetch, fetch_step, depth, groups, out, prepared, weight
                )
            else:
                many_dots(
                    row, row_step, some, own, step, end, ahead, fetch, fetch_step, depth, groups, out, prepared, weight
                )


@njit
def _finish_block(sums, own, factors, base, added, activation, turned):  # type: ignore[no-untyped-def]
    """The results of a block's sums before the residual: turned[0], of [2, rows, PIECE].

    sums: [halves, blocks, PIECE, rows], of which `own` is the block; factors: those of the rows from `base` on; added:
    the bias, [2, PIECE].
    """
    for half in range(len(sums)):
        totals = sums.ctypes.data + half * sums.strides[0] + own * sums.strides[1]
        scales, offsets = factors.ctypes.data + base * 4, added.ctypes.data + half * added.strides[0]
        if sums.shape[3] == ROWS:
            turn_few(totals, scales, offsets, turned.ctypes.data + half * turned.strides[0])
        else:
            turn_many(totals, scales, offsets, turned.ctypes.data + half * turned.strides[0])
    if activation:
        _activate_sums(turned[0].ravel(), turned[1].ravel(), activation)


@njit
def _products(work, kind):  # type: ignore[no-untyped-def]
    """A thread's pieces of a `ProjectCall`: PIECE outputs of some rows each. kind: a pointer of the tensors' type."""
    call = work[0]
    rows, inputs, outputs = call.rows, call.inputs, call.outputs
    halves = 2 if call.activation == _SWIGLU else 1
    weight, bias = carray(at(call.weight, kind), (halves * outputs, inputs)), carray(at(call.bias, kind), outputs)
    gain, shift = carray(at(call.gain, kind), inputs), carray(at(call.shift, kind), inputs)
    block = MANY_ROWS if rows > ROWS else ROWS
    most = max(1, TOGETHER // inputs // block) * block
    row, factors = np.empty(inputs, np.float32), np.zeros(most, np.float32)
    held = min(most, -(-rows // block) * block)
    prepared = _room_for(held * inputs, weight)
    sums, turned = np.empty((halves, BLOCKS, PIECE, block), np.float32), np.empty((2, block, PIECE), np.float32)
    added = np.zeros((2, PIECE), np.float32)  # a gate has no bias
    pieces, held_from = -(-outputs // PIECE), -1
    following = take(work.ctypes.data)
    while True:
        current, following = following, take(work.ctypes.data)
        part, piece = divmod(current, pieces)
        above, first = part * most, piece * PIECE
        if above >= rows:
            break
        count, last = min(most, rows - above), min(first + PIECE, outputs)
        if above != held_from:  # by every thread, which is faster than waiting for another
            if call.wide_rows:
                _prepare_rows(call, above, count, floats_at(0), gain, shift, row, held, prepared, factors)
            else:
                _prepare_rows(call, above, count, kind, gain, shift, row, held, prepared, factors)
            held_from = above
        if call.bias:
            for i in range(last - first):
                added[0, i] = wide(bias[first + i])
        for base in range(0, count, block):
            own, filled = base // block % BLOCKS, min(block, count - base)
            if own == 0:
                _add_products(prepared, held, weight, sums, base, first, last, following % pieces * PIECE)
            _finish_block(sums, own, factors, base, added, call.activation, turned)
            if call.wide_results:
                _store_rows(turned, filled, call, above + base, first, floats_at(0), 4)
            else:
                _store_rows(turned, filled, call, above + base, first, kind, weight.itemsize)


@Kernel
def _project_float32(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _CALL)
    take(work.ctypes.data + BEGUN)
    _products(work, floats_at(0))
    take(work.ctypes.data + DONE)


@Kernel
def _project_bfloat16(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _CALL)
    take(work.ctypes.data + BEGUN)
    _products(work, bfloat16s_at(0))
    take(work.ctypes.data + DONE)


@Kernel
def _project_float16(arguments):  # type: ignore[no-untyped-def]
    work = carray(arguments, 1, _CALL)
    take(work.ctypes.data + BEGUN)
    _products(work, float16s_at(0))
    take(work.ctypes.data + DONE)


KERNELS = {torch.float32: _project_float32, torch.bfloat16: _project_bfloat16, torch.float16: _project_float16}
"""By the type of the weights."""


class Product:
    """A matrix and what is fused with its products, ready for calls: a step of T3 makes a hundred of them in 50 ms."""

    def __init__(
        self,
        weight: Tensor,  # [outputs, inputs], twice as many outputs for swiglu; inputs: see `linear.suits_cpu_kernel`
        bias: Tensor | None = None,  # [outputs]
        *,
        gain: Tensor | None = None,  # [inputs]
        shift: Tensor | None = None,  # [inputs]
        eps: float = 0.0,
        activation: Activation = "none",
    ) -> None:
        assert all(it is None or it.dtype == weight.dtype for it in (bias, gain, shift)), "all of one type"
        assert bias is None or activation != "swiglu", "a gate has no bias"
        self._tensors = (weight, bias, gain, shift)  # whose addresses the call has
        self._dtype = weight.dtype
        self._outputs = weight.shape[0] // (2 if activation == "swiglu" else 1)
        self._fixed = ProjectCall(
            inputs=weight.shape[1],
            outputs=self._outputs,
            weight=address(weight),
            bias=address(bias),
            gain=address(gain),
            shift=address(shift),
            norm=0 if gain is None else _NORM if shift is None else _SHIFTED_NORM,
            activation=_ACTIVATIONS[activation],
            eps=eps,
        )

    def __call__(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """A `linear.Projection` of x, [rows, inputs] or [runs, rows, inputs]. Returns [..., outputs]: `out`, by default
        `residual`, or a new tensor without one.

        Beside float16 weights x may be float32, and `residual` and `out` too. Rows of x may overlap: only the inputs of
        one are neighbours in memory.
        """
        dtype, shape, size = self._dtype, x.shape, x.element_size()
        assert x.dtype == dtype or (x.dtype == torch.float32 and dtype == torch.float16)
        if x.stride(-1) != 1:
            x = x.contiguous()
        call = ProjectCall.from_buffer_copy(self._fixed)
        if residual is not None:
            call.residual = address(residual)
            out = residual if out is None else out
        if out is None:
            out = torch.empty((*shape[:-1], self._outputs), dtype=dtype)
            call.out = out.data_ptr()
        else:
            assert residual is None or residual.dtype == out.dtype
            call.out = address(out)
        call.x, call.run, call.step = x.data_ptr(), shape[-2], x.stride(-2) * size
        call.rows = call.run
        if len(shape) == 3:
            call.rows, call.next_run = shape[0] * shape[1], x.stride(0) * size
        call.wide_rows, call.wide_results = x.dtype != dtype, out.dtype != dtype
        run(KERNELS[dtype], call)
        return out
