"""CUDA graphs on the host."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from chatterbox_engine.kernels.graphs import Graphs


class PretendGraphs(Graphs):
    """Makes the engine use its buckets and static buffers, and runs every function as it is."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), enabled=False)
        self.enabled = True

    def capture(self, key: Hashable, function: Callable[[], None]) -> None:
        function()
