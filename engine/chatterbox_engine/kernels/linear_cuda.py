"""Triton kernels of a block's products: the whole of a product for few rows, and a gated layer's activation.

A decode step of few rows reads every matrix once and computes next to nothing. What it takes is memory's time and, of
hundreds of kernels, the time between them. So the norm before a product and what comes behind it are parts of its
kernel. A row's norm is a factor of the sum: squares are summed beside the products, and the result is scaled. There are
two kernels:

- One to four rows: sums of products in float32, without tensor cores. The matrix goes from memory to registers while
  the kernel before this one is still at work (`overlap_cuda`), and each number of it is used for all rows.
- Up to sixteen: tensor cores. A layer norm's mean is taken away first, as products of bfloat16 would round what it
  hides, and what the norm adds is the matrix's product with its shift, one row more. The warps of a program share the
  inputs between them, as there are too few outputs for all of them.

`TRITON_INTERPRET=1` runs them on the CPU, which is how they are tested where there is no GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chatterbox_engine.kernels.overlap_cuda import overlaps, start_next
from chatterbox_engine.kernels.shapes import FEW_ROWS, SHIFT_ROWS, Activation

FEWEST_ROWS = 4
"""Up to which a matrix is multiplied without tensor cores: of English one step of two utterances."""
SUM_WIDTH = 4
"""Outputs of a program of that kernel: its part of the matrix is held in registers."""
SUM_WARP = 256
"""Inputs of one of its warps."""
WARPS = 4
STEP = 64
"""Inputs of one warp in one turn of its loop."""
PROGRAMS = 192
"""That keep the multiprocessors of a large GPU busy, where there are outputs enough."""
SHARED = 80 << 10
"""Bytes of shared memory for what is loaded ahead, at most: a program has 99 KiB on the smallest GPUs with bfloat16."""
BLOCK = 1024


@triton.jit
def _inputs_of(x, row, place, rows, inputs: tl.constexpr):  # type: ignore[no-untyped-def]
    """[parts, rows, step]"""
    inside = (row[None, :, None] < rows) & (place[:, None, :] < inputs)
    return tl.load(x + row[None, :, None] * inputs + place[:, None, :], mask=inside, other=0.0)


@triton.jit
def _weights_of(weight, column, place, end, inputs: tl.constexpr):  # type: ignore[no-untyped-def]
    """[parts, step, columns]"""
    inside = (column[None, None, :] < end) & (place[:, :, None] < inputs)
    return tl.load(weight + column[None, None, :] * inputs + place[:, :, None], mask=inside, other=0.0)


@triton.jit
def _means(x, row, place, rows, inputs: tl.constexpr, turn: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of each row, [1, rows, 1]."""
    total = _inputs_of(x, row, place, rows, inputs).to(tl.float32)
    for offset in range(turn, inputs, turn):
        total += _inputs_of(x, row, offset + place, rows, inputs).to(tl.float32)
    return (tl.sum(tl.sum(total, axis=2), axis=0) / inputs)[None, :, None]


@triton.jit
def _activated(y, z, then: tl.constexpr):  # type: ignore[no-untyped-def]
    if then == "swiglu":
        y = y * tl.sigmoid(y) * z
    elif then == "gelu":  # in its tanh form
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    return y


@triton.jit
def _add1(a, b):  # type: ignore[no-untyped-def]
    return a + b


@triton.jit
def _add2(a, b, c, d):  # type: ignore[no-untyped-def]
    return a + c, b + d


@triton.jit
def _add3(a, b, c, d, e, f):  # type: ignore[no-untyped-def]
    return a + d, b + e, c + f


@triton.jit
def _add4(a, b, c, d, e, f, g, h):  # type: ignore[no-untyped-def]
    return a + e, b + f, c + g, d + h


@triton.jit
def _sums(rows, axis: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of each tensor of a tuple, all in one reduction: the warps wait for each other once."""
    if len(rows) == 1:
        sums = (tl.reduce(rows[0], axis, _add1),)
    elif len(rows) == 2:
        sums = tl.reduce((rows[0], rows[1]), axis, _add2)
    elif len(rows) == 3:
        sums = tl.reduce((rows[0], rows[1], rows[2]), axis, _add3)
    else:
        sums = tl.reduce((rows[0], rows[1], rows[2], rows[3]), axis, _add4)
    return sums


@triton.jit
def _rows_of(at, inside, stride, rows: tl.constexpr):  # type: ignore[no-untyped-def]
    """What stands there in each row, in float32: a tuple, as `stride` apart in memory."""
    given = ()
    for row in tl.static_range(rows):
        given = given + (tl.load(at + row * stride, mask=inside, other=0.0).to(tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    return given


@triton.jit
def _centred(given, inside, inputs: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows less their means."""
    total = _sums(given, 0)
    centred = ()
    for row in tl.static_range(len(given)):
        centred = centred + (tl.where(inside, given[row] - total[row] / inputs, 0.0),)  # type: ignore[assignment]  # noqa: RUF005
    return centred


@triton.jit
def _products(matrix, given):  # type: ignore[no-untyped-def]
    """Sums of a matrix [columns, inputs] times each row [inputs]: a tuple of [columns]."""
    return _sums([matrix.to(tl.float32) * row[None, :] for row in given], 1)


@triton.jit
def _sum_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    gain,
    shift,
    to,
    out,
    eps,
    rows: tl.constexpr,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    then: tl.constexpr,
    width: tl.constexpr,
    size: tl.constexpr,
    overlapping: tl.constexpr,
):
    column = tl.program_id(0) * width + tl.arange(0, width)
    place = tl.arange(0, size)
    there = place < inputs
    written = column < outputs
    at = weight + column[:, None] * inputs + place[None, :]
    inside = written[:, None] & there[None, :]
    matrix = tl.load(at, mask=inside, other=0.0)
    if then == "swiglu":
        second = tl.load(at + outputs * inputs, mask=inside, other=0.0)
    if gain is not None:
        gains = tl.load(gain + place, mask=there, other=0.0).to(tl.float32)
    added = tl.zeros([width], dtype=tl.float32)
    if bias is not None:
        added += tl.load(bias + column, mask=written, other=0.0).to(tl.float32)
    if shift is not None:
        shifts = tl.load(shift + place, mask=there, other=0.0).to(tl.float32)
        added += tl.sum(matrix.to(tl.float32) * shifts[None, :], axis=1)
    start_next(overlapping)
    given = _rows_of(x + place, there, inputs, rows)
    if to is not None:
        before = _rows_of(to + column, written, outputs, rows)
    if shift is not None:
        given = _centred(given, there, inputs)
    if gain is not None:
        square = _sums([row * row for row in given], 0)
        given = [row * gains for row in given]
    y = _products(matrix, given)
    if then == "swiglu":
        z = _products(second, given)
    for row in tl.static_range(rows):
        result = y[row]
        other = result
        if then == "swiglu":
            other = z[row]
        if gain is not None:
            factor = tl.rsqrt(square[row] / inputs + eps)
            result = result * factor
            other = other * factor
        result = _activated(result + added, other, then)
        if to is not None:
            result += before[row]
        tl.store(out + row * outputs + column, result, mask=written)


@triton.jit
def _project_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    gain,
    shift,
    to,
    out,
    rows,
    eps,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    then: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    parts: tl.constexpr,
    step: tl.constexpr,
):
    column = tl.program_id(0) * width + tl.arange(0, width)
    row = tl.arange(0, height)
    place = tl.arange(0, parts)[:, None] * step + tl.arange(0, step)[None, :]
    total = tl.zeros([parts, height, width], dtype=tl.float32)
    other = tl.zeros([parts, height, width], dtype=tl.float32)  # the second half of a gated layer
    square = tl.zeros([parts, height, step], dtype=tl.float32)
    if shift is not None:
        mean = _means(x, row, place, rows, inputs, parts * step)
    for offset in range(0, inputs, parts * step):
        at = offset + place
        given = _inputs_of(x, row, at, rows, inputs)
        if gain is not None:
            wide = given.to(tl.float32)
            if shift is not None:
                wide = tl.where(at[:, None, :] < inputs, wide - mean, 0.0)
            square += wide * wide
            scaled = wide * tl.load(gain + at, mask=at < inputs, other=0.0).to(tl.float32)[:, None, :]
            if shift is not None:
                moved = tl.load(shift + at, mask=at < inputs, other=0.0).to(tl.float32)[:, None, :]
                scaled = tl.where(row[None, :, None] == rows, moved, scaled)
            given = scaled.to(x.dtype.element_ty)
        total = tl.dot(given, _weights_of(weight, column, at, outputs, inputs), total)
        if then == "swiglu":
            other = tl.dot(given, _weights_of(weight, outputs + column, at, 2 * outputs, inputs), other)
    y = tl.sum(total, axis=0)
    z = tl.sum(other, axis=0)
    if gain is not None:
        factor = tl.rsqrt(tl.sum(tl.sum(square, axis=2), axis=0) / inputs + eps)[:, None]
        normed = y * factor
        if shift is not None:
            normed += tl.sum(tl.where(row[:, None] == rows, y, 0.0), axis=0)[None, :]
        y = normed
        z = z * factor
    if bias is not None:
        y += tl.load(bias + column, mask=column < outputs, other=0.0).to(tl.float32)[None, :]
    y = _activated(y, z, then)
    inside = (row[:, None] < rows) & (column[None, :] < outputs)
    target = row[:, None] * outputs + column[None, :]
    if to is not None:
        y += tl.load(to + target, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + target, y, mask=inside)


@triton.jit
def _swiglu_kernel(x, out, width, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < width
    gate = tl.load(x + row * 2 * width + at, mask=inside).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + at, mask=inside).to(tl.float32)
    tl.store(out + row * width + at, _activated(gate, up, "swiglu"), mask=inside)


def project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    gain: Tensor | None,
    shift: Tensor | None,
    eps: float,
    then: Activation,
    to: Tensor | None,
) -> Tensor:
    """`linear.project` for at most FEW_ROWS rows, one less for a layer norm.

    x: [rows, inputs]; weight: [outputs, inputs], twice as many outputs for swiglu, which has neither shift nor bias;
    to: [rows, outputs], which becomes the result. All contiguous.
    """
    assert x.is_contiguous()
    assert weight.is_contiguous()
    assert len(x) <= FEW_ROWS - (0 if shift is None else SHIFT_ROWS)
    assert then != "swiglu" or (bias is None and shift is None)
    (rows, inputs), outputs = x.shape, len(weight) // (2 if then == "swiglu" else 1)
    out = x.new_empty(rows, outputs) if to is None else to
    assert out.is_contiguous()
    tensors = (x, weight, bias, gain, shift, to, out)
    if rows <= FEWEST_ROWS:
        size, overlapping = triton.next_power_of_2(inputs), overlaps(x.device)
        _sum_kernel[(triton.cdiv(outputs, SUM_WIDTH),)](
            *tensors,
            eps,
            rows=rows,
            inputs=inputs,
            outputs=outputs,
            then=then,
            width=SUM_WIDTH,
            size=size,
            overlapping=overlapping,
            num_warps=sum_warps(size),
            launch_pdl=overlapping,
        )
        return out
    width = tile_width(outputs)
    _project_kernel[(triton.cdiv(outputs, width),)](
        *tensors,
        rows,
        eps,
        inputs=inputs,
        outputs=outputs,
        then=then,
        height=FEW_ROWS,
        width=width,
        parts=WARPS,
        step=STEP,
        num_warps=WARPS,
        num_stages=stages(2 * width if then == "swiglu" else width),
    )
    return out


def sum_warps(size: int) -> int:
    """Warps of a program of `_sum_kernel` that takes so many inputs."""
    return max(1, min(8, size // SUM_WARP))


def tile_width(outputs: int) -> int:
    """Outputs of a program: a power of two from 8 to 32, so that there are PROGRAMS if possible."""
    return max(8, min(32, 1 << (outputs // PROGRAMS).bit_length() >> 1))


def stages(columns: int) -> int:
    """Turns of the loop whose bfloat16 numbers, those of the inputs and of so many of the matrix's rows, are loaded
    ahead."""
    return min(4, SHARED // (2 * WARPS * STEP * (FEW_ROWS + columns)))


def swiglu(x: Tensor) -> Tensor:
    """SiLU of the first half times the second: [..., 2 n], contiguous, to [..., n]."""
    assert x.is_contiguous()
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    _swiglu_kernel[(out.numel() // width, triton.cdiv(width, BLOCK))](x, out, width, block=BLOCK)
    return out
