"""Watches an utterance while its tokens are drawn: is the text spoken, once and whole, and does the speech end then?

Decided by the drawn tokens and by where T3 looked in the text, never by timing or the batch, so the same request always
gets the same answer. `settled` is the number of tokens that are kept whatever is drawn after them: a stream sends no
more than these, so that it has the tokens of the whole answer. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from chatterbox_engine.synthesis.jobs import TokenSegment
from chatterbox_engine.synthesis.word_times import LOOKAHEAD, path_of
from chatterbox_engine.text.words import words_of
from chatterbox_engine.types import TOKENS_PER_SECOND, FinishReason, GuardEvent, Reading

TAIL, TAIL_KEPT = 20, 6
"""Tokens after the text's end that are too many, and how many of them are kept: 0.8 s and 0.24 s."""
STALL, STALL_KEPT = 40, 15
"""The same for tokens at one place of the text: 1.6 s and 0.6 s, as pauses take half a second."""
REPEAT = 10
"""Tokens at places that have been spoken before which are too many: 0.4 s."""
LOOP, LOOPS, LOOP_KEPT = 30, 4, 12
"""Tokens, and times, of a repetition that are too many while the text does not go on, and tokens of it that are
kept."""
LONGEST_PERIOD = 12
"""Tokens that repeat."""
BACK, SKIPPED = 6.0, 12.0
"""Characters by which the place must be before what has been spoken, and by which it must have jumped on."""
POOR, UNSURE = 0.7, 0.97
"""The score below which an answer is poor: of the path alone, and where the usual attention is known too. Of the demo
voice's sentences at temperature 0.8 four in a hundred are below the second (2026-11-29)."""
COOLER = 0.5
"""Temperature of an attempt, as a share of that of the attempt before: at a lower one less goes wrong."""
BASE_SECONDS, CHARACTERS_PER_SECOND = 0.6, 13.0
"""How long speech is expected to be: silence around it, and letters per second."""
TOO_LONG = 2.0
"""Of what is expected."""
_HAN, _KANA = 3.0, 1.7
"""Letters that such a character takes as long as."""


@dataclass(frozen=True)
class Text:
    """What the guard knows of a segment's text."""

    places: int
    """Its tokens, start and stop included."""
    first: int
    """The first and the last token that is spoken."""
    last: int
    per_character: float
    """Tokens of a character."""
    limit: int
    """Speech tokens that are too many for its characters."""
    peak: float
    """As `Parts.usual_peak`."""

    @classmethod
    def of(cls, segment: TokenSegment, source: str, peak: float = 0.0) -> Text:
        """Of a segment of the request's text `source`."""
        words = words_of(source, segment.spans)
        first, last = (words[0].first, words[-1].after - 1) if words else (0, len(segment.tokens) - 1)
        letters = "".join(source[slice(*word.span)] for word in words)
        expected = BASE_SECONDS + sum(map(_letters, letters)) / CHARACTERS_PER_SECOND
        return cls(
            places=len(segment.tokens),
            first=first,
            last=last,
            per_character=(last + 1 - first) / max(1, len(letters)),
            limit=round(TOO_LONG * expected * TOKENS_PER_SECOND),
            peak=peak,
        )


def _letters(character: str) -> float:
    if "\u4e00" <= character <= "\u9fff":
        return _HAN
    return _KANA if "\u3040" <= character <= "\u30ff" else 1.0


@dataclass
class Watch:
    """One run of an utterance. Belongs to the engine's thread."""

    text: Text
    settled: int = 0
    """Speech tokens that are kept whatever is drawn after them."""
    event: GuardEvent | None = None
    """The first thing that it found."""
    tokens: list[int] = field(default_factory=list)
    places: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    """Of the tokens whose steps were read."""
    path: list[float] = field(default_factory=list)
    """As far as it is known."""
    ended: int | None = None
    """The token at which the text had been spoken."""
    _moved: int = 0
    """The token at which the path got to where it is, to within a place."""
    _behind: int = 0
    """Tokens, up to the last one, at places that have been spoken."""
    _same: list[int] = field(default_factory=lambda: [0] * (LONGEST_PERIOD + 1))
    """Of each period, tokens up to the last one that repeat those before."""

    def take(self, token: int, reading: Reading | None) -> int | None:
        """Adds a speech token. Returns how many of them are kept when the utterance must end, else None."""
        self.tokens.append(token)
        self.places.append(0.0 if reading is None else reading.centre)
        if reading is not None:
            self.peaks.append(reading.peak)
        self._follow()
        bounds = dict(self._bounds())
        self.settled = max(self.settled, min([len(self.tokens), *(kept for kept, _ in bounds.values())]))
        found = next((event for event, (_, over) in bounds.items() if over), None)
        if found is None:
            return None
        self.event = found
        kept = bounds[found][0]
        if self.ended is not None:
            kept = min(kept, self.ended + TAIL_KEPT)
        return max(self.settled, min(kept, len(self.tokens)))

    def _follow(self) -> None:
        """Goes on with the path and the counts."""
        at, count = len(self.path), len(self.tokens)
        if count > LOOKAHEAD:
            here = max(min(self.places[at : at + LOOKAHEAD + 1]), self.path[-1] if self.path else 0.0)
            self.path.append(here)
            while self.path[self._moved] < here - 1:
                self._moved += 1
            if self.ended is None and here > self.text.last + 0.5:
                self.ended = at
        front = self.path[-1] if self.path else 0.0
        self._behind = self._behind + 1 if self.places[-1] < front - self._reach(BACK) else 0
        for period in range(1, LONGEST_PERIOD + 1):
            same = count > period and self.tokens[-1] == self.tokens[-1 - period]
            self._same[period] = self._same[period] + 1 if same else 0

    def _bounds(self) -> Iterator[tuple[GuardEvent, tuple[int, bool]]]:
        """What may be wrong: how many tokens would be kept then, and whether it is."""
        count = len(self.tokens)
        if self.ended is not None:
            yield "tail", (self.ended + TAIL_KEPT, count - self.ended > TAIL)
        else:
            yield "stall", (self._moved + STALL_KEPT, count - self._moved > STALL)
        yield "repeat", (count - self._behind, self._behind >= REPEAT)
        for period, same in enumerate(self._same):
            begin = count - same - period
            if same and same + period > LOOP_KEPT and self._moved <= begin:
                yield "loop", (begin + LOOP_KEPT, same + period > LOOP and same >= (LOOPS - 1) * period)
                break
        yield "long", (self.text.limit, count >= self.text.limit)

    def _reach(self, characters: float) -> float:
        return max(2.0, characters * self.text.per_character)

    def finish(self) -> float:
        """After the last token: the quality, a score of 0 to 1 times the attention as a share of the usual. Sets
        `event` for what is found only then."""
        path = path_of(self.places, complete=True)
        last = path[-1] if path else 0.0
        wanted = self.text.last + 1 - self.text.first
        gaps = [after - before for before, after in pairwise([float(self.text.first), *path, float(self.text.last)])]
        skipped = sum(gap for gap in gaps if gap > self._reach(SKIPPED))
        unspoken = max(0.0, self.text.last - 0.5 - last)
        spoken = path[: self.ended]
        near = sum(abs(here - place) <= self._reach(BACK) for here, place in zip(spoken, self.places, strict=False))
        score = (near / len(spoken) if spoken else 0.0) * max(0.0, 1 - max(skipped, unspoken) / wanted)
        if self.text.peak and self.peaks:
            score *= sum(self.peaks) / len(self.peaks) / self.text.peak
        if self.event in (None, "tail"):
            if skipped or unspoken > self._reach(SKIPPED) / 2:
                self.event = "skip"
            elif score < (UNSURE if self.text.peak else POOR):
                self.event = "score"
        return score


@dataclass(frozen=True)
class Attempt:
    """How an utterance has been spoken once."""

    tokens: Sequence[int]
    """Speech tokens that are kept."""
    places: Sequence[float]
    finish: FinishReason
    event: GuardEvent | None
    quality: float
    """As `Watch.finish` tells it."""
    trimmed: int
    """Tokens that were drawn and are not kept."""

    @property
    def score(self) -> float:
        """Of the alignment, from 0 to 1."""
        return min(1.0, self.quality)

    @property
    def sound(self) -> bool:
        """Nothing was found but a tail, which has been cut."""
        return self.event in (None, "tail")


class Guard:
    """Guards one utterance over its attempts. Belongs to the engine's thread."""

    def __init__(self, text: Text, retries: int) -> None:
        """retries: how often it may be spoken again; 0 only ends it."""
        self._text = text
        self._retries = retries
        self._attempts: list[Attempt] = []
        self._watch = Watch(text)

    @property
    def settled(self) -> int:
        """Speech tokens that are kept whatever is drawn after them."""
        return self._watch.settled

    @property
    def attempt(self) -> int:
        """Number of the attempt under way, from 0."""
        return len(self._attempts)

    def take(self, token: int, reading: Reading | None) -> int | None:
        """Adds a speech token. Returns how many of the attempt's are kept when it must end, else None."""
        return self._watch.take(token, reading)

    def restart(self) -> None:
        """Begins the attempt under way again."""
        self._watch = Watch(self._text)

    def finish(self, kept: int, finish: FinishReason, *, begun: bool) -> Attempt | None:
        """Ends an attempt; None when the utterance is spoken again, else the best of all. begun: a part of it has been
        sent, so that it cannot be spoken again."""
        watch = self._watch
        quality = watch.finish()
        tokens, places = watch.tokens[:kept], watch.places[:kept]
        self._attempts.append(Attempt(tokens, places, finish, watch.event, quality, len(watch.tokens) - kept))
        if begun:
            return self._attempts[-1]
        if not self._attempts[-1].sound and len(self._attempts) <= self._retries:
            self.restart()
            return None
        return max(self._attempts, key=lambda attempt: (attempt.sound, attempt.quality))  # the first of the best
