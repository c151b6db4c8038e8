"""Runs the CUDA kernels in Triton's interpreter on the CPU; a separate process, since the switch is read at import.

Prints a line `kernel case error bound` for each case: the largest difference to torch's own operators.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F

from chatterbox_engine.checkpoint.families import ENGLISH, TURBO, Family
from chatterbox_engine.kernels import linear_cuda
from chatterbox_engine.kernels.cpu.alignment import alignment as alignment_on_cpu
from chatterbox_engine.kernels.linear import Projection
from chatterbox_engine.kernels.linear_cuda import swiglu
from chatterbox_engine.kernels.shapes import Activation
from chatterbox_engine.s3gen import attention_cuda as flow_attention
from chatterbox_engine.s3gen.attention_cuda import attend
from chatterbox_engine.s3gen.norm_cuda import add_norm, norm, norm_mish, norm_mish_norm
from chatterbox_engine.s3gen.snake_cuda import snake
from chatterbox_engine.t3 import alignment_cuda, attention_cuda, sampling, sampling_cuda
from chatterbox_engine.t3.alignment import NO_STOP, SHORT_TEXT
from chatterbox_engine.t3.attention import decode_attention
from chatterbox_engine.t3.attention_cuda import split_decode
from chatterbox_engine.t3.block_attention_cuda import attend_blocks
from chatterbox_engine.t3.kv_cache import SPLIT_PAIRS
from chatterbox_engine.t3.slots import Slots
from chatterbox_engine.types import Reading

VOCAB = 300

DECODE = [(2, 32, [1, 64, 65, 200], True), (1, 64, [700, 66], False), (1, 16, [599], True)]
READ: list[tuple[int, int, list[tuple[int, int, int]], bool]] = [
    (2, 32, [(34, 30, 1), (34, 4, 3), (34, 300, 200), (34, 20, 90)], True),
    (4, 16, [(20, 530, 40), (60, 7, 1), (0, 0, 0), (3, 5, 9), (100, 60, 8)], False),  # longer than a block, and empty
]
UNSPLIT = (2, 32, [1, 64, 129], True)
# Up to four rows few outputs: there the interpreter adds up number by number, in Python.
PROJECT: list[tuple[int, int, int, Activation, str]] = [
    (1, 300, 20, "none", ""),  # neither inputs nor outputs are whole tiles
    (16, 512, 128, "none", "gain"),
    (3, 256, 8, "swiglu", "gain"),
    (2, 64, 16, "gelu", "bias"),
    (5, 768, 33, "none", "bias residual"),
    (2, 300, 10, "swiglu", "gain residual"),
    (15, 300, 33, "gelu", "bias gain shift"),
    (1, 512, 10, "none", "gain shift residual"),
    (2, 300, 9, "gelu", "bias gain shift"),
    (3, 300, 9, "none", "bias gain shift residual"),
    (4, 300, 8, "swiglu", "gain"),
    (4, 768, 9, "none", "bias residual"),
    (5, 300, 260, "swiglu", "gain residual"),
    (7, 256, 40, "swiglu", "gain"),
    (8, 64, 16, "gelu", "bias"),
    (6, 512, 260, "none", "gain shift residual"),
]
NORM = [(1, 33, 256, True, 2), (3, 5, 256, False, 2), (2, 50, 24, True, 0)]
BLOCKS = [(2, 32, [1, 64, 65]), (1, 64, [150, 16]), (2, 16, [17, 128])]
SNAKE = [((2, 40, 64), "mask"), ((1, 33, 24), ""), ((2, 40, 64), "bias mask"), ((1, 50, 64), "bias change mask")]
# float16 instead of the engine's bfloat16, which the interpreter cannot multiply
ATTEND = [
    (heads, size, positions, lengths, dtype)
    for dtype in (torch.float32, torch.float16)
    for heads, size, positions, lengths in (
        (2, 32, 70, [70, 33]),
        (1, 64, 200, [1, 128, 200]),  # a whole number of tiles, and programs after the end
        (2, 16, 129, [129, 64]),
    )
]


def decode_error(heads: int, head_dim: int, lengths: list[int], rotated: bool) -> float:
    """The largest difference to the same operator on a CPU, in its result and its stores."""
    generator = torch.Generator().manual_seed(len(lengths))
    rows, room = len(lengths), [length + 5 for length in lengths]
    start = torch.tensor([3 + sum(room[:row]) for row in range(rows)])
    pool = torch.randn(1, 2, sum(room) + 10, heads, head_dim, generator=generator)
    qkv = torch.randn(rows, 3, heads, head_dim, generator=generator)
    angles = torch.rand(rows, head_dim // 2, generator=generator)
    rotation = torch.stack([angles.cos(), angles.sin()], dim=1) if rotated else None
    position = torch.tensor(lengths) - 1
    ours = pool.clone()
    arrived = torch.zeros(SPLIT_PAIRS, dtype=torch.int32)
    got = split_decode(qkv, rotation, *ours[0], arrived, start, position)
    exact = decode_attention(qkv, rotation, pool, arrived, 0, start, position)
    assert not arrived.any(), "the next step counts from zero"
    return float(torch.maximum((got - exact).abs().max(), (ours - pool).abs().max()))


def swiglu_error(rows: int, width: int) -> float:
    x = torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(width))
    gate, up = x.chunk(2, dim=1)
    return float((swiglu(x) - F.silu(gate) * up).abs().max())


def project_error(
    rows: int, inputs: int, outputs: int, activation: Activation, parts: str, *, wide: bool = False
) -> float:
    """The largest difference to a `Projection` on a CPU, with some of its optional parts. wide: whether the residual
    sums are float32, as beside float16 weights, and a thousand times as large."""
    generator = torch.Generator().manual_seed(outputs)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, weight = 3 + random(rows, inputs), random(outputs * (2 if activation == "swiglu" else 1), inputs) * inputs**-0.5
    optional = {"bias": random(len(weight)), "residual": random(rows, outputs)}
    optional |= {"gain": random(inputs), "shift": random(inputs)}
    given = {name: value if name in parts.split() else None for name, value in optional.items()}
    half = {name: None if value is None else value.half() for name, value in given.items()}
    bias, residual = half.pop("bias"), half["residual"]
    sums = x.half()
    if wide and "gain" in parts:
        x = sums = 1000 * x
    if wide and residual is not None and given["residual"] is not None:
        given["residual"] = 1e5 * given["residual"]
        half["residual"] = residual = given["residual"].clone()
    got = linear_cuda.project(sums, weight.half(), bias, **half, eps=0.1, activation=activation)
    assert residual is None or got is residual
    assert residual is not None or got.dtype == torch.float16
    residual = given.pop("residual")
    exact = Projection(weight, **given, eps=0.1, activation=activation)(x, residual)
    return float(((got.float() - exact).abs() / exact.abs().clamp(min=1.0)).max())


def norm_error(rows: int, positions: int, width: int, everywhere: bool, lead: int) -> float:
    """The largest difference to torch's operators of the four functions."""
    generator = torch.Generator().manual_seed(positions)
    shape = (rows, positions, width)

    def random(*sizes: int) -> torch.Tensor:
        return 3 + torch.randn(*sizes, generator=generator)

    x, change, weight, bias, offset = random(*shape), random(*shape), random(width), random(width), random(width)
    after = random(width) if everywhere else random(*shape)
    gains, following = (weight, bias, 1e-5), (random(width), random(width), 1e-3)
    total, normed = add_norm(x, change, gains)
    assert torch.equal(total, x + change)
    assert torch.equal(norm(total, gains), normed)
    differences = [normed - F.layer_norm(total, (width,), *gains)]
    part = F.pad(x, (0, 0, 0, 2))[:, :positions]  # rows further apart than they are long
    marked = norm_mish(part, gains, after, offset=offset, lead=lead)
    exact = F.mish(F.layer_norm(x + offset, (width,), *gains)) + after
    differences += [marked - F.pad(exact, (0, 0, lead, 0))]
    marked, then_normed = norm_mish_norm(part, gains, after, following, offset=offset)
    differences += [marked - exact, then_normed - F.layer_norm(exact, (width,), *following)]
    return max(float(difference.abs().max()) for difference in differences)


def snake_error(shape: tuple[int, int, int], parts: str) -> float:
    """The largest difference to torch's operators, in the sum and the final result."""
    generator = torch.Generator().manual_seed(shape[1])
    x, change = (torch.randn(shape, generator=generator) for _ in range(2))
    alpha, inverse, bias = 2 * torch.rand(3, shape[2], generator=generator)
    mask = torch.rand(*shape[:2], 1, generator=generator) < 0.7
    given: dict[str, Any] = {"bias": bias, "change": change}
    given = {name: value for name, value in given.items() if name in parts}
    exact = x + sum(given.values())
    total, active = snake(x, alpha, inverse, mask if "mask" in parts else None, **given)
    assert total is x or torch.allclose(total, exact, atol=1e-6)
    exact = exact + torch.sin(exact * alpha).square() * inverse
    return float((active - (exact * mask if "mask" in parts else exact)).abs().max())


def blocks_error(heads: int, size: int, ends: list[int], dtype: torch.dtype) -> float:
    """The largest difference to torch's operator."""
    generator = torch.Generator().manual_seed(ends[0])
    rows, room = len(ends), max(ends) + 3
    keys, values = torch.randn(2, rows * room, heads, size, generator=generator).to(dtype)
    query = torch.randn(rows, 16, heads, size, generator=generator).to(dtype)
    start = room * torch.arange(rows)
    for row, end in enumerate(ends):  # positions that were never written
        keys[row * room + end : (row + 1) * room] = values[row * room + end : (row + 1) * room] = torch.nan
    out = attend_blocks(query, keys, values, start, torch.tensor(ends)).float()
    worst = 0.0
    for row, end in enumerate(ends):
        held = slice(row * room, row * room + end)
        parts = (part.float().transpose(0, 1)[None] for part in (query[row], keys[held], values[held]))
        exact = F.scaled_dot_product_attention(*parts)[0].transpose(0, 1)
        worst = max(worst, float((out[row] - exact).abs().max()))
    return worst


def sample_error(family: Family, count: int, use_top: bool) -> float:
    """Number of the slots' entries and drawn tokens that differ from torch's operators after four steps."""
    generator = torch.Generator().manual_seed(count)
    ours, exact = sampling_slots(count), sampling_slots(count)
    order = torch.arange(count)
    rows = torch.stack([order, order, order + count * (family.rows - 1)])
    got, expected = torch.zeros(2, count, dtype=torch.int64)
    how: dict[str, Any] = {"use_top": use_top, "bos_once": 1 if family.bos_once else None}
    wrong = 0
    for _ in range(4):
        logits = 0.5 * torch.randn(2 * count, VOCAB, generator=generator)  # flat: every token kept affects draws
        sampling_cuda.sample(logits, rows, ours, got, family.processors, **how)
        sampling.sample(logits, rows, exact, expected, family.processors, **how)
        wrong += sum(int((getattr(ours, name) != getattr(exact, name)).sum()) for name in ("token", "step", "seen"))
        wrong += int((got != expected).sum())
    assert len(set(expected.tolist())) > count // 2, "the draws differ"
    return wrong


def sampling_slots(count: int) -> Slots:
    """Slots in use, one of them greedy, and a dummy one at the end."""
    generator = torch.Generator().manual_seed(7)
    slots = Slots(count - 1, VOCAB, 5, torch.device("cpu"))
    slots.alive[:-1] = 1
    slots.cfg_weight[:] = torch.rand(count, generator=generator)
    slots.temperature[:] = 0.5 + torch.rand(count, generator=generator)
    slots.temperature[1] = 0
    slots.repetition_penalty[:] = 1 + torch.rand(count, generator=generator)
    slots.min_p[:] = 0.2 * torch.rand(count, generator=generator)
    slots.top_k[:] = torch.tensor([2, 1, 5, 40, VOCAB, 0])[:count]
    slots.top_p[:] = torch.tensor([1.0, 0.5, 1.0, 0.95, 0.3, 0.0])[:count]
    slots.uniforms[:] = torch.rand(slots.uniforms.shape, generator=generator)
    slots.seen[:] = torch.rand(count, VOCAB, generator=generator) < 0.3
    slots.seen[:, 1] = True
    return slots


def read_error(heads: int, head_dim: int, texts: list[tuple[int, int, int]], rotated: bool) -> float:
    """The largest difference to the kernel of a CPU, in the readings and the logits of held stop tokens.

    texts: of each utterance its prefix, its text's tokens and the step.
    """
    generator = torch.Generator().manual_seed(heads)
    count, longest, room, stop = len(texts), 700, 640, 5
    slot = torch.randperm(count, generator=generator)
    row = torch.arange(count)
    places = (slot, row, room * torch.arange(2 * count) + 3)
    prompt, step, holding = (torch.zeros(count, dtype=torch.int64) for _ in range(3))
    text = torch.zeros(2, count, dtype=torch.int64)
    for own, (past, size, frame) in zip(slot, texts, strict=True):
        prompt[own], step[own], holding[own] = past + size + 2, frame, own % 2
        text[:, own] = torch.tensor([past, past + size])
    pool = torch.randn(3, 2, 2 * count * room + 10, heads, head_dim, generator=generator)
    picked = torch.tensor([[2, 0], [0, heads - 1], [2, heads - 1]])
    queries = 3 * torch.randn(2 * count, 3, head_dim, generator=generator)
    angles = torch.rand(longest, head_dim // 2, generator=generator)
    rotation = torch.stack([angles.cos(), angles.sin()], dim=1) if rotated else None
    logits, scores = torch.zeros(2 * count, 8), torch.zeros(count, 3, longest)
    got, exact = torch.zeros(2, count, len(Reading._fields))
    alignment_cuda.score(pool, picked, queries, rotation, places, prompt, step, scores)
    rows, slots = (slot, row, row + count), (prompt, step, text, holding)
    alignment_cuda.reduce(scores, rows, slots, logits, got, stop=stop, no_stop=NO_STOP, short_text=SHORT_TEXT)
    alignment_on_cpu(pool, picked, queries, rotation, places, prompt, step, text, exact, longest)
    size = (text[1] - text[0])[slot]
    held = (holding[slot] == 1) & (size > SHORT_TEXT) & (exact[:, Reading._fields.index("strict")] < size - 3)
    assert held.any()
    assert not held.all()
    expected = torch.zeros_like(logits)
    expected[:, stop] = NO_STOP * torch.cat([held, held])
    return float(torch.maximum((got - exact).abs().max(), (logits - expected).abs().max()))


def attend_error(heads: int, size: int, positions: int, lengths: list[int], dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(positions)
    qkv = torch.randn(len(lengths), positions, 3, heads, size, generator=generator).to(dtype)
    for row, length in enumerate(lengths):
        qkv[row, length:] = torch.nan  # padding
    out = attend(qkv, torch.tensor(lengths)).float()
    worst = 0.0
    for row, length in enumerate(lengths):
        q, k, v = qkv[row, :length].float().permute(1, 2, 0, 3)
        exact = F.scaled_dot_product_attention(q[None], k[None], v[None])[0].transpose(0, 1).flatten(1)
        worst = max(worst, float((out[row, :length] - exact).abs().max()))
    assert out.isfinite().all(), "padding must stay finite"
    return worst


def report(kernel: str, case: object, error: float, bound: float) -> None:
    print(kernel, case, error, bound, sep="\t")


if __name__ == "__main__":
    for case in DECODE:
        report("decode", case, decode_error(*case), 1e-5)
    for read_case in READ:
        report("read", read_case, read_error(*read_case), 1e-4)
    attention_cuda.TARGET_PROGRAMS = 1  # as with so many rows that none is split
    report("decode", UNSPLIT, decode_error(*UNSPLIT), 1e-5)
    linear_cuda.PROGRAMS = 8  # so that there are tiles of every width
    for project_case in PROJECT:
        report("project", project_case, project_error(*project_case), 1e-2)
        report("project", (*project_case, "wide"), project_error(*project_case, wide=True), 1e-2)
    for rows, width in ((3, 100), (2, 1500)):
        report("swiglu", (rows, width), swiglu_error(rows, width), 1e-5)
    for norm_case in NORM:
        report("norm", norm_case, norm_error(*norm_case), 2e-5)
    for heads, size, ends in BLOCKS:
        for dtype in (torch.float32, torch.float16):
            error = blocks_error(heads, size, ends, dtype)
            report("blocks", (heads, size, ends, dtype), error, 1e-5 if dtype == torch.float32 else 2e-3)
    for shape, parts in SNAKE:
        report("snake", (shape, parts), snake_error(shape, parts), 2e-5)
    for family in (ENGLISH, TURBO):
        for use_top in (False, True):
            report("sample", (family.name, use_top), sample_error(family, 6, use_top), 1)
    for few in (flow_attention.FEW_PROGRAMS, 0):  # with the smaller tiles and with the larger ones
        flow_attention.FEW_PROGRAMS = few
        for heads, size, positions, lengths, dtype in ATTEND:
            bound = 1e-5 if dtype == torch.float32 else 2e-3
            error = attend_error(heads, size, positions, lengths, dtype)
            report("attend", (heads, size, positions, lengths, dtype, few), error, bound)
