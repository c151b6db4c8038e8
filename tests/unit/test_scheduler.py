"""Admission and memory without tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_engine.synthesis.scheduler import Place, Scheduler
from chatterbox_engine.t3.extents import GRAIN, Extent, ExtentAllocator


@dataclass(eq=False)
class Fake:
    row_positions: list[int] = field(default_factory=lambda: [100, 100])
    first: bool = True
    batch: bool = False
    place: Place | None = None

    @property
    def preemptible(self) -> bool:
        return self.batch


def scheduler(*, max_slots: int = 4, positions: int = 64 * GRAIN, max_prefills: int = 2) -> Scheduler[Fake]:
    return Scheduler(max_slots=max_slots, positions=positions, max_prefills=max_prefills)


def test_a_waiting_utterance_joins_at_the_next_step_and_decodes_from_the_one_after() -> None:
    it = scheduler()
    fake = Fake()
    it.add(fake)
    first, second = it.schedule(), it.schedule()
    assert (first.prefill, first.decode) == ([fake], [])
    assert (second.prefill, second.decode) == ([], [fake])


def test_prefills_of_one_step_are_bounded() -> None:
    it = scheduler(max_prefills=2)
    fakes = [Fake() for _ in range(3)]
    for fake in fakes:
        it.add(fake)
    assert it.schedule().prefill == fakes[:2]
    assert it.schedule().prefill == fakes[2:]


def test_first_segments_and_later_ones_take_turns_and_keep_their_order() -> None:
    it = scheduler(max_slots=1)
    fakes = [Fake(first=index in (0, 4, 5)) for index in range(6)]
    for fake in fakes:
        it.add(fake)
    admitted = []
    while not it.idle:
        (fake,) = it.schedule().prefill
        admitted.append(fakes.index(fake))
        it.release(fake)
    assert admitted == [0, 1, 4, 2, 5, 3]


@pytest.mark.parametrize("small_is_first", [True, False])
def test_the_head_of_a_queue_is_never_overtaken_out_of_turn(small_is_first: bool) -> None:
    it = scheduler(positions=8 * GRAIN)
    large, small = Fake([4 * GRAIN, 4 * GRAIN], first=False), Fake([1], first=small_is_first)
    holder = Fake([4 * GRAIN])
    for fake in (holder, large, small):
        it.add(fake)
    assert it.schedule().prefill == [holder]
    assert it.schedule().prefill == []  # small would fit, but it is large's turn
    assert it.waiting == 2
    it.release(holder)
    assert it.schedule().prefill == [large]
    it.release(large)
    assert it.schedule().prefill == [small]


def test_a_released_slot_is_used_again_and_a_second_release_does_nothing() -> None:
    it = scheduler(max_slots=1)
    first, second = Fake(), Fake()
    it.add(first)
    it.add(second)
    it.schedule()
    it.release(first)
    it.release(first)
    assert it.schedule().prefill == [second]
    assert (it.running, it.free_slots) == (1, 0)


def test_a_waiting_utterance_can_be_cancelled() -> None:
    it = scheduler()
    fake = Fake()
    it.add(fake)
    it.release(fake)
    assert it.idle
    assert it.schedule().prefill == []


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_slot_and_no_position_leaks_or_is_shared(data: st.DataObject) -> None:
    it = scheduler(max_slots=5, positions=40 * GRAIN, max_prefills=3)
    alive: list[Fake] = []
    for _ in range(data.draw(st.integers(1, 40))):
        if data.draw(st.booleans()):
            rows = data.draw(st.sampled_from([1, 2]))
            positions = data.draw(st.integers(1, 9 * GRAIN))
            fake = Fake([positions] * rows, first=data.draw(st.booleans()), batch=data.draw(st.booleans()))
            alive.append(fake)
            it.add(fake)
        elif alive:
            it.release(alive.pop(data.draw(st.integers(0, len(alive) - 1))))
        it.schedule()
        placed = [fake.place for fake in alive if fake.place]
        assert len({place.slot for place in placed}) == len(placed) == it.running
        extents = sorted((row.start, row.size) for place in placed for row in place.rows)
        ends = [start + size for start, size in extents]
        assert all(end <= start for end, (start, _) in zip(ends, extents[1:], strict=False))
    for fake in alive:
        it.release(fake)
    assert it.idle
    assert (it.free_slots, it.free_positions) == (5, 40 * GRAIN)


def test_extents_join_with_their_neighbours_when_freed() -> None:
    allocator = ExtentAllocator(6 * GRAIN)
    parts = [allocator.allocate(2 * GRAIN) for _ in range(3)]
    assert not allocator.can_allocate([1])
    for index in (0, 2, 1):
        allocator.free(parts[index])
    assert allocator.allocate(6 * GRAIN) == Extent(0, 6 * GRAIN)


def test_several_extents_fit_only_together() -> None:
    allocator = ExtentAllocator(3 * GRAIN)
    assert allocator.can_allocate([2 * GRAIN, GRAIN])
    assert not allocator.can_allocate([2 * GRAIN, 2 * GRAIN])


def test_freeing_twice_is_our_own_bug_and_says_so() -> None:
    allocator = ExtentAllocator(4 * GRAIN)
    extent = allocator.allocate(GRAIN)
    allocator.free(extent)
    with pytest.raises(AssertionError, match="was free already"):
        allocator.free(extent)
