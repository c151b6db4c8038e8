"""A voice made from a clip equals the one that upstream's `ChatterboxTTS.prepare_conditionals` makes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.types import Conditionals, Samples
from chatterbox_engine.voices.reference import ReferenceEncoder
from tests.conftest import CheckpointOf
from tests.fidelity import upstream

# upstream's librosa.load imports audioread, which imports modules that Python 3.13 has dropped
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated and slated for removal in Python 3.13")


def clip(seconds: float, rate: int, seed: int = 0) -> Samples:
    """A gliding harmonic tone with a slow beat and some noise: voiced, unlike itself from second to second."""
    time = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(130 + 50 * np.sin(1.9 * time + seed)) / rate
    voiced = sum(np.sin(k * phase) / k for k in range(1, 12)) * (0.6 + 0.4 * np.sin(17 * time))
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (0.2 * voiced + 0.01 * noise).astype(np.float32)


@torch.no_grad()
def prepare(tts: Any, audio: Samples, rate: int, folder: Path) -> Any:
    soundfile.write(folder / "clip.wav", audio, rate, subtype="FLOAT")
    tts.prepare_conditionals(str(folder / "clip.wav"))
    return tts.conds


def encode(encoder: ReferenceEncoder, audio: Samples, rate: int) -> Conditionals:
    (voice,) = encoder.encode([encoder.prepare(audio, rate)])
    return voice


@pytest.fixture(scope="module")
def encoder(tiny: Checkpoint) -> ReferenceEncoder:
    return ReferenceEncoder(tiny, "cpu")


def assert_equal_to_upstream(ours: Conditionals, theirs: Any) -> None:
    gen = theirs.gen
    assert torch.equal(ours.t3.speaker, theirs.t3.speaker_emb[0])
    assert torch.equal(ours.t3.prompt_tokens, theirs.t3.cond_prompt_speech_tokens[0])
    assert torch.equal(ours.s3gen.prompt_tokens, gen["prompt_token"][0])
    assert torch.equal(ours.s3gen.prompt_mel, gen["prompt_feat"][0, : 2 * len(ours.s3gen.prompt_tokens)])
    # summed in another order, as the weights lie elsewhere in memory
    torch.testing.assert_close(ours.s3gen.embedding, gen["embedding"][0], rtol=0, atol=1e-5)
    assert gen["prompt_feat"].shape[1] - len(ours.s3gen.prompt_mel) in (0, 1)


@pytest.mark.parametrize(
    ("seconds", "rate"), [(3.0, 24_000), (12.0, 24_000), (3.0, 44_100), (4.37, 16_000), (0.5, 48_000), (0.72, 8_000)]
)
def test_a_tiny_checkpoint_hears_a_clip_as_upstream_does(
    seconds: float, rate: int, encoder: ReferenceEncoder, tiny_upstream: Any, tmp_path: Path
) -> None:
    audio = clip(seconds, rate)
    assert_equal_to_upstream(encode(encoder, audio, rate), prepare(tiny_upstream, audio, rate, tmp_path))


@pytest.fixture(scope="module")
def tiny_upstream(tiny: Checkpoint) -> Any:
    return upstream.tts(tiny, t3_module=False)


@pytest.mark.parametrize("name", ["tiny-turbo", pytest.param("full-turbo", marks=pytest.mark.full)])
def test_turbo_hears_a_clip_at_its_loudness_as_upstream_does(
    name: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(name)
    theirs, encoder = upstream.turbo(checkpoint, t3_module=False), ReferenceEncoder(checkpoint, "cpu")
    for seconds, rate, volume in ((5.3, 24_000, 1.0), (17.0, 16_000, 0.1)):
        audio = volume * clip(seconds, rate)
        ours = encode(encoder, audio, rate)
        assert_equal_to_upstream(ours, prepare(theirs, audio, rate, tmp_path))
        assert len(ours.t3.prompt_tokens) == min(375, math.ceil(25 * seconds))
    with pytest.raises(InvalidRequest, match=r"at least 5\.0 seconds"):
        encode(encoder, clip(4.9, 24_000), 24_000)


@pytest.mark.full
def test_a_full_size_checkpoint_hears_a_clip_as_upstream_does(full: Checkpoint, tmp_path: Path) -> None:
    reference = upstream.tts(full, t3_module=False)
    encoder = ReferenceEncoder(full)
    for seconds in (3.0, 12.0):
        audio = clip(seconds, 24_000)
        assert_equal_to_upstream(encode(encoder, audio, 24_000), prepare(reference, audio, 24_000, tmp_path))


def test_a_token_of_the_prompt_is_two_mel_frames_whatever_the_length(encoder: ReferenceEncoder) -> None:
    for samples in range(24_000, 25_000, 170):
        voice = encode(encoder, clip(2.0, 24_000)[:samples], 24_000).s3gen
        assert len(voice.prompt_mel) == 2 * len(voice.prompt_tokens)


def test_two_clips_make_two_voices(encoder: ReferenceEncoder) -> None:
    one, other = (encode(encoder, clip(3.0, 24_000, seed), 24_000) for seed in (1, 2))
    assert not torch.equal(one.t3.prompt_tokens, other.t3.prompt_tokens)
    assert not torch.allclose(one.t3.speaker, other.t3.speaker, atol=1e-3)
    assert not torch.allclose(one.s3gen.embedding, other.s3gen.embedding, atol=1e-3)


def test_a_voice_can_be_changed_in_place_afterwards(encoder: ReferenceEncoder) -> None:
    voice = encode(encoder, clip(1.0, 24_000), 24_000)
    for tensor in (voice.t3.speaker, voice.t3.prompt_tokens, voice.s3gen.prompt_mel, voice.s3gen.embedding):
        tensor.add_(1)


@pytest.mark.parametrize(
    "audio", [np.zeros(100, np.float32), np.zeros((2, 24_000), np.float32), np.full(24_000, np.nan, np.float32)]
)
def test_an_unusable_clip_is_the_requests_fault(audio: Samples, encoder: ReferenceEncoder) -> None:
    with pytest.raises(InvalidRequest, match="reference audio"):
        encode(encoder, audio, 24_000)
