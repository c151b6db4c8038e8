"""What CUDA graphs need of the runner, with values: padded inputs in static memory. `test_cuda_t3` has the device."""

from __future__ import annotations

import pytest

from chatterbox_engine.runner import Runner
from chatterbox_engine.types import SamplingParams
from tests.conftest import CheckpointOf
from tests.fidelity.t3_loop import SLOTS, Request, Served
from tests.unit.static import PretendGraphs


@pytest.fixture(scope="module", params=["tiny", "tiny-turbo"])
def served(request: pytest.FixtureRequest, checkpoint_of: CheckpointOf) -> Served:
    return Served.of(checkpoint_of(request.param))


def request(length: int, arrives: int, cfg_weight: float) -> Request:
    return Request(length, SamplingParams(cfg_weight=cfg_weight), seed=length, max_tokens=12, arrives=arrives)


@pytest.mark.parametrize(
    "wanted",
    [
        [(10 + 9 * n, 3 * n, [0.5, 0.0, 1.0][n % 3]) for n in range(9)],
        [(200, 0, 0.5), (20, 40, 0.0)],  # a long prompt, then a short one whose bucket has rows to spare
        [(150, 0, 0.5)] * 4 + [(20, 40, 0.5)] * 3,
    ],
)
def test_padded_buckets_over_static_buffers_change_no_tokens(
    served: Served, wanted: list[tuple[int, int, float]]
) -> None:
    expected, got = ([served.heeded(request(*w)) for w in wanted] for _ in range(2))
    served.loop(cache_len=512).run(expected)
    padded = served.loop(cache_len=512)
    padded.runner = Runner(served.model, padded.cache, SLOTS, family=served.family, graphs=PretendGraphs())
    padded.runner.warm_up(lambda _line: None)
    padded.run(got)
    assert [r.tokens for r in got] == [r.tokens for r in expected]
