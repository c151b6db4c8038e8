"""The engine: requests in, audio out.

Threads, with queues between them and no polling:

    caller    submit: tokenise, check, queue
    voices    two threads: a voice that is not in memory is fetched or computed before its request goes on
    engine    T3 for all running utterances, one step after the other
    vocoder   S3Gen for utterances whose tokens are complete, and for chunks of streams
    finisher  watermark, join (a small pool, CPU work)
    sender    calls every request's answer, so that a slow receiver stalls nobody

A failure in any of them answers every request with EngineFailed and is reported through `on_failure`.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from chatterbox_engine.checkpoint.families import Family
from chatterbox_engine.errors import Cancelled, InvalidRequest, RequestError
from chatterbox_engine.kernels.device import own_stream
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.metrics import Metrics, NoMetrics, Status, resident_bytes
from chatterbox_engine.s3gen import S3Gen
from chatterbox_engine.synthesis.jobs import Answer, ChunkAnswer, Job, Stream, Utterance
from chatterbox_engine.synthesis.register import Register
from chatterbox_engine.synthesis.scheduler import Plan, Scheduler
from chatterbox_engine.synthesis.seeds import T3_DRAWS, VOCODER_NOISE, derive
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from chatterbox_engine.synthesis.vocoder import Piece, Vocoder
from chatterbox_engine.synthesis.watermark import Watermarker
from chatterbox_engine.synthesis.windows import Phase
from chatterbox_engine.t3.runner import Drawn, Prompt, Runner
from chatterbox_engine.text.english import TextPreparation, split
from chatterbox_engine.types import (
    SAMPLES_PER_TOKEN,
    TOKENS_PER_SECOND,
    SynthesisRequest,
)
from chatterbox_engine.voices.cache import Memo, Voice
from chatterbox_engine.voices.service import Found, Voices

PREFIX_BYTES = 512 << 20
"""For the keys and values of voices before the text: a voice (and exaggeration) takes 37 MB of Turbo's in bfloat16, 14
of Nano's, 4 of English's, and twice as much in float32."""
FINISHERS = 2


@dataclass(frozen=True)
class Parts:
    """What an engine is made of; `assemble.build` makes one from a Config."""

    runner: Runner
    scheduler: Scheduler[Utterance]
    s3gen: S3Gen
    family: Family
    text: TextPreparation
    voices: Voices
    watermarker: Watermarker
    about: dict[str, Any]
    """Constant entries of every answer's statistics."""
    max_queue: int
    request_timeout: float
    segment_chars: int
    vocoder_graphs: Graphs
    """The vocoder thread's, for S3Gen."""
    vocoder_batch: int
    vocoder_memory: int
    """Bytes for one batch."""
    vocoder_delay: float
    vocoder_threads: tuple[int, int] | None = None
    """S3Gen's on a CPU, beside other work and alone; None leaves them as they are."""
    t3_threads: tuple[int, int] | None = None
    """The same for T3."""


@dataclass(frozen=True)
class Launched:
    """One step's work on the device, its tokens not yet read."""

    batches: list[tuple[Sequence[Utterance], Drawn]] = field(default_factory=list)


class Engine:
    """Continuous batching over `Parts`. Start with `start`, which returns once everything is warm."""

    def __init__(
        self,
        parts: Parts,
        *,
        on_failure: Callable[[BaseException], None] = lambda _error: None,
        report: Callable[[str], None] = lambda _line: None,
        metrics: Metrics | None = None,
    ) -> None:
        self._parts = parts
        self._metrics = metrics or NoMetrics()
        self._runner = parts.runner
        self._scheduler = parts.scheduler
        self._on_failure = on_failure
        self._report = report
        self._stop_token = parts.runner.model.dims.stop_speech
        self._prefixes: Memo[torch.Tensor] = Memo(PREFIX_BYTES, lambda prefix: prefix.nbytes)
        self._numbers = itertools.count(1)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._register = Register(
            limit=parts.max_queue,
            allowance=parts.request_timeout,
            metrics=self._metrics,
            ended=lambda job: self._inbox.put(partial(self._drop, job)),
        )
        self._pending = Launched()
        self._running = True
        self._ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._vocoder = Vocoder(
            parts.s3gen,
            graphs=parts.vocoder_graphs,
            batch=parts.vocoder_batch,
            delay=parts.vocoder_delay,
            memory=parts.vocoder_memory,
            prepare=self._share_cores,
            rest=self._release_cores,
            done=self._on_vocoded,
            failed=lambda piece, error: self._register.settle(piece.utterance.job, error),
            metrics=self._metrics,
        )
        self._finishers = ThreadPoolExecutor(FINISHERS, "finisher", initializer=self._prepare_finisher)
        self._threads = [
            threading.Thread(target=self._guard, args=(body,), name=name, daemon=True)
            for name, body in (("engine", self._loop), ("vocoder", self._vocode), ("sender", self._register.answer))
        ]

    # Any thread

    def start(self) -> None:
        """Starts the threads and waits until the engine is warm. Raises what warming up raised."""
        self._parts.voices.start(self._report)
        engine, vocoder, sender = self._threads
        for thread in (engine, vocoder):  # in turn: no graph can be captured while another thread uses the GPU
            thread.start()
            error = self._ready.get()
            if error is not None:
                raise error
        sender.start()
        self._parts.voices.work_ahead()

    def submit(self, request: SynthesisRequest, answer: Answer) -> int:
        """Queues a request; `answer` is called exactly once, from the sender thread. Returns a number for `cancel`.

        Raises InvalidRequest for text that cannot fit, Overloaded when the queue is full, Unavailable when the engine
        is draining or closed. A request that raises is never answered. A voice that is unknown or cannot be used is the
        request's answer.
        """
        return self._accept(self._new_job(request, answer))

    def stream(self, request: SynthesisRequest, policy: ChunkPolicy, answer: ChunkAnswer) -> int:
        """`submit` for audio in chunks: `answer` is called for each, in order, until the last one or an error."""
        job = self._new_job(request, answer)
        job.stream = Stream(policy, job.utterances)
        return self._accept(job)

    def _new_job(self, request: SynthesisRequest, answer: Callable[[Any], None]) -> Job:
        job = Job(next(self._numbers), request, answer)
        job.utterances = self._utterances(job)
        return job

    def _accept(self, job: Job) -> int:
        self._register.take(job)
        self._inbox.put(_look_up)  # so that its deadline counts from now on
        self._parts.voices.resolve(job.request, partial(self._voiced, job))
        return job.number

    def cancel(self, number: int) -> None:
        """Gives a request up: it is answered with Cancelled unless it has its answer already."""
        job = self._register.find(number)
        if job is not None:
            self._register.settle(job, Cancelled("the request was cancelled"))

    @property
    def family(self) -> Family:
        """What the model can do."""
        return self._parts.family

    @property
    def about(self) -> dict[str, Any]:
        """What is served and how, as every answer's statistics tell it."""
        gpu = self._gpu_bytes() / 1e6
        active = self._parts.about.get("optimizations", [])
        return {**self._parts.about, "optimizations_active": active, "gpu_memory_used_mb": round(gpu, 1)}

    def status(self) -> Status:
        """What the engine is doing, read while its thread goes on: the figures may be a step apart."""
        scheduler = self._scheduler
        return Status(
            slots_active=scheduler.running,
            slots_free=scheduler.free_slots,
            utterances_waiting=scheduler.waiting,
            requests_active=len(self._register),
            kv_positions_used=scheduler.positions - scheduler.free_positions,
            kv_positions=scheduler.positions,
            voices_cached=self._parts.voices.cached,
            host_bytes=resident_bytes(),
            gpu_bytes=self._gpu_bytes(),
        )

    def _gpu_bytes(self) -> int:
        device = self._runner.model.device
        return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0

    def drain(self, seconds: float, drained: Callable[[], None]) -> None:
        """Takes no more requests. Those under way have `seconds` to finish; then they are answered with Unavailable.
        `drained` is called, from the sender thread, after the last answer."""
        self._register.drain(seconds, drained)
        self._inbox.put(_look_up)  # so that it counts from now on

    def close(self) -> None:
        """Takes no more requests, answers those under way with Unavailable and ends the threads."""
        self._register.close()
        self._inbox.put(self._stop)
        self._threads[0].join()
        self._vocoder.close()
        self._threads[1].join()
        self._parts.voices.close()
        self._finishers.shutdown()
        self._register.end()
        self._threads[2].join()

    # Voices' threads, or the caller's

    def _voiced(self, job: Job, outcome: Found | RequestError) -> None:
        if isinstance(outcome, RequestError):
            self._register.settle(job, outcome)
            return
        job.voice, job.voice_from, job.voiced = outcome.voice, outcome.source, time.monotonic()
        self._inbox.put(partial(self._enqueue, job))

    # Engine thread

    def step(self) -> None:
        """One step: schedule, launch, publish. What is published is the step before, so the device never waits."""
        began = time.monotonic()
        if self._parts.t3_threads is not None:
            torch.set_num_threads(self._parts.t3_threads[self._vocoder.idle])
        plan = self._scheduler.schedule()
        launched = self._launch(plan)
        self._publish(self._pending)
        self._pending = launched
        if plan.decode:
            self._metrics.stepped(time.monotonic() - began, len(plan.decode))

    def _loop(self) -> None:
        device = self._runner.model.device
        try:
            # before the vocoder's: its large kernels would delay the small ones of a step
            own_stream(device, priority=-1)
            self._runner.warm_up(self._report)
            if (voice := self._parts.voices.built_in) is not None:
                self._prefix(voice, self._parts.family.sampling.exaggeration)  # so that no first request waits for it
        except BaseException as error:  # handed to `start`, which raises it
            self._ready.put(error)
            return
        self._ready.put(None)
        while self._running:
            self._take_orders()
            self.step()

    def _take_orders(self) -> None:
        """Carries out what other threads asked for; waits for an order only when there is nothing else to do."""
        idle = self._scheduler.idle and not self._pending.batches
        try:
            if idle:
                self._release_cores()
                self._inbox.get(timeout=self._register.until_deadline())()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            self._register.expire()

    def _enqueue(self, job: Job) -> None:
        if job in self._register:  # not given up meanwhile
            for utterance in job.utterances:
                self._scheduler.add(utterance)

    def _stop(self) -> None:
        self._running = False

    def _launch(self, plan: Plan[Utterance]) -> Launched:
        batches: list[tuple[Sequence[Utterance], Drawn]] = []
        if plan.decode:
            batches.append((plan.decode, self._runner.decode([_prompt(utterance) for utterance in plan.decode])))
        if plan.prefill:
            prompts = [self._start(utterance) for utterance in plan.prefill]
            jobs = [utterance.job for utterance in plan.prefill]
            prefixes = [self._prefix(job.voice, job.request.sampling.exaggeration) for job in jobs]
            batches.append((plan.prefill, self._runner.prefill(prompts, prefixes)))
        return Launched(batches)

    def _start(self, utterance: Utterance) -> Prompt:
        job, place = utterance.job, utterance.place
        assert place is not None, "the scheduler gives a place"
        job.started = job.started or time.monotonic()
        generator = torch.Generator().manual_seed(derive(job.request.seed, utterance.index, T3_DRAWS))
        uniforms = torch.rand(utterance.max_tokens + 1, generator=generator)
        utterance.prompt = Prompt(place.slot, place.rows, utterance.text, job.request.sampling, uniforms)
        return utterance.prompt

    def _prefix(self, voice: Voice, exaggeration: float) -> torch.Tensor:
        """Keys and values of a voice. No prompt keeps them, so that the cache's bound holds."""
        return self._prefixes.get(
            (voice.key, exaggeration), lambda: self._runner.model.prefix(voice.conditionals.t3, exaggeration)
        )

    def _publish(self, launched: Launched) -> None:
        """Reads a step's tokens and moves utterances that ended on to the vocoder."""
        for utterances, drawn in launched.batches:
            for utterance, token in zip(utterances, drawn.read(), strict=True):
                # it ended or was given up in the step before, and this token is the one too many
                if utterance.place is None:
                    continue
                if utterance.take(token, self._stop_token):
                    self._scheduler.release(utterance)
                    self._decoded(utterance)
                if utterance.job.stream is not None:
                    self._advance(utterance.job, utterance.job.stream)

    def _decoded(self, utterance: Utterance) -> None:
        job = utterance.job
        if all(other.finish is not None for other in job.utterances):
            job.decoded = time.monotonic()
        if job.stream is None:
            self._vocoder.put(Piece(utterance, utterance.whole))

    def _advance(self, job: Job, stream: Stream) -> None:
        """Hands the vocoder a stream's next chunk when it is due and the one before is finished."""
        if not stream.busy and not job.ended and (due := stream.take()) is not None:
            stream.busy = True
            self._vocoder.put(Piece(*due))

    def _chunk_finished(self, job: Job, stream: Stream) -> None:
        stream.busy = False
        self._advance(job, stream)

    # Vocoder thread, then finishers

    def _vocode(self) -> None:
        try:
            self._vocoder.warm_up(self._report)
            self._release_cores()
        except BaseException as error:  # handed to `start`, which raises it
            self._ready.put(error)
            return
        self._ready.put(None)
        self._vocoder.run()

    def _share_cores(self) -> None:
        """Before a batch of the vocoder: on a CPU it takes T3's core too when nobody's tokens are awaited."""
        threads = self._parts.vocoder_threads
        if threads is not None:
            alone = self._scheduler.idle and not self._register.speaking()
            torch.set_num_threads(threads[alone])  # of the calling thread, and of those begun later

    def _release_cores(self) -> None:
        """When a network has nothing to do: on a CPU its threads would slow down the other's."""
        if self._parts.vocoder_threads is not None:
            from chatterbox_engine.kernels.cpu import release_threads

            release_threads()

    def _prepare_finisher(self) -> None:
        own_stream(self._runner.model.device)
        if self._parts.vocoder_threads is not None:
            torch.set_num_threads(self._parts.vocoder_threads[0])

    def _on_vocoded(self, piece: Piece) -> None:
        piece.utterance.job.vocoded += piece.span.last
        if not piece.utterance.job.ended:
            self._finishers.submit(self._guard, partial(self._finish, piece))

    def _finish(self, piece: Piece) -> None:
        """Marks a piece, alone, so that a stream and a whole answer are marked alike; then sends what is complete."""
        job, wave = piece.utterance.job, self._parts.watermarker.apply(piece.wave)
        if job.stream is not None:
            chunk = job.chunk(piece.utterance, piece.span, wave, self.about)
            self._register.send_chunk(job, chunk)
            self._inbox.put(partial(self._chunk_finished, job, job.stream))
        else:
            piece.utterance.samples = wave[: SAMPLES_PER_TOKEN * piece.span.end]
            if job.done:
                self._register.settle(job, job.result(self.about))

    # Shared

    def _drop(self, job: Job) -> None:
        for utterance in job.utterances:
            self._scheduler.release(utterance)

    def _guard(self, body: Callable[[], None]) -> None:
        """Runs a thread's body; a failure ends the engine, with an answer for everyone."""
        try:
            body()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._register.fail(error, partial(self._on_failure, error))
        if threading.current_thread() is self._threads[2]:
            self._guard(self._register.answer)  # the sender failed in one receiver; the others still get their answers

    def _utterances(self, job: Job) -> list[Utterance]:
        """The segments of a request that have something to speak, tokenised and measured."""
        dims = self._runner.model.dims
        request = job.request
        # rounded down: max_seconds is a bound; the small addend keeps 0.28 s, whose product is 6.999..., at 7 tokens
        max_tokens = max(1, int(request.max_seconds * TOKENS_PER_SECOND + 1e-4))
        utterances: list[Utterance] = []
        for segment in split(request.text, self._parts.segment_chars):
            ids = self._parts.text.encode(segment.text, request.language)
            if not self._parts.text.speaks(ids):
                continue
            index = len(utterances)
            if len(ids) > dims.max_text_tokens:
                raise InvalidRequest(f"a sentence has {len(ids)} text tokens; the model takes {dims.max_text_tokens}")
            text = torch.tensor(dims.frame(ids), dtype=torch.int64)
            utterance = Utterance(
                job=job,
                index=index,
                text=text,
                prompt_length=dims.prefix + len(text) + dims.bos,
                max_tokens=min(max_tokens, dims.max_speech_tokens),
                pause=segment.pause,
                vocoder_seed=derive(request.seed, index, VOCODER_NOISE),
                phase=Phase(),
                family=self._parts.family,
            )
            utterances.append(utterance)
        if not utterances:
            title = self._parts.family.title
            raise InvalidRequest(f"text has nothing to speak: {title} knows none of its letters and digits")
        return utterances


def _prompt(utterance: Utterance) -> Prompt:
    assert utterance.prompt is not None, "a running utterance has been started"
    return utterance.prompt


def _look_up() -> None:
    """An order to do nothing: the engine looks at its deadlines after every order."""
