"""Continuous batching changes no request's tokens: random arrivals, parameters, lengths and cancellations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.t3.runner import Runner
from chatterbox_engine.types import SamplingParams
from tests.conftest import CheckpointOf
from tests.fidelity.t3_loop import CPU, SLOTS, Loop, Request, Served


@pytest.fixture(
    scope="module",
    params=[
        ("tiny", torch.float32),
        ("tiny", torch.float16),
        ("tiny-flash", torch.float32),
        ("tiny-flash", torch.float16),
        pytest.param(("tiny-turbo", torch.float32), marks=pytest.mark.full),
        pytest.param(("tiny-turbo", torch.float16), marks=pytest.mark.full),
    ],
    ids=str,
)
def served(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Served:
    name, dtype = request.param
    return Served.of(checkpoint_of(name), dtype=dtype)


@pytest.fixture(scope="module")
def loop(served: Served) -> Iterator[Loop]:
    """One loop for all examples, so that state left by an earlier one would affect the next."""
    it = served.loop(cache_len=256 if served.family.guided else 400)
    yield it
    assert it.scheduler.free_slots == SLOTS
    assert it.scheduler.free_positions == it.cache.scratch


@pytest.fixture(scope="module")
def lonely(served: Served) -> Loop:
    """Computes the prefix again for every request."""
    return served.loop(slots=1, cache_len=1024, prefixes=0)


SAMPLING = st.builds(
    SamplingParams,
    exaggeration=st.sampled_from([0.0, 0.5, 1.2]),
    cfg_weight=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    temperature=st.sampled_from([0.0, 0.6, 0.8, 1.3]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.6]),
    min_p=st.sampled_from([0.0, 0.05, 0.2]),
    repetition_penalty=st.sampled_from([1.0, 1.2, 1.8]),
    top_k=st.sampled_from([0, 5, 1000]),
    num_steps=st.sampled_from([1, 3, 10, 20]),
    time_shift_tau=st.sampled_from([0.0, 0.1, 1.0]),
    omnivoice_schedule_t_shift=st.sampled_from([0.0, 0.5, 2.0]),
    position_temperature=st.sampled_from([0.0, 5.0]),
)
REQUESTS = st.builds(
    Request,
    text_length=st.integers(1, 90),
    sampling=SAMPLING,
    seed=st.integers(0, 1 << 30),
    max_tokens=st.integers(1, 90),
    arrives=st.integers(0, 60),
    prompt_tokens=st.sampled_from([None, 20, 70]),
    cancelled_after=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 90)),
)


@given(requests=st.lists(REQUESTS, min_size=10, max_size=10))
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_50_random_requests_give_the_tokens_that_each_gives_alone(
    served: Served, loop: Loop, lonely: Loop, requests: list[Request]
) -> None:
    requests = [served.supported(request) for request in requests]
    loop.run(requests)
    for request in requests:
        assert request.ending in ("stop", "length", "cancelled")
        alone = replace(request, arrives=0, cancelled_after=None, tokens=[], ending=None, place=None, prompt=None)
        lonely.run([alone])
        expected = alone.tokens[: len(request.tokens)] if request.ending == "cancelled" else alone.tokens
        assert request.tokens == expected


@pytest.mark.full
@pytest.mark.parametrize("name", ["tiny", "tiny-turbo"])
def test_compilation_changes_no_tokens(checkpoint_of: CheckpointOf, name: str) -> None:
    served = Served.of(checkpoint_of(name))

    def requests() -> list[Request]:
        params = SamplingParams(top_p=0.9)
        return [served.supported(Request(5 + i, params, seed=i, max_tokens=40, arrives=3 * i)) for i in range(6)]

    expected, got = requests(), requests()
    served.loop(cache_len=512).run(expected)
    compiled = served.loop(cache_len=512)
    compiled.runner = Runner(
        served.model,
        compiled.cache,
        SLOTS,
        family=served.family,
        graphs=Graphs(CPU, enabled=False),
        compile_mode="default",
    )
    compiled.run(got)
    assert [request.tokens for request in got] == [request.tokens for request in expected]
