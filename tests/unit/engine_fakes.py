"""An engine of fakes: no networks, tokens that tell whose they are, and gates to hold a thread."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import torch

from chatterbox_engine.checkpoint.dims import LlamaDims, S3GenDims
from chatterbox_engine.checkpoint.families import ENGLISH, Family
from chatterbox_engine.errors import NotFound, RequestError
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.metrics import Metrics, Served
from chatterbox_engine.s3gen.model import PROMPT_TOKENS
from chatterbox_engine.synthesis.cores import Cores
from chatterbox_engine.synthesis.engine import Engine
from chatterbox_engine.synthesis.finisher import Finisher
from chatterbox_engine.synthesis.jobs import Chunk, Job, Times, TokenSegment
from chatterbox_engine.synthesis.parts import Parts
from chatterbox_engine.synthesis.prefixes import Prefixes
from chatterbox_engine.synthesis.scheduler import Scheduler
from chatterbox_engine.synthesis.segments import Segmenter
from chatterbox_engine.synthesis.streaming import ChunkPolicy, Span
from chatterbox_engine.synthesis.utterances import Utterance
from chatterbox_engine.synthesis.vocoder import Vocoder
from chatterbox_engine.synthesis.watermark import NoWatermark
from chatterbox_engine.text.english import Tokens, normalise
from chatterbox_engine.text.passages import Text
from chatterbox_engine.types import (
    SAMPLES_PER_TOKEN,
    FinishReason,
    Reading,
    Samples,
    SynthesisChunk,
    SynthesisRequest,
    SynthesisResult,
)
from chatterbox_engine.voices.cache import Voice
from chatterbox_engine.voices.library import Found

CPU = torch.device("cpu")
STOP = LlamaDims().stop_speech
WAIT = 20.0  # seconds until a test that would hang fails instead


class FakeRunner:
    """Utterances stop after as many tokens as their text has characters; token i of an utterance is i."""

    def __init__(self) -> None:
        self.prefix_bytes = 1
        """Of a voice."""
        self.computed: list[tuple[str, float]] = []
        """Prefixes, by voice and exaggeration."""
        self.given: list[tuple[str, float]] = []
        """The prefixes that prompts were run after."""
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.hold_from = 0
        """The decode step from which on the gate holds."""
        self.batches: list[int] = []
        self.threads: list[int] = []
        self.error: Exception | None = None
        self.drawn: dict[int, int] = {}
        self.attempts: dict[int, int] = {}
        """How often a text of so many tokens has been begun."""
        self.token: Callable[[int, int, int], int] = lambda _attempt, step, text: step if step < text - 2 else STOP
        """What is drawn in an attempt, from 1, and a step for a text of so many tokens."""
        self.place: Callable[[int, int, int], float] = lambda _attempt, step, _text: step + 1
        """Where in the text T3 looks then."""
        self.peak: Callable[[int], float] = lambda _attempt: 0.9
        """How much attention is there."""

    def warm_up(self, report: Callable[[str], None]) -> None:
        report("warm")

    def prefix(self, voice: Any, exaggeration: float) -> Any:
        self.computed.append((voice, exaggeration))
        return SimpleNamespace(of=(voice, exaggeration), nbytes=self.prefix_bytes)

    def prefill(self, prompts: Sequence[Any], prefixes: Sequence[Any]) -> Any:
        self.given += [prefix.of for prefix in prefixes]
        for prompt in prompts:
            self.drawn[id(prompt)] = 0
            self.attempts[len(prompt.text)] = self.attempts.get(len(prompt.text), 0) + 1
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
        tokens, readings = [], []
        for prompt in prompts:
            step = self.drawn[id(prompt)]
            self.drawn[id(prompt)] = step + 1
            case = self.attempts[len(prompt.text)], step, len(prompt.text)
            readings.append(reading(self.place(*case), len(prompt.text), self.peak(case[0])))
            tokens.append(self.token(*case))
        wanted = any(prompt.aligned for prompt in prompts)
        return SimpleNamespace(read=lambda: [[token] for token in tokens], readings=lambda: readings if wanted else [])


def reading(place: float, text: int, peak: float = 0.9) -> Reading:
    """What is read of a step that looks at one place of a text of so many tokens."""
    ends = [peak if place == text - back else 0.0 for back in (3, 2, 1)]
    return Reading(place, place, 1.0, peak, place, peak if place < text - 5 else 0.0, *ends)


class FakeS3Gen:
    """A token's samples are all the token over 10,000."""

    device = CPU
    dims = S3GenDims()
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
        self.captured: list[tuple[int, int, int]] = []
        self._failed: Callable[[], object] = lambda: None
        """What a batch used for which there was no memory."""

    def prepare(self, conditionals: Any) -> Any:
        return SimpleNamespace(frames=0)

    def capture(self, graphs: Graphs, sizes: Sequence[tuple[int, int, int]], report: Callable[[str], None]) -> None:
        self.captured += sizes

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
    """Marks nothing; holds the waveforms of `held` until the gate opens."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.held: Callable[[Samples], bool] = lambda _samples: False
        self.applied = 0

    def apply(self, samples: Samples) -> Samples:
        if self.held(samples):
            self.entered.set()
            assert self.gate.wait(WAIT)
        if self.error is not None:
            raise self.error
        self.applied += 1
        return samples


class FakeVoices:
    """Knows `default` and `other`; a voice called `later` is found when `release` is called."""

    cached = 1
    built_in: Voice | None = None

    def __init__(self) -> None:
        self.waiting: queue.SimpleQueue[Future[Found]] = queue.SimpleQueue()
        self.ahead_done = threading.Event()
        self.ahead_done.set()

    def start(self, report: Callable[[str], None]) -> None:
        report("voices")

    def work_ahead(self) -> None:
        pass

    def stop_ahead(self) -> None:
        assert self.ahead_done.wait(WAIT)

    def close(self) -> None:
        pass

    def resolve(self, request: SynthesisRequest) -> Future[Found]:
        future: Future[Found] = Future()
        if request.voice == "later":
            self.waiting.put(future)
        elif request.voice in ("default", "other"):
            future.set_result(Found(voice(request.voice), "memory"))
        else:
            future.set_exception(NotFound(f"there is no voice {request.voice!r}"))
        return future

    def release(self) -> None:
        self.waiting.get(timeout=WAIT).set_result(Found(voice("later"), "memory"))


def voice(name: str) -> Voice:
    """A voice that tells its name in place of what T3 reads."""
    conditionals: Any = SimpleNamespace(t3=name, s3gen=None)
    return Voice(name, conditionals)


def job(number: int = 1, *, stream: bool = False, segments: int = 1, batch: bool = False) -> Job:
    """A request for a whole answer or a stream."""
    request = SynthesisRequest("Hello.", seed=1, priority="batch" if batch else "live")
    text = [TokenSegment((), prompt_length=1, max_tokens=100, pause=0.0)] * segments
    return Job(number, request, lambda _answer: None, text, ChunkPolicy() if stream else None)


def chunk(of: Job, number: int = 0, *, segment: int = 0, span: Span | None = None) -> Chunk:
    """A chunk of tokens that count from 1; by default a whole utterance of four."""
    span, times = span or Span.whole(4), Times(voiced=0.0, started=0.0, prefilled=0.0, decoded=0.0)
    tokens = tuple(range(span.start + 1, span.stop + 1))
    finish: FinishReason | None = "stop" if span.last else None
    return Chunk(of, Found(voice("default"), "memory"), segment, number, span, tokens, finish, times)


class FakeText:
    """A token for each character: 1 for letters and digits, 0 for the rest."""

    silent = False
    """Gives no tokens, and speaks them."""

    sounds: Sequence[str] = ()

    def encode(self, text: Text, language: str) -> Tokens:
        text = normalise(text)
        ids = [] if self.silent else [int(char.isalnum()) for char in text.string]
        return Tokens(ids, [text.source(at, at + 1) for at in range(len(ids))])

    def speaks(self, ids: Sequence[int]) -> bool:
        return self.silent or any(ids)


class FakeVocoder(Vocoder):
    """The real one, which tells what it was given."""

    def __init__(self, s3gen: FakeS3Gen, **options: Any) -> None:
        super().__init__(s3gen, **options)
        self.queued: queue.SimpleQueue[Chunk] = queue.SimpleQueue()

    def put(self, chunk: Chunk) -> None:
        super().put(chunk)
        self.queued.put(chunk)

    def wait_for(self, count: int) -> list[Chunk]:
        """The next chunks that were queued."""
        return [self.queued.get(timeout=WAIT) for _ in range(count)]


Outcome = SynthesisResult | SynthesisChunk | RequestError


class Answers:
    """Collects whole answers, or what a stream is answered with; `take` waits for the next."""

    def __init__(self) -> None:
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.put = self._answers.put

    def take(self) -> Outcome:
        return self._answers.get(timeout=WAIT)

    def take_all(self, count: int) -> list[Outcome]:
        return [self.take() for _ in range(count)]

    def take_stream(self) -> list[Outcome]:
        """Everything up to the end of a stream."""
        taken = [self.take()]
        while isinstance(taken[-1], SynthesisChunk) and not taken[-1].last:
            taken.append(self.take())
        return taken

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
        max_batch_queue: int = 100,
        request_timeout: float = 600.0,
        metrics: Metrics | None = None,
        vocoder_threads: tuple[int, int] | None = None,
        t3_threads: tuple[int, int] | None = None,
        vocoder_batch: int = 8,
        aligned: bool = True,
        family: Family = ENGLISH,
    ) -> None:
        self.runner, self.s3gen, self.watermarker = FakeRunner(), FakeS3Gen(), FakeWatermarker()
        self.voices, self.text = FakeVoices(), FakeText()
        self.scheduler: Scheduler[Utterance] = Scheduler(max_slots=max_slots, positions=1 << 20, max_prefills=4)
        self.failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        cores = Cores(vocoder_threads, t3_threads)
        served = Served({"model": "fake"}, lambda: 0)
        self.vocoder = FakeVocoder(
            self.s3gen,
            graphs=Graphs(CPU, enabled=False),
            batch=vocoder_batch,
            delay=0.0,
            memory=1 << 34,
            cores=cores,
            metrics=metrics,
        )
        parts = Parts(
            segmenter=Segmenter(self.text, LlamaDims(), 300, ENGLISH),
            voices=self.voices,
            scheduler=self.scheduler,
            runner=self.runner,
            prefixes=Prefixes(self.runner.prefix),
            vocoder=self.vocoder,
            finisher=Finisher(self.watermarker, served, device=CPU, cores=cores),
            cores=cores,
            served=served,
            family=family,
            stop_token=STOP,
            aligned=aligned,
            usual_peak=0.9,
            device=CPU,
            max_queue=max_queue,
            max_batch_queue=max_batch_queue,
            request_timeout=request_timeout,
        )
        self.engine = Engine(parts, on_failure=self.failures.put, metrics=metrics)
        self.answers = Answers()

    def __enter__(self) -> FakeEngine:
        self.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.gate.set()
        self.s3gen.gate.set()
        self.watermarker.gate.set()
        self.engine.close()

    def submit(self, text: str = "Hello there.", **changes: Any) -> int:
        request = SynthesisRequest(**{"text": text, "seed": 1, **changes})
        return self.engine.submit(request, self.answers.put)

    def stream(self, text: str, policy: ChunkPolicy | None = None, **changes: Any) -> tuple[int, Answers]:
        answers = Answers()
        request = SynthesisRequest(**{"text": text, "seed": 1, **changes})
        return self.engine.stream(request, policy or ChunkPolicy(), answers.put), answers
