"""Streams without a server, window by window, and how a join shows in the samples and to the ear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import librosa
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from chatterbox_engine.s3gen import S3Gen, VocoderJob
from chatterbox_engine.s3gen.noise import Phase
from chatterbox_engine.synthesis.streaming import OVERLAP, ChunkPolicy, Cursor, Joiner
from chatterbox_engine.synthesis.watermark import NoWatermark, Watermarker
from chatterbox_engine.synthesis.windows import synthesise, window
from chatterbox_engine.types import SAMPLE_RATE, SAMPLES_PER_TOKEN, Samples

FRAME = SAMPLES_PER_TOKEN // 2
WHOLE = ChunkPolicy(750)
"""The utterance unsplit."""

_NEARBY = SAMPLE_RATE // 20


def streamed(
    s3gen: Any,
    tokens: Tensor,
    voice: Any,
    policy: ChunkPolicy,
    mark: Watermarker | None = None,
    *,
    joined: bool = True,
) -> tuple[Samples, list[int]]:
    """The stream's samples, and where its joins are.

    joined: False puts the chunks one after the other as they are, each with a source of its own.
    """
    cursor, joiner, phase, mark = Cursor(policy), Joiner([0.0]), Phase(), mark or NoWatermark()
    parts: list[Samples] = []
    while cursor.segment == 0:
        span = cursor.take(len(tokens), complete=True)
        assert span is not None
        job = window(tokens[span.start : span.stop], voice, 5, span, phase if joined else Phase())
        wave = mark.apply(synthesise(s3gen, [job])[0].numpy())
        first, end = ((at - span.start) * SAMPLES_PER_TOKEN for at in (span.begin, span.end))
        parts.append(joiner.add(wave, span) if joined else wave[first:end])
    return np.concatenate(parts), np.cumsum([len(part) for part in parts])[:-1].tolist()


class SameMel:
    """The real vocoder behind a mel that does not depend on the window: token t stands for two frames of one mel."""

    def __init__(self, s3gen: S3Gen, mel: Tensor) -> None:
        """mel: [2 tokens, mel]."""
        self.device, self.fade, self.pitch, self.vocode = s3gen.device, torch.ones(1), s3gen.pitch, s3gen.vocode
        self.tokens = torch.arange(len(mel) // 2)
        self._mel = mel

    def mel(self, jobs: Sequence[VocoderJob]) -> Tensor:
        (job,) = jobs
        return self._mel[None, frames_of(job.tokens)]


def frames_of(tokens: Tensor) -> Tensor:
    """The two mel frames that belong to each position of an utterance."""
    return torch.stack([2 * tokens, 2 * tokens + 1], dim=1).flatten()


@dataclass(frozen=True)
class AtJoins:
    """How the joins of a stream show."""

    step: float
    """The largest from one sample to the next in the crossfades and two samples around them."""
    inside: float
    """The largest elsewhere."""
    over_unsplit: float
    """The largest at a join over the unsplit utterance's within 50 ms of it, of all joins the worst."""
    mean: float
    worst: float
    """Log-mel distance to the unsplit utterance within three frames (60 ms) of a join: natural logarithm, mean over
    80 bands; of those frames the mean and the worst."""

    @classmethod
    def measure(cls, samples: Samples, joins: Sequence[int], unsplit: Samples) -> AtJoins:
        step, smooth = np.abs(np.diff(samples)), np.abs(np.diff(unsplit))
        at_join = around(joins, len(step), 2, OVERLAP + 2)
        ratios = [
            step[join - 2 : join + OVERLAP + 2].max() / smooth[max(0, join - _NEARBY) : join + OVERLAP + _NEARBY].max()
            for join in joins
        ]
        distance = np.abs(log_mel(samples) - log_mel(unsplit)).mean(axis=1)
        near = distance[around([join // FRAME for join in joins], len(distance), 3, 4)]
        largest = (step[at_join].max(), step[~at_join].max(), max(ratios), near.mean(), near.max())
        return cls(*(round(float(value), 4) for value in largest))


def around(joins: Sequence[int], length: int, before: int, after: int) -> npt.NDArray[np.bool_]:
    """Where a join is near."""
    near = np.zeros(length, dtype=bool)
    for join in joins:
        near[max(0, join - before) : join + after] = True
    return near


def log_mel(samples: Samples) -> npt.NDArray[np.float64]:
    """[frames, 80] natural logarithms, a frame every 20 ms."""
    mel = librosa.feature.melspectrogram(y=samples, sr=SAMPLE_RATE, n_fft=1024, hop_length=FRAME, n_mels=80)
    return np.log(np.maximum(mel.T, 1e-5))
