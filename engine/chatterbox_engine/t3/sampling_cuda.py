"""`sampling.sample` in one Triton kernel: from logits to the next token and the slots' new state.

torch needs 44 operators for it, and more with a sort for top-k or top-p. Neither needs a sort here: the smallest logit
that is kept is found by a binary search over its bits, with a count or a sum over all logits for each bit. All logits
equal to it are kept, whereas a sort drops some of them.

`TRITON_INTERPRET=1` runs the kernel on the CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from chatterbox_engine.checkpoint.families import Processor
from chatterbox_engine.t3.slots import Slots

WARPS = 16


@triton.jit
def _penalised(x, seen, penalty):  # type: ignore[no-untyped-def]
    return tl.where(seen, tl.where(x < 0, x * penalty, x / penalty), x)


@triton.jit
def _threshold(key, weight, limit):  # type: ignore[no-untyped-def]
    """The highest key such that the weights of all keys below it sum to at most `limit`."""
    lowest = tl.full([], -2147483648, dtype=tl.int64)
    bit = tl.full([], 2147483648, dtype=tl.int64)
    for _ in range(32):
        higher = lowest + bit
        bit = bit // 2
        below = tl.sum(tl.where(key < higher.to(tl.int32), weight, 0.0), axis=0)
        lowest = tl.where(below <= limit, higher, lowest)
    return lowest.to(tl.int32)


@triton.jit
def _kept(x, mass, top_k, top_p, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where x is among the `top_k` largest (0: all), and of these in the smallest set that has `top_p` of their mass.
    The largest always is."""
    # Read as integers, positive floats keep their order and negative ones reverse it.
    bits = x.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    kept = tl.full([block], True, dtype=tl.int1)
    if top_k > 0:
        kept = key >= _threshold(key, tl.full([block], 1.0, dtype=tl.float32), block - top_k)
        mass = tl.where(kept, mass, 0.0)
    if top_p < 1.0:
        kept = kept & (key >= _threshold(key, mass, (1.0 - top_p) * tl.sum(mass, axis=0)))
    return kept | (x == tl.max(x, axis=0))


@triton.jit
def _sample_kernel(  # type: ignore[no-untyped-def]
    logits,
    slot_of,
    conditional_row,
    unconditional_row,
    cfg_weight,
    temperature,
    repetition_penalty,
    min_p,
    top_k,
    top_p,
    seen,
    uniforms,
    token,
    step,
    alive,
    tokens,
    vocab: tl.constexpr,
    steps: tl.constexpr,
    bos_once: tl.constexpr,
    penalty_last: tl.constexpr,
    has_min_p: tl.constexpr,
    has_top: tl.constexpr,
    block: tl.constexpr,
):
    number = tl.program_id(0)
    slot = tl.load(slot_of + number)
    place = tl.arange(0, block)
    inside = place < vocab
    row, other = tl.load(conditional_row + number), tl.load(unconditional_row + number)
    conditional = tl.load(logits + row * vocab + place, mask=inside, other=0.0).to(tl.float32)
    unconditional = tl.load(logits + other * vocab + place, mask=inside, other=0.0).to(tl.float32)
    x = conditional + tl.load(cfg_weight + slot) * (conditional - unconditional)
    penalty = tl.load(repetition_penalty + slot)
    was_seen = tl.load(seen + slot * vocab + place, mask=inside, other=0) != 0
    if not penalty_last:
        x = _penalised(x, was_seen, penalty)
    divisor = tl.load(temperature + slot)
    greedy = divisor == 0
    x = tl.where(inside, x / tl.where(greedy, 1.0, divisor), -float("inf"))
    if has_min_p:
        x = tl.where(x < tl.max(x, axis=0) + tl.log(tl.load(min_p + slot)), -float("inf"), x)
    if has_top:
        mass = tl.exp(x - tl.max(x, axis=0))
        x = tl.where(_kept(x, mass, tl.load(top_k + slot), tl.load(top_p + slot), block), x, -float("inf"))
    if penalty_last:
        x = _penalised(x, was_seen, penalty)
    # the token whose share of the distribution holds the uniform number
    mass = tl.cumsum(tl.exp(x - tl.max(x, axis=0)), axis=0)
    at = tl.load(step + slot)
    target = tl.load(uniforms + slot * steps + at) * tl.max(mass, axis=0)
    choice = tl.sum(((mass <= target) & inside).to(tl.int32), axis=0)
    best = tl.argmax(x, axis=0)
    choice = tl.where(greedy, best, tl.minimum(choice, vocab - 1)).to(tl.int64)
    if bos_once >= 0:
        tl.store(seen + slot * vocab + bos_once, 0, mask=(at == 0) & (choice != bos_once))
    tl.store(seen + slot * vocab + choice, 1)
    tl.store(token + slot, choice)
    tl.store(step + slot, at + tl.load(alive + slot))
    tl.store(tokens + number, choice)


def sample(
    logits: Tensor,
    rows: Tensor,
    slots: Slots,
    tokens: Tensor,
    processors: Sequence[Processor],
    *,
    use_top: bool,
    bos_once: int | None,
) -> None:
    """As `sampling.sample`. processors: the family's, the penalty first or last."""
    assert "penalty" in (processors[0], processors[-1])
    vocab = logits.shape[1]
    _sample_kernel[(rows.shape[1],)](
        logits,
        *rows.unbind(),
        slots.cfg_weight,
        slots.temperature,
        slots.repetition_penalty,
        slots.min_p,
        slots.top_k,
        slots.top_p,
        slots.seen.view(torch.uint8),
        slots.uniforms,
        slots.token,
        slots.step,
        slots.alive,
        tokens,
        vocab=vocab,
        steps=slots.uniforms.shape[1],
        bos_once=-1 if bos_once is None else bos_once,
        penalty_last=processors[-1] == "penalty",
        has_min_p="min_p" in processors,
        has_top=use_top,
        block=triton.next_power_of_2(vocab),
        num_warps=WARPS,
    )
