"""Triton kernels that read where some heads look in the text: their scores over a row, then the numbers of `Reading`.

The scores of a row and head are spread over a few programs, as its keys are what takes time; one program for each
utterance turns them into attention, averages the heads and reduces the average. Heads of several layers share a launch.

`TRITON_INTERPRET=1` runs it on the CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chatterbox_engine.t3.attention_cuda import _rotated

SPLITS = 8
"""Programs of a row and head: with one utterance and three heads a program has 50 of 400 positions."""
BLOCK = 32
"""Positions per iteration of such a program, which is one warp."""
WIDE = 512
"""Positions per iteration of the program that reduces."""
NEAR = 4
"""Places to each side of the one that most attention is on, of which the centre of mass is taken."""


@triton.jit
def _scores_kernel(  # type: ignore[no-untyped-def]
    pool,
    picked,
    queries,
    rotation,
    slot,
    row,
    start,
    prompt,
    step,
    scores,
    layer_numbers,
    longest,
    scale,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    named: tl.constexpr,
    splits: tl.constexpr,
    block: tl.constexpr,
):
    utterance, number, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    own_slot, own_row = tl.load(slot + utterance), tl.load(row + utterance)
    held = (tl.load(prompt + own_slot) + tl.load(step + own_slot)).to(tl.int32)
    # 64 bit: a pool has more than 2^31 numbers
    first = tl.load(start + own_row).to(tl.int64)
    layer = tl.load(picked + 2 * number).to(tl.int64)
    head = tl.load(picked + 2 * number + 1).to(tl.int64)
    own_rotation = None if rotation is None else rotation + (held - 1) * head_dim
    q = _rotated(queries + (own_row * named + number) * head_dim, own_rotation, head_dim) * scale
    keys = pool + layer * layer_numbers
    lane = tl.arange(0, head_dim)
    size = tl.cdiv(tl.cdiv(held, block), splits) * block
    for offset in range(split * size, tl.minimum(split * size + size, held), block):
        where = offset + tl.arange(0, block)
        inside = where < held
        at = (((first + where) * heads + head) * head_dim)[:, None] + lane[None, :]
        k = tl.load(keys + at, mask=inside[:, None], other=0.0).to(tl.float32)
        out = scores + (utterance * named + number) * longest + where
        tl.store(out, tl.sum(k * q[None, :], axis=1), mask=inside)


@triton.jit
def _attention(own, where, inside, peak, share, longest, named: tl.constexpr, many: tl.constexpr):  # type: ignore[no-untyped-def]
    """The heads' mean attention at some positions of a row, 0 where they are not inside. own: the row's scores."""
    number = tl.arange(0, many)
    at = number[:, None] * longest + where[None, :]
    score = tl.load(own + at, mask=(number < named)[:, None] & inside[None, :], other=-float("inf"))
    return tl.sum(tl.exp(score - peak[:, None]) * share[:, None], axis=0)


@triton.jit
def _normalisers(own, held, longest, named: tl.constexpr, many: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of each head, the highest score of the row, and one over the sum of its exponentials and the number of heads."""
    number = tl.arange(0, many)
    peak = tl.where(number < named, -float("inf"), 0.0)
    total = tl.zeros([many], dtype=tl.float32)
    for offset in range(0, held, block):
        where = offset + tl.arange(0, block)
        inside = (number < named)[:, None] & (where < held)[None, :]
        score = tl.load(own + number[:, None] * longest + where[None, :], mask=inside, other=-float("inf"))
        higher = tl.maximum(peak, tl.max(score, axis=1))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(score - higher[:, None]), axis=1)
        peak = higher
    return peak, tl.where(number < named, 1.0 / tl.maximum(total * named, 1e-30), 0.0)


@triton.jit
def _places(  # type: ignore[no-untyped-def]
    own, begin, size, frame, peak, share, longest, named: tl.constexpr, many: tl.constexpr, block: tl.constexpr
):
    """The first five numbers of `Reading` but the centre, and `earlier`."""
    place = tl.full((), 0, tl.int32)
    strict, best, strict_best, earlier, mass = place, 0.0, 0.0, 0.0, 0.0
    for offset in range(0, size, block):
        where = offset + tl.arange(0, block)
        looked = _attention(own, begin + where, where < size, peak, share, longest, named, many)
        mass += tl.sum(looked, axis=0)
        highest, at = tl.max(looked, axis=0), tl.argmax(looked, axis=0)
        place = tl.where(highest > best, offset + at, place)
        best = tl.maximum(best, highest)
        looked = tl.where(where <= frame, looked, 0.0)
        highest, at = tl.max(looked, axis=0), tl.argmax(looked, axis=0)
        strict = tl.where(highest > strict_best, offset + at, strict)
        strict_best = tl.maximum(strict_best, highest)
        earlier = tl.maximum(earlier, tl.max(tl.where(where < size - 5, looked, 0.0), axis=0))
    return place, mass, best, strict, earlier


@triton.jit
def _reading_kernel(  # type: ignore[no-untyped-def]
    scores,
    slot,
    row,
    unconditional,
    prompt,
    step,
    text,
    holding,
    logits,
    readings,
    slots,
    longest,
    vocab,
    stop,
    named: tl.constexpr,
    many: tl.constexpr,
    numbers: tl.constexpr,
    near: tl.constexpr,
    window: tl.constexpr,
    no_stop: tl.constexpr,
    short_text: tl.constexpr,
    block: tl.constexpr,
):
    utterance = tl.program_id(0)
    own_slot = tl.load(slot + utterance)
    frame = tl.load(step + own_slot).to(tl.int32)
    held = tl.load(prompt + own_slot).to(tl.int32) + frame
    begin, end = tl.load(text + own_slot).to(tl.int32), tl.load(text + slots + own_slot).to(tl.int32)
    size = end - begin
    own = scores + utterance * named * longest
    peak, share = _normalisers(own, held, longest, named, many, block)
    place, mass, best, strict, earlier = _places(own, begin, size, frame, peak, share, longest, named, many, block)
    where = place - near + tl.arange(0, window)
    inside = (where >= 0) & (where < size) & (where <= place + near)
    looked = _attention(own, begin + where, inside, peak, share, longest, named, many)
    moment = tl.sum(looked * where.to(tl.float32), axis=0)
    out = readings + utterance * numbers
    tl.store(out, place.to(tl.float32))
    tl.store(out + 1, moment / tl.maximum(tl.sum(looked, axis=0), 1e-30))
    tl.store(out + 2, mass)
    tl.store(out + 3, best)
    tl.store(out + 4, strict.to(tl.float32))
    tl.store(out + 5, earlier)
    last = tl.arange(0, 4)
    where = size - 3 + last
    inside = (last < 3) & (where >= 0) & (where <= frame)
    tl.store(out + 6 + last, _attention(own, begin + where, inside, peak, share, longest, named, many), mask=last < 3)
    if (tl.load(holding + own_slot) != 0) & (size > short_text) & (strict < size - 3):
        tl.store(logits + tl.load(row + utterance) * vocab + stop, no_stop)
        tl.store(logits + tl.load(unconditional + utterance) * vocab + stop, no_stop)


def score(
    pool: Tensor,
    picked: Tensor,
    queries: Tensor,
    rotation: Tensor | None,
    places: tuple[Tensor, Tensor, Tensor],
    prompt: Tensor,
    step: Tensor,
    scores: Tensor,
) -> None:
    """The heads' scores at the newest position of each row.

    pool: [layers, 2, positions, heads, head_dim]; picked: [named, 2] int64, layer and head; queries: [rows, named,
    head_dim], without RoPE; rotation: [longest, 2, head_dim / 2] or None; places: [utterances] int64 slot and row, and
    [rows] int64 start of the rows' extents; prompt, step: [slots] int64; scores: [slots, named, longest] float32, of
    whose first utterances the positions of the row are written.
    """
    slot, row, start = places
    layers, _, _, heads, head_dim = pool.shape
    _scores_kernel[(len(slot), len(picked), SPLITS)](
        pool,
        picked,
        queries,
        rotation,
        slot,
        row,
        start,
        prompt,
        step,
        scores,
        pool.numel() // layers,
        scores.shape[2],
        head_dim**-0.5,
        heads=heads,
        head_dim=head_dim,
        named=len(picked),
        splits=SPLITS,
        block=BLOCK,
        num_warps=1,
    )


def reduce(
    scores: Tensor,
    places: tuple[Tensor, Tensor, Tensor],
    slots: tuple[Tensor, Tensor, Tensor, Tensor],
    logits: Tensor,
    readings: Tensor,
    *,
    stop: int,
    no_stop: float,
    short_text: int,
) -> None:
    """From scores to the numbers of `Reading`, before tokens are drawn.

    scores: as `score` left them; places: [utterances] int64 slot, conditional and unconditional row; slots: [slots]
    int64 prompt and step, [2, slots] int64 text, [slots] int64 holding; logits: [rows, vocab], of which the stop
    token's becomes `no_stop` where it is held, the text has more than `short_text` tokens, and `strict` is before its
    last three; readings: [slots, numbers] float32, whose first rows are written.
    """
    named, longest = scores.shape[1:]
    _reading_kernel[(len(places[0]),)](
        scores,
        *places,
        *slots,
        logits,
        readings,
        len(slots[0]),
        longest,
        logits.shape[1],
        stop,
        named=named,
        many=triton.next_power_of_2(named),
        numbers=readings.shape[1],
        near=NEAR,
        window=triton.next_power_of_2(2 * NEAR + 1),
        no_stop=no_stop,
        short_text=short_text,
        block=WIDE,
        num_warps=4,
    )
