"""A clip as a caller sends it becomes the voice that upstream's `prepare_conditionals` makes of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatterbox_engine.clips import ClipLimits, read_clip
from chatterbox_engine.conditionals import from_bytes, to_bytes
from chatterbox_engine.reference import ReferenceEncoder
from tests.clips import encoded, tone
from tests.conftest import CheckpointOf
from tests.fidelity import upstream

# upstream's librosa.load imports audioread, which imports modules that Python 3.13 has dropped
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated and slated for removal in Python 3.13")

LENGTHS = (1.0, 5.5, 12.0, 30.0)
RATES = (8_000, 16_000, 24_000, 44_100, 48_000)
CHECKPOINTS = {"tiny": upstream.tts, "tiny-turbo": upstream.turbo, "full": upstream.tts}


def cases() -> Iterator[Any]:
    """All of them, half of the tiny English checkpoint's without the mark `full`: every length at every rate there,
    every other one in stereo."""
    for name in CHECKPOINTS:
        every = itertools.product(enumerate(LENGTHS), enumerate(RATES), (1, 2))
        for (row, seconds), (column, rate), channels in every:
            short = name == "tiny" and (row + column + channels) % 2 == 0
            if name != "tiny-turbo" or seconds > 5:  # it refuses shorter ones (test_reference.py)
                yield pytest.param(name, seconds, rate, channels, marks=() if short else pytest.mark.full)


@pytest.fixture(scope="module")
def both(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> tuple[ReferenceEncoder, Any]:
    """Our encoder and upstream's whole class with one checkpoint."""
    checkpoint = checkpoint_of(request.param)
    return ReferenceEncoder(checkpoint, "cpu"), CHECKPOINTS[request.param](checkpoint, t3_module=False)


@pytest.mark.parametrize(("both", "seconds", "rate", "channels"), list(cases()), indirect=["both"])
def test_a_clip_is_heard_as_upstream_hears_it(
    both: tuple[ReferenceEncoder, Any], seconds: float, rate: int, channels: int, tmp_path: Path
) -> None:
    encoder, tts = both
    samples = tone(seconds, rate, channels=channels)
    samples[:, -1] += 0.01 * np.random.default_rng(0).standard_normal(len(samples)).astype(np.float32)
    clip = encoded(samples, rate)
    ours = from_bytes(to_bytes(encoder.encode(*read_clip(clip, ClipLimits()))))
    (tmp_path / "clip.wav").write_bytes(clip)
    with torch.no_grad():
        tts.prepare_conditionals(str(tmp_path / "clip.wav"))
    t3, gen = tts.conds.t3, tts.conds.gen
    assert torch.equal(ours.t3.prompt_tokens, t3.cond_prompt_speech_tokens[0])
    assert torch.equal(ours.s3gen.prompt_tokens, gen["prompt_token"][0])
    frames = 2 * len(ours.s3gen.prompt_tokens)  # upstream keeps an odd last frame
    for name, one, other in (
        ("speaker", ours.t3.speaker, t3.speaker_emb[0]),
        ("prompt mel", ours.s3gen.prompt_mel, gen["prompt_feat"][0, :frames]),
        ("x-vector", ours.s3gen.embedding, gen["embedding"][0]),
    ):
        difference = float((one - other).abs().max())
        assert difference < 1e-4, f"{name} of {seconds} s at {rate} Hz, {channels} channels: {difference:.1e}"
