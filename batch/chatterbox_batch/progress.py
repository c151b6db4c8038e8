"""How far a run is, how fast, and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from chatterbox_batch.records import Record

INTERVAL = 10.0
"""Seconds between two lines."""


class Progress:
    """Counts the parts of a run and shows a line now and then."""

    def __init__(
        self,
        parts: int,
        characters: int,
        show: Callable[[str], None],
        *,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """parts, characters: to speak in this run."""
        self._parts, self._characters = parts, characters
        self._show, self._interval, self._clock = show, interval, clock
        self._shown = clock()
        self._began: float | None = None  # when the first part came: processes and engines start before
        self._first = Record("", "", 0, 0, 0, 0.0, 0)
        self.spoken = self.failed = self._spoken_characters = 0
        self.seconds = 0.0
        """Of audio."""

    def add(self, record: Record) -> None:
        """Counts a part, and shows a line if the last one is old."""
        if self._began is None:
            self._began, self._first = self._clock(), record
        self.spoken += 1
        self.failed += bool(record.error)
        self.seconds += record.seconds
        self._spoken_characters += record.characters
        if self._clock() - self._shown >= self._interval:
            self._shown = self._clock()
            self._show(self.line())

    def line(self) -> str:
        """The progress in one line: parts, failures, audio seconds per second, parts per second, time left."""
        failed = f", {self.failed} failed" if self.failed else ""
        counts = f"{self.spoken} of {self._parts} parts{failed}"
        took = 0.0 if self._began is None else self._clock() - self._began
        characters = self._spoken_characters - self._first.characters
        if not took or not characters:
            return counts
        left = timedelta(seconds=round(took * (self._characters - self._spoken_characters) / characters))
        speed = (self.seconds - self._first.seconds) / took
        return f"{counts}, {speed:.1f} x real time, {(self.spoken - 1) / took:.1f} parts/s, {left} left"
