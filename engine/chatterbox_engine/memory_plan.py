"""How the device's memory is divided between the KV cache, the vocoder's batches and the rest."""

from __future__ import annotations

import torch

from chatterbox_engine.checkpoint.dims import T3Dims
from chatterbox_engine.errors import ConfigError
from chatterbox_engine.gpu_share import ALL, GpuShare
from chatterbox_engine.hardware import Report, free_memory, total_memory
from chatterbox_engine.kernels.device import reserved_bytes
from chatterbox_engine.synthesis.prefixes import PREFIX_BYTES
from chatterbox_engine.t3.kv_cache import bytes_per_position

GPU_RESERVE = 2 << 30
"""Bytes of a GPU for T3's activations and graphs and the clip encoders."""

LARGEST_VOCODER_MEMORY = 12 << 30
"""16 utterances of 40 s."""


def plan_positions(dims: T3Dims, rows: int, max_cache_len: int) -> int:
    """KV positions of the pool: `max_cache_len` a row, and at least the longest possible request of two rows."""
    return max(rows * max_cache_len, 2 * (dims.longest + 64))


def choose_slots(
    dims: T3Dims, rows: int, max_cache_len: int, dtype: torch.dtype, device: torch.device, share: GpuShare = ALL
) -> int:
    """Slots where the settings name no number: as many as the memory holds, up to 64 on a GPU and 16 on a CPU."""
    each = rows * max_cache_len * bytes_per_position(dims, dtype)
    return max(1, min(64 if device.type == "cuda" else 16, cache_memory(device, share) // each))


def vocoder_memory(device: torch.device, share: GpuShare = ALL) -> int:
    """Bytes for one batch of S3Gen: a quarter of the engine's share, up to `LARGEST_VOCODER_MEMORY`."""
    total = total_memory(device)
    return min(LARGEST_VOCODER_MEMORY, (share.bytes_of(total) if device.type == "cuda" else total) // 4)


def cache_memory(device: torch.device, share: GpuShare = ALL) -> int:
    """Bytes for the KV cache: on a GPU what the weights, prefixes, S3Gen's batches with their graphs and the reserve
    leave of the engine's share."""
    free = free_memory(device)
    if device.type == "cuda":
        own = share.bytes_of(total_memory(device)) - reserved_bytes(device)
        return min(free, own) - GPU_RESERVE - PREFIX_BYTES - vocoder_memory(device, share) * 5 // 4
    return free


def check_memory(
    needed: int,
    device: torch.device,
    *,
    max_slots: int,
    rows: int,
    max_cache_len: int,
    report: Report,
    share: GpuShare = ALL,
) -> None:
    """Refuses a KV cache that cannot fit, with the numbers. needed: its bytes; rows: of a slot. Raises ConfigError."""
    available = cache_memory(device, share)
    each = "1 row" if rows == 1 else f"{rows} rows"
    plan = f"KV cache: {max_slots} slots of {each} of {max_cache_len} positions, {needed / 1e9:.2f} GB"
    kind = f"free on {device}" if device.type == "cuda" else "of memory in all"
    report(f"{plan}; {available / 1e9:.1f} GB {kind}")
    if needed > available:
        raise ConfigError(
            f"{plan}, but {device} has {available / 1e9:.2f} GB for it: "
            "lower CHATTERBOX_MAX_SLOTS or CHATTERBOX_MAX_CACHE_LEN"
            + ("" if share == ALL else ", or raise CHATTERBOX_GPU_MEMORY")
        )
