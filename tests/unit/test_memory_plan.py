"""How the memory is divided before anything is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chatterbox_engine import memory_plan
from chatterbox_engine.checkpoint.dims import LlamaDims
from chatterbox_engine.config import Config
from chatterbox_engine.errors import ConfigError
from chatterbox_engine.gpu_share import ALL, GpuShare
from chatterbox_engine.synthesis.prefixes import PREFIX_BYTES
from tests.pretend_cuda import pretend_cuda

CPU = torch.device("cpu")
PLAN: dict[str, Any] = {"max_slots": 64, "rows": 2, "max_cache_len": 1200, "report": lambda _line: None}


def test_the_pool_holds_two_rows_a_slot_and_at_least_the_longest_request() -> None:
    assert memory_plan.plan_positions(LlamaDims(), 2 * 64, 1200) == 64 * 2 * 1200
    longest = memory_plan.plan_positions(LlamaDims(), 2, 1200)
    assert longest >= 2 * (34 + 2048 + 2 + 2 + 4096)


def test_a_cache_that_cannot_fit_is_refused_with_the_numbers() -> None:
    lines: list[str] = []
    with pytest.raises(ConfigError, match=r"KV cache: 64 slots .* 1000000.00 GB, but cpu has .* CHATTERBOX_MAX_SLOTS"):
        memory_plan.check_memory(10**15, CPU, **PLAN | {"report": lines.append})
    assert lines[0].startswith("KV cache: 64 slots of 2 rows of 1200 positions")


def test_a_gpu_keeps_room_for_prefixes_and_the_vocoder_beside_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, total, free = torch.device("cuda"), 40 << 30, 30 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(total_memory=total))
    room = free - memory_plan.GPU_RESERVE - PREFIX_BYTES - (total // 4) * 5 // 4
    memory_plan.check_memory(room, gpu, **PLAN)
    with pytest.raises(ConfigError, match=r"cuda has 16\.11 GB for it"):
        memory_plan.check_memory(room + 1, gpu, **PLAN)


@pytest.mark.parametrize(("gigabytes", "slots"), [(80, 64), (24, 50), (10, 15), (2, 1)])
def test_slots_are_as_many_as_the_gpu_has_memory_for(gigabytes: int, slots: int) -> None:
    with pretend_cuda(gigabytes << 30) as device:
        assert memory_plan.choose_slots(LlamaDims(), 2, 1200, torch.bfloat16, device.device) == slots
    assert memory_plan.choose_slots(LlamaDims(), 2, 1200, torch.float32, CPU) == 16


def test_a_share_of_the_gpu_is_a_fraction_or_an_amount() -> None:
    gpu = 80 << 30
    assert [GpuShare.parse(text).bytes_of(gpu) for text in ("0.5", "1", "20GB", "1.5GiB", "4096", "900GB", "")] == [
        *(gpu // 2, gpu, 20_000_000_000, 3 << 29, 4096, gpu, gpu)
    ]
    for wrong in ("0", "-1", "half", "20 gb", "1e9", "0.0GB"):
        with pytest.raises(ConfigError, match=r"gpu_memory is .* it must be a fraction such as 0\.5, or an amount"):
            Config(gpu_memory=wrong)


def test_half_of_a_gpu_is_planned_as_a_gpu_of_half_the_size() -> None:
    def plan(gigabytes: int, share: GpuShare) -> tuple[int, int]:
        with pretend_cuda(gigabytes << 30) as device:
            slots = memory_plan.choose_slots(LlamaDims(), 2, 1200, torch.bfloat16, device.device, share)
            return slots, memory_plan.vocoder_memory(device.device, share)

    assert plan(48, GpuShare.parse("0.5")) == plan(48, GpuShare.parse("24GiB")) == plan(24, ALL)
    assert plan(24, GpuShare.parse("900GB")) == plan(24, ALL)


def test_a_plan_that_exceeds_the_share_names_it() -> None:
    with pretend_cuda(80 << 30) as device, pytest.raises(ConfigError, match="or raise CHATTERBOX_GPU_MEMORY"):
        memory_plan.check_memory(10 << 30, device.device, **PLAN, share=GpuShare.parse("10GiB"))
