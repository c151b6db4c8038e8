"""Which utterance decodes when: queue, admission, slots. Holds no tensors and imports no torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from chatterbox_engine.t3.extents import Extent, ExtentAllocator


class Schedulable(Protocol):
    """The properties of an utterance that the scheduler needs, and the place that it assigns."""

    @property
    def row_positions(self) -> list[int]:
        """Maximum KV positions of each of its rows."""

    @property
    def first(self) -> bool:
        """Whether it is its request's first segment, which the client waits for."""

    place: Place | None


@dataclass(frozen=True)
class Place:
    """Memory of a running utterance: its slot, and an extent of the KV pool for each of its rows."""

    slot: int
    rows: tuple[Extent, ...]


U = TypeVar("U", bound=Schedulable)


@dataclass(frozen=True)
class Plan(Generic[U]):
    """The work of one step."""

    prefill: list[U] = field(default_factory=list)
    """Utterances that are admitted in this step."""
    decode: list[U] = field(default_factory=list)
    """Utterances that were already running."""


class Scheduler(Generic[U]):
    """First come, first served, in two queues that alternate while neither is empty: first segments of requests, and
    later ones. So a long text delays another request's first audio by one segment at most. The head of a queue is never
    overtaken, so neither a large request nor the rest of a long one can starve.
    """

    def __init__(self, *, max_slots: int, positions: int, max_prefills: int) -> None:
        self._allocator = ExtentAllocator(positions)
        self._slots = list(range(max_slots - 1, -1, -1))
        self._max_prefills = max_prefills
        self._firsts: deque[U] = deque()
        self._others: deque[U] = deque()
        self._last_was_first = False
        self._running: list[U] = []

    @property
    def waiting(self) -> int:
        """Utterances without a slot."""
        return len(self._firsts) + len(self._others)

    @property
    def running(self) -> int:
        """Utterances with a slot."""
        return len(self._running)

    @property
    def free_slots(self) -> int:
        return len(self._slots)

    @property
    def positions(self) -> int:
        """KV positions in all."""
        return self._allocator.capacity

    @property
    def free_positions(self) -> int:
        return self._allocator.free_positions

    @property
    def idle(self) -> bool:
        """Whether no utterance waits or runs."""
        return not self.waiting and not self._running

    def add(self, utterance: U) -> None:
        """Puts an utterance at the end of its queue."""
        self._queue_of(utterance).append(utterance)

    def schedule(self) -> Plan[U]:
        """Admits what fits and returns the step's work."""
        decode = list(self._running)
        prefill: list[U] = []
        while self._can_admit() and len(prefill) < self._max_prefills:
            prefill.append(self._admit())
        return Plan(prefill, decode)

    def release(self, utterance: U) -> None:
        """Removes an utterance, whether it waits or runs; a second call does nothing."""
        if utterance.place is None:
            if utterance in (queue := self._queue_of(utterance)):
                queue.remove(utterance)
            return
        self._running.remove(utterance)
        self._slots.append(utterance.place.slot)
        for extent in utterance.place.rows:
            self._allocator.free(extent)
        utterance.place = None

    def _queue_of(self, utterance: U) -> deque[U]:
        return self._firsts if utterance.first else self._others

    @property
    def _next(self) -> deque[U]:
        """The queue whose turn it is; empty when no utterance waits."""
        preferred, other = (self._others, self._firsts) if self._last_was_first else (self._firsts, self._others)
        return preferred or other

    def _can_admit(self) -> bool:
        return bool(self._next and self._slots) and self._allocator.can_allocate(self._next[0].row_positions)

    def _admit(self) -> U:
        utterance = self._next.popleft()
        self._last_was_first = utterance.first
        rows = tuple(self._allocator.allocate(positions) for positions in utterance.row_positions)
        utterance.place = Place(self._slots.pop(), rows)
        self._running.append(utterance)
        return utterance
