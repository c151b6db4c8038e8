"""Triton kernel of a layer norm with what stands around it in the flow: a sum before it, Mish and a sum behind.

The flow has a thousand of them in a solve, which read and write all positions; torch has a kernel for each part, adds
the bias of a convolution of cuDNN's by one more, and puts the zeros before the next one by two.

`TRITON_INTERPRET=1` runs it on the CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 4096
"""Of one program: several positions side by side."""


@triton.jit
def _mish(x):  # type: ignore[no-untyped-def]
    power = tl.exp(tl.minimum(x, 20.0))  # beyond 20 the result is x in float32
    ratio = power * power + 2.0 * power
    return x * ratio / (ratio + 2.0)


# One compilation serves every number of positions.
@triton.jit(do_not_specialize=("rows", "positions"))
def _norm_kernel(  # type: ignore[no-untyped-def]
    x,
    change,
    offset,
    weight,
    bias,
    after,
    total,
    out,
    rows,
    positions,  # of a row
    eps,
    width: tl.constexpr,
    lead: tl.constexpr,
    everywhere: tl.constexpr,
    activated: tl.constexpr,
    size: tl.constexpr,
    block: tl.constexpr,
):
    lane = tl.arange(0, size)
    place = tl.program_id(0) * block + tl.arange(0, block)  # in what is written, with what leads each row
    row, position = place // (positions + lead), place % (positions + lead) - lead
    at = (row * positions + position).to(tl.int64)[:, None] * width + lane[None, :]
    written = (row[:, None] < rows) & (lane[None, :] < width)
    inside = written & (position[:, None] >= 0)
    y = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if change is not None:
        y += tl.load(change + at, mask=inside, other=0.0).to(tl.float32)
        y = y.to(x.dtype.element_ty)  # as it is stored
        tl.store(total + at, y, mask=inside)
        y = y.to(tl.float32)
    if offset is not None:
        y += tl.load(offset + lane, mask=lane < width, other=0.0).to(tl.float32)[None, :]
    centred = tl.where(inside, y - (tl.sum(y, axis=1) / width)[:, None], 0.0)
    spread = tl.sum(centred * centred, axis=1) / width
    y = centred * tl.rsqrt(spread + eps)[:, None]
    y = y * tl.load(weight + lane, mask=lane < width, other=0.0).to(tl.float32)[None, :]
    y += tl.load(bias + lane, mask=lane < width, other=0.0).to(tl.float32)[None, :]
    if activated:
        y = _mish(y)
    if after is not None:
        if everywhere:
            y += tl.load(after + lane, mask=lane < width, other=0.0).to(tl.float32)[None, :]
        else:
            y += tl.load(after + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place.to(tl.int64)[:, None] * width + lane[None, :], tl.where(inside, y, 0.0), mask=written)


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension. x: [..., width]."""
    given = x.reshape(1, -1, x.shape[-1])
    return _launch(given, None, None, weight, bias, None, None, eps=eps, lead=0, activated=False).view(x.shape)


def add_norm(x: Tensor, change: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x + change`, and its layer norm over the last dimension. x, change: [rows, positions, width]."""
    total = x.new_empty(x.shape)
    return total, _launch(x, change, None, weight, bias, None, total, eps=eps, lead=0, activated=False)


def norm_mish(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, after: Tensor, *, offset: Tensor | None = None, lead: int = 0
) -> Tensor:
    """`mish(layer_norm(x + offset)) + after` behind `lead` positions of zeros: [rows, lead + positions, width].

    x: [rows, positions, width]; after: like x, or [width]; offset: [width].
    """
    return _launch(x, None, offset, weight, bias, after, None, eps=eps, lead=lead, activated=True)


def _launch(x: Tensor, *others: Tensor | None, eps: float, lead: int, activated: bool) -> Tensor:
    given = [None if tensor is None else tensor.contiguous() for tensor in (x, *others)]
    after = given[-2]
    rows, positions, width = x.shape
    out = x.new_empty(rows, lead + positions, width)
    size = triton.next_power_of_2(width)
    block = max(1, NUMBERS // size)
    _norm_kernel[(triton.cdiv(rows * (lead + positions), block),)](
        *given,
        out,
        rows,
        positions,
        eps,
        width=width,
        lead=lead,
        everywhere=after is not None and after.dim() == 1,
        activated=activated,
        size=size,
        block=block,
    )
    return out
