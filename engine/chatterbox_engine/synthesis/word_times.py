"""When each word of a segment is spoken, from where T3 looked in the text at each token.

The path through the text never goes back. It is known up to `LOOKAHEAD` tokens before the last reading, and what is
known does not change, so a stream's words have the times of the whole answer. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from chatterbox_engine.synthesis.jobs import Chunk, Job
from chatterbox_engine.text.words import Word, words_of
from chatterbox_engine.types import SAMPLE_RATE, SAMPLES_PER_TOKEN, SpokenWord

LOOKAHEAD = 2
"""Readings after a token that its place depends on: T3 looks ahead for a token or two, hardly ever for three. At most
`streaming.LOOKAHEAD` less one."""


def path_of(places: Sequence[float], *, complete: bool) -> list[float]:
    """The place in the text that is spoken at each speech token: the lowest of its own reading and the next ones', and
    no lower than before.

    places: [tokens] readings; complete: no more will come. Returns [tokens], or LOOKAHEAD less.
    """
    known = len(places) if complete else max(0, len(places) - LOOKAHEAD)
    return list(accumulate((min(places[at : at + LOOKAHEAD + 1]) for at in range(known)), max))


@dataclass(frozen=True)
class Times:
    """When a path of a segment reaches places of its text."""

    path: Sequence[float]
    audible: int
    """Tokens of the segment that are sent, as far as it is known."""
    complete: bool
    """The segment has no more."""

    def reached(self, place: int) -> float | None:
        """Tokens from the segment's begin until a text token is spoken; None while that is not known. Between two
        speech tokens the path is a line; a token's own place is where it is at the token's middle."""
        line = place - 0.5
        at = next((at for at, here in enumerate(self.path) if here >= line), None)
        if at is None:
            return float(self.audible) if self.complete else None
        if at == 0:
            return 0.0
        before, here = self.path[at - 1], self.path[at]
        tokens = at - 0.5 + (line - before) / (here - before)
        return min(tokens, float(self.audible)) if self.complete else tokens


def spoken_words(words: Sequence[Word], times: Times, text: str, *, begin: int) -> list[SpokenWord]:
    """The first words of a segment whose end is known and sent, with their times in the answer.

    begin: samples of the answer before the segment. A word that is not spoken has the time of the next one, or of the
    segment's end.
    """
    found: list[SpokenWord] = []
    for word in words:
        start, end = times.reached(word.first), times.reached(word.after)
        if start is None or end is None or end > times.audible:
            break
        first, last = (round((begin + SAMPLES_PER_TOKEN * tokens) / SAMPLE_RATE, 3) for tokens in (start, end))
        found.append(SpokenWord(text[slice(*word.span)], first, last, word.span))
    return found


@dataclass(frozen=True)
class Heard:
    """How far a segment is, of which a chunk was made. Does not keep its request."""

    segment: int
    places: Sequence[float]
    """As `Chunk.places`."""
    audible: int
    """As `Times.audible`."""
    complete: bool

    @classmethod
    def of(cls, chunk: Chunk) -> Heard:
        """Up to the end of a chunk."""
        return cls(chunk.segment, chunk.places, chunk.span.end, chunk.span.last)


class WordClock:
    """The words of one request, each given out once. Belongs to the finisher."""

    def __init__(self, job: Job) -> None:
        self._text = job.request.text
        wanted = job.request.word_times
        self._left = [words_of(self._text, segment.spans) if wanted else [] for segment in job.segments]

    def add(self, heard: Heard, begin: int) -> list[SpokenWord]:
        """The words that end in what is sent of a segment; all that are left, when it is complete. begin: samples of
        the answer before the segment."""
        times = Times(path_of(heard.places, complete=heard.complete), heard.audible, heard.complete)
        found = spoken_words(self._left[heard.segment], times, self._text, begin=begin)
        del self._left[heard.segment][: len(found)]
        return found
