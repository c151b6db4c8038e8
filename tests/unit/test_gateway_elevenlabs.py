"""ElevenLabs' routes over HTTP."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from chatterbox_client import NotFound
from tests.unit.client_fakes import FakeAsyncTransport
from tests.unit.gateway_fakes import PCM, Breaking, WithVoices, asked, call, gateway_of
from tests.unit.test_gateway_classic import PAGE, metrics_pages

ANNA = "/v1/text-to-speech/anna"
PATHS = (ANNA, f"{ANNA}/stream", f"{ANNA}/with-timestamps", f"{ANNA}/stream/with-timestamps")


@pytest.mark.parametrize("path", PATHS[:2])
def test_audio(path: str) -> None:
    transport = FakeAsyncTransport()
    body = {
        "text": "Hello.",
        "model_id": "eleven_flash_v2_5",
        "seed": 7,
        "previous_text": "Well.",
        "voice_settings": None,
    }
    answer = call(gateway_of(transport), "POST", f"{path}?output_format=pcm_24000", json=body)
    assert (answer.status_code, answer.content, answer.headers["Content-Type"]) == (200, PCM, "audio/pcm")
    assert answer.headers["Warning"] == '299 chatterbox-gateway "ignored: previous_text"'
    model, values = asked(transport)
    assert model == ("chatterbox_stream" if path.endswith("stream") else "chatterbox")
    assert (values["text"], values["voice"], values["seed"]) == (b"Hello.", b"anna", 7)


def test_the_usual_format_is_mp3() -> None:
    answer = call(gateway_of(FakeAsyncTransport()), "POST", ANNA, json={"text": "Hello."})
    assert answer.headers["Content-Type"] == "audio/mpeg"
    assert answer.content.startswith((b"ID3", b"\xff\xfb"))


def test_times() -> None:
    for path in PATHS[2:]:
        answer = call(
            gateway_of(FakeAsyncTransport()), "POST", f"{path}?output_format=pcm_24000", json={"text": "Hello."}
        )
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert b"".join(base64.b64decode(line["audio_base64"]) for line in lines) == PCM
        timed = [line["alignment"] for line in lines if line["alignment"]]
        assert [line["normalized_alignment"] for line in lines if line["alignment"]] == timed
        assert "".join(char for times in timed for char in times["characters"]) == "Hello. "
        starts = [start for times in timed for start in times["character_start_times_seconds"]]
        assert starts == sorted(starts)
        assert timed[-1]["character_end_times_seconds"][-1] == pytest.approx(0.12)


def test_voice_settings_that_the_model_does_not_support_are_left_out() -> None:
    settings = {"stability": 0, "similarity_boost": 1, "style": 1, "speed": 2}
    body = {"text": "Hello.", "voice_settings": settings}
    transport = FakeAsyncTransport()
    with metrics_pages(PAGE) as urls:  # of a model that has top_p alone
        call(gateway_of(transport, metrics_urls=urls), "POST", ANNA, json=body)
    assert not {"temperature", "cfg_weight", "exaggeration"} & set(asked(transport)[1])
    transport = FakeAsyncTransport()
    answer = call(gateway_of(transport, metrics_urls=()), "POST", f"{ANNA}?output_format=pcm_24000", json=body)
    values = asked(transport)[1]
    assert (values["temperature"], values["cfg_weight"]) == (pytest.approx(1.1), pytest.approx(2 / 3, abs=1e-3))
    assert values["exaggeration"] == pytest.approx(1.5)
    assert len(answer.content) == len(PCM) // 2


@pytest.mark.parametrize(("stored", "voice"), [((), None), (("hpp4J3VqNfWAUOO0d1Us",), b"hpp4J3VqNfWAUOO0d1Us")])
def test_their_voices_mean_the_built_in_one_unless_stored(stored: tuple[str, ...], voice: bytes | None) -> None:
    transport = WithVoices(*stored)
    call(gateway_of(transport), "POST", "/v1/text-to-speech/hpp4J3VqNfWAUOO0d1Us", json={"text": "Hello."})
    assert asked(transport)[1].get("voice") == voice


def test_voices_are_listed() -> None:
    answer = call(gateway_of(WithVoices("anna")), "GET", "/v1/voices").json()
    assert [(voice["voice_id"], voice["name"], voice["category"]) for voice in answer["voices"]] == [
        ("default", "default", "premade"),
        ("anna", "anna", "cloned"),
    ]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("query", "body", "status", "name", "message"),
    [
        ("", {}, 400, "invalid_request", "text: field required"),
        (
            "?output_format=wma",
            {"text": "Hello."},
            400,
            "invalid_request",
            "output_format is 'wma'; it must be mp3_RATE",
        ),
        ("", {"text": "Hello.", "model_id": "gpt"}, 404, "not_found", "there is no model 'gpt'"),
        ("", {"text": "Hello.", "voice_settings": {"style": 2}}, 400, "invalid_request", "style: input should be less"),
    ],
)
def test_errors_have_their_form(
    path: str, query: str, body: dict[str, Any], status: int, name: str, message: str
) -> None:
    answer = call(gateway_of(FakeAsyncTransport()), "POST", path + query, json=body)
    detail = answer.json()["detail"]
    assert (answer.status_code, detail["status"]) == (status, name)
    assert message in detail["message"]


def test_the_servers_errors_have_their_form() -> None:
    gateway = gateway_of(FakeAsyncTransport(NotFound("there is no voice 'anna'")))
    for path in PATHS:
        answer = call(gateway, "POST", path, json={"text": "Hello."})
        assert answer.status_code == 404
        assert answer.json()["detail"] == {"status": "not_found", "message": "there is no voice 'anna'"}


def test_a_stream_of_times_that_breaks_ends_with_an_error() -> None:
    answer = call(gateway_of(Breaking()), "POST", PATHS[3], json={"text": "Hello."})
    assert json.loads(answer.text.splitlines()[-1]) == {
        "detail": {"status": "internal_error", "message": "the engine has ended"}
    }


def test_their_header_carries_the_key() -> None:
    gateway = gateway_of(FakeAsyncTransport(), keys=("anna:secret",))
    body = {"text": "Hello."}
    assert call(gateway, "POST", ANNA, json=body, headers={"xi-api-key": "secret"}).status_code == 200
    refused = call(gateway, "POST", ANNA, json=body, headers={"xi-api-key": "wrong"})
    assert (refused.status_code, refused.json()["detail"]["status"]) == (401, "invalid_api_key")
