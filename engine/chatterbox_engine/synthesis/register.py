"""The active requests: each is accepted, answered once, and ended at its deadline. Imports no torch."""

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
    """Owns the set of active requests: a job ends by leaving the register, and nothing of it is sent after that.

    Thread-safe. Only the thread that runs `answer` calls receivers, so a slow receiver delays no other thread and
    chunks stay in order.
    """

    def __init__(
        self, *, limit: int, batch_limit: int, allowance: float, metrics: Metrics, ended: Callable[[Job], None]
    ) -> None:
        """limit: maximum number of active live requests; batch_limit: of batch requests; allowance: seconds that each
        may take; ended: called once for every job that is answered in full or with an error, to free its resources."""
        self._limits = {False: limit, True: batch_limit}
        self._allowance = allowance
        self._metrics = metrics
        self._ended = ended
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}  # oldest first
        self._decoding: set[int] = set()  # numbers of jobs that still decode
        self._closed = False
        self._last_moment: float | None = None  # time.monotonic() at which draining ends the active requests
        self._drained: Callable[[], None] | None = None  # called once no request is active
        self._outbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: Job) -> bool:
        return job.number in self._jobs

    def take(self, job: Job) -> None:
        """Raises Overloaded at the limit, and Unavailable when the engine is draining or closed; the job is then never
        answered."""
        with self._lock:
            if self._closed:
                raise Unavailable(_CLOSING)
            active = sum(other.batch == job.batch for other in self._jobs.values())
            if active >= self._limits[job.batch]:
                kind = "batch " if job.batch else ""
                raise Overloaded(f"{active} {kind}requests are under way and no more are taken; try again later")
            self._jobs[job.number] = job
            self._decoding.add(job.number)

    @property
    def utterances(self) -> int:
        """Those of all active requests, whatever has become of them."""
        with self._lock:
            return sum(len(job.segments) for job in self._jobs.values())

    def find(self, number: int) -> Job | None:
        """None when it has ended."""
        with self._lock:
            return self._jobs.get(number)

    def decoded(self, job: Job) -> None:
        """Notes that all tokens of a job are drawn."""
        with self._lock:
            self._decoding.discard(job.number)

    @property
    def decoding(self) -> bool:
        """Whether any job still decodes."""
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
        """Queues an answer or a chunk; a complete answer or the last chunk ends the job."""
        if isinstance(answer, SynthesisResult) or answer.last:
            self.settle(job, answer)
            return
        with self._lock:  # no chunk follows the end
            if job.number in self._jobs:
                self._outbox.put(partial(job.answer, answer))

    def until_deadline(self) -> float | None:
        """Seconds until the oldest request's deadline or the end of draining; None when no request is active."""
        with self._lock:
            oldest = next(iter(self._jobs.values()), None)
            if oldest is None:
                return None
            limits = [oldest.arrived + self._allowance, self._last_moment]
        return max(0.0, min(limit for limit in limits if limit is not None) - time.monotonic())

    def expire(self) -> None:
        """Ends requests past their deadline, and all of them when draining ends. All have the same allowance, so the
        oldest expire first."""
        now = time.monotonic()
        with self._lock:
            over = self._last_moment is not None and self._last_moment <= now
            late = list(itertools.takewhile(lambda job: job.arrived < now - self._allowance, self._jobs.values()))
        for job in late:
            self.settle(job, DeadlineExceeded(f"no answer within {self._allowance:g} seconds"))
        if over:
            self._settle_all(Unavailable(f"{_CLOSING}: the request did not finish in the time that was left for it"))

    def drain(self, seconds: float, drained: Callable[[], None]) -> None:
        """Refuses new requests. Active ones have `seconds` to finish, then they are answered with Unavailable. Calls
        `drained` after the last answer, once no request is active; later calls only replace `drained`."""
        with self._lock:
            self._closed = True
            if self._last_moment is None:
                self._last_moment = time.monotonic() + seconds
            self._drained = drained
            self._report_drained()

    def close(self) -> None:
        """Refuses new requests and answers all active ones with Unavailable."""
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
        """Refuses new requests, answers all active ones with EngineFailed, and then calls `then`."""
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
        """The body of the sender thread, until `end`. Propagates an error of a receiver; later answers stay queued."""
        while (call := self._outbox.get()) is not None:
            call()

    def end(self) -> None:
        """Ends `answer` once the queue is empty."""
        self._outbox.put(None)
