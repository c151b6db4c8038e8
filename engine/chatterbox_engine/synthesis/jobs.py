"""What crosses the engine's threads: requests and their chunks. All of it is immutable. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatterbox_engine.synthesis.streaming import ChunkPolicy, Span
from chatterbox_engine.text.passages import CharSpan
from chatterbox_engine.types import FinishReason, GuardEvent, SynthesisChunk, SynthesisRequest, SynthesisResult

if TYPE_CHECKING:
    from chatterbox_engine.errors import RequestError
    from chatterbox_engine.voices.library import Found

Answer = Callable[["SynthesisResult | RequestError"], None]
"""Called exactly once for every accepted request, from the engine's sender thread."""

ChunkAnswer = Callable[["SynthesisChunk | RequestError"], None]
"""Called for every chunk of a stream, from the engine's sender thread; the last chunk or an error ends it."""


@dataclass(frozen=True)
class TokenSegment:
    """A segment of a request's text as T3 reads it: what one utterance is made from."""

    tokens: tuple[int, ...]
    """Text token ids with start and stop."""
    prompt_length: int
    """KV positions of voice, text and BOS at most."""
    max_tokens: int
    """Speech tokens after which the utterance ends at the latest."""
    pause: float
    """Seconds of silence after it."""
    lead: float = 0.0
    """Seconds of silence before it; only the first segment has some."""
    rate: float = 1.0
    """How many times as fast the caller is to play it; its silences are so much longer."""
    spans: Sequence[CharSpan] = ()
    """[tokens] Characters [start, end) of the request's text that each token stands for; an empty span: none."""


@dataclass(frozen=True, eq=False)
class Job:
    """An accepted request, from arrival to answer."""

    number: int
    request: SynthesisRequest
    answer: Callable[[Any], None]
    """An `Answer`, or a `ChunkAnswer` for a stream."""
    segments: Sequence[TokenSegment] = ()
    policy: ChunkPolicy | None = None
    """The chunks of a stream; None for a whole answer."""
    arrived: float = field(default_factory=time.monotonic)
    notes: Sequence[str] = ()
    """What was left out of its text and why, for its statistics."""

    @property
    def batch(self) -> bool:
        """It fills what live requests leave free."""
        return self.request.priority == "batch"


@dataclass(frozen=True)
class Times:
    """When a request reached its stages, by time.monotonic()."""

    voiced: float
    """Its voice was found."""
    started: float
    """Its first utterance got a slot."""
    prefilled: float
    """Its first token was drawn."""
    decoded: float | None
    """All of its tokens were drawn; None before."""


@dataclass(frozen=True)
class Guarded:
    """What the guard did to an utterance."""

    event: GuardEvent | None
    """What it has found in what is sent."""
    score: float | None
    """Of the alignment, from 0 to 1; None where nothing scores it."""
    retries: int
    """How often it was spoken again."""
    trimmed: int
    """Tokens that were drawn and are not sent."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """A part of an utterance, or all of it, on its way from the tokens to the answer.

    The engine's thread makes it, the vocoder turns its tokens into a waveform, the finisher makes what is sent of both.
    """

    job: Job
    found: Found
    """The voice."""
    segment: int
    """Of the request, from 0."""
    number: int
    """From 0: among the chunks of a stream; among the segments of a whole answer."""
    span: Span
    """Where it lies in the utterance."""
    tokens: tuple[int, ...]
    """Speech tokens of the span's window."""
    finish: FinishReason | None
    """Why the utterance ended, in its last chunk."""
    times: Times
    guarded: Guarded | None = None
    """What the guard did, in the utterance's last chunk."""
    places: tuple[float, ...] = ()
    """[stop of the span] Where in the segment's text T3 looked at each token from the utterance's begin on, if the
    request wants word times."""

    @property
    def streamed(self) -> bool:
        """It belongs to a stream."""
        return self.job.policy is not None

    @property
    def first(self) -> bool:
        """A client waits for it as its first audio."""
        return self.streamed and self.number == 0

    @property
    def last(self) -> bool:
        """The request's last segment ends with it."""
        return self.span.last and self.segment == len(self.job.segments) - 1

    @property
    def kept(self) -> tuple[int, ...]:
        """The speech tokens whose audio is sent; the others of the window are context."""
        return self.tokens[self.span.begin - self.span.start : self.span.end - self.span.start]
