"""An engine of fakes: no networks, tokens that tell whose they are, and gates to hold a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from chatterbox_engine.dims import T3Dims
from chatterbox_engine.engine import Engine, Parts
from chatterbox_engine.errors import NotFound, RequestError
from chatterbox_engine.scheduler import Scheduler
from chatterbox_engine.types import SAMPLES_PER_TOKEN, Samples, SynthesisRequest, SynthesisResult
from chatterbox_engine.watermark import NoWatermark

STOP = T3Dims().stop_speech
WAIT = 20.0  # seconds until a test that would hang fails instead


class FakeRunner:
    """Utterances stop after as many tokens as their text has characters; token i of an utterance is i."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(
            dims=T3Dims(), device=torch.device("cpu"), conditioning=lambda voice, exaggeration: torch.zeros(34, 1)
        )
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.error: Exception | None = None
        self.drawn: dict[int, int] = {}

    def warm_up(self, report: Callable[[str], None]) -> None:
        report("warm")

    def prefill(self, prompts: Sequence[Any]) -> Any:
        for prompt in prompts:
            self.drawn[id(prompt)] = 0
        return self._draw(prompts)

    def decode(self, prompts: Sequence[Any]) -> Any:
        self.batches.append(len(prompts))
        return self._draw(prompts)

    def _draw(self, prompts: Sequence[Any]) -> Any:
        assert self.gate.wait(WAIT)
        if self.error is not None:
            raise self.error
        tokens = []
        for prompt in prompts:
            step = self.drawn[id(prompt)]
            self.drawn[id(prompt)] = step + 1
            tokens.append(step if step < len(prompt.text) - 2 else STOP)
        return SimpleNamespace(read=lambda: tokens)


class FakeS3Gen:
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def prepare(self, conditionals: Any) -> str:
        return "prepared"

    def synthesise(self, jobs: Sequence[Any]) -> list[torch.Tensor]:
        assert self.gate.wait(WAIT)
        if self.error is not None:
            raise self.error
        return [job.tokens.float().repeat_interleave(SAMPLES_PER_TOKEN) / 10_000 for job in jobs]


class FakeWatermarker(NoWatermark):
    error: Exception | None = None

    def apply(self, samples: Samples) -> Samples:
        if self.error is not None:
            raise self.error
        return samples


class Voices:
    def get(self, name: str) -> Any:
        if name != "default":
            raise NotFound(f"there is no voice {name!r}")
        return SimpleNamespace(key=name, conditionals=SimpleNamespace(t3=None, s3gen=None))


class Answers:
    """Collects answers; `take` waits for the next."""

    def __init__(self) -> None:
        self._answers: queue.SimpleQueue[SynthesisResult | RequestError] = queue.SimpleQueue()
        self.put = self._answers.put

    def take(self) -> SynthesisResult | RequestError:
        return self._answers.get(timeout=WAIT)

    def take_all(self, count: int) -> list[SynthesisResult | RequestError]:
        return [self.take() for _ in range(count)]

    @property
    def empty(self) -> bool:
        return self._answers.empty()


class FakeEngine:
    """An Engine over fakes, with the fakes at hand."""

    def __init__(self, *, max_slots: int = 4, max_queue: int = 100, request_timeout: float = 600.0) -> None:
        self.runner, self.s3gen, self.watermarker = FakeRunner(), FakeS3Gen(), FakeWatermarker()
        self.scheduler: Scheduler[Any] = Scheduler(max_slots=max_slots, positions=1 << 20, max_prefills=4)
        self.failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        parts = Parts(
            runner=self.runner,  # type: ignore[arg-type]
            scheduler=self.scheduler,
            s3gen=self.s3gen,  # type: ignore[arg-type]
            tokenizer=SimpleNamespace(encode=lambda text: list(range(len(text)))),  # type: ignore[arg-type]
            voices=Voices(),  # type: ignore[arg-type]
            watermarker=self.watermarker,
            about={"model": "fake"},
            max_queue=max_queue,
            request_timeout=request_timeout,
            segment_chars=300,
            vocoder_batch=8,
            vocoder_delay=0.0,
        )
        self.engine = Engine(parts, on_failure=self.failures.put)
        self.answers = Answers()

    def __enter__(self) -> FakeEngine:
        self.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.gate.set()
        self.s3gen.gate.set()
        self.engine.close()

    def submit(self, text: str = "Hello there.", **changes: Any) -> int:
        request = SynthesisRequest(**{"text": text, "seed": 1, **changes})
        return self.engine.submit(request, self.answers.put)
