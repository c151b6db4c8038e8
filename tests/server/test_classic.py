"""The calls of `docs/migrating.md`: what callers of other Chatterbox servers send and read, on a real server."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
import requests
import soundfile

from tests.server.front import Front

pytestmark = pytest.mark.server

SHORT = {"seed": 3, "max_seconds": 2.0}
SPEAKING = {"temperature": 0.7, "cfg_weight": 0.4, "exaggeration": 0.6}


@pytest.fixture
def url(front: Front) -> str:
    return f"http://{front.address}"


def seconds(wav: bytes) -> float:
    return float(soundfile.info(io.BytesIO(wav)).duration)


@pytest.mark.parametrize("emotion", ["happy", "sad", "angry", "excited", "calm", "neutral"])
def test_generate(url: str, emotion: str) -> None:
    body = {"text": "Hello there.", "emotion": emotion, "voice": "default", **SHORT}
    answer = requests.post(f"{url}/generate", json=body | (SPEAKING if emotion == "happy" else {}), timeout=120)
    answer.raise_for_status()
    result = answer.json()
    assert result["audio_base64"] == result["audio"]
    duration = seconds(base64.b64decode(result["audio"]))
    assert result["audio_duration"] == result["duration"] == pytest.approx(duration, abs=0.001)
    assert result["queue_time"] >= 0
    assert (result["emotion_used"], result["text_normalized"]) == (emotion, "Hello there.")
    assert result["rtf"] == pytest.approx(result["generation_time"] / duration, rel=0.01)
    assert (result["sample_rate"], result["seed"]) == (24_000, 3)


def test_generate_raw(url: str) -> None:
    answer = requests.post(f"{url}/generate/raw", json={"text": "Hello there.", **SHORT}, timeout=120)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "audio/wav")
    assert float(answer.headers["X-Audio-Duration"]) == pytest.approx(seconds(answer.content), abs=0.001)
    assert float(answer.headers["X-RTF"]) > 0
    assert float(answer.headers["X-Generation-Time"]) > 0
    assert answer.headers["X-Sample-Rate"] == "24000"


def test_synthesize(url: str) -> None:
    body = {"text": "Hello there.", "room_name": "lobby", "voice_id": "default", **SPEAKING, "max_seconds": 2.0}
    result = requests.post(f"{url}/api/tts/synthesize", json=body, timeout=120).json()
    assert result["status"] == "success"
    assert result["total_time_ms"] > 0
    assert seconds(base64.b64decode(result["audio_base64"])) == pytest.approx(result["audio_duration_seconds"])
    performance: dict[str, Any] = result["performance"]
    assert performance["real_time_factor"] > 0
    assert performance["inference_speedup"] > 0
    assert performance["gpu_memory_used_mb"] >= 0
    assert performance["optimizations_active"]["continuous_batching"] is True


def test_tts(url: str) -> None:
    body = {"text": "Hello there.", "voice_mode": "predefined", "output_format": "wav", "max_seconds": 2.0}
    answer = requests.post(f"{url}/tts", json=body, timeout=120)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "audio/wav")
    assert seconds(answer.content) > 0


def test_what_the_server_tells_of_itself(url: str) -> None:
    model = requests.get(f"{url}/model/info", timeout=10).json()
    assert model["model_type"] == "english"
    assert model["parameters"]["temperature"] == {"default": 0.8, "minimum": 0, "maximum": 5, "integer": False}
    assert model["presets"]["fast"] == {"exaggeration": 0.35, "cfg_weight": 0.3, "temperature": 0.7}
    assert (model["languages"], model["max_characters"]) == (["en"], 10_000)
    assert (model["device"], model["optimizations"]["bfloat16"], model["optimizations"]["torch_compile"]) == (
        "cpu",
        False,
        False,
    )
    health = requests.get(f"{url}/health", timeout=10).json()
    assert (health["status"], health["mode"], health["device"]) == ("ok", "optimized", "cpu")
    assert set(health["gpu_memory"]) == {"used_gb", "total_gb", "utilization_pct"}
    status = requests.get(f"{url}/status", timeout=10).json()
    assert status["uptime_seconds"] > 0
    assert status["slots_free"] > 0
    assert (status["queue"], status["requests_in_progress"]) == (0, 0)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"text": "Hello.", "emotion": "bored"}, 400, "preset is 'bored'; it must be one of upstream, fast, neutral"),
        ({"text": "Hello.", "voice": "nobody"}, 404, "nobody"),
        ({"text": "..."}, 400, "nothing to speak"),
        ({"text": "Hello.", "temperature": 9}, 400, "temperature is 9; it must be from 0 to 5"),
    ],
)
def test_errors_have_the_servers_words(url: str, body: dict[str, Any], status: int, message: str) -> None:
    for path in ("/generate", "/generate/raw"):
        answer = requests.post(f"{url}{path}", json=body, timeout=120)
        assert (answer.status_code, message in answer.json()["detail"]) == (status, True), answer.text
