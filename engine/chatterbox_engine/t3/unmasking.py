"""Which tokens a pass keeps: drawn, scored and ranked, every utterance with its own parameters.

A token's score is its pointwise mutual information: the logarithm of its probability here less that of its probability
in a block of nothing (`FlashT3.prior`), combined for guidance as the logits are. Source: chatterbox-flash 0.1.0
`model.py`, `calibration.py`, `cfg_guidance.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from chatterbox_engine.kernels.draws import uniforms
from chatterbox_engine.t3.sampling import draw, guide

LEAST = math.log(1e-8)
"""Logarithm of the smallest probability that a score is made from."""

_TINY = 1e-10


@dataclass(frozen=True)
class Choice:
    """How the utterances of a pass choose: device tensors [utterances], and their tokens."""

    conditional: Tensor  # int64, rows of the logits
    unconditional: Tensor  # int64, the conditional ones again without guidance
    seed: Tensor  # int64
    index: Tensor  # int64, of the pass among all passes of the utterance
    keep: Tensor  # int64, tokens to keep at least
    below: Tensor  # int64, the place of the score from which on tokens are kept, `schedule.quantile`
    above: Tensor  # int64
    early: Tensor  # int64, 1: more tokens than `keep` are kept where their scores reach that score
    noisy: Tensor  # int64, 1: noise takes part in the ranking
    weight: Tensor  # float32, of `above`
    temperature: Tensor  # float32; 0 takes the best tokens
    cfg_weight: Tensor  # float32
    tokens: Tensor  # [utterances, block] int64, `mask` where they are not known

    @classmethod
    def of(cls, integers: Tensor, floats: Tensor) -> Choice:
        """Views of [utterances, INTEGERS and tokens] int64 and [utterances, FLOATS] float32."""
        named = dict(zip(INTEGERS, integers.unbind(1), strict=False)) | dict(zip(FLOATS, floats.unbind(1), strict=True))
        return cls(**named, tokens=integers[:, len(INTEGERS) :])


INTEGERS = ("conditional", "unconditional", "seed", "index", "keep", "below", "above", "early", "noisy")
FLOATS = ("weight", "temperature", "cfg_weight")
"""Fields of a `Choice`, in the order in which they are uploaded."""


class Unmasked(NamedTuple):
    """What a pass does to its blocks: [utterances, block] each."""

    tokens: Tensor  # int64, after the pass
    drawn: Tensor  # int64, a token for every position
    scores: Tensor  # float32, by which the drawn ones are ranked


def unmask(logits: Tensor, prior: Tensor, mask: int, choice: Choice) -> Unmasked:
    """Draws, scores and keeps tokens. logits: [rows, block, vocab]; prior: [vocab], logarithms."""
    conditional = logits[choice.conditional].float().log_softmax(dim=-1)
    unconditional = logits[choice.unconditional].float().log_softmax(dim=-1)
    drawn = _drawn(guide(conditional.flatten(1), unconditional.flatten(1), choice.cfg_weight), choice, logits.shape[-1])
    score = _scores(conditional, unconditional, prior, drawn, choice.cfg_weight)
    if_noisy = score + _gumbel(_numbers(choice, kind=1))
    score = torch.where(choice.noisy[:, None] > 0, if_noisy, score)
    kept = _kept(score, choice.tokens == mask, choice)
    return Unmasked(torch.where(kept, drawn, choice.tokens), drawn, score)


def _numbers(choice: Choice, *, kind: int) -> Tensor:
    """Uniform numbers of [0, 1) of a pass: [utterances, block]. kind: 0 for the tokens, 1 for their ranking."""
    block = choice.tokens.shape[1]
    positions = torch.arange(block, device=choice.tokens.device)
    return uniforms(choice.seed[:, None], (2 * choice.index[:, None] + kind) * block + positions)


def _drawn(guided: Tensor, choice: Choice, vocab: int) -> Tensor:
    """A token for every position, [utterances, block], known ones included. guided: [utterances, block * vocab]."""
    guided = guided.unflatten(1, (-1, vocab))
    greedy = choice.temperature[:, None] == 0
    heat = torch.where(greedy, 1.0, choice.temperature[:, None])[..., None]
    uniform = _numbers(choice, kind=0)
    random = draw((guided / heat).flatten(0, 1), uniform.flatten()).view_as(uniform)
    return torch.where(greedy, guided.argmax(dim=-1), random)


def _scores(conditional: Tensor, unconditional: Tensor, prior: Tensor, drawn: Tensor, weight: Tensor) -> Tensor:
    """[utterances, block]. conditional, unconditional: logarithms [utterances, block, vocab]."""
    base = prior[drawn].clamp(min=LEAST)
    given, free = (
        part.gather(2, drawn[..., None])[..., 0].clamp(min=LEAST) - base for part in (conditional, unconditional)
    )
    return (1.0 + weight[:, None]) * given - weight[:, None] * free


def _gumbel(uniform: Tensor) -> Tensor:
    return -torch.log(-torch.log(uniform + _TINY) + _TINY)


def _kept(score: Tensor, unknown: Tensor, choice: Choice) -> Tensor:
    """Which unknown tokens are kept: the best, as many as the schedule says or as reach the quantile."""
    ascending = score.masked_fill(~unknown, math.inf).sort(dim=1).values
    below, above = (ascending.gather(1, place[:, None]) for place in (choice.below, choice.above))
    reached = unknown & (score >= torch.lerp(below, above, choice.weight[:, None]))
    keep = torch.maximum(choice.keep, reached.sum(dim=1) * choice.early)
    return unknown & (_rank(score.masked_fill(~unknown, -math.inf)) < keep[:, None])


def _rank(score: Tensor) -> Tensor:
    """The place of each score in descending order; of equal ones the first is better. [utterances, block]."""
    position = torch.arange(score.shape[1], device=score.device)
    other, own = score[:, None, :], score[:, :, None]
    better = (other > own) | ((other == own) & (position[None, :] < position[:, None]))
    return better.sum(dim=2)
