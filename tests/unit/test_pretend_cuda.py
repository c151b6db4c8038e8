"""That what CUDA forbids, or answers with wrong numbers, raises on the GPU that is pretended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from chatterbox_engine.kernels.device import Download, own_stream, upload
from chatterbox_engine.kernels.graphs import Graphs
from tests.pretend_cuda import NOT_THERE_YET, PretendCuda, pretend_cuda


@pytest.fixture
def cuda() -> Iterator[PretendCuda]:
    with pretend_cuda() as device:
        yield device
        device.synchronize()


def assign(tensor: Tensor) -> None:
    tensor[0] = True


def add_host(tensor: Tensor) -> None:
    tensor += torch.ones(3)


def scatter(tensor: Tensor) -> None:
    tensor[torch.zeros(2, dtype=torch.int64, device="cuda")] = 1.0


WAITING: list[Callable[[Tensor], object]] = [
    lambda tensor: tensor[0].item(),
    lambda tensor: bool(tensor.any()),
    lambda tensor: tensor.tolist(),
    lambda tensor: tensor.nonzero(),
    lambda tensor: tensor.cpu(),
    lambda tensor: torch.ones(3).to("cuda"),
    lambda tensor: torch.ones(3).pin_memory().to("cuda"),
    lambda tensor: torch.tensor([1.0], device="cuda"),
    assign,
    scatter,
]
WRONG = [*WAITING, add_host, lambda tensor: upload(torch.ones(3), torch.device("cuda"))]


@pytest.mark.parametrize("function", WAITING)
def test_what_waits_for_the_device_is_noted(cuda: PretendCuda, function: Callable[[Tensor], object]) -> None:
    tensor = torch.zeros(3, device="cuda")
    assert not cuda.waits
    function(tensor)
    assert cuda.waits


def test_what_waits_for_nothing_is_not(cuda: PretendCuda) -> None:
    tensor = upload(torch.ones(3), cuda.device)
    tensor[1:] = 2.0
    tensor[0].fill_(1)
    Download(tensor * 2 + torch.ones(3, device="cuda"))
    assert not cuda.waits


@pytest.mark.parametrize("function", WRONG)
def test_what_cannot_be_captured_raises(cuda: PretendCuda, function: Callable[[Tensor], object]) -> None:
    tensor = torch.zeros(3, device="cuda")
    graphs = Graphs(cuda.device, enabled=True)
    graphs.capture("fine", lambda: tensor.add_(1.0))
    with pytest.raises(RuntimeError, match=r"wrong failed; CHATTERBOX_CUDA_GRAPHS=0 .*while a graph|two different dev"):
        graphs.capture("wrong", lambda: function(tensor))


def test_tokens_are_there_once_they_are_read(cuda: PretendCuda) -> None:
    download = Download(torch.zeros(2, dtype=torch.int64, device="cuda"))
    assert download._values.tolist() == [NOT_THERE_YET] * 2
    assert download.read() == [0, 0]


def test_a_graph_whose_memory_is_gone_raises(cuda: PretendCuda) -> None:
    graphs = Graphs(cuda.device, enabled=True)
    static = [torch.zeros(3, device="cuda"), torch.zeros(3, device="cuda")]
    graphs.capture("it", lambda: static[0].add_(static[1]))
    graphs.run("it", lambda: None)
    cuda.synchronize()
    static.pop()
    with pytest.raises(RuntimeError, match="memory was given back"):
        graphs.run("it", lambda: None)


@pytest.mark.parametrize("synchronised", [True, False])
def test_work_of_two_streams_with_the_same_memory_raises(cuda: PretendCuda, synchronised: bool) -> None:
    tensor, errors = torch.zeros(3, device="cuda"), []

    def elsewhere() -> None:
        own_stream(cuda.device)
        try:
            tensor.add_(1.0)
        except RuntimeError as error:
            errors.append(error)

    if synchronised:
        cuda.synchronize()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert (not errors) == synchronised
    cuda.synchronize()


def test_memory_that_another_stream_still_uses_must_not_be_given_back(cuda: PretendCuda) -> None:
    tensor = torch.zeros(3, device="cuda")
    cuda.synchronize()
    own_stream(cuda.device)
    other = tensor + 1.0
    del tensor
    assert len(cuda.faults) == 1
    cuda.faults.clear()
    del other
