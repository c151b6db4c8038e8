"""Triton kernel of a whole draw without top-k and top-p: from logits to the next token and the slots' new state.

torch has 44 operators for it, of which most read or write all logits. `TRITON_INTERPRET=1` runs the kernel on the
CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from chatterbox_engine.runner import Slots

WARPS = 16


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
    seen,
    uniforms,
    token,
    step,
    alive,
    drawn,
    vocab: tl.constexpr,
    steps: tl.constexpr,
    forgotten: tl.constexpr,
    has_min_p: tl.constexpr,
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
    x = tl.where(heard, tl.where(x < 0, x * factor, x / factor), x)
    heat = tl.load(temperature + slot)
    x = tl.where(inside, x / tl.where(heat == 0, 1.0, heat), -float("inf"))
    top = tl.max(x, axis=0)
    if has_min_p:
        x = tl.where(x < top + tl.log(tl.load(min_p + slot)), -float("inf"), x)
    mass = tl.cumsum(tl.exp(x - top), axis=0)
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
    logits: Tensor, batch: Tensor, slots: Slots, drawn: Tensor, *, has_min_p: bool, forgotten: int | None
) -> None:
    """Draws a token for each utterance and notes it in its slot, as `Runner` does with torch's operators.

    logits: [rows, vocab]; batch: [3, utterances] int64, the slot, the conditional and the unconditional row of each;
    drawn: [utterances] int64, which gets the tokens. has_min_p: whether the family heeds it; forgotten: the token that
    counts as seen in the first step alone.
    """
    vocab = logits.shape[1]
    _draw_kernel[(batch.shape[1],)](
        logits,
        *batch.unbind(),
        slots.cfg,
        slots.temperature,
        slots.penalty,
        slots.min_p,
        slots.seen.view(torch.uint8),
        slots.uniforms,
        slots.token,
        slots.step,
        slots.alive,
        drawn,
        vocab=vocab,
        steps=slots.uniforms.shape[1],
        forgotten=-1 if forgotten is None else forgotten,
        has_min_p=has_min_p,
        block=triton.next_power_of_2(vocab),
        num_warps=WARPS,
    )
