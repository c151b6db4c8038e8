"""A chapter's loudness: measured, brought to a target by one gain, its peaks limited (FFmpeg's alimiter).

A chapter is a stream that can be begun again: hours of audio are never in memory at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

import av
import av.filter
import numpy as np
import numpy.typing as npt
import pyloudnorm

Samples = npt.NDArray[np.float32]  # [n] mono, in [-1, 1]
Stream = Callable[[], Iterable[Samples]]

_WINDOW = 30.0
"""Seconds that pyloudnorm gets at once."""
_SILENCE = -70.0
"""dB: below it nothing is amplified (the absolute gate of BS.1770)."""


@dataclass(frozen=True)
class Target:
    """What a chapter should measure."""

    measure: Literal["rms", "lufs"]
    level: float
    """dB RMS of full scale, or LUFS."""
    peak: float
    """Highest sample, in dB of full scale."""


PRESETS = {"acx": Target("rms", -20.0, -3.0), "podcast": Target("lufs", -16.0, -1.0)}
"""ACX: RMS between -23 and -18 dB, peaks below -3 dB, noise below -60 dB (https://www.acx.com/help/acx-audio-submission-requirements/201456300);
podcast: Apple's -16 LUFS, peaks below -1 dB."""


class Meter(Protocol):
    """Measures a stream."""

    def add(self, samples: Samples) -> None:
        """Takes the next samples."""

    def level(self) -> float:
        """dB of what has been taken; -inf for silence."""


class RmsMeter:
    """Root mean square of everything, pauses included, as ACX measures it."""

    def __init__(self, _rate: int) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, samples: Samples) -> None:
        """See `Meter.add`."""
        self._sum += float(np.square(samples, dtype=np.float64).sum())
        self._count += len(samples)

    def level(self) -> float:
        """See `Meter.level`."""
        return 10 * math.log10(self._sum / self._count) if self._sum else -math.inf


class LufsMeter:
    """Integrated loudness (ITU-R BS.1770-4): pyloudnorm's blocks, window by window, and the gates over all of them."""

    def __init__(self, rate: int) -> None:
        self._meter = pyloudnorm.Meter(rate)
        self._size, self._least = round(_WINDOW * rate), round(0.4 * rate)
        self._kept: list[Samples] = []
        self._blocks: list[float] = []

    def add(self, samples: Samples) -> None:
        """See `Meter.add`."""
        self._kept.append(samples)
        if sum(map(len, self._kept)) >= self._size:
            self._measure()

    def level(self) -> float:
        """See `Meter.level`."""
        self._measure()
        loud = [10 ** (block / 10) for block in self._blocks if block >= _SILENCE]
        if not loud:
            return -math.inf
        gate = float(np.mean(loud)) / 10
        return 10 * math.log10(float(np.mean([power for power in loud if power > gate])))

    def _measure(self) -> None:
        window = np.concatenate([np.zeros(0, np.float32), *self._kept])
        self._kept = []
        if len(window):
            padded = np.pad(window.astype(np.float64), (0, max(0, self._least + 1 - len(window))))
            self._meter.integrated_loudness(padded)
            self._blocks += [float(block) for block in self._meter.blockwise_loudness]


_METERS: dict[str, Callable[[int], Meter]] = {"rms": RmsMeter, "lufs": LufsMeter}


def levelled(stream: Stream, rate: int, target: Target) -> Iterator[Samples]:
    """A chapter at its target: the same number of samples. A silent one stays as it is.

    Reads the stream three times: the gain, what the limiter takes of it, and the audio.
    """
    before = _level(stream(), rate, target)
    if before < _SILENCE:
        return iter(stream())
    gain = target.level - before
    limited = _level(limit(stream(), rate, gain, target.peak), rate, target)
    return limit(stream(), rate, gain + max(0.0, target.level - limited), target.peak)


def _level(samples: Iterable[Samples], rate: int, target: Target) -> float:
    meter = _METERS[target.measure](rate)
    for piece in samples:
        meter.add(piece)
    return meter.level()


def limit(samples: Iterable[Samples], rate: int, gain: float, peak: float) -> Iterator[Samples]:
    """The samples after a gain, without peaks above `peak`, both in dB."""
    highest = 10 ** (peak / 20)
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=rate, format="flt", layout="mono", time_base=Fraction(1, rate))
    limiter = graph.add("alimiter", f"limit={highest:.6f}:attack=5:release=50:level=0:latency=1")
    form = graph.add("aformat", "sample_fmts=flt")
    graph.link_nodes(source, limiter, form, graph.add("abuffersink")).configure()
    taken = given = 0
    factor = np.float32(10 ** (gain / 20))
    for piece in samples:
        if not len(piece):
            continue
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece * factor)[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, taken, Fraction(1, rate)
        taken += len(piece)
        graph.push(frame)
        for ready in _pull(graph):
            given += len(ready)
            yield np.clip(ready, -highest, highest)
    graph.push(None)
    for ready in _pull(graph):
        rest = ready[: taken - given]
        given += len(rest)
        yield np.clip(rest, -highest, highest)
    yield np.zeros(taken - given, np.float32)


def _pull(graph: av.filter.Graph) -> Iterator[Samples]:
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):  # needs more; has no more
            return
        assert isinstance(frame, av.AudioFrame)
        yield frame.to_ndarray()[0]
