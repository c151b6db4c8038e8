"""Chromium, and a profile of its own for each test."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

from tests.server.page.steps import OTHER_NAME

FLAGS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    f"--host-resolver-rules=MAP {OTHER_NAME} 127.0.0.1",
]

LISTEN = """
// Notes in the page's root element how loud its audio output has been: CSP keeps tests from polling with scripts.
const connect = AudioNode.prototype.connect
const meters = new WeakMap()
let loudest = 0
AudioNode.prototype.connect = function (target, ...rest) {
  if (target instanceof AudioDestinationNode) {
    if (!meters.has(target)) {
      const meter = target.context.createAnalyser(), wave = new Float32Array(meter.fftSize)
      meters.set(target, meter)
      setInterval(() => {
        meter.getFloatTimeDomainData(wave)
        loudest = wave.reduce((most, sample) => Math.max(most, Math.abs(sample)), loudest)
        document.documentElement.dataset.heard = loudest > 0.05
      }, 20)
    }
    connect.call(this, meters.get(target))
  }
  return connect.call(this, target, ...rest)
}
"""


@pytest.fixture(scope="session")
def chrome(browser: str) -> Iterator[Browser]:
    expect.set_options(timeout=120_000)  # a browser is slow beside other tests
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def context(chrome: Browser) -> Iterator[BrowserContext]:
    """A profile of its own. The page asks no other host, breaks no policy, and raises nothing."""
    with chrome.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce") as context:
        context.add_init_script(LISTEN)
        context.set_default_timeout(30_000)
        hosts: set[str] = set()
        wrong: list[str] = []
        context.on("request", lambda request: hosts.add(re.sub(r"^blob:|(?<=\d)/.*", "", request.url)))
        context.on("weberror", lambda error: wrong.append(str(error.error)))
        context.on("console", lambda line: wrong.append(line.text) if "Content Security Policy" in line.text else None)
        yield context
        assert wrong == []
        assert len(hosts) <= 1
