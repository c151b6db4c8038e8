"""`python -m tools.alignment`: which heads follow the text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chatterbox_engine.assemble import TEXTS
from chatterbox_engine.checkpoint.checkpoint import Checkpoint, locate
from chatterbox_engine.config import Config
from chatterbox_engine.t3.llama import T3
from tools.alignment import SENTENCES, Matrix, Speaker, best_heads, clearness

STEPS, SIZE = 60, 40


def along(places: np.ndarray, sharp: float = 1.0) -> Matrix:
    """Attention on a place in each step, and the rest on all."""
    attention = np.full((len(places), SIZE), (1 - sharp) / SIZE)
    attention[np.arange(len(places)), places.astype(int)] += sharp
    return attention.astype(np.float32)


FORTH = np.linspace(0, SIZE - 1, STEPS)


def test_a_head_that_follows_the_text_is_clear_and_others_are_not() -> None:
    assert clearness(along(FORTH)) == pytest.approx(1.0)
    assert clearness(along(FORTH, 0.5)) == pytest.approx(0.5, abs=0.05)
    for wrong in (FORTH[::-1], np.full(STEPS, 7), np.random.default_rng(1).integers(0, SIZE, STEPS)):
        assert clearness(along(wrong)) < 0.35


def test_heads_are_taken_together_while_that_makes_the_path_clearer() -> None:
    generator = np.random.default_rng(2)
    lost = [generator.random(STEPS) < 0.3 for _ in range(2)]
    halves = [along(np.where(gone, 5, FORTH), 0.8) for gone in lost]
    spoken = [{(0, 0): along(FORTH[::-1]), (1, 0): halves[0], (1, 1): halves[1], (2, 3): along(np.full(STEPS, 3))}]
    ranked, found = best_heads(spoken)
    assert {head for head, _ in ranked[:2]} == {(1, 0), (1, 1)}
    assert set(found.heads) <= {(1, 0), (1, 1)}
    assert 0 < found.peak < 1


def test_the_demo_voices_trained_heads_are_found() -> None:
    checkpoint = Checkpoint.open(locate("demo"))
    dims = checkpoint.dims
    model = T3.from_state_dict(checkpoint.t3_state(), dims.t3, device=torch.device("cpu"), dtype=torch.float32)
    speaker = Speaker(model, checkpoint, TEXTS["english"](checkpoint, Config()))
    _, found = best_heads([speaker.attention(text, 1) for text in SENTENCES[:2]])
    assert set(found.heads) <= set(dims.alignment_heads)
    assert found.peak == pytest.approx(dims.alignment_peak, abs=0.1)
