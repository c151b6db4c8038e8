"""The requests under way: each is accepted, answered once, and ended when it is too old. No torch."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from functools import partial

from chatterbox_engine.errors import DeadlineExceeded, EngineFailed, Overloaded, RequestError, Unavailable
from chatterbox_engine.metrics import Metrics
from chatterbox_engine.synthesis.jobs import Job
from chatterbox_engine.types import SynthesisChunk, SynthesisResult

_CLOSING = "the server is shutting down"


class Register:
    """Owns which requests are under way: a job ends by leaving the register, and nothing of it is sent after that.

    Called from any thread. All answers are given by the thread that runs `answer`, so that a slow receiver delays no
    other thread and no chunk overtakes another.
    """

    def __init__(self, *, limit: int, allowance: float, metrics: Metrics, ended: Callable[[Job], None]) -> None:
        """limit: requests at once; allowance: seconds that each may take; ended: called once for every job that is
        answered in full or with an error, so that what it holds becomes free."""
        self._limit = limit
        self._allowance = allowance
        self._metrics = metrics
        self._ended = ended
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}  # oldest first
        self._decoding: set[int] = set()  # numbers of jobs whose tokens are not all drawn
        self._closed = False
        self._last_moment: float | None = None  # time.monotonic() until which those under way may take; when draining
        self._drained: Callable[[], None] | None = None  # called once nobody is under way any more
        self._outbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: Job) -> bool:
        return job.number in self._jobs

    def take(self, job: Job) -> None:
        """Raises Overloaded when there are too many, and Unavailable when the engine is draining or closed; the job is
        never answered then."""
        with self._lock:
            if self._closed:
                raise Unavailable(_CLOSING)
            if len(self._jobs) >= self._limit:
                raise Overloaded(f"{len(self._jobs)} requests are under way and no more are taken; try again later")
            self._jobs[job.number] = job
            self._decoding.add(job.number)

    def find(self, number: int) -> Job | None:
        """None when it has ended."""
        with self._lock:
            return self._jobs.get(number)

    def decoded(self, job: Job) -> None:
        """All tokens of a job are drawn."""
        with self._lock:
            self._decoding.discard(job.number)

    @property
    def decoding(self) -> bool:
        """Some job's tokens are not all drawn yet."""
        return bool(self._decoding)

    def settle(self, job: Job, outcome: SynthesisResult | SynthesisChunk | RequestError) -> None:
        """Ends a job unless it has ended."""
        with self._lock:
            if self._jobs.pop(job.number, None) is None:
                return
            self._decoding.discard(job.number)
            self._outbox.put(partial(job.answer, outcome))
            self._report_drained()
        self._ended(job)
        if isinstance(outcome, RequestError):
            self._metrics.failed(outcome)
        elif outcome.stats is not None:
            self._metrics.answered(outcome.stats)

    def send(self, job: Job, answer: SynthesisResult | SynthesisChunk) -> None:
        """An answer, or a part of a stream's; a whole answer and the last part settle the job."""
        if isinstance(answer, SynthesisResult) or answer.last:
            self.settle(job, answer)
            return
        with self._lock:  # no chunk follows the end
            if job.number in self._jobs:
                self._outbox.put(partial(job.answer, answer))

    def until_deadline(self) -> float | None:
        """Seconds until the oldest request is too old, or draining ends; None when there is none."""
        with self._lock:
            oldest = next(iter(self._jobs.values()), None)
            if oldest is None:
                return None
            limits = [oldest.arrived + self._allowance, self._last_moment]
        return max(0.0, min(limit for limit in limits if limit is not None) - time.monotonic())

    def expire(self) -> None:
        """Ends requests that are too old, and all when draining ends. All have the same allowance, so the oldest ones
        are the first."""
        now = time.monotonic()
        with self._lock:
            over = self._last_moment is not None and self._last_moment <= now
            late = list(itertools.takewhile(lambda job: job.arrived < now - self._allowance, self._jobs.values()))
        for job in late:
            self.settle(job, DeadlineExceeded(f"no answer within {self._allowance:g} seconds"))
        if over:
            self._settle_all(Unavailable(f"{_CLOSING}: the request did not finish in the time that was left for it"))

    def drain(self, seconds: float, drained: Callable[[], None]) -> None:
        """Takes no more. Those under way have `seconds` to finish, then they are answered with Unavailable. Calls
        `drained`, after the last answer, once nobody is under way; later calls change nothing but that."""
        with self._lock:
            self._closed = True
            if self._last_moment is None:
                self._last_moment = time.monotonic() + seconds
            self._drained = drained
            self._report_drained()

    def close(self) -> None:
        """Takes no more, and answers all with Unavailable."""
        with self._lock:
            self._closed = True
        self._settle_all(Unavailable(_CLOSING))

    def _settle_all(self, error: RequestError) -> None:
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            self.settle(job, error)

    def _report_drained(self) -> None:
        """Called with the lock held."""
        if not self._jobs and self._drained is not None:
            self._outbox.put(self._drained)
            self._drained = None

    def fail(self, error: BaseException, then: Callable[[], None]) -> None:
        """Takes no more, answers all with EngineFailed, and calls `then` after the answers."""
        with self._lock:
            self._closed = True
            jobs, self._jobs = list(self._jobs.values()), {}
            self._decoding.clear()
        failed = EngineFailed(f"the engine failed: {type(error).__name__}: {error}")
        for job in jobs:
            self._outbox.put(partial(job.answer, failed))
            self._metrics.failed(failed)
        self._outbox.put(then)

    def answer(self) -> None:
        """The body of the thread that gives the answers, until `end`. Raises what a receiver raises; the answers after
        it are still to be given."""
        while (call := self._outbox.get()) is not None:
            call()

    def end(self) -> None:
        """Ends `answer` after what is queued."""
        self._outbox.put(None)
