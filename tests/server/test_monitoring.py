"""The metrics of a server under load: its page, and a real Prometheus that answers every query of the dashboard."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chatterbox_client import Client, NotFound
from chatterbox_engine.launcher.server import TritonServer
from chatterbox_engine.metrics import ERRORS
from deploy.monitoring import dashboard
from loadtest.pages import Pages
from tests.server.prometheus import Prometheus

pytestmark = pytest.mark.server

ROUNDS = 150
"""Of short requests until what must appear has appeared; each takes a tenth of a second or more."""

LINE = "Short."

ABOUT_SPEED = {"ChatterboxSlowFirstAudio", "ChatterboxSlowerThanRealTime"}
"""Alerts that a machine which is busy with other things may well raise."""


def speak_until(client: Client, done: Callable[[], bool]) -> bool:
    """Keeps the server busy until `done`, and tells whether it came to that."""
    for _ in range(ROUNDS):
        if done():
            return True
        client.speak(LINE, max_seconds=0.4)
    return False


def page_after(server: TritonServer, client: Client, refusals: int) -> Pages:
    """The page once it counts all that was asked of the server before, and these refusals of an unknown voice, and
    nothing is under way.

    It changes once a second, and what happened first is counted first. Reading it again takes as long as a pause would.
    """
    start = Pages.read(server.http_url, server.metrics_url)
    for _ in range(refusals):
        with pytest.raises(NotFound):
            client.speak(LINE, voice="nobody")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        page = Pages.read(server.http_url, server.metrics_url)
        counted = page.total(ERRORS[0], kind="NotFound") >= start.total(ERRORS[0], kind="NotFound") + refusals
        if counted and page.total("chatterbox_slots_active") == page.total("chatterbox_requests_active") == 0:
            return page
    raise AssertionError("the page does not change")


def test_the_page_counts_answers_audio_tokens_steps_and_errors(server: TritonServer) -> None:
    with Client(server.grpc_url, "grpc") as client:
        before = page_after(server, client, refusals=1)
        answers = [client.speak("One more sentence.", seed=seed) for seed in range(5)]
        chunks = list(client.stream("One more sentence.", seed=5))
        page = page_after(server, client, refusals=3)
        seconds = sum(audio.duration for audio in answers) + sum(len(chunk.samples) for chunk in chunks) / 24_000
        tokens = sum(len(part.speech_tokens) for part in [*answers, *chunks])

    def grown(name: str, **labels: str) -> float:
        return page.total(name, **labels) - before.total(name, **labels)

    assert grown("chatterbox_requests_total") == 6
    assert grown("chatterbox_audio_seconds_total") == pytest.approx(seconds, abs=0.01)
    assert grown("chatterbox_speech_tokens_total") == tokens
    assert grown("chatterbox_errors_total", kind="NotFound") == 3
    assert grown("chatterbox_t3_steps_total") >= max(len(audio.speech_tokens) for audio in answers)
    assert grown("chatterbox_t3_step_seconds_total") > 0
    assert grown("chatterbox_ttfa_seconds_count") == 6
    assert grown("chatterbox_s3gen_seconds_count") >= 2
    assert (
        page.total("chatterbox_info", model="chatterbox", checkpoint=answers[0].stats["model"], family="english") == 1
    )
    assert page.total("chatterbox_memory_bytes", kind="host") > 1 << 26
    assert page.total("chatterbox_slots_free") == 16


def test_prometheus_answers_every_query_of_the_dashboard_under_load(server: TritonServer, tmp_path: Path) -> None:
    queries = {query for panel in dashboard.PANELS for _, query in panel.queries}
    unanswered = {query: query.replace("$job", "chatterbox").replace("$__rate_interval", "30s") for query in queries}
    with Prometheus(tmp_path, server.metrics_url) as prometheus, Client(server.http_url) as client:

        def all_answered() -> bool:
            for query, expression in list(unanswered.items()):
                values = prometheus.ask(expression)
                if values and all(map(math.isfinite, values)):
                    del unanswered[query]
            return not unanswered

        assert speak_until(client, all_answered), unanswered
        assert prometheus.ask("up") == [1.0]
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in rules} == {"ok"}, rules
        raised = {alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"]}
        assert raised <= ABOUT_SPEED
