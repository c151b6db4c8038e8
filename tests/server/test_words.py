"""Word times and the guard through a running server, over both protocols, whole and streamed."""

from __future__ import annotations

import json
from contextlib import closing

import numpy as np
import pytest
import tritonclient.http

from chatterbox_client import InvalidRequest
from chatterbox_engine.launcher.server import TritonServer
from tests.server.conftest import client_of

pytestmark = pytest.mark.server

TEXT = "Hello there, how are you today? It is a fine day."


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_words_come_with_the_audio_and_with_the_chunks(server: TritonServer, protocol: str) -> None:
    with client_of(server, protocol) as client:
        plain = client.speak(TEXT, seed=3)
        audio = client.speak(TEXT, seed=3, word_times=True)
        chunks = list(client.stream(TEXT, seed=3, word_times=True))
    assert audio.speech_tokens.tolist() == plain.speech_tokens.tolist()
    assert not plain.words
    assert [word.word for word in audio.words] == TEXT.split()
    assert all(TEXT[slice(*word.span)] == word.word for word in audio.words)
    assert all(0 <= word.start <= word.end <= audio.duration + 0.001 for word in audio.words)
    assert [word for chunk in chunks for word in chunk.words] == list(audio.words)


def test_a_guarded_answer_says_what_the_guard_did(server: TritonServer) -> None:
    with client_of(server, "grpc") as client:
        for guard in ("stop", "retry", "upstream"):
            stats = client.speak(TEXT, seed=3, guard=guard).stats
            assert {"alignment_score", "retries", "trimmed_seconds", "guard_events"} <= set(stats)
            again = client.speak(TEXT, seed=3, guard=guard).stats
            assert [again[name] for name in ("tokens", "retries")] == [stats[name] for name in ("tokens", "retries")]
        assert "retries" not in client.speak(TEXT, seed=3).stats
        with pytest.raises(InvalidRequest, match="guard is 'on'; it must be one of off, stop, retry, upstream"):
            client.speak(TEXT, guard="on")
        with pytest.raises(InvalidRequest, match="guard_retries needs the guard retry"):
            client.speak(TEXT, guard="stop", guard_retries=1)
        with pytest.raises(InvalidRequest, match="guard_retries is 6; it must be from 0 to 5"):
            client.speak(TEXT, guard="retry", guard_retries=6)


def test_words_are_json_in_the_models_own_output(server: TritonServer) -> None:
    with closing(tritonclient.http.InferenceServerClient(server.http_url)) as http:
        text = tritonclient.http.InferInput("text", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([["Hi there."]], dtype=np.object_))
        wanted = tritonclient.http.InferInput("word_times", [1, 1], "BOOL")
        wanted.set_data_from_numpy(np.array([[True]]))
        answer = http.infer("chatterbox", [text, wanted])
    words = json.loads(answer.as_numpy("words")[0, 0])
    assert [(word["word"], word["span"]) for word in words] == [("Hi", [0, 2]), ("there.", [3, 9])]
