"""What a run has to speak: the parts of an input that no earlier run has spoken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from chatterbox_batch.parts import PART_CHARS, Part, parts_of
from chatterbox_batch.records import Record, Records
from chatterbox_batch.sources import read_rows


class Plan(Protocol):
    """Lists parts, always the same ones in the same order. Can be sent to other processes."""

    def parts(self) -> Iterable[Part]:
        """All parts, those of one row in sequence. Raises InputError or OSError."""


@dataclass(frozen=True)
class TablePlan:
    """The rows of an input."""

    location: str
    ignored: tuple[str, ...] = ()
    limit: int = PART_CHARS
    """Characters of a part."""
    seed: int = 0
    """Rows without a seed get one derived from this."""

    def parts(self) -> Iterator[Part]:
        """See `Plan.parts`."""
        for row in read_rows(self.location, self.ignored):
            yield from parts_of(row, limit=self.limit, seed=self.seed)


@dataclass(frozen=True)
class Pending:
    """The parts of a plan that were neither in the manifest nor recorded when the run began: the same ones whenever it
    is read, as Ray reads it again from the start when the process that read it died."""

    plan: Plan
    finished: frozenset[str] = frozenset()
    """Ids."""
    spoken: frozenset[str] = frozenset()
    """Keys."""

    def __iter__(self) -> Iterator[Part]:
        return (part for part in self.plan.parts() if part.id not in self.finished and part.key not in self.spoken)


@dataclass(frozen=True)
class Survey:
    """What is to do and what has been done."""

    pending: Pending
    parts: int
    """To speak."""
    characters: int
    """Of these parts."""
    spoken: list[Record]
    """Records of rows that are not in the manifest yet."""


def survey(plan: Plan, records: Records) -> Survey:
    """Reads a plan once. Records that belong to none of its parts, as those of a row that has changed, are deleted;
    those of rows that failed wait for another attempt.

    Raises InputError or OSError.
    """
    failed_of: dict[str, bool] = {}  # by the ids of the manifest
    for row in records.manifest("id", "error"):
        failed_of[row["id"]] = failed_of.get(row["id"], False) or row["error"] is not None
    left, waiting = records.keys(), set[str]()
    spoken: dict[str, Record] = {}
    parts = characters = 0
    for part in plan.parts():
        if part.id in failed_of:
            if failed_of[part.id]:
                waiting.add(part.key)
            continue
        record = records.find(part.key) if part.key in left else None
        if record is not None:
            spoken[part.key] = record
        else:
            parts += 1
            characters += len(part.text)
    records.forget(left - spoken.keys() - waiting)
    pending = Pending(plan, frozenset(failed_of), frozenset(spoken))
    return Survey(pending, parts, characters, list(spoken.values()))
