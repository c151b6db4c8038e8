"""Types that the engine's parts exchange. Imports no torch, so that the streaming front can use it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 24_000
"""Sample rate of all audio that the engine produces, in Hz."""

TOKENS_PER_SECOND = 25
"""Speech tokens per second of audio; a token is two mel frames, 960 samples."""

SAMPLES_PER_TOKEN = SAMPLE_RATE // TOKENS_PER_SECOND

SPEECH_TOKENS = 6561
"""Tokens below this number are speech; T3 also draws others (start, stop, unused)."""

NORMALIZATIONS = ("none", "plain", "spoken")
"""Of a request's text: as upstream reads it; Markdown, addresses and emoji made speakable; numbers in words as well."""

MARKUPS = ("none", "auto", "auto_rate")
"""Of a request's text: `auto` takes SSML where the text is a document of it, else tags in square brackets; with
`auto_rate` SSML may ask for other rates of speech, which the caller gives the audio."""

PRIORITIES = ("live", "batch")
"""Of a request: somebody waits for it, or it fills what live requests leave free."""

GUARDS = ("off", "stop", "retry", "upstream")
"""Of a request's speech: none; it ends when it has gone wrong; it is spoken again then; as upstream's analyser of
Multilingual does."""

GuardEvent = Literal["tail", "stall", "loop", "repeat", "long", "skip", "score"]
"""What the guard finds: speech after the text's end; a place that is spoken too long; tokens that repeat; text that is
spoken again; speech that is too long for its characters; text that is not spoken; an alignment that is poor."""

Head = tuple[int, int]
"""An attention head of T3: its layer and its number, both from 0."""

FinishReason = Literal["stop", "length"]

Samples = npt.NDArray[np.float32]


class Reading(NamedTuple):
    """Where T3 looked in the text while it drew one speech token: the attention of some heads, averaged, over the
    places of the text's tokens (start and stop tokens included). Made on the device, of float32 numbers."""

    place: float
    """The one with most attention."""
    centre: float
    """Centre of mass of the places around it."""
    mass: float
    """Attention on the whole text, of 1."""
    peak: float
    """Attention on `place`."""
    strict: float
    """The one with most attention of the first `step + 1` places, as upstream's analyser sees it."""
    earlier: float
    """Most attention on a place before the last five, of the first `step + 1`."""
    third_last: float
    """Attention on the third place from the end, 0 after the first `step + 1`."""
    second_last: float
    last: float


@dataclass(frozen=True)
class ReferenceClip:
    """A clip as input of the encoders: mono, [n] float32."""

    wide: Samples  # 24 kHz
    narrow: Samples  # 16 kHz, of the same length in seconds


@dataclass(frozen=True)
class T3Conditionals:
    """A voice as T3 uses it."""

    speaker: torch.Tensor  # [speaker_embed] float32, voice encoder output
    prompt_tokens: torch.Tensor  # [n] int64, n at most T3Dims.prompt_tokens


@dataclass(frozen=True)
class S3GenConditionals:
    """A voice as S3Gen uses it."""

    prompt_tokens: torch.Tensor  # [n] int64
    prompt_mel: torch.Tensor  # [2 n, 80] float32, log mel at 50 frames a second
    embedding: torch.Tensor  # [192] float32, x-vector, not normalised


@dataclass(frozen=True)
class Conditionals:
    """Everything computed from one reference clip; on the CPU, float32."""

    t3: T3Conditionals
    s3gen: S3GenConditionals
    exaggeration: float = 0.5
    """The emotion value stored with a built-in voice; requests set their own."""


@dataclass(frozen=True)
class SamplingParams:
    """How speech tokens are drawn (upstream `ChatterboxTTS.generate`); `families` has the defaults of the others."""

    exaggeration: float = 0.5
    cfg_weight: float = 0.5
    temperature: float = 0.8
    top_p: float = 1.0
    min_p: float = 0.05
    repetition_penalty: float = 1.2
    top_k: int = 0
    """0 keeps all."""
    num_steps: int = 10
    """Flash: denoising passes of a block at most."""
    time_shift_tau: float = 0.1
    """Flash: how many tokens more than the schedule's a pass may keep; 0: none."""
    omnivoice_schedule_t_shift: float = 0.5
    """Flash: below 1 the schedule keeps few tokens in the first passes and more in the last."""
    position_temperature: float = 5.0
    """Flash: above 0, noise takes part in the choice of the tokens that a pass keeps."""


@dataclass(frozen=True)
class SynthesisRequest:
    """One validated request.

    `seed` decides every random number of the request: the same seed, text, voice and parameters give the same tokens
    and audio regardless of the batch.
    """

    text: str
    seed: int
    voice: str = "default"
    reference_audio: bytes | None = None
    """A file of one of `clip_errors.FORMATS` to clone instead of `voice`."""
    language: str = "en"
    text_normalization: str = "none"
    """One of NORMALIZATIONS."""
    markup: str = "none"
    """One of MARKUPS."""
    lexicon: Mapping[str, str] = field(default_factory=dict)
    """Words, and what is spoken for them."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_seconds: float = 40.0
    word_times: bool = False
    """Its answer says when each word is spoken."""
    guard: str = "off"
    """One of GUARDS."""
    guard_retries: int = 2
    """How often a segment may be spoken again."""
    priority: str = "live"
    """One of PRIORITIES."""


@dataclass(frozen=True)
class SpokenWord:
    """A word of a request's text, and when it is spoken."""

    word: str
    """With its punctuation."""
    start: float
    """Seconds from the begin of the answer's audio."""
    end: float
    span: tuple[int, int]
    """Characters [start, end) of the text."""


@dataclass(frozen=True)
class SynthesisChunk:
    """A chunk of one stream."""

    index: int
    """From 0."""
    samples: Samples  # [n] mono, SAMPLE_RATE, in [-1, 1]
    speech_tokens: npt.NDArray[np.int32]  # [tokens] that the samples were made from
    stats: dict[str, Any] | None
    """Statistics of the whole request, in its last chunk; else None."""
    rate: float = 1.0
    """How many times as fast the caller is to play it."""
    words: Sequence[SpokenWord] = ()
    """Those that end in this chunk, if the request wants word times."""

    @property
    def last(self) -> bool:
        """Whether it is the last chunk."""
        return self.stats is not None


@dataclass(frozen=True)
class SynthesisResult:
    """The whole answer to one request."""

    samples: Samples  # [n] mono, SAMPLE_RATE, in [-1, 1]
    speech_tokens: npt.NDArray[np.int32]  # [tokens], all segments in order
    stats: dict[str, Any]
    words: Sequence[SpokenWord] = ()
    """All of the text, if the request wants word times."""


class Encoder(Protocol):
    """Computes conditionals; `reference.ReferenceEncoder` is one."""

    def prepare(self, audio: Samples, sample_rate: int) -> ReferenceClip:
        """A mono clip, [n] float32, as `encode` takes it. Raises InvalidRequest."""

    def encode(self, clips: Sequence[ReferenceClip]) -> list[Conditionals]:
        """The voices of some clips, computed together."""

    def warm_up(self) -> None:
        """Warms up, so that the first clip does not wait for it."""
