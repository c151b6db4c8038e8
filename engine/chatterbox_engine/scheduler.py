"""Which utterance decodes when: queue, admission, slots. Holds no tensors and imports no torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from chatterbox_engine.kv_cache import Extent, ExtentAllocator


class Schedulable(Protocol):
    """What the scheduler needs to know of an utterance, and the place it gives it."""

    @property
    def row_positions(self) -> list[int]:
        """KV positions that each of its rows will need at most."""

    place: Place | None


@dataclass(frozen=True)
class Place:
    """Where a running utterance lives: its slot, and an extent of the KV pool for each of its rows."""

    slot: int
    rows: tuple[Extent, ...]


U = TypeVar("U", bound=Schedulable)


@dataclass(frozen=True)
class Plan(Generic[U]):
    """The work of one step."""

    prefill: list[U] = field(default_factory=list)
    """Utterances that join now."""
    decode: list[U] = field(default_factory=list)
    """Utterances that were running before."""


class Scheduler(Generic[U]):
    """First come, first served: the head of the queue is never overtaken, so a large request cannot starve."""

    def __init__(self, *, max_slots: int, positions: int, max_prefills: int) -> None:
        self._allocator = ExtentAllocator(positions)
        self._slots = list(range(max_slots - 1, -1, -1))
        self._max_prefills = max_prefills
        self._waiting: deque[U] = deque()
        self._running: list[U] = []

    @property
    def waiting(self) -> int:
        """Utterances without a slot."""
        return len(self._waiting)

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
        """Nothing waits and nothing runs."""
        return not self._waiting and not self._running

    def add(self, utterance: U) -> None:
        """Puts an utterance at the end of the queue."""
        self._waiting.append(utterance)

    def schedule(self) -> Plan[U]:
        """Admits what fits and tells the step's work."""
        decode = list(self._running)
        prefill: list[U] = []
        while self._can_admit() and len(prefill) < self._max_prefills:
            prefill.append(self._admit())
        return Plan(prefill, decode)

    def release(self, utterance: U) -> None:
        """Takes an utterance out, finished or given up, waiting or running; a second call does nothing."""
        if utterance.place is None:
            if utterance in self._waiting:
                self._waiting.remove(utterance)
            return
        self._running.remove(utterance)
        self._slots.append(utterance.place.slot)
        for extent in utterance.place.rows:
            self._allocator.free(extent)
        utterance.place = None

    def _can_admit(self) -> bool:
        return bool(self._waiting and self._slots) and self._allocator.can_allocate(self._waiting[0].row_positions)

    def _admit(self) -> U:
        utterance = self._waiting.popleft()
        rows = tuple(self._allocator.allocate(positions) for positions in utterance.row_positions)
        utterance.place = Place(self._slots.pop(), rows)
        self._running.append(utterance)
        return utterance
