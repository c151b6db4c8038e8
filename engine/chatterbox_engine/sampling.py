"""Drawing speech tokens on the device, every row with its own parameters.

The order is upstream's (chatterbox-tts 0.1.7 `T3.inference`): guidance, repetition penalty over BOS and everything
generated, temperature, min-p, top-p, softmax, draw. The draw is one uniform number by inverse distribution function,
which makes a request's tokens independent of the rest of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def keep_top_p(logits: Tensor, top_p: Tensor) -> Tensor:
    """Keeps the smallest set of tokens whose probability reaches `top_p` (Holtzman et al. 2019); never empty."""
    ordered, order = logits.sort(dim=-1)
    drop = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p[:, None]
    drop[:, -1].fill_(False)
    return logits.masked_fill(torch.zeros_like(drop).scatter_(1, order, drop), -torch.inf)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token whose share of the distribution holds `uniform` [rows] of [0, 1): [rows] int64."""
    mass = logits.softmax(dim=-1).cumsum(dim=-1)
    token = (mass <= uniform[:, None] * mass[:, -1:]).sum(dim=-1)
    return token.clamp_(max=logits.shape[-1] - 1)


def choose(
    logits: Tensor, temperature: Tensor, min_p: Tensor, top_p: Tensor, uniform: Tensor, *, use_top_p: bool
) -> Tensor:
    """From penalised logits [rows, vocab] to tokens [rows]; a row of temperature 0 takes the best token.

    `use_top_p` False skips the sort, right only when every row's `top_p` is 1.
    """
    greedy = temperature == 0
    best = logits.argmax(dim=-1)
    logits = logits / torch.where(greedy, 1.0, temperature)[:, None]
    logits = keep_min_p(logits, min_p)
    if use_top_p:
        logits = keep_top_p(logits, top_p)
    return torch.where(greedy, best, draw(logits, uniform))
