"""What a processor multiplies faster, or at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def multiplies_bfloat16_faster(processor: Mapping[str, Any] | None = None) -> bool:
    """Whether products of many rows are faster in bfloat16 than in float32 on a processor, by default this one.

    They are not on Intel's without AMX: one thread made 144 GFLOP/s in float32 and 86 in bfloat16 (docs/log/cpu.md). On
    AMD's with AVX512-BF16 bfloat16 was 2.7 times as fast (docs/log/t3.md). A rule and not a measurement at start: a
    start beside other work could choose differently, and other types give other speech.
    """
    processor = torch.cpu.get_capabilities() if processor is None else processor
    # AVX512-BF16 also comes with every processor that has AMX.
    intel = str(processor.get("cpu_name", "")).startswith("Intel")
    return bool(processor.get("amx_bf16") if intel else processor.get("avx512_bf16"))


def multiplies_float16(processor: Mapping[str, Any] | None = None) -> bool:
    """Whether a processor, by default this one, adds products of float16 in float16: twice as many as of float32
    (AVX512-FP16: 350 to 390 GFLOP/s on a core that made 160 to 190; docs/log/cpu.md)."""
    processor = torch.cpu.get_capabilities() if processor is None else processor
    return bool(processor.get("avx512_fp16"))
