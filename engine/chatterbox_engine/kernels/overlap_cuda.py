"""Programmatic dependent launch: a kernel begins while the previous one is still running.

Between two kernels of a graph a GPU is idle for a microsecond, and the next one's first loads take another. A kernel
that is launched this way begins as soon as the previous one allows it, loads what does not depend on that one, and only
then waits for its results. CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization"; GPUs of
compute capability 9 and above.

All kernels here follow one rule: a kernel allows the next one to begin when it has itself waited. So what existed
before the previous kernel began may be loaded early: weights, and keys and values of earlier steps, but nothing that
the previous kernel makes. The previous kernel must be one of these or be launched as usual: another library's, launched
this way, may let the next one begin before it has waited.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from chatterbox_engine.kernels.device import cuda

CAPABILITY = (9, 0)
"""Compute capability of the first GPUs that support it: Hopper."""


@triton.jit
def start_next(overlapping: tl.constexpr):  # type: ignore[no-untyped-def]
    """Waits for the previous kernel, and lets the next one begin. Only after this may a kernel read the previous one's
    results, and write."""
    if overlapping:
        gdc_wait()
        gdc_launch_dependents()


def overlaps(device: torch.device) -> bool:
    """Whether the device supports it; the interpreter does not."""
    return device.type == "cuda" and cuda().capability(device) >= CAPABILITY
