"""The voices of a load test: added, spoken with once and removed, through a transport that only remembers."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import soundfile

from chatterbox_client import Client, ConnectionFailed, NotFound
from chatterbox_client.request import NO_CONTEXT, RequestContext, Tensors
from loadtest.voices import provided
from tests.unit.client_fakes import FakeTransport, spoken

INFO = {"voice": "it", "bytes": 1, "content_hash": "", "created_at": "", "updated_at": ""}


class Server(FakeTransport):
    """Speaks, and keeps voices unless it refuses to."""

    def __init__(self, refusal: Exception | None = None) -> None:
        super().__init__({**spoken(), "stats": bytes_of({"voice_ms": 5.0})})
        self._refusal = refusal
        self.kept: dict[str, bytes] = {}
        self.spoken_with: list[str] = []

    def infer(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensors:
        voice = tensors["voice"].item().decode() if "voice" in tensors else "default"
        if model == "chatterbox":
            self.spoken_with.append(voice)
            return super().infer(model, tensors, outputs, timeout, context)
        if self._refusal is not None:
            raise self._refusal
        if tensors["action"].item() == b"add":
            self.kept[voice] = tensors["audio"].item()
        else:
            del self.kept[voice]
        return {"result": bytes_of(INFO)}


def bytes_of(content: Any) -> Any:
    return np.array([[json.dumps(content).encode()]], dtype=np.object_)


def test_voices_are_ready_during_the_test_and_gone_after_it() -> None:
    server = Server()
    with provided(Client(transport=server), lambda _line: None) as names:
        assert names == ["default", *server.kept]
        assert len(set(names)) == 4
        assert set(server.spoken_with) == set(names)
        for clip in server.kept.values():
            assert soundfile.info(io.BytesIO(clip)).duration == 8.0
    assert server.kept == {}


def test_voices_are_gone_after_a_test_that_failed() -> None:
    server = Server()
    with pytest.raises(ZeroDivisionError), provided(Client(transport=server), lambda _line: None):
        raise ZeroDivisionError
    assert server.kept == {}


def test_a_server_that_keeps_no_voices_has_the_built_in_one() -> None:
    said: list[str] = []
    server = Server(NotFound("there is no model chatterbox_voices"))
    with provided(Client(transport=server), said.append) as names:
        assert names == ["default"]
    assert "there is no model chatterbox_voices" in said[0]


def test_a_server_that_is_gone_is_not_taken_for_one_without_voices() -> None:
    server = Server(ConnectionFailed("nobody there"))
    with pytest.raises(ConnectionFailed), provided(Client(transport=server), lambda _line: None):
        pass
