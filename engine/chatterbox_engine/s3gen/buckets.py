"""A function of padded tensors on static memory: one CUDA graph per bucket of rows and positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chatterbox_engine.kernels.graphs import Graphs


class Buckets:
    """The captured sizes of one function, whose rows must depend neither on each other nor on their padding.

    A batch is copied into the smallest bucket that holds it. Padding is zeroed: stale values of an earlier batch are
    harmless only if they are finite, since a mask does not remove a NaN.
    """

    def __init__(self, name: str, function: Callable[..., Tensor]) -> None:
        self._name = name
        self._function = function
        self._buckets: dict[tuple[int, int], _Bucket] = {}

    def capture(self, graphs: Graphs, rows: int, size: int, inputs: tuple[Tensor, ...]) -> None:
        """Adds a bucket. inputs: valid ones of exactly that size, which become the bucket's static memory."""
        bucket = _Bucket((self._name, rows, size), self._function, inputs, graphs)
        self._buckets[rows, size] = bucket

    def find(self, rows: int, size: int) -> _Bucket | None:
        """The bucket with the least padding for that many rows and positions; None when none is large enough."""
        fitting = [key for key in self._buckets if key[0] >= rows and key[1] >= size]
        return self._buckets[min(fitting, key=lambda key: key[0] * key[1])] if fitting else None


class _Bucket:
    """Static inputs and the graph that reads them."""

    def __init__(
        self, key: tuple[str, int, int], function: Callable[..., Tensor], inputs: tuple[Tensor, ...], graphs: Graphs
    ) -> None:
        self._key, self._function, self._inputs, self._graphs = key, function, inputs, graphs
        self._output = torch.empty(0)
        graphs.capture(key, self._call)

    def _call(self) -> None:
        self._output = self._function(*self._inputs)

    def run(self, *inputs: Tensor) -> Tensor:
        """A copy of the function's value for the rows of the inputs, as many positions as the bucket has."""
        for target, source in zip(self._inputs, inputs, strict=True):
            if target.is_floating_point():  # lengths and tokens of unused rows stay valid
                target.zero_()
            target[tuple(slice(size) for size in source.shape)].copy_(source, non_blocking=True)
        self._graphs.run(self._key, self._call)
        return self._output[: inputs[0].shape[0]].clone()
