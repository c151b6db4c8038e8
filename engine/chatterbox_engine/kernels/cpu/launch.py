"""Kernels as C functions, and how torch's threads run them."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Callable
from ctypes import c_int64
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from numba import cfunc, types
from torch import Tensor

COUNTERS = [("next", c_int64), ("begun", c_int64), ("done", c_int64)]
BEGUN, DONE = ctypes.sizeof(c_int64), 2 * ctypes.sizeof(c_int64)
"""Offsets of the counters after `next`."""


_SOURCES = hashlib.sha256(
    b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()


class Kernel:
    """A kernel as a C function, which is compiled or loaded from the cache when it is first asked for.

    Each type of tensors has a function of its own, written out: numba does not find a function in its cache again that
    was made for a type by another function.
    """

    def __init__(self, function: Callable[[Any], None]) -> None:
        # numba compiles a cached function again when its own file has changed, and would miss a change of a file that
        # this one imports: so all files are a part of the name that it is cached under
        function.__qualname__ += f"_{_SOURCES[:8]}"
        self._function = function
        self._compiled: Any = None  # kept, as it owns the code
        self._lock = threading.Lock()

    @cached_property
    def address(self) -> int:
        """Where it is; cached on disk if numba finds a folder that it can write to."""
        with self._lock:  # from Python 3.12 on several threads may be in here, and the code of the first would be freed
            if self._compiled is None:
                self._compiled = self._compile()
        place: int = self._compiled.address
        return place

    def _compile(self) -> Any:
        declared = types.void(types.voidptr)
        try:
            return cfunc(declared, cache=True)(self._function)
        except RuntimeError:  # no such folder: a read-only installation and no home
            return cfunc(declared)(self._function)


_openmp = ctypes.CDLL(None)  # torch's own
_openmp.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
_PAUSE_SOFTLY = 1  # keeping its settings


def run(kernel: Kernel, call: ctypes.Structure) -> None:
    """Runs a kernel on as many threads as torch would use.

    Raises RuntimeError when a thread has not done its part; its exception has been printed.
    """
    _openmp.GOMP_parallel(kernel.address, ctypes.addressof(call), torch.get_num_threads(), 0)
    if call.begun != call.done:
        raise RuntimeError(f"{call.begun - call.done} of {call.begun} threads of a kernel failed")


def address(tensor: Tensor | None) -> int:
    """Where a tensor's numbers are; 0 without one."""
    if tensor is None:
        return 0
    assert tensor.is_cpu
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def release_threads() -> None:
    """Ends the OpenMP team of the calling thread; its next parallel region makes a new one.

    libgomp counts the threads of all teams, and if they are more than the cores, none of them busy-waits. Then each
    region of one network waits for the system's scheduler twice, because of another's idle team.
    """
    _openmp.omp_pause_resource_all(_PAUSE_SOFTLY)
