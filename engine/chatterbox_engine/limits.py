"""How large the regions that Triton shares with its models may become.

Triton 2.51 takes requests of any size and copies each into a region that grows and never shrinks. A region is a file,
so the kernel's bound on a process's files (RLIMIT_FSIZE) bounds it: a request beyond it is answered with an error, and
the rest of the server goes on.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

LARGEST_REGION = 512 << 20
"""Bytes: sixteen of the largest reference clips at once."""

_MEMORY = Path("/dev/shm")


def limit_regions(server: int) -> None:
    """Bounds the regions that a tritonserver, with its models loaded, makes larger: no model may fill all of the memory
    that they share. The processes of the models, which also write other files, keep their own bound."""
    memory = os.statvfs(_MEMORY)
    largest = min(LARGEST_REGION, memory.f_blocks * memory.f_frsize // 2)
    _, highest = resource.prlimit(server, resource.RLIMIT_FSIZE)
    resource.prlimit(server, resource.RLIMIT_FSIZE, (largest, highest))


def lift_file_limit() -> None:
    """For the process of a model that is loaded later, and begins with the server's bound."""
    _, highest = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (highest, highest))
