"""CUDA's rules, watched without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chatterbox_engine.graphs import Graphs


class PretendGraphs(Graphs):
    """Makes the engine use its buckets and static buffers, and runs every function as it is."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), enabled=False)
        self.enabled = True

    def capture(self, key: Hashable, function: Callable[[], None]) -> None:
        function()


class HostCopies(TorchDispatchMode):
    """Notes every operation that touches a tensor of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))
