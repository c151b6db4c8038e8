"""What `bench kernels` compares, on a GPU that is pretended: both sides have results of the same shapes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench import kernels
from tests.pretend_cuda import PretendCuda, pretend_cuda


@torch.inference_mode()
def test_both_sides_of_every_case_have_the_same_shapes() -> None:
    with pretend_cuda() as cuda:
        for case in kernels.cases():
            (ours, launched), (torchs, others) = (shapes_and_launches(cuda, call) for call in (case.ours, case.torchs))
            assert launched > others == 0, f"{case.name}: torch's side launches none of our kernels, ours does"
            if "attention" in case.kernel:  # whose results lie differently
                ours, torchs = ([size.numel() for size in sizes] for sizes in (ours, torchs))
            assert ours == torchs, case.name
        cuda.synchronize()


def shapes_and_launches(cuda: PretendCuda, call: Callable[[], object]) -> tuple[list[torch.Size], int]:
    before = cuda.launches
    return sizes(call()), cuda.launches - before


def sizes(result: object) -> list[torch.Size]:
    return [
        tensor.shape for tensor in (result if isinstance(result, tuple) else (result,)) if isinstance(tensor, Tensor)
    ]
