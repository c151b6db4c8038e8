"""Which positions of the KV pool belong to which row: bookkeeping alone, without torch.

An extent is a run of neighbouring positions that belongs to one row. Memory is planned as in vLLM, but without page
tables: inside a row there is no indirection, and a request that needs more than the usual length gets a longer extent.
"""

from __future__ import annotations

from dataclasses import dataclass

GRAIN = 64
"""Extents are multiples of this many positions."""


@dataclass(frozen=True)
class Extent:
    """Positions `start .. start + size` of the pool."""

    start: int
    size: int


def round_up(count: int, grain: int = GRAIN) -> int:
    """The next multiple of `grain`: by default the extent size that holds this many positions."""
    return -(-count // grain) * grain


class ExtentAllocator:
    """First-fit allocation of extents; holds no tensors."""

    def __init__(self, positions: int) -> None:
        self.capacity = positions // GRAIN * GRAIN
        self._free = [Extent(0, self.capacity)]  # ordered by start, never adjacent

    def copy(self) -> ExtentAllocator:
        """An allocator of the same state, to try out what freeing would give."""
        other = ExtentAllocator(self.capacity)
        other._free = list(self._free)
        return other

    @property
    def free_positions(self) -> int:
        """Positions that belong to no row."""
        return sum(hole.size for hole in self._free)

    def can_allocate(self, sizes: list[int]) -> bool:
        """Whether extents of all these sizes fit together now."""
        holes = [hole.size for hole in self._free]
        for size in map(round_up, sizes):
            fit = next((i for i, hole in enumerate(holes) if hole >= size), None)
            if fit is None:
                return False
            holes[fit] -= size
        return True

    def allocate(self, size: int) -> Extent:
        """Takes the first hole that is large enough; only after `can_allocate` returned True."""
        size = round_up(size)
        for index, hole in enumerate(self._free):
            if hole.size >= size:
                rest = Extent(hole.start + size, hole.size - size)
                self._free[index : index + 1] = [rest] if rest.size else []
                return Extent(hole.start, size)
        raise AssertionError(f"no extent of {size} positions is free")

    def free(self, extent: Extent) -> None:
        """Returns an extent and merges it with neighbouring holes."""
        holes = sorted([*self._free, extent], key=lambda hole: hole.start)
        joined = [holes[0]]
        for hole in holes[1:]:
            last = joined[-1]
            if last.start + last.size == hole.start:
                joined[-1] = Extent(last.start, last.size + hole.size)
            else:
                assert last.start + last.size < hole.start, f"{hole} was free already"
                joined.append(hole)
        self._free = joined
