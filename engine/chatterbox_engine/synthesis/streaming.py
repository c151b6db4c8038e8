"""Schedules a stream's tokens for the vocoder, and joins the waveforms of its chunks seamlessly.

Imports no torch: tokens are only counted, and samples are numpy arrays. Chunk boundaries depend only on the policy and
the number of tokens, never on timing, so the same request gives the same stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chatterbox_engine.synthesis.join import fade_edges, silence
from chatterbox_engine.types import SAMPLES_PER_TOKEN, Samples

LOOKAHEAD = 3
"""Tokens after a chunk that its vocoding needs: the lookahead of S3Gen's encoder."""

CONTEXT = 25
"""Tokens before a chunk that are vocoded again with it, after the voice's prompt: one second. HiFT's receptive field is
13 frames to each side, so where the mel at a join equals that of the whole utterance, the samples do too."""

GROWTH = 3
"""Ratio of each chunk's tokens to the previous chunk's. A stream that decodes faster than this many times real time has
the next chunk before playback of the current one ends. A larger ratio vocodes fewer tokens twice."""

LARGEST = 750
"""Tokens of the largest chunk, 30 s; limited because other streams may have to wait for it."""

OVERLAP = SAMPLES_PER_TOKEN // 2
"""Samples, 20 ms, of the crossfade from one chunk to the next."""


@dataclass(frozen=True)
class ChunkPolicy:
    """The number of tokens of each chunk of a stream."""

    first: int = 10
    chunk: int = 25

    def size(self, number: int) -> int:
        """Tokens of the chunk with this number, from 0; a segment's last chunk has the remainder."""
        if number == 0:
            return self.first
        growths = min(number - 1, LARGEST.bit_length())  # beyond that even one token has grown to the largest
        return min(LARGEST, self.chunk * GROWTH**growths)


@dataclass(frozen=True)
class Span:
    """A chunk's position in its utterance, in tokens: the window [start, stop) is vocoded, and the audio of [begin,
    end) is sent."""

    start: int
    begin: int
    end: int
    stop: int
    last: bool
    """The utterance ends with it."""

    @classmethod
    def whole(cls, tokens: int, cropped: int = 0) -> Span:
        """A whole utterance as one chunk; the audio of its last `cropped` tokens is not sent."""
        return cls(0, 0, audible(tokens, cropped), tokens, last=True)

    @property
    def complete(self) -> bool:
        """Its window is the whole utterance."""
        return self.start == 0 and self.last

    @property
    def tokens(self) -> int:
        """Tokens of the window."""
        return self.stop - self.start


def audible(tokens: int, cropped: int) -> int:
    """Tokens of a complete utterance whose audio is sent: at least one where there are any."""
    return max(tokens - cropped, min(tokens, 1))


class Cursor:
    """How far the tokens of a stream have been handed to the vocoder: segment after segment, a chunk at a time."""

    def __init__(self, policy: ChunkPolicy, cropped: int = 0) -> None:
        """cropped: tokens at the end of each segment whose audio is not sent, at most LOOKAHEAD."""
        self._policy = policy
        self._cropped = cropped
        self._begin = 0
        self.segment = 0
        self.number = 0
        """Number of the next chunk, counted over all segments."""

    def within(self, segment: int) -> bool:
        """Whether a part of this segment has been handed to the vocoder, and a part not."""
        return segment == self.segment and self._begin > 0

    def take(self, tokens: int, *, complete: bool) -> Span | None:
        """The next chunk of the segment, or None while it is not due.

        tokens: of the segment, so far; complete: there will be no more.
        """
        begin, end = self._begin, self._begin + self._policy.size(self.number)
        start = max(0, begin - CONTEXT)
        if end + LOOKAHEAD <= tokens:
            span = Span(start, begin, end, end + LOOKAHEAD, last=False)
        elif complete:
            span = Span(start, begin, audible(tokens, self._cropped), tokens, last=True)
        else:
            return None
        self.number += 1
        self._begin = 0 if span.last else span.end
        self.segment += span.last
        return span


class Joiner:
    """The waveforms of a stream's windows to the samples that are sent: as many as `join.join` gives for the segments.

    A chunk begins with a crossfade from the samples that the previous chunk has past its end. Both are computed from
    the same tokens with the same noise and a continuous phase, so they differ little, and the fade hides the
    difference. Segments are joined as in `join.join`.
    """

    def __init__(self, pauses: list[float], lead: float = 0.0) -> None:
        """pauses: seconds of silence after each segment; lead: before the first."""
        self._pauses = pauses
        self._lead = lead
        self._segment = 0
        self._beyond: Samples | None = None

    def add(self, wave: Samples, span: Span) -> Samples:
        """The samples to send. wave: [960 tokens of the window]."""
        start, end = ((at - span.start) * SAMPLES_PER_TOKEN for at in (span.begin, span.end))
        samples = wave[start:end]
        if self._beyond is not None:
            samples = crossfade(self._beyond, samples)
        self._beyond = None if span.last else wave[end : end + OVERLAP]
        first, final = self._segment == 0, self._segment == len(self._pauses) - 1
        lead = self._lead if first and span.begin == 0 else 0.0
        pause = self._pauses[self._segment] if span.last else 0.0
        starts, ends = not first or lead > 0, not final or pause > 0
        samples = fade_edges(samples, start=span.begin == 0 and starts, end=span.last and ends)
        if lead or pause:
            samples = np.concatenate([silence(lead), samples, silence(pause)])
        self._segment += span.last
        return samples


def crossfade(before: Samples, samples: Samples) -> Samples:
    """`samples` with its start faded in over `before` fading out. The gains sum to one, as for correlated signals."""
    length = len(before)
    rising = np.sin(np.linspace(0, np.pi / 2, length, endpoint=False, dtype=np.float32)) ** 2
    return np.concatenate([before * (1 - rising) + samples[:length] * rising, samples[length:]])
