"""How many tokens of a block a pass keeps."""

from __future__ import annotations

import pytest
import torch

from chatterbox_engine.t3.schedule import counts, quantile


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 16, 32])
@pytest.mark.parametrize("tokens", [1, 5, 12, 16])
def test_all_tokens_are_kept_by_the_last_pass(tokens: int, steps: int, shift: float) -> None:
    each = counts(tokens, steps, shift)
    assert len(each) == steps
    assert sum(each) == tokens
    assert min(each) >= 0


def test_a_shift_below_one_leaves_most_tokens_to_the_last_passes() -> None:
    late, even, early = (counts(16, 8, shift) for shift in (0.2, 1.0, 3.0))
    assert even == counts(16, 8, 0.0) == (2,) * 8
    assert sum(late[:4]) < 8 < sum(early[:4])


@pytest.mark.parametrize("masked", [1, 2, 7, 16])
@pytest.mark.parametrize("tau", [0.1, 0.35, 1.0, 3.0])
@pytest.mark.parametrize("step", [0, 4, 9])
def test_the_threshold_is_torchs_quantile(masked: int, tau: float, step: int) -> None:
    scores = torch.randn(masked, generator=torch.Generator().manual_seed(masked))
    below, above, weight = quantile(masked, step, 10, tau)
    ascending = scores.sort().values
    ours = torch.lerp(ascending[below], ascending[above], torch.tensor(weight))
    assert ours == torch.quantile(scores, max(0.0, 1.0 - tau * (step + 1) / 10))
