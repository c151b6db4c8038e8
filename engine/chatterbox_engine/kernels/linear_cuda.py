"""Triton kernels of a block's products: a fused product for few rows, and a gated layer's activation.

A decode step of few rows reads every matrix once and computes almost nothing: it is bound by memory bandwidth and by
the gaps between hundreds of kernels. So the norm before a product, and the bias, activation and residual after it, are
parts of its kernel. Row r of the result is

    y[r] = residual[r] + activation(f[r] * (x[r] * gain) @ weight.T + shift @ weight.T + bias)
    f[r] = 1 / sqrt(mean(x[r] ** 2) + eps)

where x[r] has its mean subtracted if the norm has a shift. f is a factor of the whole sum, so the squares are
accumulated with the products and the result is scaled at the end. There are two kernels:

- One to four rows: float32 sums of products, without tensor cores. The matrix goes from memory to registers while the
  kernel before this one is still running (`overlap_cuda`), and each of its numbers is used for all rows.
- Up to sixteen: tensor cores. The mean is subtracted first, because bfloat16 products would round away small deviations
  from it; shift @ weight.T is one more row of the tile. The warps of a program split the inputs between them, as there
  are too few outputs for all of them.

`TRITON_INTERPRET=1` runs them on the CPU, which is how they are tested where there is no GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chatterbox_engine.kernels.overlap_cuda import overlaps, start_next
from chatterbox_engine.kernels.shapes import FEW_ROWS, SHIFT_ROWS, Activation

FEWEST_ROWS = 4
"""Maximum number of rows for the kernel without tensor cores: a step of two guided utterances."""
SUM_WIDTH = 4
"""Outputs per program of that kernel: its part of the matrix fits in registers."""
SUM_WARP = 256
"""Inputs per warp of that kernel."""
WARPS = 4
STEP = 64
"""Inputs per warp and iteration of the kernel with tensor cores."""
PROGRAMS = 192
"""Programs that keep the multiprocessors of a large GPU busy, where there are enough outputs."""
SHARED = 80 << 10
"""Bytes of shared memory for prefetched tiles, at most: a program has 99 KiB on the smallest GPUs with bfloat16."""
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
    """The sum of each row, [1, rows, 1]."""
    total = _inputs_of(x, row, place, rows, inputs).to(tl.float32)
    for offset in range(turn, inputs, turn):
        total += _inputs_of(x, row, offset + place, rows, inputs).to(tl.float32)
    return (tl.sum(tl.sum(total, axis=2), axis=0) / inputs)[None, :, None]


@triton.jit
def _activated(y, z, activation: tl.constexpr):  # type: ignore[no-untyped-def]
    if activation == "swiglu":
        y = y * tl.sigmoid(y) * z
    elif activation == "gelu":  # in its tanh form
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
    """The sum of each tensor of a tuple, in one reduction: the warps synchronise once."""
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
    """The rows that start `stride` apart in memory, in float32: a tuple."""
    loaded = ()
    for row in tl.static_range(rows):
        loaded = loaded + (tl.load(at + row * stride, mask=inside, other=0.0).to(tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    return loaded


@triton.jit
def _centred(rows, inside, inputs: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows with their means subtracted."""
    total = _sums(rows, 0)
    centred = ()
    for row in tl.static_range(len(rows)):
        centred = centred + (tl.where(inside, rows[row] - total[row] / inputs, 0.0),)  # type: ignore[assignment]  # noqa: RUF005
    return centred


@triton.jit
def _products(matrix, rows):  # type: ignore[no-untyped-def]
    """The product of a matrix [columns, inputs] with each row [inputs]: a tuple of [columns]."""
    return _sums([matrix.to(tl.float32) * row[None, :] for row in rows], 1)


@triton.jit
def _sum_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    gain,
    shift,
    residual,
    out,
    eps,
    rows: tl.constexpr,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    activation: tl.constexpr,
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
    if activation == "swiglu":
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
    values = _rows_of(x + place, there, inputs, rows)
    if residual is not None:
        residuals = _rows_of(residual + column, written, outputs, rows)
    if shift is not None:
        values = _centred(values, there, inputs)
    if gain is not None:
        square = _sums([row * row for row in values], 0)
        values = [row * gains for row in values]
    y = _products(matrix, values)
    if activation == "swiglu":
        z = _products(second, values)
    for row in tl.static_range(rows):
        result = y[row]
        other = result
        if activation == "swiglu":
            other = z[row]
        if gain is not None:
            factor = tl.rsqrt(square[row] / inputs + eps)
            result = result * factor
            other = other * factor
        result = _activated(result + added, other, activation)
        if residual is not None:
            result += residuals[row]
        tl.store(out + row * outputs + column, result, mask=written)


@triton.jit
def _project_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    gain,
    shift,
    residual,
    out,
    rows,
    eps,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    activation: tl.constexpr,
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
        values = _inputs_of(x, row, at, rows, inputs)
        if gain is not None:
            wide = values.to(tl.float32)
            if shift is not None:
                wide = tl.where(at[:, None, :] < inputs, wide - mean, 0.0)
            square += wide * wide
            scaled = wide * tl.load(gain + at, mask=at < inputs, other=0.0).to(tl.float32)[:, None, :]
            if shift is not None:
                moved = tl.load(shift + at, mask=at < inputs, other=0.0).to(tl.float32)[:, None, :]
                scaled = tl.where(row[None, :, None] == rows, moved, scaled)
            values = scaled.to(weight.dtype.element_ty)
        total = tl.dot(values, _weights_of(weight, column, at, outputs, inputs), total)
        if activation == "swiglu":
            other = tl.dot(values, _weights_of(weight, outputs + column, at, 2 * outputs, inputs), other)
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
    y = _activated(y, z, activation)
    inside = (row[:, None] < rows) & (column[None, :] < outputs)
    target = row[:, None] * outputs + column[None, :]
    if residual is not None:
        y += tl.load(residual + target, mask=inside, other=0.0).to(tl.float32)
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
    activation: Activation,
    residual: Tensor | None,
) -> Tensor:
    """A `Projection` of at most FEW_ROWS rows, SHIFT_ROWS less for a layer norm.

    x: [rows, inputs]; weight: [outputs, inputs], twice as many outputs for swiglu, which has neither shift nor bias;
    residual: [rows, outputs], overwritten by the result. All contiguous, and of the weight's type but for x where there
    is a norm, and the residual.
    """
    assert x.is_contiguous()
    assert weight.is_contiguous()
    assert len(x) <= FEW_ROWS - (0 if shift is None else SHIFT_ROWS)
    assert activation != "swiglu" or (bias is None and shift is None)
    (rows, inputs), outputs = x.shape, len(weight) // (2 if activation == "swiglu" else 1)
    out = x.new_empty(rows, outputs, dtype=weight.dtype) if residual is None else residual
    assert out.is_contiguous()
    tensors = (x, weight, bias, gain, shift, residual, out)
    if rows <= FEWEST_ROWS:
        size, overlapping = triton.next_power_of_2(inputs), overlaps(x.device)
        _sum_kernel[(triton.cdiv(outputs, SUM_WIDTH),)](
            *tensors,
            eps,
            rows=rows,
            inputs=inputs,
            outputs=outputs,
            activation=activation,
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
        activation=activation,
        height=FEW_ROWS,
        width=width,
        parts=WARPS,
        step=STEP,
        num_warps=WARPS,
        num_stages=stages(2 * width if activation == "swiglu" else width, x.element_size()),
    )
    return out


def sum_warps(size: int) -> int:
    """Warps of a program of `_sum_kernel`. size: its inputs, padded to a power of two."""
    return max(1, min(8, size // SUM_WARP))


def tile_width(outputs: int) -> int:
    """Outputs of a program: a power of two from 8 to 32, so that there are PROGRAMS programs if possible."""
    return max(8, min(32, 1 << (outputs // PROGRAMS).bit_length() >> 1))


def stages(columns: int, row_bytes: int = 2) -> int:
    """Iterations of `_project_kernel` whose tiles are loaded ahead. columns: rows of the matrix in a tile; row_bytes:
    of a number of x."""
    return max(1, min(4, SHARED // (WARPS * STEP * (row_bytes * FEW_ROWS + 2 * columns))))


def swiglu(x: Tensor) -> Tensor:
    """SiLU of the first half times the second: [..., 2 n], contiguous, to [..., n]."""
    assert x.is_contiguous()
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    _swiglu_kernel[(out.numel() // width, triton.cdiv(width, BLOCK))](x, out, width, block=BLOCK)
    return out
