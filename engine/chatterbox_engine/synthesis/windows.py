"""Windows of utterances to waveforms, whole utterances and chunks of streams in one batch.

A chunk is synthesised from a window of tokens around it, after the voice's prompt, so its cost does not grow with the
utterance. Three things make neighbouring windows fit: every frame starts the flow from the same noise in each window,
every sample has the same noise in its source, and the source's phase at the chunk's begin is that at the end of the
chunk before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from chatterbox_engine.s3gen.model import PreparedVoice, VocoderJob, draw_source
from chatterbox_engine.s3gen.noise import HARMONICS, SAMPLES_PER_FRAME, Phase, SourceNoise
from chatterbox_engine.synthesis.streaming import Span
from chatterbox_engine.types import SAMPLE_RATE, SAMPLES_PER_TOKEN

_FRAMES = SAMPLES_PER_TOKEN // SAMPLES_PER_FRAME  # of a token


class Networks(Protocol):
    """What `synthesise` uses of `S3Gen`, whose methods say more."""

    device: torch.device
    fade: Tensor
    """[n] factors of an utterance's first samples."""

    def mel(self, jobs: Sequence[VocoderJob], /) -> Tensor:
        """[rows, longest, mel]."""

    def pitch(self, mel: Tensor, frames: Sequence[int], /) -> Tensor:
        """[rows, longest] Hz."""

    def vocode(self, mel: Tensor, frames: Sequence[int], source: SourceNoise, /) -> Tensor:
        """[rows, 480 longest]."""


def window(tokens: Tensor, voice: PreparedVoice, seed: int, span: Span, phase: Phase | None) -> VocoderJob:
    """A chunk as `synthesise` takes it.

    tokens: [span.tokens] int64, at least one; phase: the utterance's, for all of its chunks;
    a whole utterance needs none.
    """
    if span.complete:
        return VocoderJob(tokens, voice, seed)
    return VocoderJob(tokens, voice, seed, span.start, span.begin - span.start, span.end - span.start, phase)


@torch.inference_mode()
def synthesise(networks: Networks, jobs: Sequence[VocoderJob]) -> list[Tensor]:
    """Waveforms of whole windows: [960 tokens] float32 each, on the device. An utterance's first 20 ms are muted, the
    next faded in. The chunks of one utterance must be synthesised in their order, in different batches: each moves
    the utterance's phase on."""
    frames = [job.frames for job in jobs]
    mel = networks.mel(jobs)
    source = draw_source(jobs, networks.device)
    ends: list[Tensor] = []
    if any(job.phase is not None for job in jobs):
        phases, ends = _continue(jobs, source.phases, networks.pitch(mel, frames))
        source = SourceNoise(phases, source.samples)
    waves = networks.vocode(mel, frames, source)
    for job, end in zip(jobs, ends, strict=False):
        if job.phase is not None:  # only now, so that a batch that ran out of memory can be tried again in parts
            job.phase.cycles = end
    for wave, job in zip(waves, jobs, strict=True):
        if job.first == 0:
            wave[: len(networks.fade)] *= networks.fade
    return [wave[: SAMPLES_PER_FRAME * count] for wave, count in zip(waves, frames, strict=True)]


def _continue(jobs: Sequence[VocoderJob], phases: Tensor, pitch: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Turns every window's source so that it has, where its chunk begins, the phase at which the chunk before ended.

    phases: [rows, HARMONICS]; pitch: [rows, frames] Hz. Returns the turned phases, and the phases at the chunks' ends.
    """
    advance = pitch.double() * (SAMPLES_PER_FRAME / SAMPLE_RATE)  # cycles of the fundamental in a frame
    orders = torch.arange(1, HARMONICS + 1, device=pitch.device)
    turns, ends = [], []
    for job, row in zip(jobs, advance, strict=True):
        begin, end = _FRAMES * job.begin, _FRAMES * job.end
        cycles = job.phase.cycles if job.phase is not None else None
        cycles = row.new_zeros(()) if cycles is None else cycles
        ends.append((cycles + row[begin:end].sum()) % 1.0)
        turns.append((cycles - row[:begin].sum()) * orders % 1.0)
    return phases + (2 * math.pi * torch.stack(turns)).float(), ends
