"""What the Triton kernels of attention share: one step of FlashAttention-2 (arXiv 2307.08691)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_tile(  # type: ignore[no-untyped-def]
    q, k_at, v_at, inside, acc, best, weight, scale, masked: tl.constexpr, precision: tl.constexpr
):
    """Adds the values of one tile of keys, weighted by their scores, to the running sum."""
    if masked:
        k = tl.load(k_at, mask=inside[None, :], other=0.0)
        v = tl.load(v_at, mask=inside[:, None], other=0.0)
        score = tl.where(inside[None, :], tl.dot(q, k, input_precision=precision), -float("inf"))
    else:
        k = tl.load(k_at)
        v = tl.load(v_at)
        score = tl.dot(q, k, input_precision=precision)
    higher = tl.maximum(best, tl.max(score, axis=1) * scale)
    share = tl.exp2(score * scale - higher[:, None])  # one operation with the difference
    shrink = tl.exp2(best - higher)
    acc = tl.dot(share.to(v.dtype), v, acc * shrink[:, None], input_precision=precision)
    return acc, higher, weight * shrink + tl.sum(share, axis=1)
