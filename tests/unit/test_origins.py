"""Which web pages may use the server, and which the front."""

from __future__ import annotations

import json

import httpx
import pytest

from chatterbox_engine.config import Config
from chatterbox_engine.errors import ConfigError, Forbidden
from chatterbox_engine.origins import check_origin, parse_origins
from chatterbox_gateway import origins as front
from tests.unit.test_openai_server import PCM, SPEECH, WithVoices, serving

ALLOWED = "https://App.example.com, http://localhost:3000"


def test_origins_are_read_from_one_line_by_both() -> None:
    expected = {"https://app.example.com", "http://localhost:3000"}
    assert parse_origins(ALLOWED) == front.parse_origins(ALLOWED) == expected
    assert parse_origins("") == front.parse_origins("") == frozenset()


@pytest.mark.parametrize(
    "wrong", ["app.example.com", "https://app.example.com/", "*", "null", "https://a@b", "https://"]
)
def test_what_is_no_origin_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(ConfigError, match="allowed_origins has"):
        Config(allowed_origins=f"{ALLOWED},{wrong}")
    with pytest.raises(ValueError, match="is not an origin"):
        front.parse_origins(f"{ALLOWED},{wrong}")


@pytest.mark.parametrize(
    "parameters", ["", "{}", '{"seed":1}', '{"Origin":"https://app.example.com"}', '{"x":"origin"}']
)
def test_requests_without_an_origin_and_from_allowed_ones_go_on(parameters: str) -> None:
    check_origin(parameters, parse_origins(ALLOWED))


@pytest.mark.parametrize(
    "parameters",
    [
        '{"Origin":"https://evil.example"}',
        '{"oRIGIN":"null"}',
        '{"origin":""}',
        '{"Origin":"https://app.example.com.evil.example"}',
        '{"Origin":"https://app.example.com","Origin":"https://evil.example"}',  # of the body, and of the header
        '{"Origin":"https://evil.example","origin":"https://app.example.com"}',
        '{"Origin":1}',
    ],
)
def test_foreign_origins_are_refused(parameters: str) -> None:
    with pytest.raises(Forbidden, match="may not use this server"):
        check_origin(parameters, parse_origins(ALLOWED))


@pytest.mark.parametrize(
    ("sent", "host", "foreign"),
    [
        ([], "localhost:8080", False),
        (["http://localhost:8080"], "localhost:8080", False),
        (["http://[::1]:8080"], "[::1]:8080", False),
        (["http://localhost:9000"], "localhost:8080", True),
        (["http://127.0.0.1:8080"], "localhost:8080", True),
        (["https://app.example.com"], "localhost:8080", False),
        (["https://app.example.com", "https://evil.example"], "localhost:8080", True),
        (["http://evil.example:8080"], "evil.example:8080", True),  # a name that was pointed at this machine
        (["null"], "null", True),
        (["http://[::1"], "[::1", True),
    ],
)
def test_the_front_is_for_its_own_pages_and_allowed_ones(sent: list[str], host: str, foreign: bool) -> None:
    assert (front.foreign_origin(sent, host, front.parse_origins(ALLOWED)) is not None) is foreign


def test_pages_of_other_origins_change_nothing_and_make_no_speech() -> None:
    transport = WithVoices("anna")
    evil, allowed = {"Origin": "https://evil.example"}, "https://app.example.com"
    form = {"data": {"name": "anna"}, "files": {"audio_sample": b"RIFF"}}
    with serving(lambda: transport, change_voices=True, allowed_origins=frozenset({allowed})) as url:
        for origin in (evil, {"Origin": "null"}, {"Origin": "http://localhost:1"}):
            for kind in ("text/plain", "application/json"):
                headers = {**origin, "Content-Type": kind}
                answer = httpx.post(f"{url}/audio/speech", content=json.dumps(SPEECH), headers=headers)
                assert (answer.status_code, "may not use" in answer.json()["error"]["message"]) == (403, True)
            assert httpx.post(f"{url}/audio/voices", headers=origin, **form).status_code == 403  # type: ignore[arg-type]
            assert httpx.delete(f"{url}/audio/voices/anna", headers=origin).status_code == 403
        assert (transport.changes, transport.sync.calls) == ([], [])
        for origin in ({"Origin": url.removesuffix("/v1")}, {"Origin": allowed}):
            assert httpx.post(f"{url}/audio/speech", json=SPEECH, headers=origin).read() == PCM
        assert httpx.get(f"{url}/models", headers=evil).status_code == 200
