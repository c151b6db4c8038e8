"""What `bench kernels` compares, on a GPU that is pretended: both sides have results of the same shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from bench import kernels
from tests.pretend_cuda import pretend_cuda


@torch.inference_mode()
def test_both_sides_of_every_case_have_the_same_shapes() -> None:
    with pretend_cuda() as cuda:
        for case in kernels.cases():
            ours, torchs = (sizes(call()) for call in (case.ours, case.torchs))
            if "attention" in case.kernel:  # whose results lie differently
                ours, torchs = ([size.numel() for size in sizes] for sizes in (ours, torchs))
            assert ours == torchs, case.name
        torch.cuda.synchronize()
        products = {"_project_kernel", "_sum_kernel"}
        assert cuda.kernels == products | {"_decode_kernel", "_attend_kernel", "_norm_kernel", "_snake_kernel"}


def sizes(result: object) -> list[torch.Size]:
    return [
        tensor.shape for tensor in (result if isinstance(result, tuple) else (result,)) if isinstance(tensor, Tensor)
    ]
