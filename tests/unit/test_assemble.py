"""Planning before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chatterbox_engine import assemble
from chatterbox_engine.checkpoint.dims import LlamaDims
from chatterbox_engine.config import Config, cores
from chatterbox_engine.errors import ConfigError
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.synthesis.prefixes import PREFIX_BYTES
from chatterbox_engine.t3.quantize import check_quantization
from tests.pretend_cuda import pretend_cuda

CPU = torch.device("cpu")


def test_the_pool_holds_two_rows_a_slot_and_at_least_the_longest_request() -> None:
    assert assemble.plan_positions(LlamaDims(), 2 * 64, 1200) == 64 * 2 * 1200
    longest = assemble.plan_positions(LlamaDims(), 2, 1200)
    assert longest >= 2 * (34 + 2048 + 2 + 2 + 4096)


def test_a_cache_that_cannot_fit_is_refused_with_the_numbers() -> None:
    lines: list[str] = []
    with pytest.raises(ConfigError, match=r"KV cache: 64 slots .* 1000000.00 GB, but cpu has .* CHATTERBOX_MAX_SLOTS"):
        assemble.check_memory(10**15, CPU, 64, 2, Config(), lines.append)
    assert lines[0].startswith("KV cache: 64 slots of 2 rows of 1200 positions")


def test_a_gpu_keeps_room_for_prefixes_and_the_vocoder_beside_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, total, free = torch.device("cuda"), 40 << 30, 30 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, total))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(total_memory=total))
    room = free - assemble.GPU_RESERVE - PREFIX_BYTES - (total // 4) * 5 // 4
    assemble.check_memory(room, gpu, 64, 2, Config(), lambda _line: None)
    with pytest.raises(ConfigError, match=r"cuda has 16\.11 GB for it"):
        assemble.check_memory(room + 1, gpu, 64, 2, Config(), lambda _line: None)


@pytest.mark.parametrize(("gigabytes", "slots"), [(80, 64), (24, 50), (10, 15), (2, 1)])
def test_slots_are_as_many_as_the_gpu_has_memory_for(gigabytes: int, slots: int) -> None:
    with pretend_cuda(gigabytes << 30) as device:
        assert assemble.choose_slots(LlamaDims(), 2, 1200, torch.bfloat16, device.device) == slots
    assert assemble.choose_slots(LlamaDims(), 2, 1200, torch.float32, CPU) == 16


@pytest.mark.parametrize(("name", "message"), [("cuda:9", "sees no CUDA"), ("quantum", "torch does not know")])
def test_a_device_that_does_not_exist_is_refused(name: str, message: str) -> None:
    if name.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match=message):
        assemble.choose_device(name)


def test_compile_modes_lose_their_own_graphs_while_ours_are_on() -> None:
    graphs = Graphs(CPU, enabled=False)
    config = Config(compile=True, compile_mode="reduce-overhead")
    assert assemble.choose_compile_mode(config, graphs) == "reduce-overhead"
    graphs.enabled = True
    assert assemble.choose_compile_mode(config, graphs) == "default"
    assert assemble.choose_compile_mode(Config(), graphs) is None


@pytest.mark.parametrize(
    ("has_it", "compiled", "t3", "s3gen", "lines"),
    [
        (True, False, torch.bfloat16, torch.bfloat16, 0),
        (False, False, torch.bfloat16, torch.float32, 1),
        (False, True, torch.float32, torch.float32, 1),
    ],
)
def test_a_processor_without_bfloat16_gets_it_for_t3_alone_and_a_line_that_says_so(
    monkeypatch: pytest.MonkeyPatch, has_it: bool, compiled: bool, t3: torch.dtype, s3gen: torch.dtype, lines: int
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_it)
    said: list[str] = []
    assert assemble.choose_dtypes("auto", CPU, said.append, own_kernel=not compiled) == (t3, s3gen)
    assert len(said) == lines
    assert assemble.choose_dtypes("float32", CPU, said.append) == (torch.float32, torch.float32)
    assert assemble.choose_dtypes("bfloat16", CPU, said.append) == (torch.bfloat16, torch.bfloat16)
    assert len(said) == lines


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float8_is_refused_where_the_device_lacks_it(dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=r"capability 8\.9 or more and bfloat16, not cpu and (float32|bfloat16)"):
        check_quantization("float8", CPU, dtype)
    check_quantization("int8", CPU, dtype)
    check_quantization("none", CPU, dtype)


def test_what_is_quantised_is_told() -> None:
    plain = assemble.optimizations(Config(), torch.float32, Graphs(CPU, enabled=False))
    assert assemble.optimizations(Config(quantization="int8"), torch.float32, Graphs(CPU, enabled=False)) == [
        *plain,
        "int8",
    ]


def test_s3gen_takes_the_cores_that_t3_leaves_when_it_works_alone() -> None:
    share = assemble.share_of_cores(Config())
    assert assemble.vocoder_threads(Config(), CPU) == (share, cores() - share + 1)
    assert assemble.vocoder_threads(Config(cpu_threads=3), CPU) == (3, 3)
    assert assemble.vocoder_threads(Config(), torch.device("cuda")) is None


@pytest.mark.parametrize(
    ("dtype", "elements", "more"),
    [(torch.float32, 1 << 24, True), (torch.bfloat16, 1 << 25, True), (torch.bfloat16, 1 << 24, False)],
)
def test_t3_takes_the_cores_of_s3gen_for_long_steps(dtype: torch.dtype, elements: int, more: bool) -> None:
    weight = torch.empty(elements, dtype=dtype)
    model: Any = SimpleNamespace(parameters=lambda: [weight], dtype=dtype, device=CPU)
    assert assemble.t3_threads(Config(), model) == (assemble.vocoder_threads(Config(), CPU) if more else None)


def test_s3gen_is_made_as_the_settings_say(tiny_path: Path, tmp_path: Path) -> None:
    settings = {"prompt_seconds": 2.0, "dtype": "float32", "voice_store": str(tmp_path / "voices.sqlite")}
    engine = assemble.build(Config(checkpoint=str(tiny_path), watermark=False, **settings))  # type: ignore[arg-type]
    assert engine._parts.vocoder._s3gen.prompt_tokens == 50
