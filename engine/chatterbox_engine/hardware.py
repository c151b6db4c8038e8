"""What the machine offers and how much of it is used: device, weight types, threads, memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from chatterbox_engine.errors import ConfigError
from chatterbox_engine.kernels.device import cuda
from chatterbox_engine.kernels.processor import multiplies_bfloat16_faster, multiplies_float16

Report = Callable[[str], None]

LONG_STEP = 64 << 20
"""Bytes of weights read by a step of T3 from which a second thread pays off."""


def choose_device(name: str) -> torch.device:
    """The device that a setting names; `auto` is CUDA where there is one. Raises ConfigError when it does not exist."""
    if name == "auto":
        return torch.device("cuda" if cuda().is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}, which torch does not know") from error
    if device.type == "cuda" and not cuda().is_available():
        raise ConfigError(f"device is {name!r} but torch sees no CUDA device")
    return device


def name_of(dtype: torch.dtype) -> str:
    """As people write it: float32, bfloat16."""
    return str(dtype).removeprefix("torch.")


def choose_dtypes(
    name: str,
    device: torch.device,
    report: Report,
    *,
    fused_products: bool = True,
    packed_products: bool = False,
    processor: Mapping[str, Any] | None = None,
) -> tuple[torch.dtype, torch.dtype]:
    """The types of T3's and of S3Gen's weights: bfloat16 where the device multiplies it faster than float32, float16 on
    other GPUs and on CPUs that multiply it, else float32.

    Other CPUs have T3's weights in bfloat16 all the same: reading them is most of a step, and the fused kernel widens
    them to float32 on the way. fused_products: whether T3 uses that kernel, which neither compiled steps nor quantised
    weights do. packed_products: whether it multiplies many rows at a time instead, so that its type is that of the
    faster product. Where a CPU's products are not our kernel's, or it does not multiply float16, `float16` is what it
    takes by itself. processor: what torch knows of the CPU, by default of this one.
    """
    processor = torch.cpu.get_capabilities() if processor is None else processor
    if name == "float16" and device.type == "cpu":
        if not multiplies_float16(processor):
            report("this processor does not multiply float16: it takes what dtype=auto takes")
    elif name != "auto":
        chosen = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
        return chosen, chosen
    if device.type == "cuda":
        if cuda().has_bfloat16():
            return torch.bfloat16, torch.bfloat16
        report(f"{cuda().name(device)} has no bfloat16: using float16")
        return torch.float16, torch.float16
    halves = multiplies_float16(processor)
    if multiplies_bfloat16_faster(processor) and not (halves and name == "float16"):
        return torch.bfloat16, torch.bfloat16
    has_bfloat16 = bool(processor.get("avx512_bf16"))
    stored = fused_products or (has_bfloat16 and not packed_products)
    if halves:
        plain = torch.bfloat16 if stored else torch.float32
        return torch.float16 if fused_products or packed_products else plain, torch.float16
    if not has_bfloat16:
        kept = "S3Gen is float32, which is slower, and T3's weights are stored in bfloat16"
        report(f"this processor has no bfloat16: {kept if stored else 'using float32, which is slower'}")
    return torch.bfloat16 if stored else torch.float32, torch.float32


def cores(environment: Mapping[str, str] | None = None) -> int:
    """Cores for the networks on a CPU: those that the process may run on, at most `OMP_NUM_THREADS`.

    A team of threads larger than that variable busy-waits at every barrier, also for a thread that other programs keep
    from running: with both cores of two busy, four seconds of audio took 25 seconds, and 2.5 with a team within it.
    """
    environment = os.environ if environment is None else environment
    there = len(os.sched_getaffinity(0))
    limit = environment.get("OMP_NUM_THREADS", "").partition(",")[0]  # one number for each level of nesting
    return min(there, int(limit)) if limit.isdigit() and int(limit) else there


def share_of_cores(cpu_threads: int) -> int:
    """Threads of one network on a CPU while the other one works too. cpu_threads: the setting, 0 for half the cores."""
    return cpu_threads or max(1, cores() // 2)


def vocoder_threads(cpu_threads: int, device: torch.device) -> tuple[int, int] | None:
    """Threads of S3Gen on a CPU, beside other work and alone; None on a GPU.

    Alone it gets the cores that T3's share leaves and one more, since T3's own thread is idle then. With a larger team
    libgomp counts more threads than cores, T3's idle ones among them, and lets none of them busy-wait at its barriers:
    on two cores a step of T3 then took 38 to 50 ms instead of 23.
    """
    if device.type != "cpu":
        return None
    share = share_of_cores(cpu_threads)
    return share, share if cpu_threads else cores() - share + 1


def t3_threads(cpu_threads: int, device: torch.device, weight_bytes: int) -> tuple[int, int] | None:
    """Threads of T3 on a CPU, beside S3Gen and alone, where a step is long (`LONG_STEP`). None leaves the number as it
    is."""
    return vocoder_threads(cpu_threads, device) if weight_bytes >= LONG_STEP else None


def configure_torch(device: torch.device, vocoder_dtype: torch.dtype, cpu_threads: int) -> None:
    """Sets torch's process-wide switches: threads, and what its GPU libraries may do."""
    if device.type == "cpu":
        torch.set_num_threads(share_of_cores(cpu_threads))
        return
    if device.index is not None:
        cuda().use_device(device)  # of kernels that this thread launches; the others' streams set theirs
    # The host's tensors are small: a team of threads for each of them, with several callers at once, spends more time
    # waiting than working (docs/log/host.md).
    torch.set_num_threads(1)
    # HiFT stays float32 beside weights of two bytes; its convolutions may round their factors to TF32's ten bits, as
    # upstream's do on a GPU. Where all weights are float32, that is for exactness.
    torch.backends.cudnn.allow_tf32 = vocoder_dtype != torch.float32
    # cuDNN's attention makes a plan for every new shape, which costs more than it saves where lengths vary.
    torch.backends.cuda.enable_cudnn_sdp(False)


def total_memory(device: torch.device) -> int:
    """Bytes of the device, or of the machine for a CPU."""
    if device.type == "cuda":
        return cuda().total_memory(device)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that nothing uses; of a CPU all of the machine's."""
    return cuda().free_memory(device) if device.type == "cuda" else total_memory(device)
