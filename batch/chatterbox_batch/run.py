"""A run: survey, speak, collect. What speaks is handed in, so that no Ray is here."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from chatterbox_batch.collector import Collector
from chatterbox_batch.parts import Part
from chatterbox_batch.plan import Plan, Survey, survey
from chatterbox_batch.progress import INTERVAL, Progress
from chatterbox_batch.records import Record, Records
from chatterbox_batch.worker import Worker
from chatterbox_gateway.output import Output


class Executor(Protocol):
    """Runs a worker's calls somewhere."""

    def speak(self, pending: Iterable[Part], make_worker: Callable[[], Worker]) -> Iterable[Record]:
        """The records of parts, in the order in which they are spoken, as they are spoken."""

    def join(self, records: Records, output: Output, parts: Sequence[Record]) -> Future[Record]:
        """Begins `worker.join`."""


@dataclass(frozen=True)
class Job:
    """What to speak into which files."""

    plan: Plan
    records: Records
    output: Output
    retry_failed: bool = False
    """Speak the rows again that the manifest has with an error."""


@dataclass(frozen=True)
class Summary:
    """What a run has done."""

    rows: int
    failed: int
    """Of these rows."""
    seconds: float
    """Of audio."""


def run(
    job: Job,
    executor: Callable[[], contextlib.AbstractContextManager[Executor]],
    make_worker: Callable[[], Worker],
    show: Callable[[str], None],
    *,
    interval: float = INTERVAL,
) -> Summary:
    """Speaks what is left of a job. Whatever ends it, the manifest has all rows that were complete.

    executor: started only when there is something to do. Raises InputError or OSError, and what the executor raises.
    """
    job.records.sweep()
    if job.retry_failed:
        job.records.drop_failed()
    found = survey(job.plan, job.records)
    if not found.parts and not found.spoken:
        return Summary(0, 0, 0.0)
    show(_begin(found))
    progress = Progress(found.parts, found.characters, show, interval=interval)
    with executor() as running:
        begin = functools.partial(running.join, job.records, job.output)
        collector = Collector(job.records, begin, finished=len(found.pending.finished))
        try:
            for record in found.spoken:
                collector.add(record)
            if found.parts:
                for record in running.speak(found.pending, make_worker):
                    progress.add(record)
                    collector.add(record)
                if progress.spoken < found.parts:
                    for part in found.pending:
                        collector.add(_lost(part))
        finally:
            collector.close()
    if found.parts:
        show(progress.line())
    return Summary(collector.done, collector.failed, progress.seconds)


def _begin(found: Survey) -> str:
    rows, parts = len(found.pending.finished), len(found.spoken)
    earlier = f", {rows} rows and {parts} parts are there" if rows or parts else ""
    return f"{found.parts} parts to speak, {found.characters:,} characters{earlier}"


def _lost(part: Part) -> Record:
    """The record of a part that nothing came back of."""
    why = "the process that spoke it ended, at every attempt"
    return Record(part.id, part.key, part.index, part.count, len(part.text), part.pause, part.seed, error=why)
