"""Joins on real speech: a clip of the synthesiser hibari through the checkpoint `demo`, trained on such speech.

The clip's first three seconds are the voice, the rest is the utterance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

from chatterbox_engine.checkpoint.checkpoint import Checkpoint, locate
from chatterbox_engine.s3gen import PreparedVoice, S3Gen
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from chatterbox_engine.types import S3GenConditionals, Samples
from chatterbox_engine.voices.reference import ReferenceEncoder
from tests.fidelity.joins import WHOLE, AtJoins, SameMel, streamed

VOICE = 75  # tokens
chunkings = pytest.mark.parametrize("policy", [ChunkPolicy(), ChunkPolicy(7, 2)], ids=str)


@dataclass(frozen=True)
class Speech:
    """The utterance, its vocoder and the voice."""

    s3gen: Any
    voice: PreparedVoice
    tokens: Tensor  # [n]
    unsplit: Samples

    @classmethod
    def of(cls, s3gen: Any, voice: PreparedVoice, tokens: Tensor) -> Speech:
        return cls(s3gen, voice, tokens, streamed(s3gen, tokens, voice, WHOLE)[0])

    def at_joins(self, policy: ChunkPolicy, *, joined: bool = True) -> AtJoins:
        samples, joins = streamed(self.s3gen, self.tokens, self.voice, policy, joined=joined)
        assert len(joins) > 2
        return AtJoins.measure(samples, joins, self.unsplit)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(locate("demo"))


@pytest.fixture(scope="module")
def clip(checkpoint: Checkpoint) -> S3GenConditionals:
    """The clip's own mel, and its tokens from the checkpoint's tokenizer."""
    samples, rate = soundfile.read(checkpoint.path / "bass.flac", dtype="float32")
    encoder = ReferenceEncoder(checkpoint)
    (voice,) = encoder.encode([encoder.prepare(samples, rate)])
    return voice.s3gen


@pytest.fixture(scope="module")
def spoken(checkpoint: Checkpoint, clip: S3GenConditionals) -> Speech:
    """The utterance spoken from its tokens."""
    s3gen = S3Gen.from_state_dict(checkpoint.s3gen_state(), checkpoint.dims.s3gen, device=torch.device("cpu"))
    voice = S3GenConditionals(clip.prompt_tokens[:VOICE], clip.prompt_mel[: 2 * VOICE], clip.embedding)
    return Speech.of(s3gen, s3gen.prepare(voice), clip.prompt_tokens[VOICE:])


@pytest.fixture(scope="module")
def vocoded(spoken: Speech, clip: S3GenConditionals) -> Speech:
    """The utterance vocoded from the clip's own mel, which is identical in all windows."""
    same = SameMel(spoken.s3gen, clip.prompt_mel[2 * VOICE :])
    return Speech.of(same, spoken.voice, same.tokens)


@chunkings
def test_vocoded_from_its_own_mel_the_joins_are_not_there(vocoded: Speech, policy: ChunkPolicy) -> None:
    found = vocoded.at_joins(policy)
    assert found.step <= found.inside, found
    assert found.over_unsplit < 1.05, found
    assert found.mean < 0.01, found
    assert found.worst < 0.03, found


@chunkings
def test_spoken_from_its_tokens_the_joins_make_no_step_and_no_sound(spoken: Speech, policy: ChunkPolicy) -> None:
    found = spoken.at_joins(policy)
    assert found.step <= found.inside, found
    # the encoder sees less of what follows than it does of the whole, and says it a little differently
    assert found.over_unsplit < 3, found
    assert found.mean < 0.45, found
    assert found.worst < 2.5, found


@chunkings
def test_chunks_that_are_not_joined_would_be_heard(vocoded: Speech, policy: ChunkPolicy) -> None:
    joined, apart = vocoded.at_joins(policy), vocoded.at_joins(policy, joined=False)
    # of the steps none need be large: a join may fall into silence
    assert apart.mean > 10 * joined.mean, (joined, apart)
    assert apart.worst > 10 * joined.worst, (joined, apart)
