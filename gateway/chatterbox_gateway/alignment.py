"""When the characters of a turn are spoken."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from chatterbox_client.audio import Word

_SPACE = re.compile(r"\s")

CHARACTERS_PER_SECOND = 15.0
"""Of the first sentence of a turn; later ones are like those before them."""


@dataclass(frozen=True)
class Aligned:
    """Characters and their times in milliseconds from the start of the turn."""

    chars: str
    bounds: tuple[int, ...]
    """[chars + 1] Start of each character, and the end of the last."""
    since: int
    """The end of the characters before these: what a clock of `durations` shows."""

    @property
    def durations(self) -> list[int]:
        """Milliseconds of each character."""
        return [end - start for start, end in pairwise(self.bounds)]


@dataclass(frozen=True)
class SentWord:
    """A word that was sent."""

    word: str
    start: float
    """Seconds from the start of the turn."""
    end: float

    def shown(self) -> dict[str, str | float]:
        """As JSON."""
        return {"word": self.word, "start": self.start, "end": self.end}


class Alignment:
    """Places the characters of sentences in the chunks of their audio.

    By the server's word times, where it has them: the characters of a word are equally long, and punctuation and spaces
    fill the time up to the next one. Else by proportion: a chunk has its share of the characters at the speed of the
    sentences before, the last chunk of a sentence has the rest, and within a chunk all characters are equally long.
    """

    def __init__(self) -> None:
        self._left = ""  # of the sentence
        self._sentence = self._characters = 0
        self._begin = 0.0  # of the sentence, seconds
        self._speech = self._whole_speech = 0.0  # seconds of this sentence; of the ones before
        self._number = -1
        self._now = 0.0  # end of the audio, seconds
        self._placed = 0  # end of the placed characters, milliseconds
        self._words: list[tuple[str, int, int]] = []

    @property
    def seconds(self) -> float:
        """Of the audio."""
        return self._now

    def place(
        self,
        sentence: str,
        number: int,
        *,
        silence: float,
        seconds: float,
        is_last: bool,
        words: Sequence[Word] | None = None,
        speed: float = 1.0,
    ) -> Aligned | None:
        """The characters that a chunk of a sentence speaks; None if it has none.

        number: of the sentence, from 0; silence: before the chunk; seconds: of the chunk; is_last: of the sentence;
        words: that end in the chunk, with times from the start of the sentence before the change of speed; None if the
        model cannot tell them.
        """
        self._now += silence
        if number != self._number:
            self._number, self._begin = number, self._now
            self._left = f"{_SPACE.sub(' ', sentence.strip())} "
            self._sentence, self._speech = len(self._left), 0.0
        start = max(self._placed, round(self._now * 1_000))
        self._now += seconds
        self._speech += seconds
        end = max(start, round(self._now * 1_000))
        if words is None:
            bounds = self._even(start, end, is_last=is_last)
        else:
            bounds = self._by_words(words, speed, end, is_last=is_last)
        if is_last:
            self._characters += self._sentence
            self._whole_speech += self._speech
        if len(bounds) < 2:
            return None
        aligned = Aligned(self._left[: len(bounds) - 1], tuple(bounds), self._placed)
        self._left, self._placed = self._left[len(bounds) - 1 :], bounds[-1]
        if words is None:
            self._note(aligned)
        return aligned

    def _by_words(self, words: Sequence[Word], speed: float, end: int, *, is_last: bool) -> list[int]:
        """Bounds of the characters up to the last word and the space after it, in the last chunk of all."""
        placed = self._sentence - len(self._left)
        bounds = [self._placed if placed else max(self._placed, self._milliseconds(0, speed))]
        done = stop = 0  # of what is left
        for word in words:
            span = [max(done, place - placed) for place in word.span]
            begin, after, stop = *_spoken(self._left, *span), span[1]
            first, last = (min(end, max(bounds[-1], self._milliseconds(at, speed))) for at in (word.start, word.end))
            last = max(first, last)
            bounds += _spread(bounds[-1], first, begin - done)
            bounds[-1] = first  # where no space is before the word
            bounds += _spread(first, last, after - begin)
            done = after
            self._words += [(word.word, first, last), ("", last, last)]
        if is_last:
            return bounds + _spread(bounds[-1], end, len(self._left) - done)
        if words and self._left[stop : stop + 1] == " ":
            stop += 1
        return bounds + [bounds[-1]] * (stop - done)  # when the next word begins is not known yet

    def _milliseconds(self, seconds: float, speed: float) -> int:
        return round((self._begin + seconds / speed) * 1_000)

    def _even(self, start: int, end: int, *, is_last: bool) -> list[int]:
        count = len(self._left) if is_last else self._share((end - start) / 1_000)
        return [start, *_spread(start, end, count)]

    def words(self) -> list[SentWord]:
        """The words that were placed so far."""
        return [SentWord(word, start / 1_000, end / 1_000) for word, start, end in self._words if word]

    def _share(self, seconds: float) -> int:
        speed = self._characters / self._whole_speech if self._whole_speech else CHARACTERS_PER_SECOND
        return max(0, min(len(self._left) - 1, round(speed * seconds)))

    def _note(self, aligned: Aligned) -> None:
        for char, start, end in _timed(aligned):
            if char == " ":
                self._words.append(("", end, end))
                continue
            word, first, _ = self._words.pop() if self._words else ("", start, end)
            self._words.append((word + char, first if word else start, end))


def _spread(start: int, end: int, count: int) -> list[int]:
    """The ends of characters that are equally long."""
    return [start + (end - start) * index // count for index in range(1, count + 1)]


def _spoken(text: str, start: int, end: int) -> tuple[int, int]:
    """A part of a text without the punctuation around it, unless there is nothing else."""
    spoken = [at for at in range(start, end) if unicodedata.category(text[at])[0] not in "PSZ"]
    return (spoken[0], spoken[-1] + 1) if spoken else (start, end)


def _timed(aligned: Aligned) -> Iterator[tuple[str, int, int]]:
    for char, (start, end) in zip(aligned.chars, pairwise(aligned.bounds), strict=True):
        yield char, start, end
