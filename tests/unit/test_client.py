"""The client above its transport: arguments to tensors, answers to audio, and the frozen public interface."""

from __future__ import annotations

import asyncio
import inspect
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import chatterbox_client
from chatterbox_client import (
    AsyncClient,
    Audio,
    ChatterboxClientError,
    Client,
    InvalidRequest,
    NotFound,
    ServerError,
)
from tests.unit.client_fakes import SAMPLES, STATS, TOKENS, FakeAsyncTransport, FakeTransport, spoken

# Name, an argument, and what the contract's tensor holds for it.
CONTRACT: list[tuple[str, Any, Any, Any]] = [
    ("voice", "élodie", np.object_, "élodie".encode()),
    ("reference_audio", b"RIFF\0\0", np.object_, b"RIFF\0\0"),
    ("language", "fr", np.object_, b"fr"),
    ("text_normalization", "plain", np.object_, b"plain"),
    ("markup", "auto", np.object_, b"auto"),
    ("lexicon", {"Nguyen": "win"}, np.object_, b'{"Nguyen": "win"}'),
    ("preset", "calm", np.object_, b"calm"),
    ("exaggeration", 0.7, np.float32, np.float32(0.7)),
    ("cfg_weight", 0, np.float32, np.float32(0)),
    ("temperature", 0.0, np.float32, np.float32(0)),
    ("top_p", 0.9, np.float32, np.float32(0.9)),
    ("min_p", 0.02, np.float32, np.float32(0.02)),
    ("repetition_penalty", 1.3, np.float32, np.float32(1.3)),
    ("top_k", 50, np.int32, 50),
    ("num_steps", 6, np.int32, 6),
    ("time_shift_tau", 0.25, np.float32, np.float32(0.25)),
    ("omnivoice_schedule_t_shift", 0.75, np.float32, np.float32(0.75)),
    ("position_temperature", 0, np.float32, np.float32(0)),
    ("seed", 2**62, np.int64, 2**62),
    ("max_seconds", 12.5, np.float32, np.float32(12.5)),
    ("priority", "batch", np.object_, b"batch"),
    ("word_times", True, np.bool_, True),
    ("guard", "retry", np.object_, b"retry"),
    ("guard_retries", 1, np.int32, 1),
]


def sent(**arguments: Any) -> dict[str, Any]:
    transport = FakeTransport()
    Client(transport=transport).speak("Hi.", **arguments)
    return transport.calls[0][1]


def test_only_the_text_is_sent_when_nothing_else_is_given() -> None:
    tensors = sent()
    assert list(tensors) == ["text"]
    assert tensors["text"].tolist() == [[b"Hi."]]


@pytest.mark.parametrize(("name", "argument", "dtype", "value"), CONTRACT, ids=[row[0] for row in CONTRACT])
def test_an_argument_becomes_the_contracts_tensor(name: str, argument: Any, dtype: Any, value: Any) -> None:
    tensors = sent(**{name: argument})
    assert set(tensors) == {"text", name}
    assert tensors[name].dtype == dtype
    assert tensors[name].shape == (1, 1)
    assert tensors[name].item() == value


def test_the_table_above_covers_every_parameter() -> None:
    assert [*inspect.signature(Client.speak).parameters][2:] == [row[0] for row in CONTRACT]


def test_text_travels_as_utf_8() -> None:
    transport = FakeTransport()
    Client(transport=transport).speak("Grüße, 世界 \N{SMILING FACE WITH OPEN MOUTH}")
    text: bytes = transport.calls[0][1]["text"].item()
    assert text.decode("utf-8") == "Grüße, 世界 \N{SMILING FACE WITH OPEN MOUTH}"


def test_a_reference_path_is_read_and_sent_as_bytes(tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    clip.write_bytes(b"RIFF....WAVE\0")
    for path in (clip, str(clip)):
        assert sent(reference_audio=path)["reference_audio"].item() == b"RIFF....WAVE\0"


def test_a_missing_reference_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sent(reference_audio=tmp_path / "none.wav")


@pytest.mark.parametrize(
    "wrong",
    [{"seed": 2**63}, {"seed": 1.5}, {"top_k": 2**31}, {"top_k": 3.0}, {"temperature": "hot"}, {"voice": "\ud800"}],
    ids=repr,
)
def test_a_value_its_tensor_cannot_carry_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        sent(**wrong)


def test_a_number_beyond_float32_reaches_the_server_as_infinity() -> None:
    assert sent(temperature=1e300)["temperature"].item() == np.inf


def test_an_unknown_parameter_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="temprature"):
        sent(temprature=1.0)


def test_the_model_the_outputs_and_the_timeout_reach_the_transport() -> None:
    transport = FakeTransport()
    Client(model="turbo", timeout=12, transport=transport).speak("Hi.")
    model, _, outputs, timeout = transport.calls[0]
    assert (model, timeout) == ("turbo", 12)
    assert outputs == ("audio", "sample_rate", "speech_tokens", "stats")


def test_an_answer_becomes_audio() -> None:
    audio = Client(transport=FakeTransport()).speak("Hi.")
    np.testing.assert_array_equal(audio.samples, SAMPLES)
    np.testing.assert_array_equal(audio.speech_tokens, TOKENS)
    assert (audio.sample_rate, audio.duration, audio.rtf, audio.seed) == (24_000, 0.12, 0.25, 7)
    assert audio.stats == STATS


def test_the_samples_may_be_changed_though_the_answer_is_read_only() -> None:
    answer = spoken()
    answer["audio"].flags.writeable = False
    audio = Client(transport=FakeTransport(answer)).speak("Hi.")
    audio.samples[0] = 0.5
    assert answer["audio"][0, 0] == -1


def test_an_answer_without_an_output_is_a_server_error_that_names_it() -> None:
    answer = spoken()
    del answer["speech_tokens"]
    with pytest.raises(ServerError, match="speech_tokens"):
        Client(transport=FakeTransport(answer)).speak("Hi.")


def test_stats_that_are_not_json_are_a_server_error() -> None:
    answer = spoken() | {"stats": np.array([[b"{seed"]], dtype=np.object_)}
    with pytest.raises(ServerError, match="stats"):
        Client(transport=FakeTransport(answer)).speak("Hi.")


def test_the_context_manager_closes_the_transport() -> None:
    transport = FakeTransport()
    with Client(transport=transport) as client:
        assert client.ready()
        assert client.metadata()["name"] == "chatterbox"
        assert not transport.closed
    assert transport.closed


def test_the_async_client_sends_the_same_tensors_and_returns_the_same_audio() -> None:
    transport = FakeAsyncTransport()
    arguments = {row[0]: row[1] for row in CONTRACT}

    async def speak() -> Audio:
        async with AsyncClient(transport=transport) as client:
            assert await client.ready()
            assert (await client.metadata())["name"] == "chatterbox"
            return await client.speak("Hi.", **arguments)

    audio = asyncio.run(speak())
    assert transport.sync.calls[0][1] == sent(**arguments)
    assert transport.sync.closed
    np.testing.assert_array_equal(audio.samples, SAMPLES)


def test_the_async_client_raises_when_awaited_not_when_called() -> None:
    async def speak() -> Any:
        client = AsyncClient(transport=FakeAsyncTransport())
        return await asyncio.gather(client.speak("Hi."), client.speak("Hi.", seed=2**70), return_exceptions=True)

    good, bad = asyncio.run(speak())
    assert isinstance(good, Audio)
    assert isinstance(bad, InvalidRequest)


def test_errors_of_the_transport_reach_the_caller() -> None:
    error = NotFound("no voice 'x'", status="404")
    with pytest.raises(NotFound, match="no voice 'x'") as caught:
        Client(transport=FakeTransport(error)).speak("Hi.", voice="x")
    assert (caught.value.message, caught.value.status) == ("no voice 'x'", "404")


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_url_and_a_protocol_that_cannot_be_are_refused(client: Any) -> None:
    with pytest.raises(InvalidRequest, match="address for the protocol grpc"):
        client("grpc://localhost:8001")
    with pytest.raises(ValueError, match="use http or grpc"):
        client("localhost:8000", "websocket")


def audio_of(samples: Any) -> Audio:
    return Audio(samples, 24_000, TOKENS, STATS)


@pytest.mark.parametrize(
    ("extension", "format", "subtype"),
    [
        ("wav", "WAV", "PCM_16"),
        ("flac", "FLAC", "PCM_16"),
        ("ogg", "OGG", "VORBIS"),
        ("MP3", "MP3", "MPEG_LAYER_III"),
    ],
)
def test_save_writes_the_format_that_the_extension_names(
    tmp_path: Path, extension: str, format: str, subtype: str
) -> None:
    path = tmp_path / f"speech.{extension}"
    audio_of(np.sin(np.arange(24_000, dtype=np.float32) / 20) / 2).save(path)
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.samplerate, info.channels) == (format, subtype, 24_000, 1)
    assert info.duration == pytest.approx(1, abs=0.1)
    assert np.abs(soundfile.read(path)[0]).max() == pytest.approx(0.5, abs=0.05)


def test_an_unknown_extension_or_format_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    audio = audio_of(SAMPLES)
    for name in ("speech", "speech.aac", "speech.s16"):
        with pytest.raises(ValueError, match=r"use the extension \.wav"):
            audio.save(tmp_path / name)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="unknown audio format 'aac'"):
        audio.to_bytes("aac")


def test_raw_samples_are_those_of_the_wav_file_and_loud_ones_are_clipped() -> None:
    audio = audio_of(np.array([0, 0.5, 1.5, -1.5], dtype=np.float32))
    raw = np.frombuffer(audio.to_bytes("s16"), dtype="<i2")
    wav, _ = soundfile.read(io.BytesIO(audio.to_bytes()), dtype="int16")
    assert raw.tolist() == wav.tolist()
    assert raw[0] == 0
    assert raw[1] == pytest.approx(16_384, abs=1)
    assert raw[2:].tolist() == [32_767, -32_768]


def test_silence_of_no_length_is_a_file_too() -> None:
    samples, rate = soundfile.read(io.BytesIO(audio_of(np.zeros(0, np.float32)).to_bytes()))
    assert (len(samples), rate) == (0, 24_000)


def test_minutes_of_vorbis_do_not_overflow_libsndfiles_stack() -> None:
    program = (
        "import numpy as np; from chatterbox_client import Audio;"
        "print(len(Audio(np.zeros(24_000 * 600, np.float32), 24_000, np.zeros(0, np.int32), {}).to_bytes('ogg')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    assert int(done.stdout) > 1000


def test_importing_the_package_loads_neither_gevent_nor_grpc_nor_torch() -> None:
    program = (
        "import sys, chatterbox_client, chatterbox_client.cli;"
        "heavy = {'gevent', 'grpc', 'aiohttp', 'av', 'torch', 'chatterbox_engine', 'chatterbox_gateway'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_frozen() -> None:
    assert chatterbox_client.__all__ == [
        "AsyncClient",
        "AsyncTransport",
        "Audio",
        "ChatterboxClientError",
        "Chunk",
        "Client",
        "ConnectionFailed",
        "InvalidRequest",
        "Lexicons",
        "NotFound",
        "ServerError",
        "Timeout",
        "Transport",
        "Unavailable",
        "VoiceInfo",
        "Word",
        "concatenate",
    ]
    assert all(hasattr(chatterbox_client, name) for name in chatterbox_client.__all__)


def test_the_signature_of_speak_is_frozen_and_the_same_for_both_clients() -> None:
    assert str(inspect.signature(Client.speak)).replace("'", "") == (
        "(self, text: str, *, voice: str | None = None, "
        "reference_audio: str | os.PathLike[str] | bytes | None = None, language: str | None = None, "
        "text_normalization: str | None = None, markup: str | None = None, "
        "lexicon: Mapping[str, str] | None = None, "
        "preset: str | None = None, exaggeration: float | None = None, cfg_weight: float | None = None, "
        "temperature: float | None = None, top_p: float | None = None, min_p: float | None = None, "
        "repetition_penalty: float | None = None, top_k: int | None = None, "
        "num_steps: int | None = None, time_shift_tau: float | None = None, "
        "omnivoice_schedule_t_shift: float | None = None, position_temperature: float | None = None, "
        "seed: int | None = None, "
        "max_seconds: float | None = None, priority: str | None = None, word_times: bool | None = None, "
        "guard: str | None = None, guard_retries: int | None = None) -> Audio"
    )
    assert inspect.signature(Client.speak) == inspect.signature(AsyncClient.speak)
    assert [*inspect.signature(Client).parameters] == [*inspect.signature(AsyncClient).parameters]


def test_every_error_belongs_to_the_one_tree() -> None:
    errors = [value for value in vars(chatterbox_client).values() if inspect.isclass(value)]
    errors = [error for error in errors if issubclass(error, Exception)]
    assert len(errors) == 7
    assert all(issubclass(error, ChatterboxClientError) for error in errors)


def test_every_public_name_is_documented() -> None:
    for name in chatterbox_client.__all__:
        assert getattr(chatterbox_client, name).__doc__, name
