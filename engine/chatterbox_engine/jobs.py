"""A request on its way through the engine. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from chatterbox_engine.errors import RequestError
from chatterbox_engine.join import join
from chatterbox_engine.scheduler import Place
from chatterbox_engine.types import (
    SAMPLE_RATE,
    SPEECH_TOKENS,
    FinishReason,
    Samples,
    SynthesisRequest,
    SynthesisResult,
)

if TYPE_CHECKING:
    from torch import Tensor

    from chatterbox_engine.runner import Prompt
    from chatterbox_engine.voices import Voice

Answer = Callable[[SynthesisResult | RequestError], None]
"""Called exactly once for every accepted request, from the engine's sender thread."""


@dataclass(eq=False)
class Utterance:
    """One segment of a request: the unit that decodes and that the vocoder turns into audio."""

    job: Job
    index: int
    text: Tensor  # [n] int64 token ids with start and stop
    prompt_length: int
    max_tokens: int
    pause: float
    vocoder_seed: int
    place: Place | None = None
    prompt: Prompt | None = None
    drawn: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    samples: Samples | None = None

    @property
    def row_positions(self) -> list[int]:
        """KV positions of each row: one row without guidance, two with. The last step before a stop is noticed
        stores one position more than there are tokens."""
        rows = 2 if self.job.request.sampling.cfg_weight > 0 else 1
        return [self.prompt_length + self.max_tokens + 1] * rows

    def take(self, token: int, stop: int) -> bool:
        """Adds a drawn token; True when the utterance ends with it."""
        if token == stop:
            self.finish = "stop"
        else:
            self.drawn.append(token)
            if len(self.drawn) == self.max_tokens:
                self.finish = "length"
        return self.finish is not None

    @property
    def tokens(self) -> list[int]:
        """The drawn tokens that are speech. T3's vocabulary has more than S3Gen's; upstream drops the rest too."""
        return [token for token in self.drawn if token < SPEECH_TOKENS]


@dataclass(eq=False)
class Job:
    """One request from arrival to answer."""

    number: int
    request: SynthesisRequest
    voice: Voice
    answer: Answer
    utterances: list[Utterance] = field(default_factory=list)
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    decoded: float | None = None
    vocoder_seconds: float = 0.0

    @property
    def done(self) -> bool:
        """Every segment has its audio."""
        return all(utterance.samples is not None for utterance in self.utterances)

    def waveform(self) -> Samples:
        """The segments' audio as one: [n]."""
        parts = [utterance.samples for utterance in self.utterances if utterance.samples is not None]
        return join(parts, [utterance.pause for utterance in self.utterances])

    def result(self, samples: Samples, about: dict[str, Any]) -> SynthesisResult:
        """The answer, with `about` (model, optimisations) added to the statistics."""
        tokens = [token for utterance in self.utterances for token in utterance.tokens]
        return SynthesisResult(samples, np.asarray(tokens, dtype=np.int32), {**self._stats(samples), **about})

    def _stats(self, samples: Samples) -> dict[str, Any]:
        now = time.monotonic()
        started = self.started or now
        decoded = self.decoded or now
        audio = len(samples) / SAMPLE_RATE
        total = now - self.arrived
        length = any(utterance.finish == "length" for utterance in self.utterances)
        return {
            "seed": self.request.seed,
            "tokens": sum(len(utterance.tokens) for utterance in self.utterances),
            "segments": len(self.utterances),
            "finish_reason": "length" if length else "stop",
            "queue_ms": _ms(started - self.arrived),
            "t3_ms": _ms(decoded - started),
            "s3gen_ms": _ms(self.vocoder_seconds),
            "ttfa_ms": _ms(total),
            "total_ms": _ms(total),
            "audio_seconds": round(audio, 3),
            "rtf": round(total / audio, 4) if audio else None,
        }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
