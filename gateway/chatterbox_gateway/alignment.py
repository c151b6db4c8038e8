"""When the characters of a turn are spoken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

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
class Word:
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

    By proportion: a chunk has its share of the characters at the speed of the sentences before, the last chunk of a
    sentence has the rest, and within a chunk all characters are equally long. Word times of the server belong into
    `place`, as the shares.
    """

    def __init__(self) -> None:
        self._left = ""  # of the sentence
        self._sentence = self._characters = 0
        self._speech = self._whole_speech = 0.0  # seconds of this sentence; of the ones before
        self._number = -1
        self._now = 0.0  # end of the audio, seconds
        self._placed = 0  # end of the placed characters, milliseconds
        self._words: list[tuple[str, int, int]] = []

    @property
    def seconds(self) -> float:
        """Of the audio."""
        return self._now

    def place(self, sentence: str, number: int, *, silence: float, seconds: float, is_last: bool) -> Aligned | None:
        """The characters that a chunk of a sentence speaks; None if it has none.

        number: of the sentence, from 0; silence: before the chunk; seconds: of the chunk; is_last: of the sentence.
        """
        if number != self._number:
            self._number = number
            self._left = f"{' '.join(sentence.split())} "
            self._sentence, self._speech = len(self._left), 0.0
        start = max(self._placed, round((self._now + silence) * 1_000))
        self._now += silence + seconds
        self._speech += seconds
        end = max(start, round(self._now * 1_000))
        count = len(self._left) if is_last else self._share(seconds)
        if is_last:
            self._characters += self._sentence
            self._whole_speech += self._speech
        if not count:
            return None
        chars, self._left = self._left[:count], self._left[count:]
        bounds = tuple(start + (end - start) * index // count for index in range(count + 1))
        aligned = Aligned(chars, bounds, self._placed)
        self._placed = end
        self._note(aligned)
        return aligned

    def words(self) -> list[Word]:
        """The words that were placed so far."""
        return [Word(word, start / 1_000, end / 1_000) for word, start, end in self._words if word]

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


def _timed(aligned: Aligned) -> Iterator[tuple[str, int, int]]:
    for char, (start, end) in zip(aligned.chars, pairwise(aligned.bounds), strict=True):
        yield char, start, end
