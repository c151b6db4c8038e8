"""The page, the real gateway and a real server: from typing to hearing."""

from __future__ import annotations

import re
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from chatterbox_client import Client
from chatterbox_engine.launcher import ServerOptions, TritonServer
from loadtest.pages import Pages
from tests.server.front import Front
from tests.server.page.steps import expect_heard, opened, record, seconds, speak, takes

pytestmark = [pytest.mark.server, pytest.mark.full]

LONG = "The river is wide and the way is long. " * 200


@pytest.fixture(scope="module")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Random weights seldom end an utterance, so this server does after two seconds."""
    log = tmp_path_factory.mktemp("page") / "triton.log"
    environment = {"CHATTERBOX_CHECKPOINT": str(tiny_path)}
    environment |= {"CHATTERBOX_MAX_SECONDS": "2", "CHATTERBOX_PRELOAD_ENCODERS": "1"}
    with TritonServer(ServerOptions(environment=environment, log=log)) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    options = ["--metrics-url", server.metrics_url, "--change-voices"]
    with Front(server.grpc_url, tmp_path_factory.mktemp("page") / "log", options) as running:
        yield running


@pytest.fixture
def page(context: BrowserContext, gateway: Front) -> Page:
    """Below a path, as behind a proxy that strips it."""
    proxied = f"http://{gateway.address}/speech/"
    context.route(f"{proxied}**", lambda route: route.continue_(url=route.request.url.replace("/speech/", "/")))
    return opened(context, proxied)


def test_a_text_is_heard_and_kept(page: Page) -> None:
    expect(page.get_by_role("spinbutton", name="Temperature")).to_have_value("0.8")
    page.get_by_label("Seed", exact=True).fill("3")
    take = speak(page, "Yes.")
    expect_heard(page)
    length = seconds(take)
    assert length > 0
    with page.expect_download() as download:
        take.get_by_role("button", name="WAV").click()
    with wave.open(str(download.value.path())) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(length, abs=0.06)
    with page.expect_download() as download:
        take.get_by_role("button", name="MP3").click()
    assert download.value.path().read_bytes()[:3] == b"ID3"
    page.reload()
    assert seconds(page.locator(".take")) == length
    again = speak(page, "Yes.")
    assert seconds(again) == length, "the same seed gives the same audio"


def test_stopping_cancels_the_request_in_the_server(page: Page, server: TritonServer) -> None:
    def cancelled() -> float:
        return Pages.read(server.http_url, server.metrics_url).total("chatterbox_cancellations_total")

    before = cancelled()
    page.get_by_label("Text").fill(LONG)
    page.keyboard.press("Control+Enter")
    expect_heard(page)
    expect(page.locator("#slots")).to_have_text(re.compile(r"^[1-9]\d* of \d+$"))
    page.get_by_role("button", name="Stop").click()
    expect(takes(page, "stopped")).to_have_count(1)
    expect(page.locator("#slots")).to_have_text(re.compile(r"^0 of \d+$"))
    assert cancelled() == before + 1


def test_a_recorded_voice_is_cloned_stored_and_deleted(page: Page, server: TritonServer) -> None:
    record(page)
    speak(page, "Yes.")
    page.get_by_label("Name of the voice").fill("recorded")
    page.get_by_role("button", name="Save voice").click()
    voice = page.get_by_label("Voice", exact=True)
    expect(voice).to_have_value("recorded")
    speak(page, "Yes.")
    with Client(server.http_url) as client:
        assert "recorded" in [voice.name for voice in client.voices.list()]
        page.get_by_role("button", name="Delete this voice").click()
        page.get_by_role("button", name="Really delete?").click()
        expect(voice).to_have_value("default")
        assert "recorded" not in [voice.name for voice in client.voices.list()]


def test_presets_are_compared(page: Page) -> None:
    page.get_by_label("Text").fill("Yes.")
    page.get_by_role("button", name="Compare").click()
    page.get_by_label("Takes with different seeds").fill("1")
    for preset in ("Default", "Calm", "Angry"):
        page.get_by_role("checkbox", name=preset).check()
    page.get_by_role("button", name="Speak 3 takes").click()
    expect(takes(page, "done")).to_have_count(3)
    names = takes(page, "done").locator("h3").all_inner_texts()
    assert names == ["1. Default", "2. Calm", "3. Angry"]


def test_an_error_is_the_servers_own(page: Page) -> None:
    page.get_by_label("Text").fill("...")
    page.keyboard.press("Control+Enter")
    expect(takes(page, "failed")).to_contain_text("text")
