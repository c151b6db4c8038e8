"""What a visitor of the page does and sees."""

from __future__ import annotations

import re

from playwright.sync_api import BrowserContext, Locator, Page, expect

OTHER_NAME = "speech.example"
"""A name of this machine that browsers do not trust as they trust localhost."""


def opened(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.goto(address)
    expect(page.get_by_label("Voice", exact=True)).not_to_have_value("")
    return page


def takes(page: Page, state: str) -> Locator:
    return page.locator(f".take[data-state={state}]")


def speak(page: Page, text: str = "The river is wide.") -> Locator:
    """The new take, once it is complete."""
    runs = page.locator(".run")
    before = runs.count()
    page.get_by_label("Text").fill(text)
    page.keyboard.press("Control+Enter")
    expect(runs).to_have_count(before + 1)
    take = runs.first.locator(".take")
    expect(take).to_have_attribute("data-state", "done")
    return take


def expect_heard(page: Page) -> None:
    expect(page.locator("html")).to_have_attribute("data-heard", "true")


def seconds(take: Locator) -> float:
    return float(take.locator(".length").inner_text().split()[0])


def record(page: Page) -> None:
    """A second of the browser's fake microphone, which beeps."""
    page.get_by_role("button", name="Record").click()
    expect(page.locator("#clock")).to_have_text(re.compile(r"^1\.\d s"))
    page.get_by_role("button", name="Finish").click()
    expect(page.get_by_role("group", name="Clip to clone").get_by_role("button", name="Play")).to_be_visible()
