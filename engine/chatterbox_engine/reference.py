"""From a reference clip to a voice, with upstream's own encoders.

Source: chatterbox-tts 0.1.7, `ChatterboxTTS.prepare_conditionals` and `S3Token2Mel.embed_ref`. The encoders are
upstream's classes, which run once per voice; importing them takes some seconds, so that is left to the first use.
"""

from __future__ import annotations

from typing import Any

import librosa
import numpy as np
import torch
from librosa.filters import mel as mel_filters

from chatterbox_engine.checkpoint import Checkpoint, conditionals_from_upstream
from chatterbox_engine.dims import ReferenceDims
from chatterbox_engine.errors import CheckpointError, InvalidRequest
from chatterbox_engine.types import SAMPLE_RATE, Conditionals, Samples

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

    def encode(self, audio: Samples, sample_rate: int) -> Conditionals:
        """The voice of a clip: `audio` is mono, [n] float32, of any rate; S3Gen hears its first 10 seconds.

        Raises InvalidRequest when the clip is shorter than the family's minimum or not finite.
        """
        shortest = self._preparation.min_seconds
        if audio.ndim != 1 or len(audio) < shortest * sample_rate:
            raise InvalidRequest(f"reference audio must be mono and at least {shortest} seconds long")
        if not np.isfinite(audio).all():
            raise InvalidRequest("reference audio holds values that are not finite")
        wide = self._level(_resample(audio, sample_rate, SAMPLE_RATE))
        narrow = _resample(wide, SAMPLE_RATE, _ENCODER_RATE)
        with torch.no_grad():
            raw = {"t3": self._for_t3(narrow), "gen": self._for_s3gen(wide[: _S3GEN_SECONDS * SAMPLE_RATE])}
        return conditionals_from_upstream(raw)

    def _level(self, audio: Samples) -> Samples:
        """Brings a clip to the family's loudness (ITU-R BS.1770); silence, whose loudness is not finite, stays."""
        if self._preparation.loudness is None:
            return audio
        import pyloudnorm

        gain = 10.0 ** ((self._preparation.loudness - pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(audio)) / 20)
        return audio * np.float32(gain) if np.isfinite(gain) and gain > 0 else audio

    def _for_t3(self, audio: Samples) -> dict[str, Any]:
        speaker = torch.from_numpy(self._voice.embeds_from_wavs([audio], sample_rate=_ENCODER_RATE))
        heard = audio[: self._preparation.t3_seconds * _ENCODER_RATE]
        tokens, _ = self._tokenizer([heard], max_len=self._prompt_tokens)
        return {
            "speaker_emb": speaker.mean(dim=0),
            "cond_prompt_speech_tokens": _plain(tokens),
            "emotion_adv": 0.5,
        }

    def _for_s3gen(self, audio: Samples) -> dict[str, Any]:
        from chatterbox.models.s3gen.s3gen import get_resampler
        from chatterbox.models.s3gen.utils.mel import mel_spectrogram

        wide = torch.from_numpy(audio).to(self._device)[None]  # [1, samples]
        narrow = get_resampler(SAMPLE_RATE, _ENCODER_RATE, self._device)(wide)
        mel = mel_spectrogram(wide).transpose(1, 2)  # [1, frames, mel]
        tokens, _ = self._tokenizer(narrow)
        tokens = tokens[:, : mel.shape[1] // 2]
        return {
            "prompt_token": _plain(tokens),
            "prompt_token_len": [tokens.shape[1]],
            "prompt_feat": _plain(mel),
            "embedding": _plain(self._speaker.inference(narrow)),
        }


def _resample(audio: Samples, source: int, target: int) -> Samples:
    if source == target:
        return audio
    resampled: Samples = librosa.resample(audio, orig_sr=source, target_sr=target)
    return resampled


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU and without the mark of inference mode, which would forbid to change it later."""
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
