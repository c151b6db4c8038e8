"""Batch work and live requests on a real server of two slots."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from chatterbox_client import InvalidRequest
from chatterbox_engine.launcher.server import ServerOptions, TritonServer
from tests.conftest import CheckpointOf
from tests.server.conftest import client_of
from tests.server.pages import settled_page

pytestmark = pytest.mark.server

LINE = "It was a cold day in the middle of winter."
LONG = f"{LINE} " * 24


@pytest.fixture(scope="module", params=["tiny", "tiny-flash"])  # a token at a time, and a block in passes
def small(
    request: pytest.FixtureRequest, checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    environment = {"CHATTERBOX_CHECKPOINT": str(checkpoint_of(request.param).path), "CHATTERBOX_MAX_SLOTS": "2"}
    options = ServerOptions(environment=environment, log=tmp_path_factory.mktemp("priority") / "triton.log")
    with TritonServer(options) as server:
        yield server


def test_live_requests_take_slots_from_batch_work_whose_audio_stays_the_same(small: TritonServer) -> None:
    with client_of(small) as client, ThreadPoolExecutor() as threads:
        alone = client.speak(LONG, seed=5, max_seconds=6.0)
        work = threads.submit(client.speak, LONG, seed=5, max_seconds=6.0, priority="batch")
        streams = 0
        while not work.done():
            list(client.stream(LINE, seed=1, max_seconds=0.5))
            streams += 1
        beside = work.result()
    assert beside.speech_tokens.tolist() == alone.speech_tokens.tolist()
    assert beside.samples == pytest.approx(alone.samples, abs=1e-4)
    assert (alone.stats["priority"], beside.stats["priority"]) == ("live", "batch")
    page = settled_page(small)
    assert page.total("chatterbox_preemptions_total") >= 1
    assert page.total("chatterbox_requests_total") == streams + 2
    assert page.total("chatterbox_batch_requests_total") == 1
    assert page.total("chatterbox_ttfa_seconds_count") == streams + 1
    assert page.total("chatterbox_slots_batch") == page.total("chatterbox_batch_utterances_waiting") == 0


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_another_priority_is_refused(small: TritonServer, protocol: str) -> None:
    with client_of(small, protocol) as client:
        with pytest.raises(InvalidRequest, match="priority is 'urgent'; it must be one of live, batch"):
            client.speak(LINE, priority="urgent")
        with pytest.raises(InvalidRequest, match="priority is 'urgent'"):
            list(client.stream(LINE, priority="urgent"))
