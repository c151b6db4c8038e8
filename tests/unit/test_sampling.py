"""Each sampling step alone, on small vocabularies."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_engine.checkpoint.families import ENGLISH, TURBO
from chatterbox_engine.t3 import sampling


def test_guidance_of_weight_zero_is_the_conditional_row() -> None:
    conditional, unconditional = torch.randn(2, 5), torch.randn(2, 5)
    got = sampling.guide(conditional, unconditional, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(got[0], conditional[0])
    torch.testing.assert_close(got[1], conditional[1] + 0.5 * (conditional[1] - unconditional[1]))


def test_the_penalty_lowers_seen_tokens_of_either_sign() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0]])
    seen = torch.tensor([[True, True, False]])
    assert sampling.penalise(logits, seen, torch.tensor([2.0])).tolist() == [[1.0, -4.0, 2.0]]


def test_min_p_of_one_keeps_the_best_alone() -> None:
    kept = sampling.keep_min_p(torch.tensor([[0.0, 3.0, 2.9]]), torch.tensor([1.0]))
    assert kept.isfinite().tolist() == [[False, True, False]]


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(3, -1)
    kept = sampling.keep_top(logits, torch.zeros(3, dtype=torch.int64), torch.tensor([0.4, 0.79, 0.96]))
    assert kept.isfinite().sum(dim=-1).tolist() == [1, 2, 4]


def test_top_k_keeps_as_many_as_it_says_and_top_p_counts_among_them() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(5, -1)
    top_p = torch.tensor([1.0, 1.0, 1.0, 0.7, 0.6])
    kept = sampling.keep_top(logits, torch.tensor([1, 3, 9, 2, 2]), top_p)
    assert kept.isfinite().sum(dim=-1).tolist() == [1, 3, 4, 2, 1]  # 0.5 is 62.5% of the best two


def test_the_order_of_the_processors_is_the_one_that_is_asked_for() -> None:
    logits = torch.tensor([[3.0, 2.9, 0.0]])
    rows = sampling.Parameters(*torch.tensor([[1.0], [2.0], [0.5], [1.0]]), torch.tensor([1]))
    seen, uniform = torch.tensor([[True, False, False]]), torch.zeros(1)
    filtered_first = sampling.choose(logits, seen, rows, uniform, TURBO.processors, use_top=True)
    penalised_first = sampling.choose(logits, seen, rows, uniform, ENGLISH.processors, use_top=True)
    assert (filtered_first.item(), penalised_first.item()) == (0, 1)


def test_the_draw_splits_the_unit_interval_by_probability() -> None:
    logits = torch.tensor([0.25, 0.0, 0.5, 0.25]).log().expand(6, -1)
    uniform = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.76, 0.999])
    assert sampling.draw(logits, uniform).tolist() == [0, 0, 2, 2, 3, 3]


def test_rows_with_their_own_parameters_do_not_disturb_each_other() -> None:
    logits = torch.randn(3, 50)
    uniform = torch.rand(3)
    seen = torch.zeros(3, 50, dtype=torch.bool)
    columns = {
        "temperature": torch.tensor([0.0, 0.7, 1.4]),
        "repetition_penalty": torch.tensor([1.0, 1.2, 2.0]),
        "min_p": torch.tensor([0.1, 0.0, 0.2]),
        "top_p": torch.tensor([1.0, 0.6, 1.0]),
        "top_k": torch.tensor([0, 7, 20]),
    }

    def choose(rows: slice) -> list[int]:
        own = sampling.Parameters(**{name: column[rows] for name, column in columns.items()})
        token = sampling.choose(logits[rows], seen[rows], own, uniform[rows], ENGLISH.processors, use_top=True)
        return token.tolist()

    together = choose(slice(0, 3))
    assert together == [choose(slice(row, row + 1))[0] for row in range(3)]
    assert together[0] == logits[0].argmax()


@given(st.floats(0, 1, exclude_max=True, width=32), st.integers(2, 40), st.integers(0, 10_000))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_token_of_no_probability_is_never_drawn(uniform: float, vocab: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, vocab, generator=generator)
    logits[torch.rand(1, vocab, generator=generator) < 0.5] = -torch.inf
    logits[0, 0] = 0.0
    token = sampling.draw(logits, torch.tensor([uniform]))
    assert logits[0, token].isfinite()
