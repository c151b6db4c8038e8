"""Triton kernel of HiFT's activation fused with what precedes it: a convolution's bias and a residual sum.

`TRITON_INTERPRET=1` runs it on the CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


# One compilation serves every number of positions.
@triton.jit(do_not_specialize=("numbers",))
def _snake_kernel(  # type: ignore[no-untyped-def]
    x, change, bias, alpha, inverse, mask, total, out, numbers, width: tl.constexpr, block: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < numbers
    lane = (at % width).to(tl.int32)
    y = tl.load(x + at, mask=inside, other=0.0)
    if change is not None:
        y += tl.load(change + at, mask=inside, other=0.0)
    if bias is not None:
        y += tl.load(bias + lane)
    if total is not None:
        tl.store(total + at, y, mask=inside)
    wave = tl.sin(y * tl.load(alpha + lane))
    y += wave * wave * tl.load(inverse + lane)
    if mask is not None:
        y = tl.where(tl.load(mask + at // width, mask=inside, other=0) != 0, y, 0.0)
    tl.store(out + at, y, mask=inside)


def snake(
    x: Tensor,
    alpha: Tensor,
    inverse: Tensor,
    mask: Tensor | None,
    *,
    bias: Tensor | None = None,
    change: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`y = x + change + bias`, and `y + sin(alpha y)^2 inverse`, zero where the mask is False.

    x, change: [rows, positions, width] float32; alpha, inverse, bias: [width]; mask: [rows, positions, 1] bool. Without
    a change y is not stored, and x is returned for it.
    """
    x = x.contiguous()
    out, total = x.new_empty(x.shape), None if change is None else x.new_empty(x.shape)
    numbers = x.numel()
    _snake_kernel[(triton.cdiv(numbers, BLOCK),)](
        x,
        None if change is None else change.contiguous(),
        bias,
        alpha,
        inverse,
        None if mask is None else mask.view(torch.uint8),
        total,
        out,
        numbers,
        width=x.shape[-1],
        block=BLOCK,
    )
    return x if total is None else total, out
