"""Requests while their tokens are drawn. All of it belongs to the engine's thread. No torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from chatterbox_engine.checkpoint.families import Family
from chatterbox_engine.synthesis import guard
from chatterbox_engine.synthesis.analyser import Analyser
from chatterbox_engine.synthesis.guard import Guard
from chatterbox_engine.synthesis.jobs import Chunk, Guarded, Job, Times, TokenSegment
from chatterbox_engine.synthesis.scheduler import Place
from chatterbox_engine.synthesis.streaming import Cursor, Span
from chatterbox_engine.types import SPEECH_TOKENS, FinishReason, Reading, SamplingParams

if TYPE_CHECKING:
    from chatterbox_engine.t3.prompts import Prompt
    from chatterbox_engine.voices.library import Found


class Speech:
    """A request with its voice and its utterances."""

    def __init__(self, job: Job, found: Found, voiced: float, family: Family, usual_peak: float = 0.0) -> None:
        """voiced: when the voice was found, by time.monotonic(); usual_peak: as `Parts.usual_peak`."""
        self.usual_peak = usual_peak
        self.job = job
        self.voice = found.voice
        self.utterances = [Utterance(self, index, segment, family) for index, segment in enumerate(job.segments)]
        self._found = found
        self._voiced = voiced
        self._started: float | None = None
        self._prefilled: float | None = None
        self._decoded: float | None = None
        self._cursor = None if job.policy is None else Cursor(job.policy, family.cropped)

    def start(self) -> None:
        """Notes that an utterance has got a slot."""
        self._started = self._started or time.monotonic()

    def drew(self) -> None:
        """Notes that a token was drawn."""
        self._prefilled = self._prefilled or time.monotonic()

    def end(self) -> bool:
        """Notes that an utterance has ended; True when all have."""
        if all(utterance.finish is not None for utterance in self.utterances):
            self._decoded = time.monotonic()
        return self._decoded is not None

    def has_begun(self, utterance: Utterance) -> bool:
        """Whether a part of it has been handed to the vocoder."""
        return self._cursor is not None and self._cursor.within(utterance.index)

    def due(self, utterance: Utterance) -> Iterator[Chunk]:
        """The chunks that can be vocoded now that `utterance` has one more token.

        A whole answer is one chunk for each utterance, whichever ends first; a stream's come in the order of the text.
        """
        if self._cursor is None:
            if utterance.finish is not None:
                yield self._chunk(utterance, utterance.index, utterance.whole)
            return
        while self._cursor.segment < len(self.utterances):
            number, current = self._cursor.number, self.utterances[self._cursor.segment]
            span = self._cursor.take(current.settled, complete=current.finish is not None)
            if span is None:
                return
            yield self._chunk(current, number, span)

    def _chunk(self, utterance: Utterance, number: int, span: Span) -> Chunk:
        assert self._started is not None, "an utterance with tokens has been started"
        assert self._prefilled is not None, "and has drawn the first of them"
        return Chunk(
            job=self.job,
            found=self._found,
            segment=utterance.index,
            number=number,
            span=span,
            tokens=tuple(utterance.tokens[span.start : span.stop]),
            finish=utterance.finish if span.last else None,
            times=Times(self._voiced, self._started, self._prefilled, self._decoded),
            guarded=utterance.guarded if span.last else None,
            places=tuple(utterance.places[: span.stop]) if self.job.request.word_times else (),
        )


@dataclass(eq=False)
class Utterance:
    """One segment of a request: the unit that decodes and that the vocoder turns into audio."""

    speech: Speech
    index: int
    segment: TokenSegment
    family: Family
    place: Place | None = None
    prompt: Prompt | None = None
    drawn: int = 0
    tokens: list[int] = field(default_factory=list)
    """The drawn tokens that are speech, and at the end those that the family appends. T3's vocabulary has more than
    S3Gen's; upstream drops the rest too."""
    places: list[float] = field(default_factory=list)
    """Where in the text T3 looked at each of `tokens`; those that are appended are spoken at the last place."""
    finish: FinishReason | None = None

    guarded: Guarded | None = None
    """What the guard did, once it has ended."""

    def __post_init__(self) -> None:
        request = self.speech.job.request
        self._guard: Guard | None = None
        self._analyser: Analyser | None = None
        if request.guard in ("stop", "retry"):
            text = guard.Text.of(self.segment, request.text, self.speech.usual_peak)
            # at temperature 0 all attempts would have the same tokens
            again = request.guard == "retry" and request.sampling.temperature > 0
            self._guard = Guard(text, request.guard_retries if again else 0)
        elif request.guard == "upstream":
            self._analyser = Analyser(len(self.segment.tokens))

    @property
    def aligned(self) -> bool:
        """Its steps are read."""
        request = self.speech.job.request
        return request.word_times or request.guard != "off"

    @property
    def holding(self) -> bool:
        """The stop token is not drawn before the text's end."""
        return self._analyser is not None

    @property
    def attempt(self) -> int:
        """How often it has been spoken before."""
        return 0 if self._guard is None else self._guard.attempt

    @property
    def settled(self) -> int:
        """Tokens that will not be dropped again."""
        return len(self.tokens) if self._guard is None or self.finish is not None else self._guard.settled

    @property
    def sampling(self) -> SamplingParams:
        """How its tokens are drawn: each time that it is spoken again, at a lower temperature."""
        sampling = self.speech.job.request.sampling
        if not self.attempt:
            return sampling
        return replace(sampling, temperature=sampling.temperature * guard.COOLER**self.attempt)

    @property
    def row_positions(self) -> list[int]:
        """KV positions of each row: one row without guidance, two with. The last step before a stop is noticed
        stores one position more than there are tokens."""
        rows = 2 if self.sampling.cfg_weight > 0 else 1
        return [self.segment.prompt_length + self.segment.max_tokens + 1] * rows

    @property
    def first(self) -> bool:
        """It is the request's first segment."""
        return self.index == 0

    @property
    def batch(self) -> bool:
        """It fills what live utterances leave free."""
        return self.speech.job.batch

    @property
    def preemptible(self) -> bool:
        """It is batch work of which nothing has been vocoded. On a GPU a second run in other batches may draw other
        tokens, which would not continue the chunks of the first."""
        return self.batch and not self.speech.has_begun(self)

    def restart(self) -> None:
        """Drops all that was drawn; its seed gives the same tokens again."""
        self.prompt, self.drawn, self.tokens, self.places = None, 0, [], []
        if self._guard is not None:
            self._guard.restart()
        if self._analyser is not None:
            self._analyser = Analyser(len(self.segment.tokens))

    def take(self, token: int, stop: int, reading: Reading | None = None) -> bool:
        """Adds a drawn token; True when the utterance ends with it, or is spoken again: then `finish` is None. reading:
        of the step that drew it, if it was read; the prefill never is."""
        self.speech.drew()
        if token == stop or (self._analyser is not None and self._analyser.ends(token, reading)):
            return self._finish("stop", len(self.tokens))
        self.drawn += 1
        kept = None
        if token < SPEECH_TOKENS:
            self.tokens.append(token)
            self.places.append(0.0 if reading is None else reading.centre)
            kept = None if self._guard is None else self._guard.take(token, reading)
        if kept is not None:
            return self._finish("stop", kept)
        return self.drawn == self.segment.max_tokens and self._finish("length", len(self.tokens))

    def _finish(self, finish: FinishReason, kept: int) -> bool:
        if self._analyser is not None:
            self.guarded = Guarded(None, None, 0, 0)
        if self._guard is not None:
            best = self._guard.finish(kept, finish, begun=self.speech.has_begun(self))
            if best is None:
                self.prompt, self.drawn, self.tokens, self.places = None, 0, [], []
                return True
            self.tokens, self.places, finish = list(best.tokens), list(best.places), best.finish
            self.guarded = Guarded(best.event, best.score, self._guard.attempt - 1, best.trimmed)
        self.finish = finish
        self.tokens += self.family.appended
        return True

    @property
    def whole(self) -> Span:
        """The complete utterance as one chunk."""
        return Span.whole(len(self.tokens), self.family.cropped)
