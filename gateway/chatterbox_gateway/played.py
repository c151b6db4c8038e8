"""Times of the server's audio in the audio that is sent, which is faster or slower."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace

from chatterbox_client.audio import Word


class PlayedTimes:
    """The runs of one answer, each with its own speed."""

    def __init__(self) -> None:
        self._begins, self._played, self._speeds = [0.0], [0.0], list[float]()

    def add(self, seconds: float, speed: float) -> None:
        """Adds a run of the server's audio."""
        self._speeds.append(speed)
        self._begins.append(self._begins[-1] + seconds)
        self._played.append(self._played[-1] + seconds / speed)

    @property
    def seconds(self) -> float:
        """Of the audio that is sent."""
        return self._played[-1]

    def at(self, seconds: float) -> float:
        """When a moment of the server's audio, up to the end of its last run, is played."""
        run = min(bisect_right(self._begins, seconds), len(self._speeds)) - 1
        return round(self._played[run] + (seconds - self._begins[run]) / self._speeds[run], 3)

    def of(self, words: Iterable[Word]) -> list[Word]:
        """Words with the times at which they are played."""
        return [replace(word, start=self.at(word.start), end=self.at(word.end)) for word in words]
