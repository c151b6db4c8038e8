"""Device, types of the weights and threads."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from chatterbox_engine import hardware
from chatterbox_engine.errors import ConfigError
from tests.pretend_cuda import pretend_cuda

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "message"), [("cuda:9", "sees no CUDA"), ("quantum", "torch does not know")])
def test_a_device_that_does_not_exist_is_refused(name: str, message: str) -> None:
    if name.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match=message):
        hardware.choose_device(name)


INTEL, AMX = {"cpu_name": "Intel Xeon", "avx512_bf16": True}, {"amx_bf16": True}
AMD = {"cpu_name": "AMD EPYC", "avx512_bf16": True}
HALVES = {"avx512_fp16": True}
NARROW, WIDE, HALF = torch.bfloat16, torch.float32, torch.float16
T3_BY = {
    "fused": {},
    "compiled or quantised": {"fused_products": False},
    "packed": {"fused_products": False, "packed_products": True},
}


@pytest.mark.parametrize(
    ("processor", "t3", "s3gen", "lines"),
    [
        (AMD, (NARROW, NARROW, NARROW), NARROW, 0),
        (INTEL | AMX, (NARROW, NARROW, NARROW), NARROW, 0),
        (INTEL, (NARROW, NARROW, WIDE), WIDE, 0),  # multiplies float32 faster
        ({"cpu_name": "AMD EPYC"}, (NARROW, WIDE, WIDE), WIDE, 1),
        ({"cpu_name": "Intel Xeon"}, (NARROW, WIDE, WIDE), WIDE, 1),
    ],
)
def test_a_processor_takes_the_type_that_it_multiplies_faster_and_stores_t3_in_bfloat16_where_that_is_read_faster(
    processor: dict[str, Any], t3: tuple[torch.dtype, ...], s3gen: torch.dtype, lines: int
) -> None:
    for by, dtype in zip(T3_BY.values(), t3, strict=True):
        said: list[str] = []
        choose = partial(hardware.choose_dtypes, processor=processor, **by)
        assert choose("auto", CPU, said.append) == (dtype, s3gen)
        assert len(said) == lines
        assert choose("float32", CPU, said.append) == (WIDE, WIDE)
        assert choose("bfloat16", CPU, said.append) == (NARROW, NARROW)
        assert len(said) == lines
        assert choose("float16", CPU, said.append) == (dtype, s3gen)
        assert said[lines] == "this processor does not multiply float16: it takes what dtype=auto takes"


@pytest.mark.parametrize(
    ("processor", "auto", "float16"),
    [
        (INTEL | HALVES, ((HALF, HALF), (NARROW, HALF), (HALF, HALF)), ((HALF, HALF), (NARROW, HALF), (HALF, HALF))),
        (INTEL | HALVES | AMX, ((NARROW, NARROW),) * 3, ((HALF, HALF), (NARROW, HALF), (HALF, HALF))),
        (AMD | HALVES, ((NARROW, NARROW),) * 3, ((HALF, HALF), (NARROW, HALF), (HALF, HALF))),
        (HALVES, ((HALF, HALF), (WIDE, HALF), (HALF, HALF)), ((HALF, HALF), (WIDE, HALF), (HALF, HALF))),
    ],
)
def test_a_processor_that_multiplies_float16_takes_it_where_bfloat16_is_not_faster_or_it_is_asked_to(
    processor: dict[str, Any], auto: tuple[Any, ...], float16: tuple[Any, ...]
) -> None:
    for by, by_itself, asked in zip(T3_BY.values(), auto, float16, strict=True):
        said: list[str] = []
        choose = partial(hardware.choose_dtypes, processor=processor, **by)
        assert choose("auto", CPU, said.append) == by_itself
        assert choose("float16", CPU, said.append) == asked
        assert choose("float32", CPU, said.append) == (WIDE, WIDE)
        assert choose("bfloat16", CPU, said.append) == (NARROW, NARROW)
        assert not said


def test_without_being_told_of_a_processor_it_is_this_one() -> None:
    this: dict[str, Any] = torch.cpu.get_capabilities()
    for name in ("auto", "float16"):
        lines: tuple[list[str], list[str]] = ([], [])
        chosen = hardware.choose_dtypes(name, CPU, lines[0].append)
        assert chosen == hardware.choose_dtypes(name, CPU, lines[1].append, processor=this)
        assert lines[0] == lines[1]


def test_a_gpu_takes_bfloat16_for_products_of_many_rows_regardless_of_the_processor() -> None:
    with pretend_cuda(bfloat16=True) as cuda:
        chosen = hardware.choose_dtypes(
            "auto", cuda.device, lambda _line: None, packed_products=True, processor={"cpu_name": "Intel Xeon"}
        )
    assert chosen == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize(("has_it", "taken", "lines"), [(True, torch.bfloat16, 0), (False, torch.float16, 1)])
def test_a_gpu_without_bfloat16_takes_float16(has_it: bool, taken: torch.dtype, lines: int) -> None:
    said: list[str] = []
    with pretend_cuda(bfloat16=has_it) as cuda:
        assert hardware.choose_dtypes("auto", cuda.device, said.append) == (taken, taken)
        assert hardware.choose_dtypes("float16", cuda.device, said.append) == (torch.float16, torch.float16)
    assert said == ["simulated has no bfloat16: using float16"] * lines


def test_s3gen_takes_the_cores_that_t3_leaves_when_it_works_alone() -> None:
    share = hardware.share_of_cores(0)
    assert hardware.vocoder_threads(0, CPU) == (share, hardware.cores() - share + 1)
    assert hardware.vocoder_threads(3, CPU) == (3, 3)
    assert hardware.vocoder_threads(0, torch.device("cuda")) is None


@pytest.mark.parametrize(("size", "more"), [(hardware.LONG_STEP, True), (hardware.LONG_STEP - 1, False)])
def test_t3_takes_the_cores_of_s3gen_for_long_steps(size: int, more: bool) -> None:
    assert hardware.t3_threads(0, CPU, size) == (hardware.vocoder_threads(0, CPU) if more else None)


def test_the_networks_get_no_more_cores_than_openmp_is_told_to_use() -> None:
    there = hardware.cores({})
    assert there >= 1
    assert hardware.cores({"OMP_NUM_THREADS": "1"}) == hardware.cores({"OMP_NUM_THREADS": "1,4"}) == 1
    for text in ("100000", "0", "x", ""):
        assert hardware.cores({"OMP_NUM_THREADS": text}) == there
