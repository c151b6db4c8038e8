"""Kernels of a CPU as C functions, and the memory of its weights."""

from __future__ import annotations

import gc
import importlib.util
import mmap
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from chatterbox_engine.kernels.cpu import launch
from chatterbox_engine.kernels.pages import LARGE_PAGE, in_large_pages

PACKAGE = Path(launch.__file__).parent
HALF = torch.float16


def name_in_cache(package: Path) -> str:
    """What a kernel of a copy of the package is cached under."""
    spec = importlib.util.spec_from_file_location("copy_of_launch", package / "launch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def kernel(_arguments: Any) -> None: ...

    module.Kernel(kernel)
    return kernel.__qualname__


@pytest.mark.parametrize("file", sorted(file.name for file in PACKAGE.glob("*.py")))
def test_a_change_of_any_file_changes_the_name_that_kernels_are_cached_under(file: str, tmp_path: Path) -> None:
    package = tmp_path / "cpu"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = name_in_cache(package)
    assert name_in_cache(package) == before
    with (package / file).open("a") as source:
        source.write("# changed\n")
    assert name_in_cache(package) != before


def test_two_threads_that_ask_for_a_kernel_at_once_get_the_same_one() -> None:
    @launch.Kernel
    def nothing(_arguments: Any) -> None: ...

    ready = threading.Barrier(2)

    def ask() -> int:
        ready.wait()
        return nothing.address

    with ThreadPoolExecutor(2) as pool:
        addresses = [asked.result() for asked in [pool.submit(ask) for _ in range(2)]]
    assert addresses == [nothing.address] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, HALF])
@pytest.mark.parametrize("numbers", [LARGE_PAGE // 2, LARGE_PAGE // 2 + 1025, 3 * LARGE_PAGE // 2])
def test_a_large_tensor_begins_at_a_large_page(dtype: torch.dtype, numbers: int) -> None:
    tensor = torch.linspace(-3, 3, numbers)
    got = in_large_pages(tensor, dtype)
    assert torch.equal(got, tensor.to(dtype))
    assert got.data_ptr() % LARGE_PAGE == 0
    assert got.is_contiguous()


def test_a_smaller_tensor_is_converted_as_usual() -> None:
    tensor = torch.linspace(-3, 3, LARGE_PAGE // 2 - 1)
    assert torch.equal(in_large_pages(tensor, HALF), tensor.half())
    small = tensor[:100]
    assert in_large_pages(small, torch.float32) is small
    assert in_large_pages(torch.empty(0, 3), HALF).shape == (0, 3)


def test_a_view_with_strides_becomes_contiguous_in_large_pages() -> None:
    tensor = torch.linspace(-3, 3, 2 * 1100 * 1000).view(1100, 2000)
    for view in (tensor.mT, tensor[:, ::2], tensor[None, :1, :1].expand(1, 1100, 1000)):
        got = in_large_pages(view, HALF)
        assert got.is_contiguous()
        assert got.data_ptr() % LARGE_PAGE == 0
        assert torch.equal(got, view.half())


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="a system without large pages")
@pytest.mark.parametrize("advice", [None, 9999])  # a system and a kernel without large pages
def test_without_large_pages_there_are_usual_ones(monkeypatch: pytest.MonkeyPatch, advice: int | None) -> None:
    if advice is None:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    else:
        monkeypatch.setattr(mmap, "MADV_HUGEPAGE", advice)
    tensor = torch.linspace(-3, 3, LARGE_PAGE)
    assert torch.equal(in_large_pages(tensor, HALF), tensor.half())


def test_a_parameter_in_large_pages_outlives_its_source_and_can_be_written() -> None:
    weight = nn.Parameter(in_large_pages(torch.linspace(-3, 3, LARGE_PAGE).view(1024, -1), HALF))
    gc.collect()
    kept = weight.detach().clone()
    weight.data.mul_(2)
    assert torch.equal(weight, 2 * kept)
    weight.sum().backward()
    assert weight.grad is not None
    assert weight.grad.shape == weight.shape
