"""Which tokens of a block a pass keeps."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chatterbox_engine.t3.schedule import quantile
from chatterbox_engine.t3.unmasking import Choice, unmask

BLOCK, VOCAB, MASK = 16, 50, 50
PRIOR = torch.full((VOCAB,), 1 / VOCAB).log()


def logits(rows: int) -> Tensor:
    return 3 * torch.randn(rows, BLOCK, VOCAB, generator=torch.Generator().manual_seed(rows))


def choice(**changes: Any) -> Choice:
    """One guided utterance of a block of masks, which keeps four tokens."""
    numbers = {"conditional": 0, "unconditional": 1, "seed": 5, "index": 3, "keep": 4, "below": 0, "above": 0}
    numbers |= {"early": 0, "noisy": 0}
    given: dict[str, Any] = {name: torch.tensor([value]) for name, value in numbers.items()}
    given |= {"weight": torch.zeros(1), "temperature": torch.ones(1), "cfg_weight": torch.ones(1)}
    return replace(Choice(**given, tokens=torch.full((1, BLOCK), MASK)), **changes)


def kept(values: Tensor, it: Choice) -> tuple[Tensor, Tensor]:
    done = unmask(values, PRIOR, MASK, it)
    return done.tokens[0], done.scores[0]


def test_the_best_unknown_tokens_are_kept_and_known_ones_stay() -> None:
    before = torch.full((1, BLOCK), MASK)
    before[0, :5] = 7
    tokens, scores = kept(logits(2), choice(tokens=before))
    assert tokens[:5].tolist() == [7] * 5
    found = (tokens[5:] != MASK).nonzero().flatten()
    assert set(found.tolist()) == set(scores[5:].topk(4).indices.tolist())


def test_more_are_kept_where_scores_reach_the_quantile() -> None:
    below, above, weight = quantile(BLOCK, 5, 10, 1.0)
    early = choice(
        below=torch.tensor([below]), above=torch.tensor([above]), weight=torch.tensor([weight]), early=torch.ones(1)
    )
    tokens, scores = kept(logits(2), early)
    assert int((tokens != MASK).sum()) == int((scores >= scores.quantile(0.4)).sum()) > 4


def test_of_equal_scores_the_first_is_kept() -> None:
    same = torch.zeros(2, BLOCK, VOCAB)
    same[..., 9] = 100.0
    tokens, _ = kept(same, choice())
    assert tokens.tolist() == [9] * 4 + [MASK] * (BLOCK - 4)


def test_a_temperature_of_zero_takes_the_best_token() -> None:
    values = logits(2)
    tokens, _ = kept(values, choice(temperature=torch.zeros(1), keep=torch.tensor([BLOCK])))
    conditional, unconditional = values.log_softmax(dim=-1)
    assert torch.equal(tokens, (2 * conditional - unconditional).argmax(dim=-1))


def test_noise_changes_the_ranking_and_not_the_tokens() -> None:
    everything = torch.tensor([BLOCK])
    plain, scores = kept(logits(2), choice(keep=everything))
    noisy, others = kept(logits(2), choice(keep=everything, noisy=torch.ones(1)))
    assert torch.equal(plain, noisy)
    assert scores.argsort().tolist() != others.argsort().tolist()


@pytest.mark.parametrize("others", [1, 4])
def test_an_utterance_in_a_batch_is_what_it_is_alone(others: int) -> None:
    """Padding, of which no token is unknown, included."""
    alone, scores = kept(logits(2), choice(noisy=torch.ones(1)))
    values = torch.cat([logits(2), logits(2 * others)])
    own = choice(noisy=torch.ones(1))
    padding = choice(tokens=torch.zeros(1, BLOCK, dtype=torch.int64), seed=torch.tensor([9]), noisy=torch.ones(1))
    more = [padding] * others
    batch = Choice(**{item.name: torch.cat([getattr(it, item.name) for it in (own, *more)]) for item in fields(Choice)})
    done = unmask(values, PRIOR, MASK, batch)
    assert torch.equal(done.tokens[0], alone)
    assert torch.equal(done.scores[0], scores)
    assert not done.tokens[1:].any()
