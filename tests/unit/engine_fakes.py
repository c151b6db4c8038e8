"""An engine of fakes: no networks, tokens that tell whose they are, and gates to hold a thread."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from chatterbox_engine.checkpoint.dims import LlamaDims
from chatterbox_engine.checkpoint.families import ENGLISH
from chatterbox_engine.errors import NotFound, RequestError
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.metrics import Metrics
from chatterbox_engine.s3gen.model import PROMPT_TOKENS
from chatterbox_engine.synthesis.engine import Engine, Parts
from chatterbox_engine.synthesis.scheduler import Scheduler
from chatterbox_engine.synthesis.watermark import NoWatermark
from chatterbox_engine.text.english import normalise
from chatterbox_engine.types import SAMPLES_PER_TOKEN, Samples, SynthesisRequest, SynthesisResult
from chatterbox_engine.voices.service import Found

STOP = LlamaDims().stop_speech
WAIT = 20.0  # seconds until a test that would hang fails instead


class FakeRunner:
    """Utterances stop after as many tokens as their text has characters; token i of an utterance is i."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(dims=LlamaDims(), device=torch.device("cpu"), prefix=self.prefix)
        self.prefix_bytes = 1
        """Of a voice."""
        self.computed: list[tuple[str, float]] = []
        """Prefixes, by voice and exaggeration."""
        self.given: list[tuple[str, float]] = []
        """The prefixes that prompts were run behind."""
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.hold_from = 0
        """The decode step from which on the gate holds."""
        self.batches: list[int] = []
        self.threads: list[int] = []
        self.error: Exception | None = None
        self.drawn: dict[int, int] = {}

    def warm_up(self, report: Callable[[str], None]) -> None:
        report("warm")

    def prefix(self, voice: str, exaggeration: float) -> Any:
        self.computed.append((voice, exaggeration))
        return SimpleNamespace(of=(voice, exaggeration), nbytes=self.prefix_bytes)

    def prefill(self, prompts: Sequence[Any], prefixes: Sequence[Any]) -> Any:
        self.given += [prefix.of for prefix in prefixes]
        for prompt in prompts:
            self.drawn[id(prompt)] = 0
        return self._draw(prompts)

    def decode(self, prompts: Sequence[Any]) -> Any:
        self.batches.append(len(prompts))
        return self._draw(prompts)

    def _draw(self, prompts: Sequence[Any]) -> Any:
        self.threads.append(torch.get_num_threads())
        self.started.set()
        assert len(self.batches) < self.hold_from or self.gate.wait(WAIT)
        if self.error is not None:
            raise self.error
        tokens = []
        for prompt in prompts:
            step = self.drawn[id(prompt)]
            self.drawn[id(prompt)] = step + 1
            tokens.append(step if step < len(prompt.text) - 2 else STOP)
        return SimpleNamespace(read=lambda: tokens)


class FakeS3Gen:
    """A token's samples are all the token over 10,000."""

    device = torch.device("cpu")
    dims = SimpleNamespace(mel=1)
    fade = torch.ones(1)
    prompt_tokens = PROMPT_TOKENS

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.entered = threading.Event()
        self.room = 1_000_000
        """Tokens for which there is memory."""
        self.batches: list[int] = []
        self.threads: list[int] = []
        self._failed: Callable[[], object] = lambda: None
        """What a batch used for which there was no memory."""

    def prepare(self, conditionals: Any) -> Any:
        return SimpleNamespace(frames=0)

    def pitch(self, mel: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
        return torch.zeros(mel.shape[:2])

    def mel(self, jobs: Sequence[Any]) -> torch.Tensor:
        self.entered.set()
        assert self.gate.wait(WAIT)
        if self.error is not None:
            raise self.error
        assert self._failed() is None, "what failed still holds its memory"
        if sum(len(job.tokens) for job in jobs) > self.room:
            memory = torch.zeros(1)
            self._failed = weakref.ref(memory)
            raise torch.OutOfMemoryError("no room")
        self.batches.append(len(jobs))
        self.threads.append(torch.get_num_threads())
        rows = [job.tokens.float().repeat_interleave(2)[:, None] for job in jobs]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def vocode(self, mel: torch.Tensor, frames: Sequence[int], source: Any) -> torch.Tensor:
        return mel.squeeze(2).repeat_interleave(SAMPLES_PER_TOKEN // 2, dim=1) / 10_000


class FakeWatermarker(NoWatermark):
    error: Exception | None = None

    def apply(self, samples: Samples) -> Samples:
        if self.error is not None:
            raise self.error
        return samples


class FakeVoices:
    """Knows `default` and `other`; a voice called `later` is found when `release` is called."""

    cached = 1
    built_in: Any = None

    def __init__(self) -> None:
        self.waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def start(self, report: Callable[[str], None]) -> None:
        report("voices")

    def work_ahead(self) -> None:
        pass

    def close(self) -> None:
        pass

    def resolve(self, request: SynthesisRequest, done: Any) -> None:
        name = request.voice
        voice: Any = SimpleNamespace(key=name, conditionals=SimpleNamespace(t3=name, s3gen=None))
        if name == "later":
            self.waiting.put(lambda: done(Found(voice, "memory")))
        else:
            done(Found(voice, "memory") if name in ("default", "other") else NotFound(f"there is no voice {name!r}"))

    def release(self) -> None:
        self.waiting.get(timeout=WAIT)()


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

    def __init__(
        self,
        *,
        max_slots: int = 4,
        max_queue: int = 100,
        request_timeout: float = 600.0,
        metrics: Metrics | None = None,
        vocoder_threads: tuple[int, int] | None = None,
        t3_threads: tuple[int, int] | None = None,
        vocoder_batch: int = 8,
    ) -> None:
        self.runner, self.s3gen, self.watermarker = FakeRunner(), FakeS3Gen(), FakeWatermarker()
        self.voices = FakeVoices()
        self.scheduler: Scheduler[Any] = Scheduler(max_slots=max_slots, positions=1 << 20, max_prefills=4)
        self.failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        parts = Parts(
            runner=self.runner,  # type: ignore[arg-type]
            scheduler=self.scheduler,
            s3gen=self.s3gen,  # type: ignore[arg-type]
            family=ENGLISH,
            text=SimpleNamespace(
                encode=lambda text, language: [int(char.isalnum()) for char in normalise(text)], speaks=any
            ),
            voices=self.voices,  # type: ignore[arg-type]
            watermarker=self.watermarker,
            about={"model": "fake"},
            max_queue=max_queue,
            request_timeout=request_timeout,
            segment_chars=300,
            vocoder_graphs=Graphs(torch.device("cpu"), enabled=False),
            vocoder_batch=vocoder_batch,
            vocoder_memory=1 << 34,
            vocoder_delay=0.0,
            vocoder_threads=vocoder_threads,
            t3_threads=t3_threads,
        )
        self.engine = Engine(parts, on_failure=self.failures.put, metrics=metrics)
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
