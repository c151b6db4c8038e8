"""From a reference clip to a voice, with upstream's own encoders.

Source: chatterbox-tts 0.1.7, `ChatterboxTTS.prepare_conditionals` and `S3Token2Mel.embed_ref`. The encoders are
upstream's classes, which run once per voice; importing them takes seconds, so it is deferred to the first use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import librosa
import numpy as np
import torch
from librosa.filters import mel as mel_filters

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.dims import ReferenceDims
from chatterbox_engine.errors import CheckpointError, InvalidRequest
from chatterbox_engine.types import (
    SAMPLE_RATE,
    Conditionals,
    ReferenceClip,
    S3GenConditionals,
    Samples,
    T3Conditionals,
)

_ENCODER_RATE = 16_000  # of the S3 tokenizer and both speaker encoders
_S3GEN_SECONDS = 10


class ReferenceEncoder:
    """Upstream's voice encoder, S3 tokenizer and x-vector network, with a checkpoint's weights."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> None:
        """Builds the three encoders on `device`, without T3 and the flow. Raises CheckpointError."""
        from chatterbox.models.s3gen.xvector import CAMPPlus
        from chatterbox.models.voice_encoder import VoiceEncoder

        self._device = torch.device(device)
        self._prompt_tokens = checkpoint.dims.t3.prompt_tokens
        self._preparation = checkpoint.family.reference
        self._voice = self._load(VoiceEncoder(), checkpoint.voice_encoder_state())
        self._speaker = self._load(CAMPPlus(memory_efficient=False), checkpoint.s3gen_state("speaker_encoder."))
        self._tokenizer = self._load(s3_tokenizer(checkpoint.dims.reference), checkpoint.s3gen_state("tokenizer."))

    def _load(self, module: torch.nn.Module, state: dict[str, torch.Tensor]) -> Any:
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(str(error)) from error
        return module.to(self._device).eval()

    def prepare(self, audio: Samples, sample_rate: int) -> ReferenceClip:
        """The clip as the encoders take it. `audio` is mono, [n] float32, at any sample rate.

        Raises InvalidRequest when the clip is shorter than the family's minimum or not finite.
        """
        shortest = self._preparation.min_seconds
        if audio.ndim != 1 or len(audio) < shortest * sample_rate:
            raise InvalidRequest(f"reference audio must be mono and at least {shortest} seconds long")
        if not np.isfinite(audio).all():
            raise InvalidRequest("reference audio holds values that are not finite")
        wide = self._level(_resample(audio, sample_rate, SAMPLE_RATE))
        return ReferenceClip(wide, _resample(wide, SAMPLE_RATE, _ENCODER_RATE))

    def warm_up(self) -> None:
        """Encodes noise, because loading and compiling take a third of the first clip's time."""
        noise = np.random.default_rng(0).normal(0, 0.1, int(self._preparation.min_seconds * SAMPLE_RATE) + 1)
        self.encode([self.prepare(noise.astype(np.float32), SAMPLE_RATE)])

    @torch.no_grad()
    def encode(self, clips: Sequence[ReferenceClip]) -> list[Conditionals]:
        """The voices of clips that are encoded as a batch; each equals that of its clip alone up to rounding.

        S3Gen uses the first 10 seconds of a clip, T3 as many as the family specifies.
        """
        narrow = [clip.narrow for clip in clips]
        speakers = torch.from_numpy(self._voice.embeds_from_wavs(narrow, sample_rate=_ENCODER_RATE))
        heard = [audio[: self._preparation.t3_seconds * _ENCODER_RATE] for audio in narrow]
        t3 = map(T3Conditionals, speakers, self._tokens(heard, max_len=self._prompt_tokens))
        s3gen = self._for_s3gen([clip.wide[: _S3GEN_SECONDS * SAMPLE_RATE] for clip in clips])
        return list(map(Conditionals, t3, s3gen))

    def _level(self, audio: Samples) -> Samples:
        """Normalises a clip to the family's loudness (ITU-R BS.1770); silence, whose loudness is not finite, is
        unchanged."""
        if self._preparation.loudness is None:
            return audio
        import pyloudnorm

        gain = 10.0 ** ((self._preparation.loudness - pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(audio)) / 20)
        return audio * np.float32(gain) if np.isfinite(gain) and gain > 0 else audio

    def _for_s3gen(self, clips: Sequence[Samples]) -> list[S3GenConditionals]:
        from chatterbox.models.s3gen.s3gen import get_resampler
        from chatterbox.models.s3gen.utils.mel import mel_spectrogram

        resample = get_resampler(SAMPLE_RATE, _ENCODER_RATE, self._device)
        wide = [torch.from_numpy(clip).to(self._device)[None] for clip in clips]  # [1, samples]
        narrow = [resample(clip)[0] for clip in wide]
        mels = [_plain(mel_spectrogram(clip)[0].T) for clip in wide]  # [frames, mel]
        parts = zip(self._tokens(narrow), mels, self._x_vectors(narrow), strict=True)
        # upstream crops the tokens to the mel and keeps an odd last frame: see `conditionals_from_upstream`
        return [
            S3GenConditionals(tokens[: len(mel) // 2], mel[: 2 * min(len(tokens), len(mel) // 2)], vector)
            for tokens, mel, vector in parts
        ]

    def _tokens(self, clips: Sequence[Any], max_len: int | None = None) -> list[torch.Tensor]:
        """Speech tokens of 16 kHz clips. The tokenizer pads shorter ones and masks the padding."""
        tokens, lengths = self._tokenizer(clips, max_len=max_len)
        return [_plain(row[:length]) for row, length in zip(tokens, lengths.tolist(), strict=True)]

    def _x_vectors(self, clips: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """X-vectors of 16 kHz clips. The network pools over time without a mask, so only clips of equal length are
        batched."""
        found: dict[int, Iterator[torch.Tensor]] = {}
        for length in {len(clip) for clip in clips}:
            alike = torch.stack([clip for clip in clips if len(clip) == length])
            found[length] = iter(_plain(self._speaker.inference(alike)))
        return [next(found[len(clip)]) for clip in clips]


def _resample(audio: Samples, source: int, target: int) -> Samples:
    if source == target:
        return audio
    resampled: Samples = librosa.resample(audio, orig_sr=source, target_sr=target)
    return resampled


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU that is not an inference tensor, so that it can be modified later."""
    return tensor.cpu().clone()


def s3_tokenizer(dims: ReferenceDims) -> Any:
    """Upstream's `S3Tokenizer` at other sizes than its constructor's; its constants are no part of the state."""
    from chatterbox.models.s3tokenizer import S3Tokenizer
    from s3tokenizer.model_v2 import ModelConfig, S3TokenizerV2

    config = ModelConfig(
        n_audio_state=dims.tokenizer_state, n_audio_head=dims.tokenizer_heads, n_audio_layer=dims.tokenizer_layers
    )
    module = S3Tokenizer.__new__(S3Tokenizer)
    S3TokenizerV2.__init__(module, "speech_tokenizer_v2_25hz", config)
    module.n_fft = 400
    filters = mel_filters(sr=_ENCODER_RATE, n_fft=400, n_mels=config.n_mels)
    module.register_buffer("_mel_filters", torch.from_numpy(filters), persistent=False)
    module.register_buffer("window", torch.hann_window(400), persistent=False)
    return module
