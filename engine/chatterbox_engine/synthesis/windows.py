"""Windows of utterances to waveforms, whole utterances and chunks of streams in one batch.

A chunk is synthesised from a window of tokens around it, behind the voice's prompt, so its cost does not grow with the
utterance. What makes windows fit together: every frame starts the flow from the same noise and every sample has the
same noise in its source, wherever the window begins, and the source's phase goes on where the chunk before ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chatterbox_engine.s3gen.model import PreparedVoice, S3Gen, VocoderJob, draw_source
from chatterbox_engine.s3gen.noise import HARMONICS, SAMPLES_PER_FRAME, SourceNoise
from chatterbox_engine.synthesis.streaming import Span
from chatterbox_engine.types import SAMPLE_RATE, SAMPLES_PER_TOKEN

_FRAMES = SAMPLES_PER_TOKEN // SAMPLES_PER_FRAME  # of a token


@dataclass
class Phase:
    """Where an utterance's source is at the end of the chunk before; shared by all chunks of the utterance."""

    cycles: Tensor | None = None  # [] float64 on the device, of the fundamental, modulo one; None at the start


@dataclass(frozen=True)
class Window:
    """A chunk to synthesise."""

    tokens: Tensor  # [span.tokens] int64, at least one
    voice: PreparedVoice
    seed: int
    span: Span
    phase: Phase = field(default_factory=Phase)


@torch.inference_mode()
def synthesise(s3gen: S3Gen, windows: Sequence[Window]) -> list[Tensor]:
    """Waveforms of whole windows: [960 span.tokens] float32 each, on the device. The chunks of one utterance must be
    synthesised in their order, in different batches. An utterance's first 20 ms are muted, the next faded in."""
    jobs = [VocoderJob(window.tokens, window.voice, window.seed, window.span.start) for window in windows]
    frames = [job.frames for job in jobs]
    mel = s3gen.mel(jobs)
    source = draw_source(jobs, s3gen.device)
    ends: list[Tensor] = []
    if not all(window.span.complete for window in windows):
        phases, ends = _continue(windows, source.phases, s3gen.pitch(mel, frames))
        source = SourceNoise(phases, source.samples)
    waves = s3gen.vocode(mel, frames, source)
    for window, end in zip(windows, ends, strict=False):
        window.phase.cycles = end  # only now, so that a batch for which there was no memory can be tried again in parts
    for wave, window in zip(waves, windows, strict=True):
        if window.span.start == 0:
            wave[: len(s3gen.fade)] *= s3gen.fade
    return [wave[: SAMPLES_PER_FRAME * count] for wave, count in zip(waves, frames, strict=True)]


def _continue(windows: Sequence[Window], phases: Tensor, pitch: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Turns every window's source so that it has, where its chunk begins, the phase at which the chunk before ended.

    phases: [rows, HARMONICS]; pitch: [rows, frames] Hz. Returns the turned phases, and the phases at the chunks' ends.
    """
    advance = pitch.double() * (SAMPLES_PER_FRAME / SAMPLE_RATE)  # cycles of the fundamental in a frame
    orders = torch.arange(1, HARMONICS + 1, device=pitch.device)
    turns, ends = [], []
    for window, row in zip(windows, advance, strict=True):
        span, phase = window.span, window.phase
        begin, end = _FRAMES * (span.begin - span.start), _FRAMES * (span.end - span.start)
        cycles = row.new_zeros(()) if phase.cycles is None else phase.cycles
        ends.append((cycles + row[begin:end].sum()) % 1.0)
        turns.append((cycles - row[:begin].sum()) * orders % 1.0)
    return phases + (2 * math.pi * torch.stack(turns)).float(), ends
