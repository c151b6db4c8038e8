"""The page in front of a gateway of fixed answers."""

from __future__ import annotations

import base64
import io
import re
import wave
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, expect

from tests.clips import encoded
from tests.clips import tone as clip_tone
from tests.server.page.fixed_gateway import INFO, RATE, FixedGateway, tone
from tests.server.page.steps import OTHER_NAME, expect_heard, opened, record, speak, takes

pytestmark = [pytest.mark.server, pytest.mark.full]


@pytest.fixture
def gateway() -> Iterator[FixedGateway]:
    with FixedGateway() as running:
        yield running


@pytest.fixture
def page(context: BrowserContext, gateway: FixedGateway) -> Page:
    """The page, connected to the gateway of fixed answers."""
    return opened(context, gateway.address)


def test_a_stream_is_heard_before_its_end(page: Page, gateway: FixedGateway) -> None:
    gateway.released.clear()
    page.get_by_label("Seed", exact=True).fill("5")
    page.get_by_role("button", name="Speak").click()
    expect_heard(page)
    expect(takes(page, "speaking")).to_have_count(1)
    gateway.released.set()
    take = takes(page, "done")
    expect(take.locator(".length")).to_have_text("1.5 s")
    expect(take.locator(".ttfa")).to_have_text(re.compile(r"^\d+\.\d\d s$"))
    expect(take.locator(".rtf")).to_have_text(re.compile(r"^\d+\.\d\d$"))
    expect(take).to_contain_text("seed 5")
    expect(page.get_by_role("button", name="Pause take 1")).to_be_visible()
    expect(page.get_by_role("button", name="Play take 1")).to_be_visible()  # it has ended by itself
    expect(page.get_by_role("status").last).to_have_text("Done: 1.5 seconds of audio.")


def test_the_word_that_sounds_is_marked(page: Page, gateway: FixedGateway) -> None:
    times = {"The": (0.0, 0.05), "river": (0.05, 9.0)}
    gateway.words = [
        {"word": word, "start": start, "end": end, "span": [4 * number, 4 * number + len(word)]}
        for number, (word, (start, end)) in enumerate(times.items())
    ]
    gateway.released.clear()
    page.get_by_label("Text").fill("The river is wide.")
    page.get_by_role("button", name="Speak").click()
    expect_heard(page)
    expect(page.locator(".run-text mark")).to_have_text("river")
    expect(page.locator(".run-text")).to_have_text("The river is wide.")
    gateway.released.set()
    expect(takes(page, "done").locator(".length")).to_have_text("1.5 s")
    expect(page.get_by_role("button", name="Play take 1")).to_be_visible()
    expect(page.locator(".run-text mark")).to_have_count(0)


def test_escape_stops_a_stream_and_its_request(page: Page, gateway: FixedGateway) -> None:
    gateway.released.clear()
    page.keyboard.press("Control+Enter")
    expect_heard(page)
    page.keyboard.press("Escape")
    expect(takes(page, "stopped").locator(".length")).to_have_text("0.5 s")
    assert gateway.disconnected.wait(30)
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def test_speaking_again_stops_what_is_under_way(page: Page, gateway: FixedGateway) -> None:
    gateway.released.clear()
    page.keyboard.press("Control+Enter")
    expect_heard(page)
    page.keyboard.press("Control+Enter")
    assert gateway.disconnected.wait(30)
    gateway.released.set()
    expect(takes(page, "stopped")).to_have_count(1)
    expect(takes(page, "done")).to_have_count(1)


def test_the_form_shows_the_models_own_defaults_and_sends_only_changes(page: Page, gateway: FixedGateway) -> None:
    temperature = page.get_by_role("spinbutton", name="Temperature")
    assert temperature.input_value() == "0.8"
    speak(page)
    page.get_by_role("radio", name="Calm").check()
    assert temperature.input_value() == "0.6"
    page.get_by_role("slider", name="Speed").fill("1.5")
    temperature.fill("9")  # the server's maximum is 5
    temperature.fill("1.7")  # beyond the slider
    speak(page)
    page.get_by_role("button", name="Reset").click()
    assert temperature.input_value() == "0.6"
    speak(page)
    sampling = [
        {name: value for name, value in request.items() if name in {"preset", *INFO["parameters"]}}
        for request in gateway.spoken
    ]
    assert sampling == [{}, {"preset": "calm", "speed": 1.5, "temperature": 1.7}, {"preset": "calm"}]
    seeds = [request.pop("seed") for request in gateway.spoken]
    assert len(set(seeds)) == 3
    assert gateway.spoken[0] == {
        "input": "The river is wide.",
        "model": "chatterbox",
        "voice": "default",
        "response_format": "pcm",
        "sample_rate": RATE,
    }


def test_a_model_with_languages_and_without_presets(context: BrowserContext, gateway: FixedGateway) -> None:
    number = {"default": 2, "minimum": 0, "maximum": 5, "integer": False}
    gateway.info = {"model_type": "turbo", "parameters": {"top_k": {**number, "integer": True}, "novel": number}}
    gateway.info |= {
        "presets": {"upstream": {}},
        "languages": ["de", "en", "pt"],
        "language": "pt",
        "max_characters": 5,
    }
    gateway.info["change_voices"] = False
    page = opened(context, gateway.address)
    expect(page.get_by_role("group", name="Preset", exact=True)).to_be_hidden()
    page.get_by_text("More").click()
    expect(page.get_by_role("spinbutton", name="Novel")).to_have_value("2")
    expect(page.get_by_label("Language")).to_have_value("pt")
    page.get_by_label("Language").select_option(label="German")
    expect(page.get_by_text("of 5 characters")).to_have_class(re.compile("over"))
    page.get_by_label("Voice", exact=True).select_option("anna")
    expect(page.get_by_role("button", name="Delete this voice")).to_be_hidden()
    speak(page)
    assert {"language": "de", "voice": "anna"}.items() <= gateway.spoken[0].items()


def test_one_of_several_models_is_chosen(context: BrowserContext, gateway: FixedGateway) -> None:
    gateway.models = ["english", "turbo"]
    page = opened(context, gateway.address)
    with page.expect_request("**/model/info?model=turbo"):
        page.get_by_label("Model").select_option("turbo")
    speak(page)
    assert gateway.spoken[0]["model"] == "turbo"


def test_the_microphone_is_recorded_and_cloned(page: Page, gateway: FixedGateway) -> None:
    record(page)
    page.get_by_role("button", name="Play clip recording").click()
    expect_heard(page)
    speak(page)
    head, _, data = gateway.spoken[0]["reference_audio"].partition(",")
    assert head == "data:audio/wav;base64"
    with wave.open(io.BytesIO(base64.b64decode(data))) as clip:
        assert clip.getframerate() == RATE
        assert clip.getnchannels() == 1
        assert clip.getnframes() > RATE / 2
        assert any(clip.readframes(clip.getnframes()))


def test_a_clip_is_uploaded_as_it_is_and_stored_as_a_voice(page: Page, gateway: FixedGateway) -> None:
    clip = encoded(clip_tone(1.0))
    page.get_by_label("A clip to clone").set_input_files({"name": "bea.wav", "mimeType": "audio/wav", "buffer": clip})
    expect(page.get_by_text("1.0 s. Ten seconds of one clear voice clone it better.")).to_be_visible()
    speak(page)
    assert base64.b64decode(gateway.spoken[0]["reference_audio"].partition(",")[2]) == clip
    name = page.get_by_label("Name of the voice")
    name.fill("no spaces")
    name.press("Enter")
    assert gateway.voices == ["default", "anna"]
    name.fill("bea")
    name.press("Enter")
    voice = page.get_by_label("Voice", exact=True)
    expect(voice).to_have_value("bea")
    speak(page)
    assert gateway.spoken[1]["voice"] == "bea"
    assert "reference_audio" not in gateway.spoken[1]
    page.get_by_role("button", name="Delete this voice").click()
    page.get_by_role("button", name="Really delete?").click()
    expect(voice).to_have_value("default")
    assert gateway.voices == ["default", "anna"]


def test_a_clip_that_the_browser_cannot_read_is_left_to_the_server(page: Page, gateway: FixedGateway) -> None:
    page.get_by_label("A clip to clone").set_input_files(
        {"name": "phone.amr", "mimeType": "audio/amr", "buffer": b"#!AMR\n"}
    )
    expect(page.get_by_text("phone.amr: this browser cannot play it")).to_be_visible()
    speak(page)
    assert gateway.spoken[0]["reference_audio"].endswith(base64.b64encode(b"#!AMR\n").decode())


def test_over_plain_http_to_another_machine_only_the_microphone_is_missing(
    context: BrowserContext, gateway: FixedGateway
) -> None:
    page = opened(context, gateway.address.replace("127.0.0.1", OTHER_NAME))
    speak(page)
    expect_heard(page)
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("alert")).to_contain_text("browsers allow the microphone only over HTTPS")


def test_seeds_and_presets_are_compared(page: Page, gateway: FixedGateway) -> None:
    page.get_by_role("button", name="Compare").click()
    page.get_by_label("Takes with different seeds").fill("2")
    for preset in ("Default", "Happy"):
        page.get_by_role("checkbox", name=preset).check()
    page.get_by_label("Seed", exact=True).fill("40")
    page.get_by_role("button", name="Speak 4 takes").click()
    expect(takes(page, "done")).to_have_count(4)
    spoken = sorted((request.get("preset", ""), request["seed"]) for request in gateway.spoken)
    assert spoken == [("", 40), ("", 41), ("happy", 40), ("happy", 41)]
    page.get_by_role("button", name="Play take 4, Happy, seed 41").click()
    expect(page.get_by_role("button", name="Pause take 4, Happy, seed 41")).to_be_visible()
    page.get_by_role("button", name="seed 41").first.click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("41")


def test_takes_are_downloaded(page: Page, gateway: FixedGateway) -> None:
    page.get_by_label("Seed", exact=True).fill("9")
    speak(page, "How far, Mr. Ng?")
    with page.expect_download() as download:
        page.get_by_role("button", name="WAV").click()
    assert download.value.suggested_filename == "how-far-mr-ng-9.wav"
    with wave.open(str(download.value.path())) as file:
        assert file.readframes(file.getnframes()) == tone(9)
    with page.expect_download() as download:
        page.get_by_role("button", name="MP3").click()
    assert download.value.suggested_filename == "how-far-mr-ng-9.mp3"
    assert gateway.spoken[1] == {
        **{name: value for name, value in gateway.spoken[0].items() if name != "sample_rate"},
        "response_format": "mp3",
    }


def test_what_was_spoken_is_kept_over_a_reload(page: Page, gateway: FixedGateway) -> None:
    record(page)
    speak(page, "The first.")
    speak(page, "The second.")
    page.reload()
    expect(page.locator(".run-text")).to_have_text(["The second.", "The first."])
    expect(page.get_by_label("Text")).to_have_value("The second.")
    first = page.get_by_role("article", name="The first.")
    first.get_by_role("button", name="Play").click()
    expect_heard(page)
    first.get_by_role("button", name="Use again").click()
    page.get_by_label("Text").press("Control+Enter")
    expect(takes(page, "done")).to_have_count(3)
    for name in ("input", "seed", "reference_audio"):
        assert gateway.spoken[2][name] == gateway.spoken[0][name]
    page.get_by_role("article", name="The second.").get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Really delete?").click()
    expect(page.locator(".run-text")).to_have_text(["The first.", "The first."])
    page.reload()
    expect(page.locator(".run-text")).to_have_text(["The first.", "The first."])
    page.get_by_role("button", name="Clear all").click()
    page.get_by_role("button", name="Really delete?").click()
    expect(page.get_by_text("What you speak appears here")).to_be_visible()
    page.reload()
    expect(page.get_by_text("What you speak appears here")).to_be_visible()


def test_errors_are_shown_in_the_servers_words(page: Page, gateway: FixedGateway) -> None:
    gateway.refusal = 503, "the queue is full"
    page.keyboard.press("Control+Enter")
    expect(takes(page, "failed")).to_contain_text("the queue is full")
    gateway.refusal, gateway.breaks = None, True
    gateway.released.clear()
    page.keyboard.press("Control+Enter")
    expect_heard(page)
    gateway.released.set()
    broken = page.locator(".take").first
    expect(broken).to_contain_text("the stream broke off before its end")
    expect(broken.locator(".length")).to_have_text("0.5 s")
    expect(broken.get_by_role("button", name="MP3")).to_be_disabled()


def test_a_gateway_that_is_gone_is_named(context: BrowserContext) -> None:
    with FixedGateway() as gateway:
        page = opened(context, gateway.address)
    page.keyboard.press("Control+Enter")
    expect(takes(page, "failed")).to_contain_text("the gateway cannot be reached")
    expect(page.get_by_text("not reachable")).to_be_visible()


def test_a_key_is_asked_for_where_the_server_needs_one(context: BrowserContext, gateway: FixedGateway) -> None:
    gateway.key = "secret"
    page = context.new_page()
    page.goto(gateway.address)
    key = page.get_by_label("This server asks for an API key")
    expect(key).to_be_focused()
    key.fill("wrong")
    key.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("the API key is missing or wrong")
    key.fill("secret")
    key.press("Enter")
    expect(key).to_be_hidden()
    speak(page)
    page.reload()
    expect(page.get_by_label("Voice", exact=True)).not_to_have_value("")
    expect(key).to_be_hidden()


def test_the_servers_state_is_shown(page: Page) -> None:
    live = page.locator("#live")
    expect(live).to_contain_text("ready")
    expect(live).to_contain_text("3 of 64")
    expect(live).to_contain_text("0.12")


def test_a_keyboard_reaches_everything(page: Page) -> None:
    speak(page)
    page.get_by_label("Text").focus()
    reached = []
    while not reached or reached[-1] != "clear":
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        reached.append(focused.get_attribute("aria-label") or focused.get_attribute("id") or focused.inner_text())
        assert len(reached) < 40, reached
    order = ["voice", "record", "upload", "parameter-exaggeration", "Exaggeration", "seed", "compare", "speak"]
    assert [name for name in reached if name in order] == order
    position = page.get_by_role("slider", name="Position in take 1")
    position.press("Escape")
    position.press("Home")
    position.press("ArrowRight")
    expect(position).to_have_attribute("aria-valuetext", "0.5 of 1.5 seconds")
    position.press("End")
    position.press("Home")
    position.press(" ")
    expect(page.get_by_role("button", name="Pause take 1")).to_be_visible()
    position.press("Escape")
    width = position.evaluate("canvas => canvas.clientWidth")
    position.click(position={"x": width / 3, "y": 20})
    expect(position).to_have_attribute("aria-valuetext", "0.5 of 1.5 seconds")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_nothing(context: BrowserContext, gateway: FixedGateway, theme: Any, width: int) -> None:
    page = opened(context, gateway.address)
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 800})
    record(page)
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("More").click()
    speak_all = page.get_by_role("button", name="Speak 3 takes")
    speak_all.click()
    expect(takes(page, "done")).to_have_count(3)
    gateway.refusal = 400, "the text has no letters"
    speak_all.click()
    expect(takes(page, "failed")).to_have_count(3)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_theme_is_the_systems_until_another_is_chosen(page: Page) -> None:
    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))

    light = ground()
    page.emulate_media(color_scheme="dark")
    dark = ground()
    assert light != dark
    toggle = page.get_by_role("button", name="Dark theme")
    expect(toggle).to_have_attribute("aria-pressed", "true")
    toggle.click()
    assert ground() == light
    page.reload()
    assert ground() == light
    expect(toggle).to_have_attribute("aria-pressed", "false")
