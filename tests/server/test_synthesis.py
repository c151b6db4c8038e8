"""The real tritonserver through the real client: whole utterances."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from chatterbox_client import Audio, Client, InvalidRequest, Unavailable
from chatterbox_engine.launcher.server import ServerOptions, TritonServer
from chatterbox_engine.serving.audio import FORMATS
from chatterbox_engine.serving.contract import INPUTS, OUTPUTS, SAMPLING
from tests.server.conftest import INT8, Spoken, client_of

pytestmark = pytest.mark.server

GREETING = "Hello there, how are you today?"


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Client]:
    with client_of(server, request.param) as it:
        yield it


def generate(server: TritonServer, **inputs: Any) -> dict[str, Any]:
    """Triton's JSON endpoint, for clients without a Triton client library."""
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/chatterbox/generate", json.dumps(inputs).encode(), method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        body: dict[str, Any] = json.load(answer)
        return body


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_sentence_comes_back_as_audio(spoken: Spoken, protocol: str) -> None:
    with spoken.client(protocol) as client:
        audio = client.speak(GREETING, seed=7)
    assert audio.sample_rate == 24_000
    assert audio.samples.dtype == np.float32
    assert len(audio.samples) == 960 * len(audio.speech_tokens) > 0
    assert np.isfinite(audio.samples).all()
    assert 0.01 < np.abs(audio.samples).max() <= 1
    assert audio.seed == 7
    expected = {"seed", "tokens", "segments", "finish_reason", "queue_ms", "ttfa_ms", "t3_ms", "s3gen_ms", "total_ms"}
    assert expected | {"audio_seconds", "rtf", "model", "optimizations"} <= set(audio.stats)
    timeline = audio.stats["timeline_ms"]
    assert list(timeline) == ["voice", "queue", "prefill", "decode", "vocode", "finish"]
    steps = [place for name in ("voice", "queue", "prefill", "decode") for place in timeline[name]]
    assert [0.0, *steps] == sorted([0.0, *steps])
    assert timeline["decode"][1] <= timeline["vocode"][1] == timeline["finish"][0] <= timeline["finish"][1]
    assert timeline["finish"][1] == pytest.approx(audio.stats["total_ms"], abs=0.02)
    assert ("int8" in audio.stats["optimizations"]) == spoken.model.endswith(INT8)
    assert ("packed_projections" in audio.stats["optimizations"]) == spoken.family.in_blocks


def test_only_text_is_needed_and_the_random_seed_is_told(spoken: Spoken) -> None:
    with spoken.client("http") as client:
        first = client.speak(GREETING)
        again = client.speak(GREETING, seed=first.seed)
    np.testing.assert_array_equal(first.speech_tokens, again.speech_tokens)


def test_length_is_bounded_by_max_seconds(spoken: Spoken) -> None:
    with spoken.client("grpc") as client:
        audio = client.speak(GREETING, seed=1, max_seconds=0.4)
    ending = 0.04 * (len(spoken.family.appended) - spoken.family.cropped)
    assert audio.duration == pytest.approx(0.4 + ending)
    assert audio.stats["finish_reason"] == "length"


def test_what_a_family_does_not_heed_is_refused(spoken: Spoken) -> None:
    with spoken.client("http") as client:
        for name in set(SAMPLING) - set(spoken.family.inputs):
            with pytest.raises(InvalidRequest, match=f"{name} has no effect on {spoken.family.title}"):
                client.speak(GREETING, **{name: 1})
        with pytest.raises(InvalidRequest, match=f"language is 'xx'; {spoken.family.title} speaks"):
            client.speak(GREETING, language="xx")
        if spoken.family.in_blocks:
            for option in ({"word_times": True}, {"guard": "stop"}):
                with pytest.raises(InvalidRequest, match=f"{next(iter(option))}: not of {spoken.family.title}"):
                    client.speak(GREETING, **option)


@pytest.mark.full
def test_a_language_is_spoken_or_refused_with_what_it_needs(server_of: Callable[[str], TritonServer]) -> None:
    with Client(server_of("tiny-multilingual").http_url, model="tiny-multilingual") as client:
        japanese, japanese_again, german = (
            client.speak("\u3053\u3093\u306b\u3061\u306f\u3001\u4e16\u754c\u3002", language=language, seed=1)
            for language in ("ja", "ja", "de")
        )
        assert japanese.speech_tokens.tolist() == japanese_again.speech_tokens.tolist()
        assert japanese.speech_tokens.tolist() != german.speech_tokens.tolist()
        with pytest.raises(InvalidRequest, match="language is 'he', which needs the package dicta_onnx"):
            client.speak("\u05e9\u05dc\u05d5\u05dd", language="he")


def test_sixteen_requests_together_each_equal_the_same_request_alone(spoken: Spoken) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    for number in range(16):
        text = " ".join(["One more sentence of a growing text."] * (1 + number % 5)) + " Indeed!" * (number // 5)
        options: dict[str, Any] = {"seed": number, "cfg_weight": [0.5, 0.0, 1.2][number % 3], "top_k": 10 * number}
        options["max_seconds"] = 1.0 + number / 5
        options |= {"top_p": 0.8} if number % 4 == 1 else {"temperature": 0.5 + number / 16}
        calls.append((text, spoken.supported(options)))

    def speak(number: int) -> Audio:
        text, options = calls[number]
        with spoken.client(("http", "grpc")[number % 2]) as it:
            return it.speak(text, **options)

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(speak, range(16)))
    for number, audio in enumerate(together):
        alone = speak(number)
        np.testing.assert_array_equal(audio.speech_tokens, alone.speech_tokens, err_msg=f"request {number}")
        difference = np.abs(audio.samples - alone.samples).max()
        assert difference < 1e-4, f"request {number}: {difference:.2e}"
    assert len({len(audio.samples) for audio in together}) > 4


def test_triton_hands_over_as_a_batch_what_arrives_together(server: TritonServer) -> None:
    def speak(number: int) -> None:
        with client_of(server, "grpc") as it:
            it.speak(GREETING, seed=number, max_seconds=0.04)

    with ThreadPoolExecutor(16) as pool:
        for _ in range(20):  # thread scheduling decides which requests arrive together
            list(pool.map(speak, range(32)))
            if executions_of_batches(server):
                return
    pytest.fail("640 requests from 16 threads were 640 batches")


def executions_of_batches(server: TritonServer) -> int:
    """How often Triton executed a batch of more than one request."""
    with closing(tritonclient.http.InferenceServerClient(server.http_url)) as it:
        stats = it.get_inference_statistics("chatterbox")["model_stats"][0]
    batches = stats.get("batch_stats", [])
    return sum(int(b["compute_infer"]["count"]) for b in batches if int(b["batch_size"]) > 1)


def test_metadata_configuration_health_and_statistics_answer(server: TritonServer) -> None:
    with closing(tritonclient.http.InferenceServerClient(server.http_url)) as http:
        assert http.is_server_live()
        assert http.is_server_ready()
        assert http.is_model_ready("chatterbox")
        metadata = http.get_model_metadata("chatterbox")
        assert [tensor["name"] for tensor in metadata["inputs"]] == list(CONFIG_ORDER)
        assert [tensor["name"] for tensor in metadata["outputs"]] == list(OUTPUTS)
        assert "dynamic_batching" in http.get_model_config("chatterbox")
        assert http.get_inference_statistics("chatterbox")["model_stats"][0]["name"] == "chatterbox"
    with closing(tritonclient.grpc.InferenceServerClient(server.grpc_url)) as grpc:
        assert grpc.is_model_ready("chatterbox")
        assert {tensor.name for tensor in grpc.get_model_metadata("chatterbox").inputs} == set(INPUTS)
        assert grpc.get_model_config("chatterbox").config.backend == "python"
        assert grpc.get_inference_statistics("chatterbox").model_stats[0].name == "chatterbox"


def test_a_preset_speaks_as_its_parameters_do(server: TritonServer) -> None:
    with Client(server.http_url, "http") as client:
        named = client.speak(GREETING, seed=3, preset="fast")
        spelt = client.speak(GREETING, seed=3, exaggeration=0.35, cfg_weight=0.3, temperature=0.7)
        other = client.speak(GREETING, seed=3)
    assert named.speech_tokens.tolist() == spelt.speech_tokens.tolist() != other.speech_tokens.tolist()


CONFIG_ORDER = (
    *("text", "voice", "reference_audio", "language", "text_normalization", "markup", "lexicon"),
    *("preset", "exaggeration", "cfg_weight"),
    *("temperature", "top_p", "min_p", "repetition_penalty", "top_k"),
    *("num_steps", "time_shift_tau", "omnivoice_schedule_t_shift", "position_temperature", "seed", "max_seconds"),
    *("word_times", "guard", "guard_retries", "format", "priority"),
)


@pytest.mark.parametrize("audio_format", FORMATS)
def test_json_callers_get_every_format(server: TritonServer, audio_format: str) -> None:
    body = generate(server, text=GREETING, seed=3, format=audio_format, max_seconds=1.0)
    reference = np.array(generate(server, text=GREETING, seed=3, max_seconds=1.0)["audio"], dtype=np.float32)
    data = base64.b64decode(body["audio_base64"])
    if audio_format == "pcm":
        assert data == b""
        return
    assert not body.get("audio")
    if audio_format == "s16":
        samples = np.frombuffer(data, dtype="<i2") / 32768
    else:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        assert rate == 24_000
    assert abs(len(samples) - len(reference)) <= (2400 if audio_format == "mp3" else 0)
    if audio_format in ("wav", "flac", "s16"):
        np.testing.assert_allclose(samples, reference, atol=1e-4)


def infer_http(server: TritonServer, inputs: list[Any]) -> Any:
    with closing(tritonclient.http.InferenceServerClient(server.http_url)) as it:
        return it.infer("chatterbox", inputs)


def infer_grpc(server: TritonServer, inputs: list[Any]) -> Any:
    with closing(tritonclient.grpc.InferenceServerClient(server.grpc_url)) as it:
        return it.infer("chatterbox", inputs)


TEXTS = ("text", "voice", "language", "text_normalization", "markup", "preset", "format")
TYPES = {**dict.fromkeys(TEXTS, "BYTES"), "seed": "INT64", "top_k": "INT32"}
NUMPY = {"BYTES": np.object_, "INT64": np.int64, "INT32": np.int32, "FP32": np.float32}

BAD = [
    ({"text": ""}, "400", "text is empty"),
    ({"text": " \n\t "}, "400", "text is empty"),
    ({"text": b"\xff\xfe\x00"}, "400", "UTF-8"),
    ({"text": "x" * 10_001}, "400", "10001"),
    ({"text": GREETING, "temperature": float("nan")}, "400", "temperature is nan"),
    ({"text": GREETING, "temperature": -0.1}, "400", "temperature is -0.1"),
    ({"text": GREETING, "top_p": 0.0}, "400", "top_p is 0"),
    ({"text": GREETING, "min_p": 1.5}, "400", "min_p is 1.5"),
    ({"text": GREETING, "cfg_weight": float("inf")}, "400", "cfg_weight is inf"),
    ({"text": GREETING, "exaggeration": 99.0}, "400", "exaggeration is 99"),
    ({"text": GREETING, "repetition_penalty": 0.0}, "400", "repetition_penalty is 0"),
    ({"text": GREETING, "max_seconds": 0.0}, "400", "max_seconds is 0"),
    ({"text": GREETING, "max_seconds": 1e6}, "400", "max_seconds is 1e+06"),
    ({"text": GREETING, "voice": "nobody"}, "404", "nobody"),
    ({"text": GREETING, "language": "xx"}, "400", "language is 'xx'"),
    ({"text": GREETING, "preset": "grim"}, "400", "preset is 'grim'"),
    ({"text": GREETING, "format": "aiff"}, "400", "format is 'aiff'"),
    ({"text": GREETING, "top_k": 50}, "400", "top_k has no effect"),
    ({"voice": "default"}, "400", "text"),
    *(
        ({"text": silent}, "400", "nothing to speak")
        for silent in ("...", "\u200b", "\N{THUMBS UP SIGN}", "\x00", "\u4f60")
    ),
    ({"text": GREETING, "voice": "v" * 20_000}, "404", "there is no voice 'vvv"),
    *(({"text": GREETING, name: "v" * 20_000}, "400", f"{name} is 'vvv") for name in TEXTS[2:]),
]
GRPC_NAMES = {"400": "INVALID_ARGUMENT", "404": "NOT_FOUND"}


@pytest.mark.parametrize(("inputs", "status", "message"), BAD, ids=[f"{n} {m}" for n, (_, _, m) in enumerate(BAD)])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_bad_input_gets_its_status_and_a_clear_message(
    server: TritonServer, protocol: str, inputs: dict[str, Any], status: str, message: str
) -> None:
    module: Any = tritonclient.http if protocol == "http" else tritonclient.grpc
    tensors = []
    for name, value in inputs.items():
        kind = TYPES.get(name, "FP32")
        tensor = module.InferInput(name, [1, 1], kind)
        tensor.set_data_from_numpy(np.array([[value]], dtype=NUMPY[kind]))
        tensors.append(tensor)
    infer = infer_http if protocol == "http" else infer_grpc
    with pytest.raises(InferenceServerException) as caught:
        infer(server, tensors)
    assert message in caught.value.message()
    expected = status if protocol == "http" else f"StatusCode.{GRPC_NAMES[status]}"
    assert caught.value.status() == expected


def wrong_type(module: Any) -> list[Any]:
    text = module.InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[GREETING]], dtype=np.object_))
    seed = module.InferInput("seed", [1, 1], "FP32")
    seed.set_data_from_numpy(np.zeros((1, 1), dtype=np.float32))
    return [text, seed]


def wrong_shape(module: Any) -> list[Any]:
    text = module.InferInput("text", [1, 2], "BYTES")
    text.set_data_from_numpy(np.array([["a", "b"]], dtype=np.object_))
    return [text]


def batch_of_two(module: Any) -> list[Any]:
    text = module.InferInput("text", [2, 1], "BYTES")
    text.set_data_from_numpy(np.array([["One."], ["Two."]], dtype=np.object_))
    return [text]


@pytest.mark.parametrize("make", [wrong_type, wrong_shape, batch_of_two])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_wrong_type_or_shape_is_refused(
    server: TritonServer, protocol: str, make: Callable[[Any], list[Any]]
) -> None:
    module: Any = tritonclient.http if protocol == "http" else tritonclient.grpc
    infer = infer_http if protocol == "http" else infer_grpc
    with pytest.raises(InferenceServerException) as caught:
        infer(server, make(module))
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


@pytest.mark.parametrize("endpoint", ["generate", "generate_stream"])
@pytest.mark.parametrize("model", ["chatterbox", "chatterbox_stream", "chatterbox_voices"])
def test_a_field_that_no_input_has_is_refused_by_name(server: TritonServer, model: str, endpoint: str) -> None:
    """Triton makes request parameters of them."""
    if (model, endpoint) == ("chatterbox_stream", "generate"):
        pytest.skip("a decoupled model has no such endpoint")
    needed = {"action": "list"} if model == "chatterbox_voices" else {"text": GREETING, "max_seconds": 0.2}
    url = f"http://{server.http_url}/v2/models/{model}/{endpoint}"
    refused = [{"nope": 1}, {"timeout": 5}, {"n" * 20_000: "x"}, {"Text": "x"}, {"parameters": {"nope": True}}]
    for fields, word in zip(refused, ("'nope'", "'timeout'", "'nnn", "'Text'", "'nope'"), strict=True):
        answer = httpx.post(url, json={**needed, **fields}, timeout=60)
        assert f"unknown field {word}" in answer.text
        assert answer.status_code == 400
        assert len(answer.text) < 700
    answer = httpx.post(url, json={**needed, "id": "7"}, headers={"Origin": "http://localhost"}, timeout=60)
    assert answer.status_code == 200
    assert "unknown field" not in answer.text


@pytest.mark.parametrize("model", ["chatterbox", "chatterbox_voices"])
def test_a_parameter_over_grpc_is_refused_by_name(server: TritonServer, model: str) -> None:
    name, value = ("action", b"list") if model == "chatterbox_voices" else ("text", GREETING.encode())
    tensor = tritonclient.grpc.InferInput(name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[value]], dtype=np.object_))
    with closing(tritonclient.grpc.InferenceServerClient(server.grpc_url)) as it:
        with pytest.raises(InferenceServerException, match="unknown field 'nope'") as caught:
            it.infer(model, [tensor], parameters={"nope": 1})
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        it.infer(model, [tensor], priority=0, timeout=60_000_000, headers={"x-request": "7"})


def test_the_server_still_speaks_after_all_of_that(client: Client) -> None:
    assert client.speak(GREETING, max_seconds=0.4).duration == 0.4


def test_a_surplus_of_requests_gets_503_at_once_and_the_others_are_answered(tiny_path: Path, tmp_path: Path) -> None:
    environment = {
        "CHATTERBOX_CHECKPOINT": str(tiny_path),
        "CHATTERBOX_MAX_QUEUE": "4",
        "CHATTERBOX_MAX_SLOTS": "2",
        "CHATTERBOX_WATERMARK": "0",
    }
    options = ServerOptions(environment=environment, log=tmp_path / "triton.log")

    def speak(number: int) -> str:
        with client_of(server, ("http", "grpc")[number % 2]) as it:
            try:
                return f"{it.speak(GREETING * 5, seed=number, max_seconds=5.0).duration > 0}"
            except Unavailable as error:
                return error.message

    with TritonServer(options) as server, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(speak, range(16)))
        assert speak(1) == "True"
    refused = [answer for answer in answers if answer != "True"]
    assert 4 <= answers.count("True") < 16
    assert all("requests are under way and no more are taken" in message for message in refused)
