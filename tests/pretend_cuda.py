"""CUDA without a GPU: its rules for streams, graphs and pinned memory, over tensors with shapes but no values.

Inside `pretend_cuda`, `torch.device("cuda")` is available, and the engine runs as on a GPU. The following raise, either
as CUDA would or because CUDA would silently give wrong results:

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
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from chatterbox_engine.s3gen.attention_cuda import attend
from tests.elsewhere import Elsewhere, aten

NOT_THERE_YET = 99
"""The contents of a pinned copy before its event is complete."""


OUR_OPERATOR = attend._opoverload
"""Launches a kernel of our own."""


class Stream:
    """Work in order. `done`: the last tick that the host has waited for."""

    here: ClassVar[PretendCuda]

    def __init__(self, _device: object = None, priority: int = 0) -> None:
        self.priority, self.done = priority, 0
        self.arriving: list[tuple[int, Tensor]] = []
        """Copies to pinned memory, and the ticks at which they were launched."""
        self.here.streams.append(self)

    def synchronize(self) -> None:
        self.wait(self.here.tick)

    def wait(self, tick: int) -> None:
        """The host waits for all work launched up to that tick."""
        self.done = max(self.done, tick)
        with torch.inference_mode():  # as they were made in
            for copy in [copy for when, copy in self.arriving if when <= tick]:
                copy.zero_()
        self.arriving = [(when, copy) for when, copy in self.arriving if when > tick]


class Event:
    """A point in a stream's work."""

    here: ClassVar[PretendCuda]

    def record(self) -> None:
        self._stream, self._tick = self.here.stream, self.here.tick

    def synchronize(self) -> None:
        self._stream.wait(self._tick)


class Graph:
    """A captured graph: the external memory that it uses, and whether it writes it."""

    here: ClassVar[PretendCuda]

    def __init__(self) -> None:
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
        self.streams: list[Stream] = []
        self.graphs: list[Graph] = []
        self.launches = 0
        """Launches of Triton kernels, by the host and during capture."""
        self.operators: set[str] = set()
        """Calls of torch operators, by the host and during capture."""
        self.faults: list[str] = []
        """Violations found where no exception could be raised."""
        self.tick = 0
        self._current = threading.local()
        self.Stream, self.Event, self.Graph = (
            type(kind.__name__, (kind,), {"here": self}) for kind in (Stream, Event, Graph)
        )
        self.default = self.Stream()

    # Streams and graphs

    @property
    def stream(self) -> Stream:
        """The calling thread's stream."""
        return getattr(self._current, "stream", self.default)

    def set_stream(self, stream: Stream) -> None:
        self._current.stream = stream

    def synchronize(self, _device: object = None) -> None:
        for stream in self.streams:
            stream.wait(self.tick)

    @contextlib.contextmanager
    def capture(self, graph: Graph, *, pool: object, stream: Stream | None, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local", "the other threads go on meanwhile"
        assert stream is not self.default, "which cannot be captured"
        assert pool is None or pool is self
        self.synchronize()
        before, self._current.stream, self._current.graph = self.stream, stream or self.Stream(), graph
        try:
            yield
        finally:
            self._current.stream, self._current.graph = before, None
        self.graphs.append(graph)

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


@contextlib.contextmanager
def pretend_cuda(total: int = 80 << 30, free: int | None = None) -> Iterator[PretendCuda]:
    """A GPU for the calling thread and the threads started meanwhile. total: its bytes; free: of
    these, all by default."""
    device = PretendCuda()

    def launch(kernel: JITFunction[Any], *args: Any, **options: Any) -> None:
        device.launch(kernel, *args, **options)

    run_thread = threading.Thread.run

    def run_inside(thread: threading.Thread) -> None:
        with device:
            run_thread(thread)

    cuda = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation: True,
        "get_device_name": lambda _device: "pretended",
        "get_device_capability": lambda _device=None: (9, 0),
        "get_device_properties": lambda _device: SimpleNamespace(total_memory=total),
        "mem_get_info": lambda _device: (free or total, total),
        "memory_reserved": lambda _device: 0,
        "synchronize": device.synchronize,
        "Stream": device.Stream,
        "set_stream": device.set_stream,
        "current_stream": lambda: device.stream,
        "default_stream": lambda: device.default,
        "Event": device.Event,
        "CUDAGraph": device.Graph,
        "graph": device.capture,
    }
    with (
        mock.patch.multiple(torch.cuda, **cuda),
        mock.patch.object(torch.backends.cudnn, "is_acceptable", return_value=False),
        mock.patch.object(fake_tensor, "init_gpu_context"),
        mock.patch.object(JITFunction, "run", launch),
        mock.patch.object(threading.Thread, "run", run_inside),
        mock.patch.object(torch, "load", _without_modes(torch.load)),  # it would load no values
        device,
    ):
        yield device
        assert not device.faults, device.faults


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
