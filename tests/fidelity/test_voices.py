"""A clip as a caller sends it becomes the voice that upstream's `prepare_conditionals` makes of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.types import Conditionals
from chatterbox_engine.voices.clips import ClipLimits, read_clip
from chatterbox_engine.voices.conditionals import from_bytes, to_bytes
from chatterbox_engine.voices.reference import ReferenceEncoder
from tests.clips import encoded, tone
from tests.conftest import CheckpointOf
from tests.fidelity import upstream

# upstream's librosa.load imports audioread, which imports modules that Python 3.13 has dropped
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated and slated for removal in Python 3.13")

LENGTHS = (1.0, 5.5, 12.0, 30.0)
RATES = (8_000, 16_000, 24_000, 44_100, 48_000)
UPSTREAM = {
    "tiny": partial(upstream.tts, t3_module=False),
    "tiny-turbo": partial(upstream.turbo, t3_module=False),
    "tiny-flash": upstream.flash,
    "full": partial(upstream.tts, t3_module=False),
}
"""The class of each checkpoint."""


def cases() -> Iterator[Any]:
    """Every length at every rate, every other one of them in stereo; what is the other way round is marked `full`."""
    for (row, seconds), (column, rate) in itertools.product(enumerate(LENGTHS), enumerate(RATES)):
        channels = 1 + (row + column) % 2
        yield seconds, rate, channels
        yield pytest.param(seconds, rate, 3 - channels, marks=pytest.mark.full)


@dataclass(frozen=True)
class Both:
    """Our encoder and upstream's class, with one checkpoint."""

    checkpoint: Checkpoint
    encoder: ReferenceEncoder
    tts: Any

    def ours(self, *clips: bytes) -> list[Conditionals]:
        """The voices of clips that are encoded together."""
        prepared = [self.encoder.prepare(*read_clip(clip, ClipLimits())) for clip in clips]
        return [from_bytes(to_bytes(voice)) for voice in self.encoder.encode(prepared)]

    @torch.no_grad()
    def theirs(self, clip: bytes, folder: Path) -> Any:
        (folder / "clip.wav").write_bytes(clip)
        self.tts.prepare_conditionals(str(folder / "clip.wav"))
        return self.tts.conds


@pytest.fixture(
    scope="module",
    params=["tiny", *(pytest.param(name, marks=pytest.mark.full) for name in ("tiny-turbo", "tiny-flash", "full"))],
)
def both(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Both:
    checkpoint = checkpoint_of(request.param)
    return Both(checkpoint, ReferenceEncoder(checkpoint, "cpu"), UPSTREAM[request.param](checkpoint))


@pytest.mark.parametrize(("seconds", "rate", "channels"), list(cases()))
def test_a_clip_is_heard_as_upstream_hears_it(
    seconds: float, rate: int, channels: int, both: Both, tmp_path: Path
) -> None:
    clip = recording(seconds, rate, channels)
    if seconds < both.checkpoint.family.reference.min_seconds:
        with pytest.raises(InvalidRequest, match="at least"):
            both.ours(clip)
        with pytest.raises(AssertionError, match="longer than 5 seconds"):
            both.theirs(clip, tmp_path)
        return
    (ours,) = both.ours(clip)
    assert_alike(ours, both.theirs(clip, tmp_path), f"{seconds} s at {rate} Hz, {channels} channels")


def test_clips_that_are_encoded_together_are_heard_as_upstream_hears_each(both: Both, tmp_path: Path) -> None:
    """Two of them are cut to the same length, the others are padded where the networks know of it."""
    lengths = [length for length in (12.0, 5.5, 30.0, 1.0) if length >= both.checkpoint.family.reference.min_seconds]
    clips = [recording(length, 24_000, 1, seed=number) for number, length in enumerate(lengths)]
    for clip, ours, length in zip(clips, both.ours(*clips), lengths, strict=True):
        assert_alike(ours, both.theirs(clip, tmp_path), f"{length} s beside others")


def recording(seconds: float, rate: int, channels: int, seed: int = 0) -> bytes:
    """A tone with some noise, of which every seed makes another one."""
    samples = tone(seconds, rate, channels=channels, pitch=130.0 + 40 * seed)
    samples[:, -1] += 0.01 * np.random.default_rng(seed).standard_normal(len(samples)).astype(np.float32)
    return encoded(samples, rate)


def assert_alike(ours: Conditionals, theirs: Any, what: str) -> None:
    t3, gen = theirs.t3, theirs.gen
    assert torch.equal(ours.t3.prompt_tokens, t3.cond_prompt_speech_tokens[0])
    assert torch.equal(ours.s3gen.prompt_tokens, gen["prompt_token"][0])
    frames = 2 * len(ours.s3gen.prompt_tokens)  # upstream keeps an odd last frame
    for name, one, other in (
        ("speaker", ours.t3.speaker, t3.speaker_emb[0]),
        ("prompt mel", ours.s3gen.prompt_mel, gen["prompt_feat"][0, :frames]),
        ("x-vector", ours.s3gen.embedding, gen["embedding"][0]),
    ):
        difference = float((one - other).abs().max())
        assert difference < 1e-4, f"{name} of {what}: {difference:.1e}"
