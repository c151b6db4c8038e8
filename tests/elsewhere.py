"""A device without hardware: its tensors have shapes and no values, and mixing them with the host's raises."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

COUNTED: dict[Any, Callable[..., list[int]]] = {
    aten.nonzero.default: lambda mask: [mask.numel(), mask.ndim],  # all of it
    aten.bincount.default: lambda _numbers, _weights, least: [least],
}
"""Shapes that depend on values."""

_OWN = {"elsewhere.py", "pretend_cuda.py"}


class _OfThread:
    """An attribute of which every thread has its own value."""

    def __init__(self, first: Callable[[], Any]) -> None:
        self._first, self._values = first, threading.local()

    def __get__(self, mode: object, _type: object) -> Any:
        values = self._values.__dict__
        return values.setdefault(id(mode), self._first())

    def __set__(self, mode: object, value: Any) -> None:
        self._values.__dict__[id(mode)] = value


class Elsewhere(FakeTensorMode):
    """Makes `device` one of shapes without values; the host stays as it is. Mixing their tensors raises."""

    avoid_device_init = True
    # The engine's threads are inside of one mode at once, which torch is not made for: so each has its own of these.
    in_kernel_invocation = _OfThread(bool)
    enter_stack = _OfThread(list)

    def __init__(self, device: torch.device) -> None:
        self._one_at_a_time = threading.RLock()
        super().__init__(allow_non_fake_inputs=True)
        self.device = device
        self.truth = True
        """What is read of a truth value; of a number zero is read."""
        self.waits: list[str] = []
        """What the host waited for, and where: `aten.equal.default in file.py:function`."""

    def dispatch(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "prim":  # asks for what a tensor is
            return super().dispatch(function, types, args, kwargs)
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        target = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
        away = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if not away and (target is None or target.type != self.device.type):
            return self.on_host(function, args, kwargs)
        if function._can_decompose():
            with self:
                value = function.decompose(*args, **kwargs)
            if value is not NotImplemented:
                return value
        with self._one_at_a_time:
            return self.away(function, types, args, kwargs, tensors, target)

    def on_host(self, function: Any, args: Any, kwargs: Any) -> Any:
        """An operation that the device has no part in."""
        return function(*args, **kwargs)

    def away(self, function: Any, types: Any, args: Any, kwargs: Any, tensors: list[Tensor], target: Any) -> Any:
        """An operation of the device, or between it and the host."""
        if function is aten._local_scalar_dense.default:
            self.wait(function)
            return self.truth if args[0].dtype == torch.bool else 0
        if function is aten.equal.default:
            self.wait(function)
            return False
        if function in COUNTED:
            self.wait(function)
            new = aten.empty.memory_format
            return super().dispatch(new, (), (COUNTED[function](*args),), {"dtype": torch.int64, "device": self.device})
        if function is aten._to_copy.default and target is not None and target.type == "cpu":
            return self.download(function, args[0], kwargs)
        if function is aten._to_copy.default and not isinstance(args[0], FakeTensor):
            return self.upload(args[0], kwargs)
        return super().dispatch(function, types, args, kwargs)

    def download(self, function: Any, source: Tensor, kwargs: Any) -> Tensor:
        """A copy on the host: of zeros."""
        self.wait(function)
        return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)

    def upload(self, source: Tensor, kwargs: Any) -> Any:
        """The same by torch's own way takes milliseconds."""
        new, like = aten.empty_strided.default, torch.empty_like(source)
        options = {"dtype": kwargs.get("dtype") or source.dtype, "device": self.device}
        return super().dispatch(new, (), (like.shape, like.stride()), options)

    def wait(self, function: Any) -> None:
        """Notes that the host waits."""
        self.waits.append(f"{function} in {_caller()}")


def _caller() -> str:
    """Where torch was called, in the engine if it was."""
    found, frame = "", sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent.name == "chatterbox_engine" or "chatterbox_engine" in path.parts:
            return f"{path.name}:{frame.f_code.co_name}"
        if not found and path.name not in _OWN and "torch" not in path.parts:
            found = f"{path.name}:{frame.f_code.co_name}"
        frame = frame.f_back
    return found
