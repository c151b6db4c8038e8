"""Which web pages may use the server, and which the gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chatterbox_engine.config import Config
from chatterbox_engine.errors import ConfigError, Forbidden
from chatterbox_engine.origins import check_origin, parse_origins
from chatterbox_gateway import origins as gateway_origins
from tests.unit.client_fakes import FakeAsyncTransport
from tests.unit.gateway_fakes import PCM, SPEECH, WithVoices, call, gateway_of

ALLOWED = "https://App.example.com, http://localhost:3000"


def test_origins_are_read_from_one_line_by_both() -> None:
    expected = {"https://app.example.com", "http://localhost:3000"}
    assert parse_origins(ALLOWED) == gateway_origins.parse_origins(ALLOWED) == expected
    assert parse_origins("") == gateway_origins.parse_origins("") == frozenset()


@pytest.mark.parametrize(
    "wrong", ["app.example.com", "https://app.example.com/", "*", "null", "https://a@b", "https://"]
)
def test_what_is_no_origin_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(ConfigError, match="allowed_origins has"):
        Config(allowed_origins=f"{ALLOWED},{wrong}")
    with pytest.raises(ValueError, match="is not an origin"):
        gateway_origins.parse_origins(f"{ALLOWED},{wrong}")


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
def test_the_gateway_is_for_its_own_pages_and_allowed_ones(sent: list[str], host: str, foreign: bool) -> None:
    assert (gateway_origins.foreign_origin(sent, host, gateway_origins.parse_origins(ALLOWED)) is not None) is foreign


EVIL, APP = "https://evil.example", "https://app.example.com"


def test_pages_of_other_origins_change_nothing_and_make_no_speech() -> None:
    transport = WithVoices("anna")
    form: dict[str, Any] = {"data": {"name": "anna"}, "files": {"audio_sample": b"RIFF"}}
    gateway = gateway_of(transport, change_voices=True, origins=frozenset({APP}))
    for origin in ({"Origin": EVIL}, {"Origin": "null"}, {"Origin": "http://localhost:1"}):
        for kind in ("text/plain", "application/json", "application/x-www-form-urlencoded"):
            headers = {**origin, "Content-Type": kind}
            answer = call(gateway, "POST", "/v1/audio/speech", content=json.dumps(SPEECH), headers=headers)
            assert (answer.status_code, "may not use" in answer.json()["error"]["message"]) == (403, True)
            answer = call(gateway, "POST", "/generate", content='{"text": "Hello."}', headers=headers)
            assert (answer.status_code, "may not use" in answer.json()["detail"]) == (403, True)
        assert call(gateway, "POST", "/v1/audio/voices", headers=origin, **form).status_code == 403
        assert call(gateway, "DELETE", "/v1/audio/voices/anna", headers=origin).status_code == 403
    assert (transport.changes, transport.sync.calls) == ([], [])
    for origin in ({"Origin": "http://localhost"}, {"Origin": APP}):
        assert call(gateway, "POST", "/v1/audio/speech", json=SPEECH, headers=origin).content == PCM
    assert call(gateway, "GET", "/v1/models", headers={"Origin": EVIL}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # a program
        ({"Sec-Fetch-Site": "none"}, 200),  # an address that a user typed
        ({"Sec-Fetch-Site": "same-origin", "Referer": "http://localhost/"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Referer": f"{APP}/player"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Referer": f"{EVIL}/"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Referer": "http://localhost:1/"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),  # the page hides itself
        ({"Sec-Fetch-Site": "cross-site", "Referer": "http://[::1"}, 403),
        ({"Origin": EVIL}, 403),
    ],
)
def test_audio_elements_of_other_pages_make_no_speech(headers: dict[str, str], status: int) -> None:
    transport = FakeAsyncTransport()
    gateway = gateway_of(transport, origins=frozenset({APP}))
    answer = call(gateway, "GET", "/v1/audio/speech", params={"input": "Hello."}, headers=headers)
    assert (answer.status_code, len(transport.sync.calls)) == (status, 1 if status == 200 else 0)


def test_pages_of_allowed_origins_may_read_the_answers() -> None:
    gateway = gateway_of(FakeAsyncTransport(), origins=frozenset({APP}), keys=["secret"])
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = call(gateway, "OPTIONS", "/v1/audio/speech", headers={"Origin": APP, **asks})
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == APP
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"].lower()
    refused = call(gateway, "OPTIONS", "/v1/audio/speech", headers={"Origin": EVIL, **asks})
    assert (refused.status_code, "Access-Control-Allow-Origin" in refused.headers) == (400, False)
    headers = {"Origin": APP, "Authorization": "Bearer secret"}
    answer = call(gateway, "POST", "/v1/audio/speech", json=SPEECH, headers=headers)
    assert (answer.content, answer.headers["Access-Control-Allow-Origin"]) == (PCM, APP)
    assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]
    error = call(gateway, "POST", "/v1/audio/speech", json=SPEECH, headers={"Origin": APP})
    assert (error.status_code, error.headers["Access-Control-Allow-Origin"]) == (401, APP)
