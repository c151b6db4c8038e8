"""CUDA without a GPU: its rules for streams, graphs and pinned memory, over tensors with shapes but no values.

Inside `pretend_cuda`, the engine's `kernels.device.cuda()` is a simulated GPU, and tensors of `torch.device("cuda")`
can be made. The following raise, either as CUDA would or because CUDA would silently give wrong results:

- synchronising with the device, or using a host tensor, while a graph is captured;
- replaying a graph after memory that it uses was freed;
- work on a stream that reads what another stream may still write, or writes what another may still read;
- freeing memory while a stream other than its own may still use it.

All other synchronisations of the host are recorded in `waits`.
"""

from __future__ import annotations

import ast
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from chatterbox_engine.kernels import device
from chatterbox_engine.kernels.device import Cuda
from chatterbox_engine.s3gen.attention_cuda import attend
from tests.elsewhere import Elsewhere, aten

NOT_THERE_YET = 99
"""The contents of a pinned copy before its event is complete."""


OUR_OPERATOR = attend._opoverload
"""Launches a kernel of our own."""


class Stream:
    """Work in order. `done`: the last tick that the host has waited for."""

    def __init__(self) -> None:
        self.done = 0
        self.arriving: list[tuple[int, Tensor]] = []
        """Copies to pinned memory, and the ticks at which they were launched."""

    def wait(self, tick: int) -> None:
        """The host waits for all work launched up to that tick."""
        self.done = max(self.done, tick)
        with torch.inference_mode():  # as they were made in
            for copy in [copy for when, copy in self.arriving if when <= tick]:
                copy.zero_()
        self.arriving = [(when, copy) for when, copy in self.arriving if when > tick]


@dataclass(frozen=True)
class Event:
    """A point in a stream's work."""

    stream: Stream
    tick: int

    def synchronize(self) -> None:
        self.stream.wait(self.tick)


class Graph:
    """A captured graph: the external memory that it uses, and whether it writes it."""

    def __init__(self, here: PretendCuda) -> None:
        self.here = here
        self.uses: dict[tuple[int, bool], weakref.ref[Any]] = {}

    def pool(self) -> object:
        return self.here

    def replay(self) -> None:
        for (_, write), memory in self.uses.items():
            storage = memory()
            if storage is None:
                raise RuntimeError("a graph is replayed whose memory was given back")
            self.here.use(storage, write)


Uses = dict[tuple[Stream, bool], int]
"""When each stream last read (False) and wrote (True) some memory."""


class PretendCuda(Elsewhere):
    """The rules."""

    def __init__(self) -> None:
        super().__init__(torch.device("cuda", 0))
        self.default = Stream()
        self.streams = [self.default]
        self.graphs: list[Graph] = []
        self.launches = 0
        """Launches of Triton kernels, by the host and during capture."""
        self.operators: set[str] = set()
        """Calls of torch operators, by the host and during capture."""
        self.faults: list[str] = []
        """Violations found where no exception could be raised."""
        self.tick = 0
        self._current = threading.local()

    # Streams and graphs

    @property
    def stream(self) -> Stream:
        """The calling thread's stream."""
        return getattr(self._current, "stream", self.default)

    def new_stream(self) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]

    def use_own_stream(self) -> None:
        """A new stream for the calling thread, which from now on makes tensors of the device."""
        if not getattr(self._current, "inside", False):
            self.__enter__()
        self._current.stream = self.new_stream()

    def __enter__(self) -> PretendCuda:
        self._current.inside = True
        return super().__enter__()

    def synchronize(self) -> None:
        for stream in self.streams:
            stream.wait(self.tick)

    def capture(self, function: Callable[[], None], pool: object) -> Graph:
        assert pool is None or pool is self
        self.synchronize()
        before, graph = self.stream, Graph(self)
        # the default stream cannot be captured
        self._current.stream, self._current.graph = self.new_stream() if before is self.default else before, graph
        try:
            function()
        finally:
            self._current.stream, self._current.graph = before, None
        self.graphs.append(graph)
        return graph

    @property
    def capturing(self) -> Graph | None:
        """The calling thread's capture state."""
        return getattr(self._current, "graph", None)

    # Memory

    def use(self, storage: Any, write: bool) -> None:
        """Records an access to some memory by the calling thread's stream."""
        if not hasattr(storage, "uses"):
            storage.home, storage.uses, storage.graph = self.stream, {}, self.capturing
            weakref.finalize(storage, self.given_back, storage.home, storage.uses).atexit = False
        if self.capturing:  # no work is launched yet
            if storage.graph is not self.capturing:
                self.capturing.uses[storage._cdata, write] = weakref.ref(storage)
            return
        for (stream, wrote), tick in storage.uses.items():
            if stream is not self.stream and tick > stream.done and (write or wrote):
                raise RuntimeError("two streams use the same memory, and nothing says which one is first")
        storage.uses[self.stream, write] = self.tick

    def given_back(self, home: Stream, uses: Uses) -> None:
        """The allocator reuses freed memory for the next work of the stream that allocated it."""
        if any(stream is not home and tick > stream.done for (stream, _), tick in uses.items()):
            self.faults.append("memory was given back that another stream may still use")

    # Operations

    def on_host(self, function: Any, args: Any, kwargs: Any) -> Any:
        if function is aten.is_pinned.default:
            return _is_pinned(args[0])
        if function in (aten.pin_memory.default, aten._pin_memory.default):
            return _pinned(args[0].clone())
        if kwargs.get("pin_memory"):
            return _pinned(function(*args, **(kwargs | {"pin_memory": False})))
        return function(*args, **kwargs)

    def away(self, function: Any, types: Any, args: Any, kwargs: Any, tensors: list[Tensor], target: Any) -> Any:
        self.tick += 1
        self.operators.add(function._schema.name)
        host = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor)]
        if host and self.capturing:
            raise RuntimeError(f"{function} uses a tensor of the host while a graph is captured")
        if function is OUR_OPERATOR:
            with self:
                return attend._init_fn(*args, **kwargs)
        if function is aten.copy_.default and host and host[0] is args[0]:
            return self.copy_to_host(function, *args)
        if function in (aten.copy_.default, aten._to_copy.default) and host:
            if not (_is_pinned(host[0]) and (kwargs.get("non_blocking") or True in args[2:])):
                self.wait(function)
        elif host and function is not aten.fill_.Tensor:  # which takes a number
            self.wait(function)
        value = super().away(function, types, args, kwargs, tensors, target)
        self.note_uses(function, args, kwargs, value)
        return value

    def copy_to_host(self, function: Any, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        self.use(source.untyped_storage(), False)
        if non_blocking and _is_pinned(target):
            self.stream.arriving.append((self.tick, target.fill_(NOT_THERE_YET)))
        else:
            self.wait(function)
            target.zero_()
        return target

    def note_uses(self, function: Any, args: Any, kwargs: Any, value: Any) -> None:
        given = zip(function._schema.arguments, (*args, *[None] * len(function._schema.arguments)), strict=False)
        for argument, default in given:
            write = argument.alias_info is not None and argument.alias_info.is_write
            for leaf in tree_leaves(kwargs.get(argument.name, default)):
                if isinstance(leaf, FakeTensor):
                    self.use(leaf.untyped_storage(), write)
        for leaf in tree_leaves(value):
            if isinstance(leaf, FakeTensor) and not hasattr(leaf.untyped_storage(), "uses"):
                self.use(leaf.untyped_storage(), True)

    def launch(self, kernel: JITFunction[Any], *args: Any, grid: tuple[int, ...], warmup: bool, **_sizes: Any) -> None:
        """Launches of a Triton kernel."""
        assert all(isinstance(size, int) and size > 0 for size in grid)
        written = _written(kernel)
        for name, argument in zip(kernel.arg_names, args, strict=False):
            if isinstance(argument, Tensor):
                assert isinstance(argument, FakeTensor), "a kernel is given a tensor of the host"
                assert argument.is_contiguous()
                self.use(argument.untyped_storage(), name in written)
        self.launches += 1

    def wait(self, function: Any) -> None:
        if self.capturing:
            raise RuntimeError(f"{function} waits for the device while a graph is captured")
        self.stream.wait(self.tick)
        super().wait(function)


class Simulated(Cuda):
    """The engine's view of a `PretendCuda` with so many bytes of memory."""

    def __init__(self, device: PretendCuda, total: int, free: int, bfloat16: bool) -> None:
        self._device, self._total, self._free, self._bfloat16 = device, total, free, bfloat16

    def is_available(self) -> bool:
        return True

    def name(self, device: torch.device) -> str:
        return "simulated"

    def capability(self, device: torch.device) -> tuple[int, int]:
        return 9, 0

    def has_bfloat16(self) -> bool:
        return self._bfloat16

    def total_memory(self, device: torch.device) -> int:
        return self._total

    def free_memory(self, device: torch.device) -> int:
        return self._free

    def reserved_memory(self, device: torch.device) -> int:
        return 0

    def synchronize(self, device: torch.device) -> None:
        self._device.synchronize()

    def use_own_stream(self, device: torch.device, priority: int) -> None:
        self._device.use_own_stream()

    def use_device(self, device: torch.device) -> None:
        pass

    def wait(self) -> None:
        self._device.stream.wait(self._device.tick)

    def record(self) -> Event:
        return Event(self._device.stream, self._device.tick)

    def capture(self, function: Callable[[], None], pool: Any) -> Graph:
        return self._device.capture(function, pool)


@contextlib.contextmanager
def pretend_cuda(total: int = 80 << 30, free: int | None = None, *, bfloat16: bool = True) -> Iterator[PretendCuda]:
    """A GPU for the calling thread, and for the threads that take a stream of their own meanwhile. total: its bytes;
    free: of these, all by default; bfloat16: whether it multiplies that."""
    pretended = PretendCuda()

    def launch(kernel: JITFunction[Any], *args: Any, **options: Any) -> None:
        pretended.launch(kernel, *args, **options)

    with (
        mock.patch.object(device, "installed", Simulated(pretended, total, free or total, bfloat16)),
        mock.patch.object(JITFunction, "run", launch),  # Triton has no other place for a driver that compiles nothing
        mock.patch.object(torch.backends.cudnn, "is_acceptable", return_value=False),  # an LSTM would ask for addresses
        mock.patch.object(torch, "load", _without_modes(torch.load)),  # it would load no values
        pretended,
    ):
        yield pretended
        assert not pretended.faults, pretended.faults


def _written(kernel: JITFunction[Any]) -> set[str]:
    """Names of the arguments that a Triton kernel stores to; all of them if it stores to a computed address."""
    written: set[str] = set()
    for call in ast.walk(kernel.parse()):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("tl.store", "tl.atomic_add"):
            named = {node.id for node in ast.walk(call.args[0]) if isinstance(node, ast.Name)} & set(kernel.arg_names)
            written |= named or set(kernel.arg_names)
    return written


def memory_of(*owners: object) -> set[int]:
    """The memory of the tensors that are attributes of these."""
    leaves = tree_leaves([list(vars(owner).values()) for owner in owners])
    return {leaf.untyped_storage()._cdata for leaf in leaves if isinstance(leaf, FakeTensor)}


def _without_modes(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **options)

    return call


def _pinned(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().pinned = True  # type: ignore[attr-defined]
    return tensor


def _is_pinned(tensor: Tensor) -> bool:
    return hasattr(tensor.untyped_storage(), "pinned")
