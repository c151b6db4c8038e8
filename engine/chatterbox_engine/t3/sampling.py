"""Drawing speech tokens with torch's operators, every row with its own parameters.

`sampling_cuda` does the same in one kernel; `Sampler` chooses between the two.

The steps are upstream's (chatterbox-tts 0.1.7 `T3.inference` and `inference_turbo`), in the order that `families` has
for each model. A token is drawn from one uniform number by the inverse of the distribution function, which makes a
request's tokens independent of the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox_engine.checkpoint.families import Processor
from chatterbox_engine.t3.slots import Slots


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
    """Draws a token for each utterance and updates its slot.

    logits: [rows, vocab]; rows: [3, utterances] int64, the slot, the conditional and the unconditional row of each;
    tokens: [utterances] int64, which is written to. use_top: whether top-k and top-p apply; bos_once: a token that
    counts as seen in the first step alone.
    """
    slot, conditional, unconditional = rows.unbind()
    step = slots.step[slot]
    parameters = Parameters(
        slots.temperature[slot],
        slots.repetition_penalty[slot],
        slots.min_p[slot],
        slots.top_p[slot],
        slots.top_k[slot],
    )
    guided = guide(logits[conditional], logits[unconditional], slots.cfg_weight[slot])
    token = choose(guided, slots.seen[slot], parameters, slots.uniforms[slot, step], processors, use_top=use_top)
    slots.token[slot] = token
    if bos_once is not None:
        seen = slots.seen.select(1, bos_once)
        seen[slot] = seen[slot] & (step > 0)
    # a Python True would be copied from the host, which no graph can capture
    slots.seen[slot, token] = torch.ones_like(token, dtype=torch.bool)
    slots.step.index_add_(0, slot, slots.alive[slot])
    tokens.copy_(token)


@dataclass(frozen=True)
class Parameters:
    """How each row is drawn: device tensors [rows]."""

    temperature: Tensor
    """0 takes the best token."""
    repetition_penalty: Tensor
    min_p: Tensor
    top_p: Tensor
    top_k: Tensor  # int64; 0 keeps all


def guide(conditional: Tensor, unconditional: Tensor, weight: Tensor) -> Tensor:
    """Classifier-free guidance: [rows, vocab], `weight` [rows]. float32."""
    conditional = conditional.float()
    return conditional + weight[:, None] * (conditional - unconditional.float())


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Repetition penalty (Keskar et al. 2019): [rows, vocab]; `seen` bool [rows, vocab], `penalty` [rows]."""
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits < 0, logits * factor, logits / factor), logits)


def keep_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    """Drops tokens less probable than `min_p` times the best (Nguyen et al. 2024). The best always stays."""
    floor = logits.amax(dim=-1, keepdim=True) + min_p[:, None].log()
    return logits.masked_fill(logits < floor, -torch.inf)


def keep_top(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Keeps the `top_k` most probable tokens, and of these the smallest set whose share of their probability reaches
    `top_p` (Holtzman et al. 2019); never empty."""
    vocab = logits.shape[-1]
    ordered, order = logits.sort(dim=-1)
    kept = torch.where(top_k == 0, vocab, top_k).clamp(max=vocab)
    drop = ordered < ordered.gather(1, (vocab - kept)[:, None])
    drop |= ordered.masked_fill(drop, -torch.inf).softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p[:, None]
    drop[:, -1].fill_(False)
    return logits.masked_fill(torch.zeros_like(drop).scatter_(1, order, drop), -torch.inf)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token whose share of the distribution holds `uniform` [rows] of [0, 1): [rows] int64."""
    mass = logits.softmax(dim=-1).cumsum(dim=-1)
    token = (mass <= uniform[:, None] * mass[:, -1:]).sum(dim=-1)
    return token.clamp_(max=logits.shape[-1] - 1)


def choose(
    logits: Tensor, seen: Tensor, rows: Parameters, uniform: Tensor, processors: Sequence[Processor], *, use_top: bool
) -> Tensor:
    """From logits [rows, vocab] to tokens [rows]; `seen` bool [rows, vocab], `uniform` [rows] of [0, 1).

    `use_top` False skips the sort, which is right only when no row has a `top_k` or a `top_p`.
    """
    greedy = rows.temperature == 0
    for processor in processors:
        if processor == "penalty":
            logits = penalise(logits, seen, rows.repetition_penalty)
        elif processor == "temperature":
            logits = logits / torch.where(greedy, 1.0, rows.temperature)[:, None]
        elif processor == "min_p":
            logits = keep_min_p(logits, rows.min_p)
        elif processor == "top" and use_top:
            logits = keep_top(logits, rows.top_k, rows.top_p)
    return torch.where(greedy, logits.argmax(dim=-1), draw(logits, uniform))
