"""Stand-ins for the batch tests: a speaker without networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from chatterbox_batch.folder import Folder
from chatterbox_batch.parts import Part
from chatterbox_batch.plan import Plan, TablePlan
from chatterbox_batch.records import Record, Records
from chatterbox_batch.run import Job, Summary, run
from chatterbox_batch.speakers import SpeechFailed
from chatterbox_batch.worker import Worker, join
from chatterbox_client import Audio
from chatterbox_gateway.output import Output

RATE = 24_000


class FakeSpeaker:
    """A character is 1 ms of a constant that the seed decides. Texts with "fail" fail; `stop_after` texts later the
    process is killed, as far as one can pretend that."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.left = stop_after

    def speak(self, text: str, inputs: Mapping[str, Any]) -> Audio:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        self.calls.append((text, dict(inputs)))
        if "fail" in text:
            raise SpeechFailed("it failed")
        level = (inputs["seed"] % 100 + 1) / 128
        samples = np.full(len(text) * RATE // 1000, level, np.float32)
        return Audio(samples, RATE, np.zeros(1, np.int32), {"rtf": 0.25, "seed": inputs["seed"]})


class Local:
    """An executor in this thread."""

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def speak(self, pending: Iterable[Part], make_worker: Callable[[], Worker]) -> Iterable[Record]:
        worker = make_worker()
        return map(worker.speak, pending)

    def join(self, records: Records, output: Output, parts: Sequence[Record]) -> Future[Record]:
        future: Future[Record] = Future()
        future.set_result(join(records, output, parts))
        return future


def speak(
    source: str | Plan,
    out: Path,
    speaker: FakeSpeaker,
    output: Output | None = None,
    *,
    limit: int = 60,
    retry_failed: bool = False,
    executor: Callable[[], Any] | None = None,
    show: Callable[[str], None] = lambda _line: None,
) -> Summary:
    """A run in this thread."""
    records, form = Records(Folder(str(out))), output or Output("wav")
    plan = TablePlan(source, limit=limit) if isinstance(source, str) else source
    job = Job(plan, records, form, retry_failed)
    return run(job, executor or Local, lambda: Worker(speaker, records, form), show, interval=0.0)


def manifest(out: Path) -> dict[str, dict[str, Any]]:
    """The manifest's rows by their ids, each of which it has once."""
    rows = list(Records(Folder(str(out))).manifest())
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found
