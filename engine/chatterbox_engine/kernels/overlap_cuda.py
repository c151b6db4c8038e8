"""Programmatic dependent launch: a kernel begins while the one before it is still at work.

Between two kernels of a graph a GPU is idle for a microsecond, and the next one's first loads take another. A kernel
that is launched so begins as soon as the one before allows it, reads what does not depend on that one, and waits for
its results only then. CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization"; GPUs of compute
capability 9 and above.

All our kernels keep one rule: they allow the next one to begin when they themselves have waited. So whatever was there
before the kernel before, two kernels ago, may be read ahead: weights, and keys and values of earlier steps. What the
kernel just before makes may not be among them. That one is ours, or is launched as usual: a foreign one, launched so
too, may let ours begin before it has waited.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

CAPABILITY = (9, 0)
"""Of the first GPUs that have it: Hopper."""


@triton.jit
def start_next(overlapping: tl.constexpr):  # type: ignore[no-untyped-def]
    """Waits for the kernel before this one, and lets the next one begin. What stands behind it may depend on the former
    and may write."""
    if overlapping:
        gdc_wait()
        gdc_launch_dependents()


def overlaps(device: torch.device) -> bool:
    """Whether the device can; the interpreter cannot."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
