"""The engine: requests in, audio out.

Every thread owns the state that it changes and passes on immutable objects (`jobs`). Queues connect the threads; none
polls.

    thread    owns                                         takes            hands on
    caller    nothing: checks and tokenises its request    a request        a Job to register and voices
    voices    lookup and encoding (`voices.service`)       a request        a Future of its voice to the engine
    engine    slots, KV cache, tokens, chunk boundaries    Jobs, voices     Chunks to the vocoder
    vocoder   its queue, the phase of each stream          Chunks           waveforms to the finisher
    finisher  samples and joins; a request has one thread  waveforms        answers to the register
    sender    the calls of receivers, so that a slow one   answers          them to the receivers
              delays nobody

The register holds the active requests: any thread may query it or end a request there, and later results of that
request are dropped. A failure in any thread answers every request with EngineFailed and is reported through
`on_failure`.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

import torch

from chatterbox_engine.checkpoint.families import Family
from chatterbox_engine.errors import Cancelled, InvalidRequest, RequestError
from chatterbox_engine.kernels.device import own_stream
from chatterbox_engine.metrics import Metrics, NoMetrics, Status, resident_bytes
from chatterbox_engine.synthesis.jobs import Answer, Chunk, ChunkAnswer, Job
from chatterbox_engine.synthesis.parts import DrawnTokens, Parts
from chatterbox_engine.synthesis.register import Register
from chatterbox_engine.synthesis.scheduler import Plan
from chatterbox_engine.synthesis.seeds import AGAIN, T3_DRAWS, derive
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from chatterbox_engine.synthesis.utterances import Speech, Utterance
from chatterbox_engine.t3.prompts import Prompt
from chatterbox_engine.text.pipeline import Script
from chatterbox_engine.types import Samples, SynthesisRequest
from chatterbox_engine.voices.library import Found

UNKNOWN_HEADS = (
    "which attention heads of this checkpoint follow the text is not known; `python -m tools.alignment` finds them"
)
IN_BLOCKS = "whose attention does not follow the text: it predicts a block of tokens at a time"


@dataclass(frozen=True)
class Launched:
    """One step's work on the device, its tokens not yet read."""

    began: float = 0.0
    decoded: int = 0
    """Utterances that were already running."""
    batches: list[tuple[Sequence[Utterance], DrawnTokens]] = field(default_factory=list)


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
        self._on_failure = on_failure
        self._report = report
        self._numbers = itertools.count(1)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._register = Register(
            limit=parts.max_queue,
            batch_limit=parts.max_batch_queue,
            allowance=parts.request_timeout,
            metrics=self._metrics,
            ended=lambda job: self._inbox.put(partial(self._drop, job)),
        )
        self._ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._guard, args=(body,), name=name, daemon=True)
            for name, body in (("engine", self._loop), ("vocoder", self._vocode), ("sender", self._register.answer))
        ]
        # of the engine's thread:
        self._running = True
        self._speeches: dict[int, Speech] = {}  # by the job's number, until all tokens are drawn
        self._pending = Launched()
        self._again: list[Utterance] = []  # to be spoken again, once the step that is under way has been read

    # Any thread

    def start(self) -> None:
        """Starts the threads and waits until the engine is warm. Propagates an error of the warm-up."""
        self._parts.voices.start(self._report)
        engine, vocoder, sender = self._threads
        for thread in (engine, vocoder):  # sequentially: no graph can be captured while another thread uses the GPU
            thread.start()
            error = self._ready.get()
            if error is not None:
                raise error
        sender.start()
        self._parts.voices.work_ahead()

    def submit(self, request: SynthesisRequest, answer: Answer) -> int:
        """Queues a request; `answer` is called exactly once, from the sender thread. Returns a number for `cancel`.

        Raises InvalidRequest for text that cannot fit, Overloaded when the queue is full, Unavailable when the engine
        is draining or closed. If it raises, `answer` is not called. An error of the voice is passed to `answer`.
        """
        return self._accept(request, answer)

    def stream(self, request: SynthesisRequest, policy: ChunkPolicy, answer: ChunkAnswer) -> int:
        """`submit` for audio in chunks: `answer` is called for each, in order, until the last one or an error."""
        return self._accept(request, answer, policy)

    def read(self, request: SynthesisRequest) -> Script:
        """What would be spoken of a request's text, stage by stage. Raises InvalidRequest."""
        return self._parts.segmenter.read(request)

    def _accept(
        self, request: SynthesisRequest, answer: Callable[[Any], None], policy: ChunkPolicy | None = None
    ) -> int:
        arrived = time.monotonic()
        wanted = "word_times" if request.word_times else "guard" if request.guard != "off" else ""
        if wanted and not self._parts.aligned:
            reason = f"not of {self.family.title}, {IN_BLOCKS}" if self.family.in_blocks else UNKNOWN_HEADS
            raise InvalidRequest(f"{wanted}: {reason}")
        text = self._parts.segmenter.segments(request)
        job = Job(next(self._numbers), request, answer, text.segments, policy, arrived, text.notes)
        self._register.take(job)
        self._inbox.put(_wake)  # the engine thread then includes its deadline
        self._parts.voices.resolve(request).add_done_callback(partial(self._voiced, job))
        return job.number

    def cancel(self, number: int) -> None:
        """Cancels a request: it is answered with Cancelled unless it has already been answered."""
        job = self._register.find(number)
        if job is not None:
            self._register.settle(job, Cancelled("the request was cancelled"))

    @property
    def family(self) -> Family:
        """The served model's family."""
        return self._parts.family

    @property
    def utterances(self) -> int:
        """Those of all requests that are not answered."""
        return self._register.utterances

    @property
    def about(self) -> dict[str, Any]:
        """What is served and how, as in every response's statistics."""
        return self._parts.served.about

    def status(self) -> Status:
        """A snapshot of the engine's state, taken while its thread runs: the figures may be one step apart."""
        scheduler = self._parts.scheduler
        return Status(
            slots_active=scheduler.running,
            slots_free=scheduler.free_slots,
            slots_batch=scheduler.batch_running,
            utterances_waiting=scheduler.waiting,
            batch_waiting=scheduler.batch_waiting,
            requests_active=len(self._register),
            kv_positions_used=scheduler.positions - scheduler.free_positions,
            kv_positions=scheduler.positions,
            voices_cached=self._parts.voices.cached,
            host_bytes=resident_bytes(),
            gpu_bytes=self._parts.served.gpu_bytes(),
        )

    def drain(self, seconds: float, drained: Callable[[], None]) -> None:
        """Refuses new requests. Active ones have `seconds` to finish; then they are answered with Unavailable.
        `drained` is called, from the sender thread, after the last answer and the end of what the voices do in the
        background: `close` would wait for it longer than Triton waits for `close`."""

        def settled() -> None:
            self._parts.voices.stop_ahead()
            drained()

        self._register.drain(seconds, settled)
        self._inbox.put(_wake)  # the engine thread then includes the new deadline

    def close(self) -> None:
        """Refuses new requests, answers active ones with Unavailable and ends the threads."""
        self._register.close()
        self._inbox.put(self._stop)
        self._threads[0].join()
        self._parts.vocoder.close()
        self._threads[1].join()
        self._parts.voices.close()
        self._parts.finisher.close()
        self._register.end()
        self._threads[2].join()

    # Voices' threads, or the caller's

    def _voiced(self, job: Job, voice: Future[Found]) -> None:
        error = voice.exception()
        if error is None:
            self._inbox.put(partial(self._begin, job, voice.result(), time.monotonic()))
        elif isinstance(error, RequestError):
            self._register.settle(job, error)
        else:
            self._fail(error)

    # Engine thread

    def step(self) -> None:
        """One step of all running utterances."""
        plan = self._parts.scheduler.schedule()
        for utterance in plan.preempted:
            utterance.restart()
            self._metrics.preempted()
        launched = self._launch(plan)
        self._publish(launched)

    def _loop(self) -> None:
        parts = self._parts
        try:
            # before the vocoder's: its large kernels would delay the small ones of a step
            own_stream(parts.device, priority=-1)
            parts.runner.warm_up(self._report)
            if (voice := parts.voices.built_in) is not None:
                parts.prefixes.of(voice, parts.family.sampling.exaggeration)  # else the first request waits for it
        except BaseException as error:  # handed to `start`, which raises it
            self._ready.put(error)
            return
        self._ready.put(None)
        while self._running:
            self._take_orders()
            self.step()

    def _take_orders(self) -> None:
        """Executes orders of other threads; waits for one only when there is nothing else to do."""
        idle = self._parts.scheduler.idle and not self._pending.batches
        try:
            if idle:
                self._parts.cores.release()
                self._inbox.get(timeout=self._register.until_deadline())()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            self._register.expire()

    def _begin(self, job: Job, found: Found, voiced: float) -> None:
        if job not in self._register:  # cancelled meanwhile
            return
        speech = self._speeches[job.number] = Speech(job, found, voiced, self._parts.family, self._parts.usual_peak)
        for utterance in speech.utterances:
            self._parts.scheduler.add(utterance)

    def _drop(self, job: Job) -> None:
        """Frees the resources of an ended request."""
        speech = self._speeches.pop(job.number, None)
        for utterance in speech.utterances if speech is not None else ():
            self._parts.scheduler.release(utterance)

    def _stop(self) -> None:
        self._running = False

    def _launch(self, plan: Plan[Utterance]) -> Launched:
        """Launches a step's work on the device."""
        parts, began = self._parts, time.monotonic()
        parts.cores.use_for_t3(alone=parts.vocoder.idle)
        batches: list[tuple[Sequence[Utterance], DrawnTokens]] = []
        if plan.decode:
            batches.append((plan.decode, parts.runner.decode([_prompt(utterance) for utterance in plan.decode])))
        if plan.prefill:
            prompts = [self._start(utterance) for utterance in plan.prefill]
            prefixes = [
                parts.prefixes.of(utterance.speech.voice, utterance.sampling.exaggeration) for utterance in plan.prefill
            ]
            batches.append((plan.prefill, parts.runner.prefill(prompts, prefixes)))
        return Launched(began, len(plan.decode), batches)

    def _start(self, utterance: Utterance) -> Prompt:
        speech, place = utterance.speech, utterance.place
        assert place is not None, "the scheduler gives a place"
        speech.start()
        use = AGAIN + utterance.attempt - 1 if utterance.attempt else T3_DRAWS
        seed = derive(speech.job.request.seed, utterance.index, use)
        uniforms = torch.rand(utterance.segment.max_tokens + 1, generator=torch.Generator().manual_seed(seed))
        text = torch.tensor(utterance.segment.tokens, dtype=torch.int64)
        utterance.prompt = Prompt(
            place.slot,
            place.rows,
            text,
            utterance.sampling,
            uniforms,
            seed=seed,
            aligned=utterance.aligned,
            holding=utterance.holding,
        )
        return utterance.prompt

    def _publish(self, launched: Launched) -> None:
        """Publishes the tokens of the previous step, so that the device never waits for the host."""
        read, self._pending = self._pending, launched
        again, self._again = self._again, []
        for utterances, drawn in read.batches:
            drawn_rows, readings = drawn.read(), drawn.readings()
            for utterance, tokens, reading in zip(utterances, drawn_rows, readings or repeat(None), strict=False):
                # it ended, was cancelled or preempted in the previous step; these tokens are surplus
                if utterance.place is None:
                    continue
                if any(utterance.take(token, self._parts.stop_token, reading) for token in tokens):
                    self._end(utterance)
                for chunk in utterance.speech.due(utterance):
                    self._parts.vocoder.put(chunk)
        for utterance in again:  # its surplus token of this step has been skipped
            if utterance.speech.job.number in self._speeches:
                self._parts.scheduler.add(utterance)
        if launched.decoded:
            self._metrics.stepped(time.monotonic() - launched.began, launched.decoded)

    def _end(self, utterance: Utterance) -> None:
        self._parts.scheduler.release(utterance)
        if utterance.finish is None:  # the guard wants it spoken again
            self._again.append(utterance)
        elif utterance.speech.end():
            job = utterance.speech.job
            del self._speeches[job.number]
            self._register.decoded(job)

    # Vocoder thread

    def _vocode(self) -> None:
        try:
            self._parts.vocoder.warm_up(self._report)
        except BaseException as error:  # handed to `start`, which raises it
            self._ready.put(error)
            return
        self._ready.put(None)
        self._parts.vocoder.run(
            self._register, done=self._vocoded, failed=lambda chunk, error: self._register.settle(chunk.job, error)
        )

    def _vocoded(self, chunk: Chunk, wave: Samples, seconds: float) -> None:
        if chunk.job in self._register:
            self._parts.finisher.put(chunk, wave, seconds, send=self._register.send, crashed=self._fail)

    # Failures, on any thread

    def _guard(self, body: Callable[[], None]) -> None:
        """Runs a thread's body; a failure ends the engine and answers every request."""
        try:
            body()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._register.fail(error, partial(self._on_failure, error))
        if threading.current_thread() is self._threads[2]:
            self._guard(self._register.answer)  # the sender failed in one receiver; the others still get their answers


def _prompt(utterance: Utterance) -> Prompt:
    assert utterance.prompt is not None, "a running utterance has been started"
    return utterance.prompt


def _wake() -> None:
    """A no-op order that wakes the engine thread, which checks deadlines after every order."""
