"""A request on its way through the engine. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from chatterbox_engine.checkpoint.families import ENGLISH, Family
from chatterbox_engine.errors import RequestError
from chatterbox_engine.synthesis.join import join
from chatterbox_engine.synthesis.scheduler import Place
from chatterbox_engine.synthesis.streaming import ChunkPolicy, Cursor, Joiner, Span
from chatterbox_engine.types import (
    SAMPLE_RATE,
    SPEECH_TOKENS,
    FinishReason,
    Samples,
    SynthesisChunk,
    SynthesisRequest,
    SynthesisResult,
)

if TYPE_CHECKING:
    from torch import Tensor

    from chatterbox_engine.metrics import VoiceSource
    from chatterbox_engine.synthesis.windows import Phase
    from chatterbox_engine.t3.runner import Prompt
    from chatterbox_engine.voices.cache import Voice

Answer = Callable[[SynthesisResult | RequestError], None]
"""Called exactly once for every accepted request, from the engine's sender thread."""

ChunkAnswer = Callable[[SynthesisChunk | RequestError], None]
"""Called for every chunk of a stream, from the engine's sender thread; the last chunk or an error ends it."""


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
    phase: Phase
    family: Family = ENGLISH
    place: Place | None = None
    prompt: Prompt | None = None
    drawn: int = 0
    tokens: list[int] = field(default_factory=list)
    """The drawn tokens that are speech, and at the end those that the family appends. T3's vocabulary has more than
    S3Gen's; upstream drops the rest too."""
    finish: FinishReason | None = None
    samples: Samples | None = None

    @property
    def row_positions(self) -> list[int]:
        """KV positions of each row: one row without guidance, two with. The last step before a stop is noticed
        stores one position more than there are tokens."""
        rows = 2 if self.job.request.sampling.cfg_weight > 0 else 1
        return [self.prompt_length + self.max_tokens + 1] * rows

    @property
    def first(self) -> bool:
        """It is the request's first segment."""
        return self.index == 0

    def take(self, token: int, stop: int) -> bool:
        """Adds a drawn token; True when the utterance ends with it."""
        if token == stop:
            self.finish = "stop"
        else:
            self.drawn += 1
            if token < SPEECH_TOKENS:
                self.tokens.append(token)
            if self.drawn == self.max_tokens:
                self.finish = "length"
        if self.finish is not None:
            self.tokens += self.family.appended
        return self.finish is not None

    @property
    def whole(self) -> Span:
        """The complete utterance as one chunk."""
        return Span.whole(len(self.tokens), self.family.cropped)


class Stream:
    """What a job has besides when its audio is sent in chunks."""

    def __init__(self, policy: ChunkPolicy, utterances: Sequence[Utterance]) -> None:
        self._utterances = utterances
        self._cursor = Cursor(policy, utterances[0].family.cropped)
        self.joiner = Joiner([utterance.pause for utterance in utterances])
        self.busy = False
        """A chunk is in the vocoder's hands or being finished. Belongs to the engine's thread."""
        self.chunks, self.samples = 0, 0
        """What is finished. Belongs to the thread that finishes the chunk under way."""

    def take(self) -> tuple[Utterance, Span] | None:
        """The next chunk, or None when it is not due."""
        if self._cursor.segment == len(self._utterances):
            return None
        utterance = self._utterances[self._cursor.segment]
        span = self._cursor.take(len(utterance.tokens), complete=utterance.finish is not None)
        return None if span is None else (utterance, span)


@dataclass(eq=False)
class Job:
    """One request from arrival to answer."""

    number: int
    request: SynthesisRequest
    answer: Callable[[Any], None]
    voice: Voice = field(init=False)  # known once it is found
    voice_from: VoiceSource = "memory"
    utterances: list[Utterance] = field(default_factory=list)
    arrived: float = field(default_factory=time.monotonic)
    voiced: float | None = None
    started: float | None = None
    decoded: float | None = None
    first_audio: float | None = None
    vocoder_seconds: float = 0.0
    vocoded: int = 0
    """Segments that the vocoder is done with. Belongs to its thread."""
    stream: Stream | None = None
    ended: bool = False
    """It has its answer, so what is still under way for it is in vain."""

    @property
    def done(self) -> bool:
        """Every segment has its audio."""
        return all(utterance.samples is not None for utterance in self.utterances)

    def chunk(self, utterance: Utterance, span: Span, wave: Samples, about: dict[str, Any]) -> SynthesisChunk:
        """A stream's next chunk, with statistics when it is the last. wave: [960 tokens of the span's window]."""
        stream = self.stream
        assert stream is not None, "only streams have chunks"
        samples = stream.joiner.add(wave, span)
        self.first_audio = self.first_audio or time.monotonic()
        stream.chunks += 1
        stream.samples += len(samples)
        tokens = np.asarray(utterance.tokens[span.begin : span.end], dtype=np.int32)
        stats = None
        if span.last and utterance is self.utterances[-1]:
            stats = {**self._stats(stream.samples), "chunks": stream.chunks, **about}
        return SynthesisChunk(stream.chunks - 1, samples, tokens, stats)

    def result(self, about: dict[str, Any]) -> SynthesisResult:
        """The whole answer, with `about` (model, optimisations) added to the statistics."""
        parts = [utterance.samples for utterance in self.utterances if utterance.samples is not None]
        samples = join(parts, [utterance.pause for utterance in self.utterances])
        tokens = [token for utterance in self.utterances for token in utterance.tokens[: utterance.whole.end]]
        return SynthesisResult(samples, np.asarray(tokens, dtype=np.int32), {**self._stats(len(samples)), **about})

    def _stats(self, samples: int) -> dict[str, Any]:
        now = time.monotonic()
        voiced = self.voiced or now
        started = self.started or now
        decoded = self.decoded or now
        first_audio = self.first_audio or now
        audio = samples / SAMPLE_RATE
        total = now - self.arrived
        length = any(utterance.finish == "length" for utterance in self.utterances)
        return {
            "seed": self.request.seed,
            "tokens": sum(utterance.whole.end for utterance in self.utterances),
            "segments": len(self.utterances),
            "finish_reason": "length" if length else "stop",
            "voice_from": self.voice_from,
            "voice_ms": _ms(voiced - self.arrived),
            "queue_ms": _ms(started - voiced),
            "t3_ms": _ms(decoded - started),
            "s3gen_ms": _ms(self.vocoder_seconds),
            "ttfa_ms": _ms(first_audio - self.arrived),
            "total_ms": _ms(total),
            "audio_seconds": round(audio, 3),
            "rtf": round(total / audio, 4) if audio else None,
            # as the well-known Chatterbox servers name it
            "real_time_factor": round(total / audio, 4) if audio else None,
            "inference_speedup": round(audio / total, 2) if total else None,
        }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
