"""Records of parts to rows of the manifest. Belongs to the thread that reads the records."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from chatterbox_batch.parts import Part
from chatterbox_batch.records import Record, Records

Join = Callable[[Sequence[Record]], "Future[Record]"]
"""Begins to join the parts of a row; its record comes later."""

JOINS = 64
"""Rows that are joined at once."""

SMALLEST_FOLD = 256
"""Rows that are added to the manifest at once, as it is written again every time: these, or a quarter of it."""


class Collector:
    """Takes the record of every part once, joins the rows that are complete, and keeps the manifest."""

    def __init__(self, records: Records, join: Join, *, finished: int = 0) -> None:
        """finished: rows in the manifest."""
        self._records, self._join = records, join
        self._finished = finished
        self._rows: dict[str, dict[int, Record]] = defaultdict(dict)
        self._joining: dict[Future[Record], list[Record]] = {}
        self._complete: list[tuple[Record, list[Record]]] = []
        self._ended: set[str] = set()
        self.done = self.failed = 0
        """Rows of this run."""

    def add(self, record: Record) -> None:
        """Takes the record of a part; a second one of the same part is ignored."""
        if self.has(record):
            return
        parts = self._rows[record.id]
        parts[record.index] = record
        if len(parts) == record.count:
            del self._rows[record.id]
            self._ended.add(record.id)
            self._end([parts[index] for index in range(record.count)])
        self._collect(limit=JOINS)
        if len(self._complete) >= max(SMALLEST_FOLD, self._finished // 4):
            self._fold()

    def has(self, part: Part | Record) -> bool:
        """Whether it has the record of a part."""
        return part.id in self._ended or part.index in self._rows.get(part.id, ())

    def close(self) -> None:
        """Waits for the joins and completes the manifest."""
        self._collect(limit=0)
        self._fold()

    def _end(self, parts: list[Record]) -> None:
        wrong = next((part for part in parts if part.error), None)
        if wrong is not None:
            where = f"part {wrong.index + 1} of {wrong.count}: " if wrong.count > 1 else ""
            failed = dataclasses.replace(parts[0], count=1, file="", rtf=None, error=where + wrong.error)
            self._complete.append((failed, []))  # the parts that were spoken wait for another attempt
        elif len(parts) == 1:
            self._complete.append((parts[0], parts))
        else:
            self._joining[self._join(parts)] = parts

    def _collect(self, limit: int) -> None:
        """Takes the rows that have been joined; waits until at most `limit` are left."""
        while len(self._joining) > limit:
            wait(self._joining, return_when=FIRST_COMPLETED)
            self._take_joined()
        self._take_joined()

    def _take_joined(self) -> None:
        for future in [it for it in self._joining if it.done()]:
            parts = self._joining.pop(future)
            row = future.result()
            self._complete.append((row, [] if row.error else parts))

    def _fold(self) -> None:
        complete, self._complete = self._complete, []
        if not complete:
            return
        self._records.add_to_manifest(row for row, _ in complete)
        self._records.forget(part.key for _, parts in complete for part in parts)
        self._finished += len(complete)
        self.done += len(complete)
        self.failed += sum(bool(row.error) for row, _ in complete)
