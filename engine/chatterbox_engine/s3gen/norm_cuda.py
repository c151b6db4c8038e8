"""Triton kernel of a layer norm fused with its neighbours in the flow: a sum before it; Mish, a sum and the next norm
after it.

A solve has a thousand of them, which read and write all positions. torch would take a kernel for each part, one for the
bias of cuDNN's convolution, and two for the zero padding of the next one.

`TRITON_INTERPRET=1` runs it on the CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 4096
"""Numbers per program: several positions side by side."""


@triton.jit
def _mish(x):  # type: ignore[no-untyped-def]
    power = tl.exp(tl.minimum(x, 20.0))  # beyond 20 the result is x in float32
    ratio = power * power + 2.0 * power
    return x * ratio / (ratio + 2.0)


@triton.jit
def _normed(y, inside, weight, bias, eps, lane, width: tl.constexpr):  # type: ignore[no-untyped-def]
    """The layer norm of a block of positions in float32, which are zero beyond the width."""
    centred = tl.where(inside, y - (tl.sum(y, axis=1) / width)[:, None], 0.0)
    spread = tl.sum(centred * centred, axis=1) / width
    y = centred * tl.rsqrt(spread + eps)[:, None]
    y = y * tl.load(weight + lane, mask=lane < width, other=0.0).to(tl.float32)[None, :]
    return y + tl.load(bias + lane, mask=lane < width, other=0.0).to(tl.float32)[None, :]


# One compilation serves every number of positions.
@triton.jit(do_not_specialize=("rows", "positions", "reach"))
def _norm_kernel(  # type: ignore[no-untyped-def]
    x,
    change,
    offset,
    weight,
    bias,
    after,
    total,
    next_weight,
    next_bias,
    normed,
    out,
    rows,
    positions,  # of a row
    reach,  # from one row of x to the next
    eps,
    next_eps,
    width: tl.constexpr,
    lead: tl.constexpr,
    everywhere: tl.constexpr,
    activated: tl.constexpr,
    size: tl.constexpr,
    block: tl.constexpr,
):
    lane = tl.arange(0, size)
    place = tl.program_id(0) * block + tl.arange(0, block)  # in the output, whose rows begin with the lead
    row, position = place // (positions + lead), place % (positions + lead) - lead
    at = (row * positions + position).to(tl.int64)[:, None] * width + lane[None, :]
    source = (row * reach + position).to(tl.int64)[:, None] * width + lane[None, :]
    written = (row[:, None] < rows) & (lane[None, :] < width)
    inside = written & (position[:, None] >= 0)
    y = tl.load(x + source, mask=inside, other=0.0).to(tl.float32)
    if change is not None:
        y += tl.load(change + at, mask=inside, other=0.0).to(tl.float32)
        y = y.to(x.dtype.element_ty)  # rounded as it is stored
        tl.store(total + at, y, mask=inside)
        y = y.to(tl.float32)
    if offset is not None:
        y += tl.load(offset + lane, mask=lane < width, other=0.0).to(tl.float32)[None, :]
    y = _normed(y, inside, weight, bias, eps, lane, width)
    if activated:
        y = _mish(y)
    if after is not None:
        if everywhere:
            y += tl.load(after + lane, mask=lane < width, other=0.0).to(tl.float32)[None, :]
        else:
            y += tl.load(after + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.where(inside, y, 0.0)
    tl.store(out + place.to(tl.int64)[:, None] * width + lane[None, :], y, mask=written)
    if normed is not None:
        y = y.to(x.dtype.element_ty).to(tl.float32)  # as it is stored
        tl.store(normed + at, _normed(y, inside, next_weight, next_bias, next_eps, lane, width), mask=inside)


Gains = tuple[Tensor, Tensor, float]
"""The parameters of a layer norm: weight and bias, [width], and epsilon."""


def norm(x: Tensor, gains: Gains) -> Tensor:
    """Layer norm over the last dimension. x: [..., width]."""
    return _launch(x.reshape(1, -1, x.shape[-1]), gains).view(x.shape)


def add_norm(x: Tensor, change: Tensor, gains: Gains) -> tuple[Tensor, Tensor]:
    """`x + change`, and its layer norm over the last dimension. x, change: [rows, positions, width]."""
    total = x.new_empty(x.shape)
    return total, _launch(x, gains, change=change, total=total)


def norm_mish(x: Tensor, gains: Gains, after: Tensor, *, offset: Tensor | None = None, lead: int = 0) -> Tensor:
    """`mish(layer_norm(x + offset)) + after`, preceded by `lead` positions of zeros: [rows, lead + positions, width].

    x: [rows, positions, width], rows further apart than their positions, if it is a part of a longer one; after: like
    x, or [width]; offset: [width].
    """
    return _launch(x, gains, offset=offset, after=after, lead=lead, activated=True)


def norm_mish_norm(
    x: Tensor, gains: Gains, after: Tensor, following: Gains, *, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`norm_mish` without a lead, and the following layer norm of it."""
    normed = x.new_empty(x.shape)
    return _launch(x, gains, offset=offset, after=after, activated=True, following=following, normed=normed), normed


def _launch(
    x: Tensor,
    gains: Gains,
    *,
    change: Tensor | None = None,
    total: Tensor | None = None,
    offset: Tensor | None = None,
    after: Tensor | None = None,
    following: Gains | None = None,
    normed: Tensor | None = None,
    lead: int = 0,
    activated: bool = False,
) -> Tensor:
    rows, positions, width = x.shape
    if x.stride()[1:] != (width, 1) or x.stride(0) % width:
        x = x.contiguous()
    out = x.new_empty(rows, lead + positions, width)
    size = triton.next_power_of_2(width)
    block = max(1, NUMBERS // size)
    next_weight, next_bias, next_eps = following or (None, None, 0.0)
    _norm_kernel[(triton.cdiv(rows * (lead + positions), block),)](
        x,
        None if change is None else change.contiguous(),
        offset,
        gains[0],
        gains[1],
        None if after is None else after.contiguous(),
        total,
        next_weight,
        next_bias,
        normed,
        out,
        rows,
        positions,
        x.stride(0) // width,
        gains[2],
        next_eps,
        width=width,
        lead=lead,
        everywhere=after is not None and after.dim() == 1,
        activated=activated,
        size=size,
        block=block,
    )
    return out
