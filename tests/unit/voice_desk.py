"""Voices with a fake encoder, and helpers to ask for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from chatterbox_engine.metrics import NoMetrics, VoiceSource
from chatterbox_engine.types import (
    Conditionals,
    Encoder,
    ReferenceClip,
    S3GenConditionals,
    Samples,
    SynthesisRequest,
    T3Conditionals,
)
from chatterbox_engine.voices.clips import ClipLimits, read_clip
from chatterbox_engine.voices.library import Found
from chatterbox_engine.voices.service import Voices
from chatterbox_engine.voices.store import VoiceStore
from tests.clips import encoded, tone

WAIT = 20.0
BATCH = 4
ANNA, BERTA = (encoded(tone(1.0, pitch=pitch)) for pitch in (120, 220))
SIZE = 4 * (4 + 80 * 10 + 192) + 8 * (3 + 5)


def conditionals(mark: float) -> Conditionals:
    """A voice whose speaker embedding identifies its clip."""
    return Conditionals(
        T3Conditionals(torch.full((4,), mark), torch.arange(3)),
        S3GenConditionals(torch.arange(5), torch.ones(10, 80), torch.zeros(192)),
    )


def mark(audio: Samples) -> float:
    return float(abs(audio).sum())


def mark_of(clip: bytes) -> float:
    return mark(read_clip(clip, ClipLimits())[0])


class FakeEncoder:
    """Marks a voice with the sum of its clip's samples."""

    def __init__(self) -> None:
        self.made = 0
        self.began = threading.Event()
        self.warm = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.broken: Callable[[float], bool] = lambda _mark: False
        """Marks of the clips that make it fail."""
        self.batches: list[list[float]] = []
        self.seconds = 0.0
        """The time on its clock, of which every clip takes one second."""

    def __call__(self) -> FakeEncoder:
        self.made += 1
        return self

    def prepare(self, audio: Samples, sample_rate: int) -> ReferenceClip:
        return ReferenceClip(wide=audio, narrow=audio)

    def warm_up(self) -> None:
        self.warm.set()

    def encode(self, clips: Sequence[ReferenceClip]) -> list[Conditionals]:
        self.began.set()
        assert self.gate.wait(WAIT)
        marks = [mark(clip.wide) for clip in clips]
        if any(map(self.broken, marks)):
            raise ValueError("broken part")
        self.batches.append(marks)
        self.seconds += len(clips)
        return [conditionals(number) for number in marks]


class Told(NoMetrics):
    """Records the events of voices."""

    def __init__(self) -> None:
        self.sources: list[VoiceSource] = []
        self.news: queue.SimpleQueue[VoiceSource] = queue.SimpleQueue()

    def voiced(self, source: VoiceSource) -> None:
        self.sources.append(source)
        self.news.put(source)


class Desk:
    """Voices with a fake encoder; `ask` waits for an answer."""

    def __init__(
        self,
        store: str,
        *,
        cache_bytes: int = 1 << 20,
        built_in: bool = True,
        ahead: bool = False,
        make_encoder: Callable[[], Encoder] | None = None,
    ) -> None:
        self.encoder = FakeEncoder()
        self.lines: list[str] = []
        self.reported: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.told = Told()
        self.store = VoiceStore(store)
        self.voices = Voices(
            built_in=conditionals(0.0) if built_in else None,
            identity="checkpoint",
            store=self.store,
            make_encoder=make_encoder or self.encoder,
            limits=ClipLimits(),
            cache_bytes=cache_bytes,
            encoder_batch=BATCH,
            ahead=ahead,
            watch_seconds=0.001,
            metrics=self.told,
            clock=lambda: self.encoder.seconds,
        )

    def start(self) -> Desk:
        self.voices.start(self._report)
        self.voices.work_ahead()
        return self

    def _report(self, line: str) -> None:
        self.lines.append(line)
        self.reported.put(line)

    def ask_later(self, voice: str = "default", clip: bytes | None = None) -> queue.SimpleQueue[Any]:
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        found = self.voices.resolve(SynthesisRequest("Hello.", 1, voice=voice, reference_audio=clip))
        found.add_done_callback(lambda future: answers.put(future.exception() or future.result()))
        return answers

    def ask(self, voice: str = "default", clip: bytes | None = None) -> Any:
        return self.ask_later(voice, clip).get(timeout=WAIT)

    def source(self, voice: str = "default", clip: bytes | None = None) -> str:
        answer = self.ask(voice, clip)
        assert isinstance(answer, Found), answer
        return answer.source

    def finish_lookups(self) -> None:
        """Waits until each request so far is answered, or its clip is queued."""
        self.voices._lookups.submit(lambda: None).result(WAIT)

    def finish_encodings(self) -> None:
        """Waits until what is queued so far is encoded and written back."""
        self.voices._encoding.encode_stored([]).result(WAIT)

    @property
    def counts(self) -> tuple[int, int]:
        return self.voices.counts["encoded"], self.voices.counts["store"]
