"""S3Gen: speech tokens of a batch of utterances to their waveforms."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_engine.checkpoint.dims import S3GenDims
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.kernels.device import upload
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.s3gen.batching import Batching
from chatterbox_engine.s3gen.buckets import Buckets
from chatterbox_engine.s3gen.encoder import Encoder
from chatterbox_engine.s3gen.flow import Flow
from chatterbox_engine.s3gen.hift import Hift
from chatterbox_engine.s3gen.noise import HARMONICS, SAMPLES_PER_FRAME, Phase, SourceNoise, source_noise, start_noise
from chatterbox_engine.s3gen.weights import Weights
from chatterbox_engine.types import SAMPLE_RATE, SAMPLES_PER_TOKEN, TOKENS_PER_SECOND, S3GenConditionals

PROMPT_TOKENS = 10 * TOKENS_PER_SECOND
"""Tokens that upstream uses of a voice's clip (DEC_COND_LEN in models/s3gen and tts.py)."""

_FRAMES_PER_TOKEN = SAMPLES_PER_TOKEN // SAMPLES_PER_FRAME
_MUTED = SAMPLE_RATE // 50
_MEL_STEPS, _WAVE_STEPS = 16, 4
"""Lengths per power of two on a CPU (`Batching.size`): more for the encoder and the flow, which take twenty times as
long as HiFT."""


@dataclass(frozen=True)
class PreparedVoice:
    """What S3Gen needs of a voice, computed once, on the device."""

    tokens: Tensor  # [n] int64
    mel: Tensor  # [2 n, mel] float32
    speaker: Tensor  # [mel] float32, the projected speaker embedding

    @property
    def frames(self) -> int:
        """Mel frames of the prompt."""
        return self.mel.shape[0]


@dataclass(frozen=True)
class VocoderJob:
    """An utterance to synthesise, or a window of one. The tokens may lie on the CPU or on the device; the seed decides
    all noise. S3Gen's own input, so that it knows nothing of requests."""

    tokens: Tensor  # [n] int64, n at least 1, all below S3GenDims.vocab
    voice: PreparedVoice
    seed: int
    first: int = 0
    """Tokens of the utterance before these."""
    begin: int = 0
    end: int = 0
    """Of a window: the chunk is its tokens [begin, end)."""
    phase: Phase | None = None
    """Of a window: the utterance's."""

    @property
    def frames(self) -> int:
        """Mel frames of the utterance."""
        return _FRAMES_PER_TOKEN * self.tokens.shape[0]


class S3Gen:
    """Speech tokens to waveform. Safe to call from one thread at a time.

        voice = s3gen.prepare(conditionals)
        samples = synthesise(s3gen, [VocoderJob(tokens, voice, seed=1)])[0]  # synthesis.windows

    A row's result does not depend on what else is in the batch.
    """

    def __init__(
        self, weights: Weights, dims: S3GenDims, *, dtype: torch.dtype, cfm_steps: int, prompt_tokens: int
    ) -> None:
        self.dims, self.device = dims, weights.device
        self.prompt_tokens = prompt_tokens
        """Tokens of a voice's prompt that are used at most."""
        self.batching = Batching(self.device)
        flow = weights.part("flow")
        self._project_speaker = flow.linear("spk_embed_affine_layer", dims.speaker_embed, dims.mel)
        # float16 has not the range of its activations, which our kernel scales on a CPU
        in_float32 = flow.cast(torch.float32, matrices=dtype if self.device.type == "cpu" else None)
        self.encoder = Encoder(in_float32 if dtype == torch.float16 else flow.cast(dtype), dims)
        self.flow = Flow(flow.part("decoder.estimator"), dims, dtype, cfm_steps)
        self.hift = Hift(weights.part("mel2wav"), dims)
        self._to_mel, self._to_wave = Buckets("s3gen mel", self._solve), Buckets("s3gen wave", self.hift)
        fade = (torch.cos(torch.linspace(torch.pi, 0, _MUTED)) + 1) / 2
        self.fade = torch.cat([torch.zeros(_MUTED), fade]).to(self.device)

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        dims: S3GenDims,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        cfm_steps: int | None = None,
        prompt_tokens: int = PROMPT_TOKENS,
    ) -> S3Gen:
        """Loads the `flow.` and `mel2wav.` tensors of an official state dict and ignores all others.

        dtype: of the encoder and the flow's UNet, the rest is float32; cfm_steps: upstream's number by default, ten, or
        two for MeanFlow; prompt_tokens: how much of a voice's prompt is used at most.

        Raises CheckpointError that names tensors that are missing, unknown or of another shape.
        """
        weights = Weights(state, ("flow.", "mel2wav."), device)
        with torch.inference_mode():
            steps = cfm_steps or (2 if dims.meanflow else 10)
            model = cls(weights, dims, dtype=dtype, cfm_steps=steps, prompt_tokens=prompt_tokens)
        weights.finish()
        return model

    @torch.inference_mode()
    def prepare(self, conditionals: S3GenConditionals) -> PreparedVoice:
        """Moves a voice to the device, its prompt cropped, and projects its speaker embedding.

        Raises InvalidRequest when the prompt is empty or its mel does not have two frames per token.
        """
        tokens, mel = conditionals.prompt_tokens, conditionals.prompt_mel
        if tokens.shape[0] == 0 or mel.shape != (_FRAMES_PER_TOKEN * tokens.shape[0], self.dims.mel):
            raise InvalidRequest(f"voice prompt of {tokens.shape[0]} tokens with a mel of shape {list(mel.shape)}")
        tokens, mel = tokens[: self.prompt_tokens], mel[: _FRAMES_PER_TOKEN * self.prompt_tokens]
        speaker = F.normalize(upload(conditionals.embedding, self.device).float(), dim=0)
        return PreparedVoice(
            upload(tokens, self.device).long(), upload(mel, self.device).float(), self._project_speaker(speaker)
        )

    @torch.inference_mode()
    def mel(self, jobs: Sequence[VocoderJob], noise: Sequence[Tensor] | None = None) -> Tensor:
        """Log mels of the jobs' utterances, without their prompts: [rows, longest, mel], padded with zeros.

        noise: where the flow starts, [prompt + utterance frames, mel] per job; by default from the job's seed.
        """
        groups = self.batching.groups(len(jobs))
        return self._join([self._mel(jobs[group], noise[group] if noise else None) for group in groups])

    def _mel(self, jobs: Sequence[VocoderJob], noise: Sequence[Tensor] | None) -> Tensor:
        voices = [job.voice for job in jobs]
        prompts = [voice.frames for voice in voices]
        totals = [job.voice.frames + job.frames for job in jobs]
        size = max(totals) // _FRAMES_PER_TOKEN
        bucket = self._to_mel.find(len(jobs), size)
        size = size if bucket else self.batching.size(size, _MEL_STEPS)
        frames = _FRAMES_PER_TOKEN * size
        tokens = self._pad([torch.cat([job.voice.tokens, upload(job.tokens, self.device)]) for job in jobs], size)
        start = self._start(jobs, frames) if noise is None else self._pad(noise, frames)
        speakers = torch.stack([voice.speaker for voice in voices])
        inputs = (tokens, start, speakers, self._pad([voice.mel for voice in voices], frames))
        if bucket:
            x = bucket.run(*inputs, upload(totals, self.device))
        else:
            x = self._solve(*inputs, self.batching.lengths(totals, frames))
        return self._crop(x, prompts, [job.frames for job in jobs])

    def _start(self, jobs: Sequence[VocoderJob], frames: int) -> Tensor:
        """Where the flow starts: [rows, frames, mel]. The frames before a part of an utterance are left out."""
        prompts = upload([job.voice.frames for job in jobs], self.device)[:, None]
        before = upload([_FRAMES_PER_TOKEN * job.first for job in jobs], self.device)[:, None]
        frame = torch.arange(frames, device=self.device)
        places = frame + (frame >= prompts) * before
        return start_noise([job.seed for job in jobs], places, self.dims.mel)

    @torch.inference_mode()
    def vocode(self, mel: Tensor, frames: Sequence[int], source: SourceNoise) -> Tensor:
        """Waveforms of mels, without the fade: [rows, 480 longest], of which 480 times its frames belong to a row.

        mel: [rows, longest, mel]; frames: of every row; source: of as many rows and frames.
        """
        waves = []
        for group in self.batching.groups(len(frames)):
            longest = max(frames[group])
            samples = SAMPLES_PER_FRAME * longest
            own = SourceNoise(source.phases[group], source.samples[group, :samples])
            waves.append(self._vocode(mel[group, :longest], frames[group], own)[:, :samples])
        return self._join(waves)

    def _vocode(self, mel: Tensor, frames: Sequence[int], source: SourceNoise) -> Tensor:
        bucket = self._to_wave.find(*mel.shape[:2])
        size = mel.shape[1] if bucket else self.batching.size(mel.shape[1], _WAVE_STEPS)
        samples = F.pad(source.samples, (0, SAMPLES_PER_FRAME * (size - mel.shape[1])))
        inputs = (self._widen(mel, size), source.phases, samples)
        if bucket:
            return bucket.run(*inputs, upload(frames, self.device))
        return self.hift(*inputs, self.batching.lengths(frames, size))

    @torch.inference_mode()
    def pitch(self, mel: Tensor, frames: Sequence[int]) -> Tensor:
        """Fundamental frequencies of mels in Hz: [rows, longest]. Takes what `vocode` takes."""
        size = self.batching.size(mel.shape[1], _WAVE_STEPS)
        return self.hift.pitch(self._widen(mel, size), self.batching.lengths(frames, size))[:, : mel.shape[1]]

    @torch.inference_mode()
    def capture(
        self, graphs: Graphs, sizes: Sequence[tuple[int, int, int]], report: Callable[[str], None] = lambda _line: None
    ) -> None:
        """Captures both halves for buckets of (rows, prompt tokens, utterance tokens), the largest first.

        On the thread and the stream that will call `mel` and `vocode`. Batches that fit into no bucket run eagerly.
        """
        mel = self.dims.mel
        by_memory = sorted(sizes, key=lambda size: size[0] * (size[1] + size[2]) ** 2, reverse=True)
        for number, (rows, prompt, tokens) in enumerate(by_memory, 1):
            began = time.monotonic()
            frames, total = _FRAMES_PER_TOKEN * tokens, _FRAMES_PER_TOKEN * (prompt + tokens)
            zeros = partial(torch.zeros, device=self.device)
            spoken = (zeros(rows, prompt + tokens, dtype=torch.int64), zeros(rows, total, mel), zeros(rows, mel))
            inputs = (*spoken, zeros(rows, total, mel), self._full(rows, total))
            self._to_mel.capture(graphs, rows, prompt + tokens, inputs)
            noise = (zeros(rows, HARMONICS), zeros(rows, SAMPLES_PER_FRAME * frames))
            self._to_wave.capture(graphs, rows, frames, (zeros(rows, frames, mel), *noise, self._full(rows, frames)))
            size = f"{rows} x {tokens} tokens"
            report(f"S3Gen: CUDA graphs {number} of {len(sizes)}, {size}, {time.monotonic() - began:.1f} s")

    def _solve(self, tokens: Tensor, noise: Tensor, speaker: Tensor, prompt: Tensor, lengths: Tensor | None) -> Tensor:
        """Tokens to the mel of prompt and utterance. lengths: mel frames; the rest as in `Encoder` and `Flow`."""
        mean = self.encoder(tokens, None if lengths is None else lengths // _FRAMES_PER_TOKEN)
        return self.flow(noise, mean, speaker, prompt, lengths)

    def _full(self, rows: int, length: int) -> Tensor:
        return torch.full((rows,), length, device=self.device)

    def _widen(self, mel: Tensor, size: int) -> Tensor:
        return F.pad(mel, (0, 0, 0, size - mel.shape[1])) if mel.shape[1] < size else mel

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of all groups, [rows, longest, ...], padded with zeros; parts: [rows of the group, n, ...]."""
        return parts[0] if len(parts) == 1 else self._pad([row for part in parts for row in part])

    def _pad(self, rows: Sequence[Tensor], size: int | None = None) -> Tensor:
        """Stacks rows of different first dimension, padded with zeros, on the device."""
        size = size or max(row.shape[0] for row in rows)
        out = rows[0].new_zeros((len(rows), size, *rows[0].shape[1:]))
        for target, row in zip(out, rows, strict=True):
            target[: row.shape[0]] = row
        return upload(out, self.device)

    def _crop(self, x: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """`sizes` frames of every row, from `starts` on. x: [rows, n, mel]; returns [rows, longest, mel]."""
        out = x.new_zeros((len(sizes), max(sizes), x.shape[2]))
        for target, row, start, size in zip(out, x, starts, sizes, strict=True):
            target[:size] = row[start : start + size]
        return out


def draw_source(jobs: Sequence[VocoderJob], device: torch.device) -> SourceNoise:
    """The source's random numbers for the jobs, as many frames as the longest has."""
    longest = max(job.frames for job in jobs)
    return source_noise([job.seed for job in jobs], [_FRAMES_PER_TOKEN * job.first for job in jobs], longest, device)
