"""Triton kernel of a gated layer's product, which torch has as two kernels.

`TRITON_INTERPRET=1` runs it on the CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _swiglu_kernel(x, out, width, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < width
    gate = tl.load(x + row * 2 * width + at, mask=inside).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + at, mask=inside).to(tl.float32)
    tl.store(out + row * width + at, gate * tl.sigmoid(gate) * up, mask=inside)


def swiglu_kernel(x: Tensor) -> Tensor:
    """SiLU of the first half times the second: [..., 2 n], contiguous, to [..., n]."""
    assert x.is_contiguous()
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    _swiglu_kernel[(out.numel() // width, triton.cdiv(width, BLOCK))](x, out, width, block=BLOCK)
    return out
