"""Two engines of one model behind one server: the answers of one engine, work shared evenly, and an engine's death."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from chatterbox_client import Audio, concatenate
from chatterbox_engine.launcher.server import ServerFailed, ServerOptions, TritonServer
from tests.server.conftest import client_of
from tests.server.pages import settled_page

pytestmark = pytest.mark.server

TEXTS = ("Hello there.", "It was a cold day in the middle of winter.", "How are you today? I am well. " * 12)
CALLERS = 8


@pytest.fixture(scope="module")
def pair(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    environment = {"CHATTERBOX_CHECKPOINT": str(tiny_path), "CHATTERBOX_INSTANCES": "cpu:2"}
    options = ServerOptions(environment=environment, log=tmp_path_factory.mktemp("instances") / "triton.log")
    server = TritonServer(options)
    server.start()
    yield server
    server.stop()


@dataclass(frozen=True)
class Request:
    """One of the mixed requests."""

    number: int

    @property
    def stream(self) -> bool:
        return self.number % 2 == 1

    def speak(self, server: TritonServer) -> Audio:
        protocol = "grpc" if self.stream or self.number % 4 else "http"
        text = TEXTS[2 if self.number % 10 == 0 else self.number % 2]
        options: dict[str, Any] = {"seed": self.number, "max_seconds": 0.4 + self.number % 5 / 10}
        with client_of(server, protocol) as client:
            if self.stream:
                return concatenate(list(client.stream(text, **options)))
            return client.speak(text, **options)


def spoken_by(server: TritonServer, requests: list[Request]) -> list[Audio]:
    with ThreadPoolExecutor(CALLERS) as threads:
        return list(threads.map(lambda request: request.speak(server), requests))


@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.full)])
def test_two_engines_answer_as_one_and_share_the_work(server: TritonServer, pair: TritonServer, count: int) -> None:
    requests = [Request(number) for number in range(count)]
    before = settled_page(pair)
    expected, answers = (spoken_by(it, requests) for it in (server, pair))
    page = settled_page(pair)
    for one, other in zip(expected, answers, strict=True):
        assert other.speech_tokens.tolist() == one.speech_tokens.tolist()
        np.testing.assert_allclose(other.samples, one.samples, atol=1e-4)
    for stream in (False, True):
        counts = Counter(
            answer.stats["engine"]
            for answer, request in zip(answers, requests, strict=True)
            if request.stream == stream
        )
        assert set(counts) == {0, 1}
        assert 0.35 <= counts[0] / counts.total() <= 0.65, f"streams: {stream}, {counts}"
    engines = Counter(str(answer.stats["engine"]) for answer in answers)
    for metric, expected_sum in {
        "chatterbox_requests_total": count,
        "chatterbox_segments_total": sum(answer.stats["segments"] for answer in answers),
        "chatterbox_speech_tokens_total": sum(len(answer.speech_tokens) for answer in answers),
    }.items():
        assert page.total(metric) - before.total(metric) == expected_sum
    for engine, number in engines.items():
        total = "chatterbox_requests_total"
        assert page.total(total, engine=engine) - before.total(total, engine=engine) == number
    assert {answer.stats["engine"] for answer in expected} == {0}


def test_an_engines_death_takes_the_server_down(pair: TritonServer) -> None:
    engines = [pid for pid in pair.stub_pids if "/chatterbox/" in " ".join(psutil.Process(pid).cmdline())]
    assert len(engines) == 2
    psutil.Process(engines[1]).kill()
    with pytest.raises(ServerFailed, match=rf"the process {engines[1]} of the model chatterbox died"):
        pair.wait()
