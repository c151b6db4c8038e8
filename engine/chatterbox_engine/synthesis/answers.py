"""Waveforms of chunks to the answer of their request, with its statistics. Belongs to the finisher. No torch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from chatterbox_engine.metrics import Served
from chatterbox_engine.synthesis.jobs import Chunk, Guarded, Job, TokenSegment
from chatterbox_engine.synthesis.join import join, silence
from chatterbox_engine.synthesis.streaming import Joiner
from chatterbox_engine.synthesis.word_times import Heard, WordClock
from chatterbox_engine.types import (
    SAMPLE_RATE,
    SAMPLES_PER_TOKEN,
    TOKENS_PER_SECOND,
    Samples,
    SpokenWord,
    SynthesisChunk,
    SynthesisResult,
)


class WholeAnswer:
    """The answer to a request that wants all of its audio at once. Its segments come in any order."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._parts: dict[int, tuple[Samples, tuple[int, ...], Heard]] = {}
        self._sums = _Sums()

    def add(self, chunk: Chunk, wave: Samples, vocoding: tuple[float, float]) -> SynthesisResult | None:
        """The answer, once the last segment has come.

        wave: [960 tokens of the window], watermarked; vocoding: from when to when the vocoder worked for it and for no
        other chunk of the request, by time.monotonic().
        """
        self._sums.add(chunk, vocoding)
        self._parts[chunk.segment] = wave[: SAMPLES_PER_TOKEN * chunk.span.end], chunk.kept, Heard.of(chunk)
        segments = chunk.job.segments
        if len(self._parts) < len(segments):
            return None
        parts = [self._parts[index] for index in range(len(segments))]
        samples = join([part for part, _, _ in parts], [segment.pause for segment in segments], segments[0].lead)
        stats = self._sums.stats(chunk, len(samples))
        if any(segment.rate != 1 for segment in segments):
            lengths = (_length(part, segment) for (part, _, _), segment in zip(parts, segments, strict=True))
            stats["rates"] = [(length, segment.rate) for length, segment in zip(lengths, segments, strict=True)]
        tokens = np.asarray([token for _, kept, _ in parts for token in kept], dtype=np.int32)
        return SynthesisResult(samples, tokens, {**stats, **self._served.about}, self._words(chunk.job))

    def _words(self, job: Job) -> list[SpokenWord]:
        clock, words, begin = WordClock(job), list[SpokenWord](), 0
        for index, segment in enumerate(job.segments):
            samples, _, heard = self._parts[index]
            words += clock.add(heard, begin + len(silence(segment.lead)))
            begin += _length(samples, segment)
        return words


class StreamAnswer:
    """The answer to a stream. Its chunks come in order."""

    def __init__(self, job: Job, served: Served) -> None:
        self._served = served
        self._joiner = Joiner([segment.pause for segment in job.segments], job.segments[0].lead)
        self._samples = 0
        self._begin = 0
        """Samples before the segment."""
        self._clock = WordClock(job)
        self._sums = _Sums()

    def add(self, chunk: Chunk, wave: Samples, vocoding: tuple[float, float]) -> SynthesisChunk:
        """What is sent of a chunk, with statistics when it is the last. The arguments are `WholeAnswer.add`'s."""
        self._sums.add(chunk, vocoding)
        if chunk.span.begin == 0:
            self._begin = self._samples + len(silence(chunk.job.segments[chunk.segment].lead))
        words = self._clock.add(Heard.of(chunk), self._begin)
        samples = self._joiner.add(wave, chunk.span)
        self._sums.audible()
        self._samples += len(samples)
        stats = None
        if chunk.last:
            stats = {**self._sums.stats(chunk, self._samples), "chunks": chunk.number + 1, **self._served.about}
        rate = chunk.job.segments[chunk.segment].rate
        tokens = np.asarray(chunk.kept, dtype=np.int32)
        return SynthesisChunk(chunk.number, samples, tokens, stats, rate, words)


def _length(part: Samples, segment: TokenSegment) -> int:
    """Samples of a segment and its silences, as `join` makes them."""
    return len(silence(segment.lead)) + len(part) + len(silence(segment.pause))


class _Sums:
    """What the chunks of a request add up to, for its statistics."""

    def __init__(self) -> None:
        self._tokens = 0
        self._at_limit = False
        self._vocoder_seconds = 0.0
        self._vocoding: tuple[float, float] | None = None
        self._decoded: float | None = None
        self._guarded: list[Guarded] = []
        self._first_audio: float | None = None

    def add(self, chunk: Chunk, vocoding: tuple[float, float]) -> None:
        begun, ended = vocoding
        self._tokens += len(chunk.kept)
        self._at_limit |= chunk.finish == "length"
        self._vocoder_seconds += ended - begun
        first, last = self._vocoding or vocoding
        self._vocoding = min(first, begun), max(last, ended)
        self._decoded = self._decoded or chunk.times.decoded
        if chunk.guarded is not None:
            self._guarded.append(chunk.guarded)

    def audible(self) -> None:
        """Audio can be sent now."""
        self._first_audio = self._first_audio or time.monotonic()

    def stats(self, chunk: Chunk, samples: int) -> dict[str, Any]:
        """Of the whole answer. chunk: any of it; samples: of its audio."""
        job, times, now = chunk.job, chunk.times, time.monotonic()
        decoded = self._decoded or now
        first_audio = self._first_audio or now
        audio, total = samples / SAMPLE_RATE, now - job.arrived
        return {
            "seed": job.request.seed,
            "tokens": self._tokens,
            "segments": len(job.segments),
            **({"notes": list(job.notes)} if job.notes else {}),
            "priority": job.request.priority,
            "finish_reason": "length" if self._at_limit else "stop",
            **self._guard_stats(),
            "voice": job.request.voice if job.request.reference_audio is None else "reference_audio",
            "characters": len(job.request.text),
            "voice_from": chunk.found.source,
            "voice_ms": _ms(times.voiced - job.arrived),
            "queue_ms": _ms(times.started - times.voiced),
            "t3_ms": _ms(decoded - times.started),
            "s3gen_ms": _ms(self._vocoder_seconds),
            "ttfa_ms": _ms(first_audio - job.arrived),
            "total_ms": _ms(total),
            "timeline_ms": self._timeline(chunk, now),
            "audio_seconds": round(audio, 3),
            "rtf": round(total / audio, 4) if audio else None,
            # as the well-known Chatterbox servers name it
            "real_time_factor": round(total / audio, 4) if audio else None,
            "inference_speedup": round(audio / total, 2) if total else None,
        }

    def _timeline(self, chunk: Chunk, now: float) -> dict[str, tuple[float, float]]:
        """Begin and end of each part of the work, from the request's arrival."""
        assert self._vocoding is not None, "a chunk was added"
        times, (begun, vocoded) = chunk.times, self._vocoding
        arrived, decoded = chunk.job.arrived, self._decoded or now
        parts = {
            "voice": (arrived, times.voiced),
            "queue": (times.voiced, times.started),
            "prefill": (times.started, times.prefilled),
            "decode": (times.prefilled, decoded),
            "vocode": (begun, vocoded),
            "finish": (vocoded, now),
        }
        return {name: (_ms(start - arrived), _ms(end - arrived)) for name, (start, end) in parts.items()}

    def _guard_stats(self) -> dict[str, Any]:
        """What the guard did, where there is one."""
        if not self._guarded:
            return {}
        scores = [guarded.score for guarded in self._guarded if guarded.score is not None]
        trimmed = sum(guarded.trimmed for guarded in self._guarded)
        return {
            "alignment_score": round(min(scores), 3) if scores else None,
            "retries": sum(guarded.retries for guarded in self._guarded),
            "trimmed_seconds": round(trimmed / TOKENS_PER_SECOND, 2),
            "guard_events": [guarded.event for guarded in self._guarded if guarded.event is not None],
        }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
