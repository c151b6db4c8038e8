"""Voices through the real tritonserver: stored, cloned from a clip, and what happens when the store is gone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from chatterbox_client import (
    AsyncClient,
    Audio,
    ChatterboxClientError,
    Client,
    InvalidRequest,
    NotFound,
    Unavailable,
    VoiceInfo,
)
from chatterbox_client.cli import app
from chatterbox_engine.checkpoint.random_checkpoint import TINY
from chatterbox_engine.launcher.access import KEY_HEADER
from chatterbox_engine.launcher.server import ServerOptions, TritonServer
from chatterbox_engine.metrics import VOICE_SOURCES, VOICES
from loadtest.pages import Pages
from tests.clips import BAD_CLIPS, encoded, recorded, tone
from tests.postgres import Postgres, locked, sql
from tests.server.conftest import VOICE_KEY, Spoken, client_of
from tests.server.pages import page_when

pytestmark = pytest.mark.server

LINE = "One voice among many."
T = TypeVar("T")
MODELS = ("chatterbox", "chatterbox_stream", "chatterbox_voices")


def start(
    tiny_path: Path,
    folder: Path,
    *,
    store: str = "",
    models: tuple[str, ...] = MODELS,
    key_file: Path | None = None,
    arguments: tuple[str, ...] = (),
    **settings: str,
) -> TritonServer:
    environment = {
        **settings,
        "CHATTERBOX_CHECKPOINT": str(tiny_path),
        "CHATTERBOX_VOICE_STORE": store or str(folder / "voices.sqlite"),
        "CHATTERBOX_WATERMARK": "0",
    }
    log = folder / "triton.log"
    return TritonServer(
        ServerOptions(environment=environment, log=log, models=models, key_file=key_file, arguments=arguments)
    )


def sources(server: TritonServer, voices: int = 0, seconds: float = 20) -> dict[str, int]:
    """Where voices came from since the start, as the metrics page tells once it has so many of them."""

    def counts(page: Pages) -> dict[str, int]:
        return {source: int(page.total(VOICES[0], source=source)) for source in VOICE_SOURCES}

    return counts(page_when(server, lambda page: sum(counts(page).values()) >= voices, seconds=seconds))


@pytest.fixture(scope="module")
def voices_server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with start(tiny_path, tmp_path_factory.mktemp("voices")) as server:
        yield server


# Turbo and Nano need clips of five seconds, whose encoding would take minutes
@pytest.fixture(params=["tiny", "tiny-flash"])
def cloning(request: pytest.FixtureRequest) -> Spoken:
    """A family that clones from clips of one second."""
    name: str = request.param
    if name == "tiny":
        return Spoken(TINY[name], request.getfixturevalue("voices_server"), "chatterbox")
    return Spoken(TINY[name], request.getfixturevalue("server_of")(name), name)


@pytest.mark.timeout(900)  # in full 64 requests and 16 clips, which take minutes beside other work
@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.full)])
def test_requests_with_many_voices_at_once_each_equal_the_same_request_alone(cloning: Spoken, count: int) -> None:
    """Over `count` stored voices and as many inline clips, two requests each."""
    clips = [encoded(tone((0.8, 1.3)[number // 2 % 2], pitch=100 + 20 * number + count)) for number in range(2 * count)]
    with cloning.client("grpc") as client:
        for number in range(count):
            client.voices.add(f"voice{number}", clips[number])

    def speak(number: int) -> Audio:
        which = number // 2 % count
        voice: dict[str, Any] = {"reference_audio": clips[count + which]} if number % 2 else {"voice": f"voice{which}"}
        with cloning.client(("http", "grpc")[number // (2 * count)]) as it:
            return it.speak(LINE, seed=number, max_seconds=0.5, **voice)

    before = sources(cloning.server)
    with ThreadPoolExecutor(4 * count) as pool:
        together = list(pool.map(speak, range(4 * count)))
    after = sources(cloning.server, sum(before.values()) + 4 * count)
    expected = {"encoded": 2 * count, "memory": 2 * count, "store": 0}
    assert {name: after[name] - before[name] for name in after} == expected
    encoded_for = [number for number, audio in enumerate(together) if audio.stats["voice_from"] == "encoded"]
    assert sorted(number % (2 * count) for number in encoded_for) == list(range(2 * count)), "each clip once, of two"
    for number, audio in enumerate(together):
        alone = speak(number)
        assert alone.stats["voice_from"] == "memory"
        np.testing.assert_array_equal(alone.speech_tokens, audio.speech_tokens, err_msg=f"request {number}")
        assert np.abs(alone.samples - audio.samples).max() < 1e-4


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_voices_are_added_listed_spoken_with_replaced_and_deleted(spoken: Spoken, protocol: str) -> None:
    name = f"anna.{protocol}"
    with spoken.client(protocol) as client:
        added = client.voices.add(name, encoded(tone(5.5, pitch=90)))
        assert client.voices.get(name) == added
        assert added in client.voices.list()
        assert (added.name, len(added.content_hash)) == (name, 64)
        first = client.speak(LINE, voice=name, seed=1, max_seconds=1.0)
        client.voices.add(name, encoded(tone(5.5, pitch=290)))
        second = client.speak(LINE, voice=name, seed=1, max_seconds=1.0)
        assert not np.array_equal(first.samples, second.samples)
        client.voices.delete(name)
        for call in (client.voices.get, client.voices.delete, lambda it: client.speak(LINE, voice=it)):
            with pytest.raises(NotFound, match=name):
                call(name)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_asynchronous_client_does_the_same(voices_server: TritonServer, protocol: Any) -> None:
    async def run() -> None:
        url = voices_server.http_url if protocol == "http" else voices_server.grpc_url
        async with AsyncClient(url, protocol) as client:
            added = await client.voices.add("async", encoded(tone(1.0)))
            assert await client.voices.get("async") == added
            assert added in await client.voices.list()
            await client.voices.delete("async")
            with pytest.raises(NotFound):
                await client.voices.get("async")

    asyncio.run(run())


@pytest.mark.parametrize("name", ["", "x" * 65, "a/b", "Ö", "a b", "../x", "default"])
def test_a_name_that_no_voice_may_have_is_refused(voices_server: TritonServer, name: str) -> None:
    with client_of(voices_server) as client, pytest.raises(InvalidRequest, match="voice is"):
        client.voices.add(name, encoded(tone(1.0)))


@pytest.mark.parametrize(("name", "message"), [(name, message) for name, (_, message) in BAD_CLIPS.items()])
def test_a_bad_clip_gets_a_400_that_says_what_is_wrong(voices_server: TritonServer, name: str, message: str) -> None:
    clip = BAD_CLIPS[name][0]()
    for protocol in ("grpc", "http"):
        with client_of(voices_server, protocol) as client:
            with pytest.raises(InvalidRequest, match=message):
                client.speak(LINE, reference_audio=clip)
            with pytest.raises(InvalidRequest, match=message):
                client.voices.add("bad", clip)


def test_a_stream_speaks_with_a_clip_and_with_a_stored_voice(cloning: Spoken) -> None:
    clip = encoded(tone(1.0, pitch=370))
    with cloning.client("grpc") as client:
        client.voices.add("streamed", clip)
        whole = client.speak(LINE, reference_audio=clip, seed=1, max_seconds=2.0)
        for voice in ({"reference_audio": clip}, {"voice": "streamed"}):
            chunks = list(client.stream(LINE, seed=1, max_seconds=2.0, **voice))
            tokens = np.concatenate([chunk.speech_tokens for chunk in chunks])
            np.testing.assert_array_equal(tokens, whole.speech_tokens)
        with pytest.raises(NotFound, match="nobody"):
            list(client.stream(LINE, voice="nobody"))


@pytest.mark.parametrize("kind", ["m4a", "webm of a browser"])
def test_a_recording_of_a_phone_or_browser_is_a_voice(voices_server: TritonServer, kind: str) -> None:
    clip = recorded(tone(1.0, 48_000, pitch=250), kind=kind)
    with client_of(voices_server) as client:
        inline = client.speak(LINE, reference_audio=clip, seed=1, max_seconds=0.5)
        client.voices.add("recorded", clip)
        stored = client.speak(LINE, voice="recorded", seed=1, max_seconds=0.5)
    np.testing.assert_array_equal(inline.speech_tokens, stored.speech_tokens)


def test_json_callers_send_clips_as_base64(voices_server: TritonServer) -> None:
    clip = encoded(tone(1.0, pitch=330))
    text = base64.encodebytes(clip).decode()

    def generate(model: str, **inputs: Any) -> dict[str, Any]:
        address = f"http://{voices_server.http_url}/v2/models/{model}/generate"
        with urllib.request.urlopen(address, json.dumps(inputs).encode()) as answer:
            body: dict[str, Any] = json.load(answer)
            return body

    spoken = generate("chatterbox", text=LINE, reference_audio=text, seed=1, max_seconds=1.0)
    uri = f"data:audio/wav;base64,{text}"
    added = json.loads(generate("chatterbox_voices", action="add", voice="json", audio=uri, key=VOICE_KEY)["result"])
    bad_addition = {"action": "add", "voice": "bad", "audio": "clip.wav", "key": VOICE_KEY}
    for inputs in ({"text": LINE, "reference_audio": "UklG?"}, bad_addition):
        with pytest.raises(urllib.error.HTTPError) as caught:
            generate("chatterbox" if "text" in inputs else "chatterbox_voices", **inputs)
        assert "the reference audio is text that is not base64" in json.load(caught.value)["error"]
    with client_of(voices_server) as client:
        audio = client.speak(LINE, reference_audio=clip, seed=1, max_seconds=1.0)
        assert client.voices.get("json").content_hash == added["content_hash"]
        assert client.speak(LINE, voice="json", max_seconds=1.0).stats["voice_from"] == "memory"
    np.testing.assert_array_equal(audio.speech_tokens, np.array(spoken["speech_tokens"]).reshape(-1))


def test_a_voice_and_a_clip_exclude_each_other(voices_server: TritonServer) -> None:
    with client_of(voices_server) as client, pytest.raises(InvalidRequest, match="exclude each other"):
        client.speak(LINE, voice="default", reference_audio=encoded(tone(1.0)))


def test_wrong_calls_of_the_voices_model_are_refused(voices_server: TritonServer) -> None:
    def call(**values: bytes) -> None:
        tensors = []
        for name, value in values.items():
            tensor = tritonclient.grpc.InferInput(name, [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[value]], dtype=np.object_))
            tensors.append(tensor)
        with contextlib.closing(tritonclient.grpc.InferenceServerClient(voices_server.grpc_url)) as client:
            client.infer("chatterbox_voices", tensors)

    for values, message in (
        ({"action": b"rename"}, "action is 'rename'"),
        ({"action": b"add", "voice": b"anna", "key": VOICE_KEY.encode()}, "'audio' is missing"),
        ({"action": b"get"}, "'voice' is missing"),
        ({"action": b"get", "voice": b"\xff"}, "not valid UTF-8"),
    ):
        with pytest.raises(InferenceServerException, match=message) as caught:
            call(**values)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_the_command_line_imports_a_folder_and_shows_what_is_there(voices_server: TritonServer, tmp_path: Path) -> None:
    for name in ("carla", "dora"):
        (tmp_path / f"{name}.flac").write_bytes(encoded(tone(1.0), kind="flac"))
    (tmp_path / "broken.wav").write_bytes(b"\x00\xffnot audio")
    (tmp_path / "notes.txt").write_text("not a clip")

    def run(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["voices", *arguments, "--url", voices_server.http_url])
        return result.exit_code, result.stdout, result.stderr

    code, out, err = run("import", str(tmp_path))
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()] == ["carla", "dora"]
    assert "broken.wav: the reference audio is damaged" in err
    assert run("add", "emma", str(tmp_path / "dora.flac"))[0] == 0
    assert run("get", "emma")[1].startswith("emma ")
    assert run("delete", "carla")[0] == 0
    code, out, err = run("get", "carla")
    assert (code, err.strip()) == (1, "chatterbox: there is no voice 'carla'")
    names = [line.split()[0] for line in run("list")[1].splitlines()]
    assert {"dora", "emma"} <= set(names)
    assert "carla" not in names


@pytest.mark.full  # loads the encoders ahead, as users' servers do
def test_a_voice_that_is_added_is_computed_before_anybody_asks_for_it(tiny_path: Path, tmp_path: Path) -> None:
    with start(tiny_path, tmp_path, CHATTERBOX_PRELOAD_ENCODERS="1") as server, client_of(server) as client:
        client.voices.add("anna", encoded(tone(1.0)))
        assert sources(server, 1, seconds=200) == {"encoded": 1, "store": 0, "memory": 0}
        assert client.speak(LINE, voice="anna", max_seconds=0.5).stats["voice_from"] == "memory"
    assert "encoders: ready after" in (tmp_path / "triton.log").read_text()


def test_the_command_line_tells_what_is_served(voices_server: TritonServer, tiny_path: Path) -> None:
    addresses = ["--url", voices_server.http_url, "--metrics-url", voices_server.metrics_url]
    done = CliRunner().invoke(app, ["status", *addresses])
    assert done.exit_code == 0, done.stderr
    for line in (f"checkpoint: {tiny_path} (english)", "device: cpu", "stored voices: "):
        assert line in done.stdout


@pytest.mark.full
def test_after_a_restart_and_an_outage_of_the_database(tiny_path: Path, tmp_path: Path, postgres: Postgres) -> None:
    """A restart computes nothing; without the database voices in memory go on, others get 503, until it is back."""
    sql(postgres.url, "CREATE DATABASE server")
    store = postgres.url_of("server")
    clip = encoded(tone(1.0))
    with start(tiny_path, tmp_path, store=store, models=("chatterbox",)) as server, client_of(server) as client:
        with pytest.raises(NotFound, match="chatterbox_voices"):  # left out: nobody can change voices through it
            client.voices.add("anna", clip)
        sql(store, "INSERT INTO tts_voices (voice_id, audio_data) VALUES ('anna', :audio)", audio=clip)
        before = client.speak(LINE, voice="anna", seed=1, max_seconds=1.0)
        assert before.stats["voice_from"] == "encoded"
    with start(tiny_path, tmp_path, store=store) as server, client_of(server) as client:
        after = client.speak(LINE, voice="anna", seed=1, max_seconds=1.0)
        assert after.stats["voice_from"] == "memory"
        assert sources(server, 2) == {"encoded": 0, "store": 1, "memory": 1}
        np.testing.assert_array_equal(before.samples, after.samples)
        sql(store, "INSERT INTO tts_voices (voice_id, audio_data) VALUES ('seed', :audio)", audio=clip)
        postgres.stop()
        try:
            assert client.speak(LINE, voice="anna", seed=1, max_seconds=1.0).stats["voice_from"] == "memory"
            for call in (lambda: client.speak(LINE, voice="seed"), client.voices.list):
                with pytest.raises(Unavailable, match="the voice store cannot be used now"):
                    call()
        finally:
            postgres.start()
        client.speak(LINE, voice="seed", max_seconds=1.0)
        assert [info.name for info in client.voices.list()] == ["anna", "seed"]
        for name, held in (("locked", locked(store)), ("hung", postgres.hung())):
            sql(store, f"INSERT INTO tts_voices (voice_id, audio_data) VALUES ('{name}', :audio)", audio=clip)
            with held:
                assert client.speak(LINE, voice="anna", seed=1, max_seconds=1.0).stats["voice_from"] == "memory"
                for call in (partial(client.speak, LINE, voice=name), client.voices.list):
                    with pytest.raises(Unavailable, match="the voice store cannot be used now"):
                        call()
            assert when_back(partial(client.speak, LINE, voice=name, max_seconds=1.0)).duration > 0
            assert name in [info.name for info in when_back(client.voices.list)]
    log = (tmp_path / "triton.log").read_text()
    assert "voices: 1 ready in" in log
    assert "1 from the store, 0 computed" in log
    assert "chatterbox: request '' ends with UNAVAILABLE: the voice store cannot be used now" in log


def when_back(call: Callable[[], T]) -> T:
    """What a call returns once the store is used again: a moment after it is free."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return call()
        except Unavailable:
            assert time.monotonic() < deadline


def test_the_client_sends_the_key_of_a_restricted_server(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("secret")
    with start(tiny_path, tmp_path, models=("chatterbox_voices",), key_file=tmp_path / "key") as server:
        for protocol, url, refusal in (("http", server.http_url, "403"), ("grpc", server.grpc_url, "UNAVAILABLE")):
            for headers in ({}, {KEY_HEADER: "guess"}):
                with Client(url, protocol, headers=headers) as client, pytest.raises(ChatterboxClientError) as caught:
                    client.voices.list()
                assert caught.value.status == refusal
            with Client(url, protocol, headers={KEY_HEADER: "secret"}) as client:
                assert client.voices.list() == []
            assert asyncio.run(listed(url, protocol, {KEY_HEADER: "secret"})) == []
            options = ["voices", "list", "--url", url, "--protocol", protocol]
            for key, code in (("guess", 1), ("secret", 0)):
                assert CliRunner().invoke(app, ["--header", f"{KEY_HEADER}: {key}", *options]).exit_code == code
                monkeypatch.setenv("CHATTERBOX_HEADERS", f"{KEY_HEADER}:{key}")
                assert CliRunner().invoke(app, options).exit_code == code
            monkeypatch.delenv("CHATTERBOX_HEADERS")


async def listed(url: str, protocol: Any, headers: dict[str, str]) -> Sequence[VoiceInfo]:
    async with AsyncClient(url, protocol, headers=headers) as client:
        return await client.voices.list()
