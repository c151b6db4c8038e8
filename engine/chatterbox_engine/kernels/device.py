"""What the engine asks of CUDA besides tensors: devices, streams, events and graphs; uploads that do not wait.

All of it goes through one object, `cuda()`, in whose place tests put a simulated GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> None:
        """Waits until the device has got there."""


class Graph(Protocol):
    """A captured function."""

    def replay(self) -> None:
        """Launches its work again, on the memory that it was captured with."""

    def pool(self) -> Any:
        """Torch's opaque handle of the memory of its own tensors."""


class Cuda:
    """CUDA, by torch. Methods without a device mean that of the calling thread's current stream."""

    def is_available(self) -> bool:
        """Whether there is a GPU."""
        return torch.cuda.is_available()

    def name(self, device: torch.device) -> str:
        """The GPU's name."""
        return torch.cuda.get_device_name(device)

    def capability(self, device: torch.device) -> tuple[int, int]:
        """Its compute capability."""
        return torch.cuda.get_device_capability(device)

    def has_bfloat16(self) -> bool:
        """Whether it multiplies bfloat16 in hardware."""
        return torch.cuda.is_bf16_supported(including_emulation=False)

    def total_memory(self, device: torch.device) -> int:
        """Bytes of its memory."""
        return torch.cuda.get_device_properties(device).total_memory

    def free_memory(self, device: torch.device) -> int:
        """Bytes that no process uses."""
        return torch.cuda.mem_get_info(device)[0]

    def reserved_memory(self, device: torch.device) -> int:
        """Bytes that torch holds."""
        return torch.cuda.memory_reserved(device)

    def synchronize(self, device: torch.device) -> None:
        """Waits for all work of all streams."""
        torch.cuda.synchronize(device)

    def use_own_stream(self, device: torch.device, priority: int) -> None:
        """Makes a new stream the calling thread's."""
        torch.cuda.set_stream(torch.cuda.Stream(device, priority=priority))

    def use_device(self, device: torch.device) -> None:
        """Makes a device the calling thread's."""
        torch.cuda.set_device(device)

    def wait(self) -> None:
        """Waits for the calling thread's work."""
        torch.cuda.current_stream().synchronize()

    def record(self) -> Event:
        """An event after the work that the calling thread has launched."""
        event = torch.cuda.Event()
        event.record()
        return event

    def capture(self, function: Callable[[], None], pool: Any) -> Graph:
        """Captures `function`, which has run before and whose work is done.

        pool: that of an earlier graph, whose memory this one shares, or None. Raises RuntimeError when the function
        cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        # The default stream cannot be captured; None is a side stream of torch's own.
        stream = None if current == torch.cuda.default_stream() else current
        # thread_local: another thread (the vocoder) may use the GPU meanwhile
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            function()
        return graph


installed = Cuda()
"""What `cuda` returns."""


def cuda() -> Cuda:
    """CUDA, or what a test has installed in its place."""
    return installed


def own_stream(device: torch.device, priority: int = 0) -> None:
    """Gives the calling thread a CUDA stream of its own, so that its work and that of other threads do not wait for
    each other; priority: -1 goes before 0. Does nothing on a CPU."""
    if device.type == "cuda":
        cuda().use_own_stream(device, priority)


def upload(values: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """Values on the device, copied from pinned memory, so that the host does not wait for the device. Tensors that are
    on the device already are returned as they are."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Download:
    """A tensor on its way to the host."""

    def __init__(self, values: Tensor) -> None:
        """The device may overwrite the tensor afterwards."""
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._ready: Event | None = cuda().record()
        else:
            self._values = values.clone()
            self._ready = None

    def read(self) -> Any:
        """The tensor as lists; waits for the device."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._values.tolist()


def reserved_bytes(device: torch.device) -> int:
    """GPU memory that torch holds; 0 for a CPU."""
    return cuda().reserved_memory(device) if device.type == "cuda" else 0
