"""A web page of another origin in a real browser: it changes no voice, and neither `/infer` nor the front speaks."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatterbox_client import Client
from chatterbox_engine.launcher import ServerOptions, TritonServer
from chatterbox_engine.metrics import ERRORS
from loadtest.pages import Pages
from tests.chromium import Site
from tests.clips import encoded, tone
from tests.server.conftest import VOICE_KEY
from tests.server.front import Front
from tests.server.pages import page_when

pytestmark = [pytest.mark.server, pytest.mark.full]

CLIP = encoded(tone(1.0))

PAGE = """<!doctype html><body><script type="module">
const it = %s
const clip = new Blob([Uint8Array.from(atob(it.clip), letter => letter.charCodeAt(0))])
const form = () => {
  const form = new FormData()
  form.set("name", "planted")
  form.set("audio_sample", clip)
  return form
}
const quietly = call => call.then(answer => answer.type, error => error.name)
const post = (url, body) => quietly(fetch(url, {method: "POST", mode: "no-cors", body}))
const submit = (action, enctype, fields) => new Promise(done => {
  const frame = document.createElement("iframe"), form = document.createElement("form")
  frame.name = "frame" + document.forms.length
  Object.assign(form, {action, enctype, method: "POST", target: frame.name})
  for (const [name, value] of fields) {
    const input = document.createElement("input")
    Object.assign(input, {name, value})
    if (value instanceof File) {
      const files = new DataTransfer()
      files.items.add(value)
      input.type = "file"
      input.files = files.files
    }
    form.append(input)
  }
  document.body.append(frame, form)
  frame.onload = () => done("submitted")
  form.submit()
})
const asJson = text => [[text.slice(0, -1) + ', "x": "', '"}']]  // what a form of plain text sends: name=value
const said = []
for (const [url, body] of it.posts) said.push(await post(url, body))
said.push(await quietly(fetch(it.voices, {method: "POST", mode: "no-cors", body: form()})))
const fields = [["name", "planted"], ["audio_sample", new File([clip], "a.wav")]]
said.push(await submit(it.voices, "multipart/form-data", fields))
for (const [url, body] of it.forms) said.push(await submit(url, "text/plain", asJson(body)))
said.push(await quietly(fetch(it.voices + "/kept", {method: "DELETE"})))
await fetch("/done", {method: "POST", body: said.join(" ")})
</script>"""


@pytest.fixture(scope="module")
def welcome(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TritonServer, Site]]:
    """A server that the pages of one site may use."""
    site = Site("localhost")
    environment = {"CHATTERBOX_CHECKPOINT": str(tiny_path), "CHATTERBOX_ALLOWED_ORIGINS": site.origin}
    log = tmp_path_factory.mktemp("welcome") / "triton.log"
    with TritonServer(ServerOptions(environment=environment, log=log)) as running:
        yield running, site


def page(server: TritonServer, front: Front) -> str:
    """Tries all that a page can send without the server's leave. It knows the key where its origin is shown."""

    def infer(model: str, **values: str) -> tuple[str, str]:
        inputs = [{"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [text]} for name, text in values.items()]
        return f"http://{server.http_url}/v2/models/{model}/infer", json.dumps({"inputs": inputs})

    def generate(**values: str) -> tuple[str, str]:
        return f"http://{server.http_url}/v2/models/chatterbox_voices/generate", json.dumps(values)

    clip = base64.b64encode(CLIP).decode()
    speech = (f"http://{front.address}/v1/audio/speech", json.dumps({"input": "Hello.", "response_format": "wav"}))
    posts = [
        generate(action="delete", voice="kept"),
        generate(action="add", voice="planted", audio=clip),
        infer("chatterbox_voices", action="add", voice="planted", audio=clip, key=VOICE_KEY),
        infer("chatterbox", text="Hello."),
        speech,
    ]
    forms = [generate(action="delete", voice="kept"), infer("chatterbox", text="Hello."), speech]
    voices = f"http://{front.address}/v1/audio/voices"
    return PAGE % json.dumps({"posts": posts, "forms": forms, "voices": voices, "clip": clip})


def outcomes(server: TritonServer, at_least: int = 0) -> tuple[int, int]:
    """Requests to speak that were answered, and those that were refused to a page, once there are so many of both."""

    def counts(page: Pages) -> tuple[int, int]:
        return int(page.total("chatterbox_requests_total")), int(page.total(ERRORS[0], kind="Forbidden"))

    return counts(page_when(server, lambda page: sum(counts(page)) >= at_least, seconds=60))


def visit(
    browser: str, site: Site, server: TritonServer, folder: Path, *options: str, requests: int
) -> tuple[set[str], int]:
    """The voices that there are after the page, and how often it made the server speak.

    requests: to speak, which reach the engine's model.
    """
    changing = ["--change-voices", *options]
    with Client(server.http_url) as client, Front(server.grpc_url, folder / "log", changing) as front:
        client.voices.add("kept", CLIP)
        before = outcomes(server)
        said = site.visit(browser, page(server, front)).split()
        assert len(said) == 11, said
        answered, _ = outcomes(server, sum(before) + requests)
        names = {voice.name for voice in client.voices.list()} & {"kept", "planted"}
        for name in names:
            client.voices.delete(name)
    return names, answered - before[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_another_origin_changes_nothing_and_hears_nothing(
    browser: str, server: TritonServer, tmp_path: Path, host: str
) -> None:
    assert visit(browser, Site(host), server, tmp_path, requests=2) == ({"kept"}, 0)


def test_the_page_of_an_allowed_origin_may(browser: str, welcome: tuple[TritonServer, Site], tmp_path: Path) -> None:
    server, site = welcome
    voices, times = visit(browser, site, server, tmp_path, "--cors", site.origin, requests=4)
    assert "planted" in voices
    assert times == 4, "/infer twice, and the gateway twice"


def test_and_so_may_programs(server: TritonServer, tmp_path: Path) -> None:
    form: Any = {"data": {"name": "planted"}, "files": {"audio_sample": CLIP}}
    with Client(server.http_url) as client, Front(server.grpc_url, tmp_path / "log", ["--change-voices"]) as front:
        assert client.speak("Hello.", seed=1, max_seconds=1.0).duration > 0
        assert httpx.post(f"http://{front.address}/v1/audio/voices", **form).status_code == 200
        assert httpx.post(f"http://{front.address}/v1/audio/speech", json={"input": "Hello."}).status_code == 200
        assert httpx.delete(f"http://{front.address}/v1/audio/voices/planted").status_code == 200
