"""The routes of other Chatterbox servers, and what the gateway tells of itself."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import soundfile

from chatterbox_client import Audio, NotFound
from tests.unit.client_fakes import SAMPLES, STATS, TOKENS, FakeAsyncTransport, spoken
from tests.unit.gateway_fakes import asked, call, gateway_of

WAV = Audio(SAMPLES, 24_000, TOKENS, STATS).to_bytes("wav")
PAGE = """\
chatterbox_info{model="chatterbox",checkpoint="tiny",family="english",device="cuda",optimizations="kv_pool,bfloat16"} 1
chatterbox_utterances_waiting{model="chatterbox"} 3
chatterbox_slots_active{model="chatterbox"} 5
chatterbox_slots_active{model="other"} 50
chatterbox_slots_free{model="chatterbox"} 11
chatterbox_requests_active{model="chatterbox"} 8
chatterbox_requests_total{model="chatterbox"} 100
chatterbox_memory_bytes{model="chatterbox",kind="gpu"} 4000000000
chatterbox_memory_bytes{model="chatterbox",kind="host"} 1000000000
chatterbox_rtf_ratio_sum{model="chatterbox"} 30
chatterbox_rtf_ratio_count{model="chatterbox"} 100
chatterbox_contract{model="chatterbox",parameters="{\\"top_p\\": {\\"default\\": 1.0, \
\\"minimum\\": 0.0, \\"maximum\\": 1.0, \\"integer\\": false}}",presets="{\\"fast\\": {\\"top_p\\": 0.3}}",\
languages="[\\"en\\", \\"pt\\"]",language="pt",max_characters="10000"} 1
nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 16000000000
"""


@contextmanager
def metrics_pages(*pages: str) -> Iterator[list[str]]:
    """Addresses of servers with these metrics pages."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(page)) for page in pages]
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield [f"127.0.0.1:{server.server_port}" for server in servers]
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


def _handler(page: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def test_generate_answers_with_json() -> None:
    transport = FakeAsyncTransport()
    body = {"text": "Hello.", "emotion": "happy", "temperature": 0.7, "cfg_weight": 0.3, "seed": 7, "voice": "anna"}
    answer = call(gateway_of(transport), "POST", "/generate", json={**body, "mood": 1})
    assert answer.status_code == 200
    assert answer.headers["Warning"] == '299 chatterbox-gateway "ignored: mood"'
    spoken_ = answer.json()
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(spoken_["audio_base64"])))
    assert (len(samples), rate, spoken_["sample_rate"], spoken_["seed"]) == (len(SAMPLES), 24_000, 24_000, 7)
    assert spoken_["audio"] == spoken_["audio_base64"]
    assert spoken_["audio_duration"] == spoken_["duration"] == pytest.approx(0.12)
    told = (spoken_["queue_time"], spoken_["emotion_used"], spoken_["text_normalized"])
    assert told == (0.0, "happy", "Hello.")
    assert spoken_["rtf"] == pytest.approx(spoken_["generation_time"] / 0.12)
    model, values = asked(transport)
    assert (model, values["preset"], values["voice"], values["seed"]) == ("chatterbox", b"happy", b"anna", 7)


def test_generate_raw_answers_with_a_file() -> None:
    answer = call(gateway_of(FakeAsyncTransport()), "POST", "/generate/raw", json={"text": "Hello."})
    assert (answer.content, answer.headers["Content-Type"]) == (WAV, "audio/wav")
    numbers = {name: float(answer.headers[f"X-{name}"]) for name in ("RTF", "Generation-Time", "Audio-Duration")}
    assert numbers["Audio-Duration"] == pytest.approx(0.12)
    assert numbers["RTF"] == pytest.approx(numbers["Generation-Time"] / 0.12, abs=0.001)
    assert answer.headers["X-Sample-Rate"] == "24000"


def test_generate_has_speed_and_rate() -> None:
    body = {"text": "Hello.", "speed": 0.5, "sample_rate": 8_000}
    answer = call(gateway_of(FakeAsyncTransport()), "POST", "/generate/raw", json=body)
    info = soundfile.info(io.BytesIO(answer.content))
    assert info.samplerate == 8_000
    assert info.duration == pytest.approx(0.24, abs=0.001)
    assert float(answer.headers["X-Audio-Duration"]) == pytest.approx(0.24, abs=0.001)


def test_synthesize_has_its_defaults() -> None:
    stats = {**STATS, "real_time_factor": 0.25, "inference_speedup": 4.0, "gpu_memory_used_mb": 7.0}
    told = np.array([[json.dumps({**stats, "optimizations_active": ["bfloat16"]}).encode()]], dtype=np.object_)
    transport = FakeAsyncTransport({**spoken(), "stats": told})
    body = {"text": "Hello.", "room_name": "lobby", "voice_id": "anna", "temperature": 0.9}
    answer = call(gateway_of(transport), "POST", "/api/tts/synthesize", json=body)
    assert "Warning" not in answer.headers
    result = answer.json()
    assert base64.b64decode(result.pop("audio_base64")) == WAV
    assert result.pop("total_time_ms") > 0
    assert result == {
        "status": "success",
        "sample_rate": 24_000,
        "audio_duration_seconds": pytest.approx(0.12),
        "performance": {
            "real_time_factor": 0.25,
            "inference_speedup": 4.0,
            "gpu_memory_used_mb": 7.0,
            "optimizations_active": {"bfloat16": True},
        },
    }
    _, values = asked(transport)
    assert (values["preset"], values["voice"]) == (b"fast", b"anna")
    assert values["temperature"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("fields", "voice"),
    [
        ({}, None),
        ({"predefined_voice_id": "Emily.wav"}, b"Emily"),
        ({"voice_mode": "clone", "reference_audio_filename": "Bob.mp3"}, b"Bob"),
    ],
)
def test_tts_names_voices_by_their_files(fields: dict[str, Any], voice: bytes | None) -> None:
    transport = FakeAsyncTransport()
    body = {"text": "Hello.", "seed": 0, "speed_factor": 1.0, "split_text": True, **fields}
    answer = call(gateway_of(transport), "POST", "/tts", json=body)
    assert (answer.content, answer.headers["Warning"]) == (WAV, '299 chatterbox-gateway "ignored: split_text"')
    assert asked(transport)[1] == {"text": b"Hello."} | ({"voice": voice} if voice else {})


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/generate", {}, 400, "text: field required"),
        ("/generate", {"text": "Hello.", "temperature": "hot"}, 400, "temperature: input should be a valid number"),
        ("/generate/raw", {"text": ""}, 400, "text: string should have at least 1 character"),
        ("/api/tts/synthesize", {"text": 3}, 400, "text: input should be a valid string, not 3"),
        ("/tts", {"text": "Hello.", "voice_mode": "clone"}, 400, "reference_audio_filename is missing"),
        ("/tts", {"text": "Hello.", "output_format": "wma"}, 400, "output_format: input should be 'wav', 'opus'"),
    ],
)
def test_errors_have_the_form_of_those_servers(path: str, body: dict[str, Any], status: int, message: str) -> None:
    answer = call(gateway_of(FakeAsyncTransport()), "POST", path, json=body)
    assert answer.status_code == status
    assert message in answer.json()["detail"]


def test_the_servers_words_are_passed_on() -> None:
    gateway = gateway_of(FakeAsyncTransport(NotFound("there is no voice 'anna'")))
    for path in ("/generate", "/generate/raw", "/api/tts/synthesize", "/tts"):
        answer = call(gateway, "POST", path, json={"text": "Hello."})
        assert (answer.status_code, answer.json()) == (404, {"detail": "there is no voice 'anna'"})


def test_the_gateway_tells_what_its_servers_tell() -> None:
    transport = FakeAsyncTransport()
    with metrics_pages(PAGE, PAGE) as urls:
        gateway = gateway_of(transport, metrics_urls=urls)
        call(gateway, "POST", "/generate", json={"text": "Hello."})
        health, model, status = (call(gateway, "GET", path).json() for path in ("/health", "/model/info", "/status"))
        transport.sync.is_ready = False
        unready = call(gateway, "GET", "/health")
    assert (unready.status_code, unready.json()) == (503, {"detail": "the model chatterbox is not ready"})
    optimizations = {
        "bfloat16": True,
        "torch_compile": False,
        "reduced_cache": True,
        "compile_mode": None,
        "compilation_time": None,
        "active": ["kv_pool", "bfloat16"],
    }
    assert health == {
        "status": "ok",
        "mode": "optimized",
        "device": "cuda",
        "optimizations": optimizations,
        "gpu_memory": {"used_gb": 8.0, "total_gb": 32.0, "utilization_pct": 25.0},
    }
    assert model == {
        "model_type": "english",
        "checkpoint": "tiny",
        "device": "cuda",
        "vram_usage_mb": 8_000.0,
        "optimizations": optimizations,
        "parameters": {
            "top_p": {"default": 1.0, "minimum": 0.0, "maximum": 1.0, "integer": False},
            "speed": {"default": 1.0, "minimum": 0.25, "maximum": 4.0, "integer": False},
        },
        "presets": {"fast": {"top_p": 0.3}},
        "languages": ["en", "pt"],
        "language": "pt",
        "max_characters": 10_000,
        "change_voices": False,
    }
    assert status.pop("uptime_seconds") >= 0
    assert status == {
        "status": "ok",
        "requests_in_progress": 0,
        "requests_total": 1,
        "audio_seconds_total": 0.12,
        "queue": 6,
        "slots_active": 10,
        "slots_free": 22,
        "server_requests_in_progress": 16,
        "server_requests_total": 200,
        "rtf_mean": 0.3,
    }


def test_without_metrics_the_rest_is_told() -> None:
    gateway = gateway_of(FakeAsyncTransport(), metrics_urls=["127.0.0.1:1"])
    health, model, status = (call(gateway, "GET", path).json() for path in ("/health", "/model/info", "/status"))
    assert (health["status"], health["mode"], health["device"]) == ("ok", "unknown", "unknown")
    assert health["gpu_memory"] == {"used_gb": None, "total_gb": None, "utilization_pct": None}
    assert (model["device"], model["vram_usage_mb"]) == ("unknown", None)
    assert (list(model["parameters"]), model["presets"], model["max_characters"]) == (["speed"], {}, None)
    assert (model["languages"], model["language"]) == ([], None)
    assert (status["status"], status["queue"], status["rtf_mean"]) == ("ok", None, None)
    assert call(gateway, "GET", "/model/info?model=turbo").status_code == 200
    assert call(gateway, "GET", "/model/info?model=piper").json() == {
        "detail": "there is no model 'piper': served is chatterbox, turbo"
    }


def test_pages_and_schema_need_no_other_host() -> None:
    gateway = gateway_of(FakeAsyncTransport())
    for path in ("/", "/docs"):
        page = call(gateway, "GET", path).text
        assert "http" not in page.replace("http-equiv", ""), "links are relative"
    page = call(gateway, "GET", "/")
    policy = "frame-ancestors 'none'"
    assert (page.headers["Cache-Control"], page.headers["Content-Security-Policy"]) == ("no-cache", policy)
    assert call(gateway, "GET", "/page/index.html").headers["Cache-Control"] == "no-cache"
    schema = call(gateway, "GET", "/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    assert {"/v1/audio/speech", "/generate", "/health"} <= set(schema["paths"])
    assert not any("422" in operation["responses"] for path in schema["paths"].values() for operation in path.values())


def test_an_answer_without_audio_is_an_answer() -> None:
    silence = {**STATS, "rtf": None, "real_time_factor": None, "inference_speedup": 0.0, "gpu_memory_used_mb": 0.0}
    told = np.array([[json.dumps({**silence, "optimizations_active": []}).encode()]], dtype=np.object_)
    answer = {**spoken(), "audio": np.zeros((1, 0), dtype=np.float32), "stats": told}
    gateway = gateway_of(FakeAsyncTransport(answer))
    generated = call(gateway, "POST", "/generate", json={"text": "Hello."}).json()
    assert (generated["audio_duration"], generated["rtf"]) == (0, None)
    raw = call(gateway, "POST", "/generate/raw", json={"text": "Hello."})
    assert (len(raw.content), "X-RTF" in raw.headers) == (44, False)
    assert call(gateway, "POST", "/api/tts/synthesize", json={"text": "Hello."}).status_code == 200
