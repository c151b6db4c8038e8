"""Triton kernel of a whole draw: from logits to the next token and the slots' new state, in one pass over the logits.

torch has 44 operators for it, and more with a sort for top-k or top-p. Neither needs an order here: the smallest logit
that is kept is found by its bits, from the highest to the lowest, with a count or a sum over all logits for each bit.
Where logits are equal to it all of them are kept, of which a sort drops some.

`TRITON_INTERPRET=1` runs the kernel on the CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from chatterbox_engine.checkpoint.families import Processor

if TYPE_CHECKING:
    from chatterbox_engine.t3.runner import Slots

WARPS = 16


@triton.jit
def _penalised(x, heard, factor):  # type: ignore[no-untyped-def]
    return tl.where(heard, tl.where(x < 0, x * factor, x / factor), x)


@triton.jit
def _cut(key, weight, spare):  # type: ignore[no-untyped-def]
    """The highest key such that what lies below it weighs at most `spare`."""
    lowest = tl.full([], -2147483648, dtype=tl.int64)
    bit = tl.full([], 2147483648, dtype=tl.int64)
    for _ in range(32):
        higher = lowest + bit
        bit = bit // 2
        below = tl.sum(tl.where(key < higher.to(tl.int32), weight, 0.0), axis=0)
        lowest = tl.where(below <= spare, higher, lowest)
    return lowest.to(tl.int32)


@triton.jit
def _kept(x, mass, most, share, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where x is among the `most` largest, all if that is 0, and of these in the smallest set that has `share` of their
    mass. The largest always is."""
    # As integers floats have the order of their bits, negative ones the opposite order.
    bits = x.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    kept = tl.full([block], True, dtype=tl.int1)
    if most > 0:
        kept = key >= _cut(key, tl.full([block], 1.0, dtype=tl.float32), block - most)
        mass = tl.where(kept, mass, 0.0)
    if share < 1.0:
        kept = kept & (key >= _cut(key, mass, (1.0 - share) * tl.sum(mass, axis=0)))
    return kept | (x == tl.max(x, axis=0))


@triton.jit
def _draw_kernel(  # type: ignore[no-untyped-def]
    logits,
    slot_of,
    conditional_of,
    unconditional_of,
    cfg,
    temperature,
    penalty,
    min_p,
    top_k,
    top_p,
    seen,
    uniforms,
    token,
    step,
    alive,
    drawn,
    vocab: tl.constexpr,
    steps: tl.constexpr,
    forgotten: tl.constexpr,
    penalty_last: tl.constexpr,
    has_min_p: tl.constexpr,
    has_top: tl.constexpr,
    block: tl.constexpr,
):
    number = tl.program_id(0)
    slot = tl.load(slot_of + number)
    place = tl.arange(0, block)
    inside = place < vocab
    given = tl.load(logits + tl.load(conditional_of + number) * vocab + place, mask=inside, other=0.0).to(tl.float32)
    free = tl.load(logits + tl.load(unconditional_of + number) * vocab + place, mask=inside, other=0.0).to(tl.float32)
    x = given + tl.load(cfg + slot) * (given - free)
    factor = tl.load(penalty + slot)
    heard = tl.load(seen + slot * vocab + place, mask=inside, other=0) != 0
    if not penalty_last:
        x = _penalised(x, heard, factor)
    heat = tl.load(temperature + slot)
    x = tl.where(inside, x / tl.where(heat == 0, 1.0, heat), -float("inf"))
    if has_min_p:
        x = tl.where(x < tl.max(x, axis=0) + tl.log(tl.load(min_p + slot)), -float("inf"), x)
    if has_top:
        mass = tl.exp(x - tl.max(x, axis=0))
        x = tl.where(_kept(x, mass, tl.load(top_k + slot), tl.load(top_p + slot), block), x, -float("inf"))
    if penalty_last:
        x = _penalised(x, heard, factor)
    mass = tl.cumsum(tl.exp(x - tl.max(x, axis=0)), axis=0)
    at = tl.load(step + slot)
    below = tl.load(uniforms + slot * steps + at) * tl.max(mass, axis=0)
    choice = tl.sum(((mass <= below) & inside).to(tl.int32), axis=0)
    best = tl.argmax(x, axis=0)
    choice = tl.where(heat == 0, best, tl.minimum(choice, vocab - 1)).to(tl.int64)
    if forgotten >= 0:  # a token that is penalised in the first step alone
        tl.store(seen + slot * vocab + forgotten, 0, mask=(at == 0) & (choice != forgotten))
    tl.store(seen + slot * vocab + choice, 1)
    tl.store(token + slot, choice)
    tl.store(step + slot, at + tl.load(alive + slot))
    tl.store(drawn + number, choice)


def draw_rows(
    logits: Tensor,
    batch: Tensor,
    slots: Slots,
    drawn: Tensor,
    processors: Sequence[Processor],
    *,
    use_top: bool,
    forgotten: int | None,
) -> None:
    """Draws a token for each utterance and notes it in its slot, as `Runner` does with torch's operators.

    logits: [rows, vocab]; batch: [3, utterances] int64, the slot, the conditional and the unconditional row of each;
    drawn: [utterances] int64, which gets the tokens. processors: the family's, the penalty first or last; use_top:
    whether top-k and top-p are heeded; forgotten: the token that counts as seen in the first step alone.
    """
    assert "penalty" in (processors[0], processors[-1])
    vocab = logits.shape[1]
    _draw_kernel[(batch.shape[1],)](
        logits,
        *batch.unbind(),
        slots.cfg,
        slots.temperature,
        slots.penalty,
        slots.min_p,
        slots.top_k,
        slots.top_p,
        slots.seen.view(torch.uint8),
        slots.uniforms,
        slots.token,
        slots.step,
        slots.alive,
        drawn,
        vocab=vocab,
        steps=slots.uniforms.shape[1],
        forgotten=-1 if forgotten is None else forgotten,
        penalty_last=processors[-1] == "penalty",
        has_min_p="min_p" in processors,
        has_top=use_top,
        block=triton.next_power_of_2(vocab),
        num_warps=WARPS,
    )
