"""The gateway's routes that show texts and lexicons."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from chatterbox_client import InvalidRequest
from tests.unit.client_fakes import FakeAsyncTransport, spoken
from tests.unit.gateway_fakes import call, gateway_of

PART = {"text": "Ask win.", "start": 0, "end": 11, "language": "en", "pause": 1.0, "rate": 1.0}
SHOWN = {"stages": [{"stage": "clean", "passages": [PART]}], "segments": [PART], "lead": 0.0, "notes": ["left out"]}
LEXICONS = {"words": {"Nguyen": "win"}, "voices": {"anna": {"York": "yoark"}}, "error": None}


def answering(name: str, result: Any) -> FakeAsyncTransport:
    return FakeAsyncTransport({**spoken(), name: np.array([[json.dumps(result).encode()]], dtype=np.object_)})


def test_a_text_is_shown_with_the_gateway_s_own_defaults() -> None:
    transport = answering("stats", SHOWN)
    body = {"text": "Ask Nguyen.", "voice": "anna", "markup": "none", "lexicon": {"Nguyen": "win"}}
    answer = call(gateway_of(transport), "POST", "/v1/text", json=body)
    assert (answer.status_code, answer.json()) == (200, SHOWN)
    [(model, tensors, _, _)] = transport.sync.calls
    assert model == "chatterbox"
    assert {name: tensor.item() for name, tensor in tensors.items()} == {
        "text": b"Ask Nguyen.",
        "voice": b"anna",
        "text_normalization": b"plain",
        "markup": b"none",
        "lexicon": b'{"Nguyen": "win"}',
        "format": b"text",
    }


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 400, "text: field required"),
        ({"text": ""}, 400, "text: string should have at least 1 character"),
        ({"text": "a", "seed": 1}, 400, "seed: extra inputs are not permitted"),
        ({"text": "a", "model": "nope"}, 404, "there is no model 'nope'"),
    ],
)
def test_a_request_to_show_a_text_that_is_wrong_is_refused(body: dict[str, Any], status: int, reason: str) -> None:
    answer = call(gateway_of(FakeAsyncTransport()), "POST", "/v1/text", json=body)
    assert answer.status_code == status
    assert reason in answer.json()["error"]["message"]


def test_the_server_s_refusal_is_passed_on() -> None:
    transport = FakeAsyncTransport(InvalidRequest("SSML, line 1, column 9: the element 'x' is unknown"))
    answer = call(gateway_of(transport), "POST", "/v1/text", json={"text": "<speak><x/></speak>"})
    assert answer.status_code == 400
    assert "line 1, column 9" in answer.json()["error"]["message"]


def test_lexicons_are_listed() -> None:
    answer = call(gateway_of(answering("result", LEXICONS)), "GET", "/v1/lexicons")
    assert (answer.status_code, answer.json()) == (200, LEXICONS)
