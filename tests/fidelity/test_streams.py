"""Streams against the unsplit utterance: equal lengths, identical audio for one chunk, and inaudible joins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.s3gen import PreparedVoice, S3Gen, SourceNoise, VocoderJob
from chatterbox_engine.s3gen.noise import Phase
from chatterbox_engine.synthesis.streaming import OVERLAP, ChunkPolicy, Cursor
from chatterbox_engine.synthesis.watermark import PerthWatermark, Watermarker
from chatterbox_engine.synthesis.windows import synthesise, window
from chatterbox_engine.types import SAMPLE_RATE, SAMPLES_PER_TOKEN, Samples
from tests.conftest import CheckpointOf
from tests.fidelity.joins import FRAME, WHOLE, AtJoins, SameMel, around, frames_of, streamed

chunkings = pytest.mark.parametrize("policy", [ChunkPolicy(), ChunkPolicy(4, 11), ChunkPolicy(7, 2)], ids=str)
POLICIES = (ChunkPolicy(), ChunkPolicy(1, 1), ChunkPolicy(4, 30), ChunkPolicy(100, 3))


@pytest.fixture(scope="module", params=["tiny", "tiny-flash"])  # with guidance, and MeanFlow
def checkpoint(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Checkpoint:
    return checkpoint_of(request.param)


@pytest.fixture(scope="module")
def s3gen(checkpoint: Checkpoint) -> S3Gen:
    return S3Gen.from_state_dict(checkpoint.s3gen_state(), checkpoint.dims.s3gen, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def voice(checkpoint: Checkpoint, s3gen: S3Gen) -> PreparedVoice:
    conditionals = checkpoint.conditionals()
    assert conditionals is not None
    return s3gen.prepare(conditionals.s3gen)


def random_tokens(count: int) -> Tensor:
    return torch.randint(0, 6561, (count,), generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(
    ("count", "policy"),
    [*((count, policy) for count in (1, 2, 12, 13, 14, 40, 150) for policy in POLICIES), (1000, ChunkPolicy())],
    ids=str,
)
def test_a_stream_is_as_long_as_the_utterance_and_begins_like_it(
    s3gen: S3Gen, voice: PreparedVoice, count: int, policy: ChunkPolicy
) -> None:
    samples, _ = streamed(s3gen, random_tokens(count), voice, policy)
    assert samples.shape == (count * SAMPLES_PER_TOKEN,)
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1
    assert not samples[: SAMPLE_RATE // 50].any()  # upstream's mute, at the very start
    assert np.abs(samples[SAMPLES_PER_TOKEN::SAMPLES_PER_TOKEN]).min(initial=1) > 0  # and nowhere else


@pytest.mark.parametrize("count", [1, 2, 40, 333])
def test_a_stream_of_one_chunk_is_the_utterance(s3gen: S3Gen, voice: PreparedVoice, count: int) -> None:
    tokens = random_tokens(count)
    whole = synthesise(s3gen, [VocoderJob(tokens, voice, 5)])[0].numpy()
    samples, joins = streamed(s3gen, tokens, voice, WHOLE)
    assert not joins
    assert np.abs(samples - whole).max() < 1e-4


def test_windows_in_one_batch_are_what_they_are_alone(s3gen: S3Gen, voice: PreparedVoice) -> None:
    cursor, phase, alone = Cursor(ChunkPolicy(5, 7)), Phase(), Phase()
    tokens, other = random_tokens(50), random_tokens(80)
    while cursor.segment == 0:
        span = cursor.take(50, complete=True)
        assert span is not None
        part, whole = tokens[span.start : span.stop], VocoderJob(other, voice, 9)
        together = synthesise(s3gen, [whole, window(part, voice, 5, span, phase)])
        torch.testing.assert_close(together[0], synthesise(s3gen, [whole])[0], atol=1e-4, rtol=0)
        single = synthesise(s3gen, [window(part, voice, 5, span, alone)])[0]
        torch.testing.assert_close(together[1], single, atol=1e-4, rtol=0)


def test_with_the_mel_of_the_utterance_the_real_vocoder_gives_its_waveform(s3gen: S3Gen, voice: PreparedVoice) -> None:
    tokens = random_tokens(120)
    mel = s3gen.mel([VocoderJob(tokens, voice, 5)])[0]
    fixed = SameMel(s3gen, mel)
    whole, _ = streamed(fixed, fixed.tokens, voice, WHOLE)
    samples, joins = streamed(fixed, fixed.tokens, voice, ChunkPolicy(10, 20))
    assert len(joins) == 3
    # HiFT's receptive field reaches past the window's end, where the stream has only three tokens of lookahead
    difference = np.abs(samples - whole)
    assert difference.max() < 0.05 * np.abs(whole).max()
    assert np.sqrt(np.mean(difference**2)) < 0.005 * np.sqrt(np.mean(whole**2))


class Voiced:
    """A checkpoint-independent vocoder: harmonics at the mel's loudness, at the pitch in the mel's last bin.

    A frame differs between windows, as the flow's solutions do: its pitch by about 1%, its loudness by about 0.5 dB.
    """

    device = torch.device("cpu")
    fade = torch.ones(1)

    def __init__(self, pitch: Tensor, loudness: Tensor, drift: float) -> None:
        self._frames = torch.stack([loudness, pitch], dim=1)  # [frames, 2]
        self._windows, self._drift = 0, drift

    def pitch(self, mel: Tensor, frames: Sequence[int]) -> Tensor:
        return mel[..., 1]

    def mel(self, jobs: Sequence[VocoderJob]) -> Tensor:
        (job,) = jobs
        self._windows += 1
        frames = frames_of(job.tokens)
        drift = self._drift * torch.sin(torch.arange(len(frames)) / 7 + 2.0 * self._windows)[:, None]
        return (self._frames[frames] * (1 + torch.tensor([0.06, 0.01]) * drift))[None]

    def vocode(self, mel: Tensor, frames: Sequence[int], source: SourceNoise) -> Tensor:
        loudness, pitch = (row.repeat_interleave(FRAME).double() for row in mel[0].T)
        kernel = torch.full((1, 1, FRAME + 1), 1 / (FRAME + 1), dtype=torch.float64)  # as smooth as HiFT's envelopes
        loudness = torch.nn.functional.conv1d(
            torch.nn.functional.pad(loudness[None, None], (FRAME // 2, FRAME // 2), mode="replicate"), kernel
        )[0, 0]
        orders = torch.arange(1, 10)[:, None]
        angle = 2 * math.pi * orders * (pitch / SAMPLE_RATE).cumsum(0) + source.phases[0, :, None]
        return (loudness * (torch.sin(angle) / orders).sum(0) * 0.2).float()[None]


def speech(drift: float = 1.0) -> Voiced:
    """Eight seconds."""
    frame = torch.arange(400)
    return Voiced(120 + 30 * torch.sin(frame / 40), 0.6 + 0.35 * torch.sin(frame / 9), drift)


def spoken(policy: ChunkPolicy, drift: float = 1.0, mark: Watermarker | None = None) -> tuple[Samples, list[int]]:
    voice: Any = SimpleNamespace(frames=0)
    return streamed(speech(drift), torch.arange(200), voice, policy, mark)


@chunkings
def test_the_source_goes_on_across_joins_as_if_there_were_none(policy: ChunkPolicy) -> None:
    whole, _ = spoken(WHOLE, drift=0.0)
    samples, joins = spoken(policy, drift=0.0)
    assert joins
    assert np.abs(samples - whole).max() < 1e-3


@chunkings
def test_joins_make_no_step_and_no_sound(policy: ChunkPolicy) -> None:
    whole, _ = spoken(WHOLE)
    samples, joins = spoken(policy)
    found = AtJoins.measure(samples, joins, whole)
    assert found.step <= found.inside, found
    assert found.mean < 0.25, found
    assert found.worst < 0.5, found


@chunkings
def test_a_stream_is_marked_as_the_utterance_and_the_mark_makes_no_step_at_joins(policy: ChunkPolicy) -> None:
    import perth

    watermark, detector = PerthWatermark(torch.device("cpu")), perth.PerthImplicitWatermarker()

    def detected(samples: Samples) -> float:
        return float(detector.get_watermark(samples, sample_rate=SAMPLE_RATE, round=False).mean())

    marked, joins = spoken(policy, mark=watermark)
    plain, _ = spoken(policy)
    assert abs(detected(marked) - detected(spoken(WHOLE, mark=watermark)[0])) < 0.1
    assert detected(marked) > detected(plain) + 0.3
    step = np.abs(np.diff(marked - plain))
    at_join = around(joins, len(step), 2, OVERLAP + 2)
    assert step[at_join].max() <= step[~at_join].max()
