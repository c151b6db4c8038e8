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

    @property
    def batch(self) -> bool:
        """Whether it fills what live utterances leave free."""

    @property
    def preemptible(self) -> bool:
        """Whether it may lose its place, of those that are batch work, and start again later."""

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
    preempted: list[U] = field(default_factory=list)
    """Batch utterances whose places live ones get. They wait again, and start again at their first token."""


class _Waiting(Generic[U]):
    """First come, first served, in two queues that alternate while neither is empty: first segments of requests, and
    later ones. So a long text delays another request's first audio by one segment at most. The head of a queue is never
    overtaken, so neither a large request nor the rest of a long one can starve.
    """

    def __init__(self) -> None:
        self._firsts: deque[U] = deque()
        self._others: deque[U] = deque()
        self._last_was_first = False

    def __len__(self) -> int:
        return len(self._firsts) + len(self._others)

    def add(self, utterance: U) -> None:
        self._queue_of(utterance).append(utterance)

    def put_back(self, utterance: U) -> None:
        self._queue_of(utterance).appendleft(utterance)

    def remove(self, utterance: U) -> None:
        if utterance in (queue := self._queue_of(utterance)):
            queue.remove(utterance)

    @property
    def head(self) -> U:
        return self._next[0]

    def pop(self) -> U:
        utterance = self._next.popleft()
        self._last_was_first = utterance.first
        return utterance

    def _queue_of(self, utterance: U) -> deque[U]:
        return self._firsts if utterance.first else self._others

    @property
    def _next(self) -> deque[U]:
        """The queue whose turn it is."""
        preferred, other = (self._others, self._firsts) if self._last_was_first else (self._firsts, self._others)
        return preferred or other


class Scheduler(Generic[U]):
    """Admits live utterances before those of batch work, each in the order of `_Waiting`.

    A live utterance for which there is no place preempts batch ones, those first that were admitted last: what they
    have drawn so far is lost. Batch work gets a place only while no live utterance waits, and never the slots that are
    kept for those.
    """

    def __init__(self, *, max_slots: int, positions: int, max_prefills: int, live_slots: int = 0) -> None:
        """live_slots: slots that batch work never gets."""
        self._allocator = ExtentAllocator(positions)
        self._slots = list(range(max_slots - 1, -1, -1))
        self._max_prefills = max_prefills
        self._batch_slots = max_slots - live_slots
        self._live: _Waiting[U] = _Waiting()
        self._batch: _Waiting[U] = _Waiting()
        self._running: list[U] = []

    @property
    def waiting(self) -> int:
        """Utterances without a slot."""
        return len(self._live) + len(self._batch)

    @property
    def batch_waiting(self) -> int:
        """Those of batch work among them."""
        return len(self._batch)

    @property
    def running(self) -> int:
        """Utterances with a slot."""
        return len(self._running)

    @property
    def batch_running(self) -> int:
        """Those of batch work among them."""
        return sum(utterance.batch for utterance in list(self._running))

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
        self._queue_of(utterance).add(utterance)

    def schedule(self) -> Plan[U]:
        """Admits what fits and returns the step's work."""
        before, prefill, preempted = list(self._running), list[U](), list[U]()
        while self._live and len(prefill) < self._max_prefills:
            preempted += self._make_room(self._live.head)
            if not self._fits(self._live.head):
                break
            prefill.append(self._admit(self._live))
        while self._may_admit_batch() and not preempted and len(prefill) < self._max_prefills:
            prefill.append(self._admit(self._batch))
        for utterance in preempted:
            self._batch.put_back(utterance)
        return Plan(prefill, [utterance for utterance in before if utterance.place is not None], preempted)

    def release(self, utterance: U) -> None:
        """Removes an utterance, whether it waits or runs; a second call does nothing."""
        if utterance.place is None:
            self._queue_of(utterance).remove(utterance)
            return
        self._running.remove(utterance)
        self._slots.append(utterance.place.slot)
        for extent in utterance.place.rows:
            self._allocator.free(extent)
        utterance.place = None

    def _queue_of(self, utterance: U) -> _Waiting[U]:
        return self._batch if utterance.batch else self._live

    def _fits(self, utterance: U) -> bool:
        return bool(self._slots) and self._allocator.can_allocate(utterance.row_positions)

    def _may_admit_batch(self) -> bool:
        if self._live or not self._batch or self.batch_running >= self._batch_slots:
            return False
        return self._fits(self._batch.head)

    def _make_room(self, utterance: U) -> list[U]:
        """Preempts as few batch utterances as another one needs; none where all of them would not be enough."""
        after, slots, victims = self._allocator.copy(), len(self._slots), list[U]()
        candidates = [running for running in self._running if running.preemptible]
        while not (slots and after.can_allocate(utterance.row_positions)):
            if not candidates:
                return []
            victims.append(victim := candidates.pop())
            slots += 1
            for extent in victim.place.rows if victim.place is not None else ():
                after.free(extent)
        for victim in victims:
            self.release(victim)
        return victims

    def _admit(self, queue: _Waiting[U]) -> U:
        utterance = queue.pop()
        rows = tuple(self._allocator.allocate(positions) for positions in utterance.row_positions)
        utterance.place = Place(self._slots.pop(), rows)
        self._running.append(utterance)
        return utterance
