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

from chatterbox_engine.device import upload
from chatterbox_engine.s3gen.model import PreparedVoice, S3Gen, VocoderJob
from chatterbox_engine.s3gen.noise import HARMONICS, SAMPLES_PER_FRAME, SourceNoise, source_noise, start_noise
from chatterbox_engine.streaming import Span
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
    jobs = [VocoderJob(window.tokens, window.voice, window.seed) for window in windows]
    frames = [job.frames for job in jobs]
    mel = s3gen.mel(jobs, [_start(window, s3gen.dims.mel) for window in windows])
    sources = [_noise(window) for window in windows]
    ends: list[Tensor] = []
    if not all(window.span.complete for window in windows):
        sources, ends = _continue(windows, sources, s3gen.pitch(mel, frames))
    waves = s3gen.vocode(mel, frames, sources)
    for window, end in zip(windows, ends, strict=False):
        window.phase.cycles = end  # only now, so that a batch for which there was no memory can be tried again in parts
    for wave, window in zip(waves, windows, strict=True):
        if window.span.start == 0:
            wave[: len(s3gen.fade)] *= s3gen.fade
    return [wave[: SAMPLES_PER_FRAME * count] for wave, count in zip(waves, frames, strict=True)]


def _start(window: Window, mel: int) -> Tensor:
    """Where the flow starts: the prompt's noise, then the window's own part of the utterance's."""
    span, prompt = window.span, window.voice.frames
    noise = start_noise(window.seed, prompt + _FRAMES * span.stop, mel)
    return noise if span.start == 0 else torch.cat([noise[:prompt], noise[prompt + _FRAMES * span.start :]])


def _noise(window: Window) -> SourceNoise:
    """The window's part of the utterance's source noise."""
    noise = source_noise(window.seed, _FRAMES * window.span.stop)
    return SourceNoise(noise.phases, noise.samples[SAMPLES_PER_TOKEN * window.span.start :])


def _continue(
    windows: Sequence[Window], sources: Sequence[SourceNoise], pitch: Tensor
) -> tuple[list[SourceNoise], list[Tensor]]:
    """Turns every window's source so that it has, where its chunk begins, the phase at which the chunk before ended.

    pitch: [rows, frames] Hz. Returns the sources, and the phases at the chunks' ends.
    """
    advance = pitch.double() * (SAMPLES_PER_FRAME / SAMPLE_RATE)  # cycles of the fundamental in a frame
    orders = torch.arange(1, HARMONICS + 1, device=pitch.device)
    turned, ends = [], []
    for window, source, row in zip(windows, sources, advance, strict=True):
        span, phase = window.span, window.phase
        begin, end = _FRAMES * (span.begin - span.start), _FRAMES * (span.end - span.start)
        cycles = row.new_zeros(()) if phase.cycles is None else phase.cycles
        angle = 2 * math.pi * ((cycles - row[:begin].sum()) * orders % 1.0)
        ends.append((cycles + row[begin:end].sum()) % 1.0)
        turned.append(SourceNoise(upload(source.phases, pitch.device) + angle.float(), source.samples))
    return turned, ends
