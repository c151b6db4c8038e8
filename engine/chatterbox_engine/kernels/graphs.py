"""CUDA graphs: captured once per key, then replayed; without a captured graph the same function runs eagerly."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from chatterbox_engine.kernels.device import Graph, cuda


class Graphs:
    """Captured functions of one thread, which read and write static tensors only.

    With `enabled` False, or on a CPU, `run` calls every function eagerly.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self.enabled = enabled and device.type == "cuda"
        self._graphs: dict[Hashable, Graph] = {}
        self._pool: Any = None  # torch's opaque handle of the memory that the graphs share

    def __len__(self) -> int:
        return len(self._graphs)

    def capture(self, key: Hashable, function: Callable[[], None]) -> None:
        """Records `function` under `key`; does nothing when graphs are off.

        Raises RuntimeError naming the switch when the function cannot be captured.
        """
        if not self.enabled:
            return
        function()  # the first call compiles kernels and lets libraries choose theirs, which a capture does not allow
        cuda().wait()
        try:
            graph = cuda().capture(function, self._pool)
        except RuntimeError as error:
            raise RuntimeError(f"CUDA graph {key} failed; CHATTERBOX_CUDA_GRAPHS=0 runs without: {error}") from error
        self._pool = self._pool or graph.pool()
        self._graphs[key] = graph

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Replays the graph of `key`, or calls `function`."""
        graph = self._graphs.get(key)
        if graph is None:
            function()
        else:
            graph.replay()


def buckets(limit: int) -> list[int]:
    """Batch sizes that graphs are captured for: 1, 2, 4, multiples of 8 up to 64 and of 32 above, and the limit."""
    sizes = {1, 2, 4, *range(8, 65, 8), *range(96, limit, 32)}
    return sorted({size for size in sizes if size < limit} | {limit})


def bucket(count: int, limit: int) -> int:
    """The smallest captured batch size that holds `count`."""
    return next(size for size in buckets(limit) if size >= count)
