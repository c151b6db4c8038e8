"""The routes of the well-known Chatterbox servers, as their callers use them: `/generate`, `/generate/raw`,
`/api/tts/synthesize`, `/tts`, and what they tell of themselves: `/health`, `/model/info`, `/status`."""

from __future__ import annotations

import base64
import json
import time
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from chatterbox_client.audio import Audio
from chatterbox_client.errors import InvalidRequest
from chatterbox_gateway import parameters
from chatterbox_gateway.errors import PlainError, Refusal, documented
from chatterbox_gateway.json_route import JsonRoute
from chatterbox_gateway.logs import Record
from chatterbox_gateway.metrics import GatewayMetrics
from chatterbox_gateway.output import SPEEDS, Output, audio_responses
from chatterbox_gateway.parameters import SampleRate, Sampling, Speed
from chatterbox_gateway.server_status import Reading, ServerStatus
from chatterbox_gateway.settings import Settings
from chatterbox_gateway.speech import Speaker, SpeechRequest

MEGA, GIGA = 1e6, 1e9


class GenerateBody(Sampling):
    """A text and how to speak it."""

    text: str = Field(min_length=1)
    voice: str | None = Field(None, description="A stored voice.")
    emotion: str | None = Field(None, description="A preset: happy, sad, angry, excited, calm, neutral, dramatic.")
    speed: Speed = 1.0
    sample_rate: SampleRate | None = None

    def options(self) -> dict[str, Any]:
        """See `Sampling`."""
        return super().options() | ({"preset": self.emotion} if self.emotion else {})


class Generated(BaseModel):
    """The audio and how long it took."""

    audio: str
    """A WAV file in base64."""
    audio_base64: str
    """The same, under another server's name."""
    rtf: float | None
    """Null without audio."""
    generation_time: float
    """Seconds."""
    audio_duration: float
    """Seconds."""
    duration: float
    """The same, under another server's name."""
    queue_time: float
    """Seconds that the request waited for its first step."""
    emotion_used: str
    text_normalized: str
    """The text with single spaces."""
    sample_rate: int
    seed: int


class SynthesizeBody(Sampling):
    """A text and how to speak it, with those servers' defaults."""

    text: str = Field(min_length=1)
    voice_id: str | None = Field(None, description="A stored voice.")
    room_name: str | None = Field(None, description="Ignored.")

    def options(self) -> dict[str, Any]:
        """See `Sampling`."""
        return {"preset": "fast"} | super().options()


class Performance(BaseModel):
    """How fast the server was."""

    real_time_factor: float | None
    """Null without audio."""
    inference_speedup: float | None
    gpu_memory_used_mb: float
    optimizations_active: dict[str, bool]


class Synthesized(BaseModel):
    """The audio and how long it took."""

    status: Literal["success"] = "success"
    audio_base64: str
    """A WAV file."""
    sample_rate: int
    total_time_ms: float
    audio_duration_seconds: float
    performance: Performance


class TtsBody(Sampling):
    """A text and how to speak it."""

    text: str = Field(min_length=1)
    voice_mode: Literal["predefined", "clone"] = "predefined"
    predefined_voice_id: str | None = Field(None, description="A stored voice, with or without the file's extension.")
    reference_audio_filename: str | None = Field(None, description="The same, for the voice mode `clone`.")
    output_format: Literal["wav", "opus", "mp3"] = "wav"
    speed_factor: Speed = 1.0

    def voice(self) -> str | None:
        """The stored voice. Raises InvalidRequest where the voice mode lacks it."""
        clone = self.voice_mode == "clone"
        name = self.reference_audio_filename if clone else self.predefined_voice_id
        if clone and not name:
            raise InvalidRequest("reference_audio_filename is missing")
        return PurePosixPath(name).stem if name else None

    def options(self) -> dict[str, Any]:
        """See `Sampling`. Their seed 0 is a random one."""
        return {name: value for name, value in super().options().items() if (name, value) != ("seed", 0)}


class Optimizations(BaseModel):
    """The names that those servers have."""

    bfloat16: bool
    torch_compile: bool
    reduced_cache: bool
    compile_mode: str | None
    compilation_time: float | None
    active: list[str]
    """This server's own."""


class Parameter(BaseModel):
    """A number of requests to speak."""

    default: float
    minimum: float
    maximum: float
    integer: bool = False


SPEED = Parameter(default=1.0, minimum=SPEEDS[0], maximum=SPEEDS[1])


class ModelInfo(BaseModel):
    """What is served, and what requests may choose."""

    model_type: str
    checkpoint: str
    device: str
    vram_usage_mb: float | None
    optimizations: Optimizations
    parameters: dict[str, Parameter]
    """Those that the model supports, and `speed`."""
    presets: dict[str, dict[str, float]]
    languages: list[str]
    language: str | None
    """Of texts that name none."""
    max_characters: int | None
    """Of a text."""
    change_voices: bool
    """Whether voices can be stored and deleted here."""


class GpuMemory(BaseModel):
    """Null where the server does not say it."""

    used_gb: float | None
    total_gb: float | None
    utilization_pct: float | None


class Health(BaseModel):
    """Whether the models can speak now."""

    status: Literal["ok"] = "ok"
    mode: Literal["optimized", "standard", "unknown"]
    device: str
    optimizations: Optimizations
    gpu_memory: GpuMemory


class Status(BaseModel):
    """What is under way, in the gateway and in the server; the server's numbers are null where it does not say them."""

    status: Literal["ok"] = "ok"
    uptime_seconds: float
    requests_in_progress: int
    requests_total: int
    audio_seconds_total: float
    queue: int | None
    slots_active: int | None
    slots_free: int | None
    server_requests_in_progress: int | None
    server_requests_total: int | None
    rtf_mean: float | None
    """The server's mean real-time factor since its start."""


def router(speaker: Speaker, settings: Settings, server: ServerStatus, counted: GatewayMetrics) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["classic"], route_class=JsonRoute)
    _add_speech(routes, speaker)
    _add_status(routes, speaker, server, counted)
    _add_model_info(routes, speaker, settings, server)
    return routes


def _add_speech(routes: APIRouter, speaker: Speaker) -> None:
    speaking = documented(PlainError, 400, 403, 404, 413, 429, 500, 503, 504)

    @routes.post("/generate", responses=speaking)
    async def generate(http: Request, response: Response, body: Annotated[GenerateBody, Body()]) -> Generated:
        """Speak a text; the audio is in the JSON."""
        file, audio = await _generate(speaker, http.state.record, body)
        response.headers.update(parameters.warning(body.ignored()))
        timing = _timing(http.state.record, audio, body)
        encoded = _base64(file)
        return Generated(
            audio=encoded,
            audio_base64=encoded,
            duration=timing["audio_duration"],
            queue_time=audio.stats.get("queue_ms", 0.0) / 1000,
            emotion_used=body.emotion or "neutral",
            text_normalized=" ".join(body.text.split()),
            seed=audio.seed,
            **timing,
        )

    @routes.post("/generate/raw", response_class=Response, responses=audio_responses("wav") | speaking)
    async def generate_raw(http: Request, body: Annotated[GenerateBody, Body()]) -> Response:
        """Speak a text; the response is a WAV file."""
        file, audio = await _generate(speaker, http.state.record, body)
        timing = _timing(http.state.record, audio, body)
        headers = {
            **({} if timing["rtf"] is None else {"X-RTF": f"{timing['rtf']:.4f}"}),
            "X-Generation-Time": f"{timing['generation_time']:.4f}",
            "X-Audio-Duration": f"{timing['audio_duration']:.4f}",
            "X-Sample-Rate": str(timing["sample_rate"]),
            **parameters.warning(body.ignored()),
        }
        return Response(file, media_type="audio/wav", headers=headers)

    @routes.post("/api/tts/synthesize", responses=speaking)
    async def synthesize(http: Request, response: Response, body: Annotated[SynthesizeBody, Body()]) -> Synthesized:
        """Speak a text; the audio is in the JSON."""
        record: Record = http.state.record
        request = SpeechRequest(body.text, speaker.models[0], body.voice_id or None, body.options())
        file, audio = await speaker.file(request, Output(), record)
        response.headers.update(parameters.warning(body.ignored()))
        return Synthesized(
            audio_base64=_base64(file),
            sample_rate=audio.sample_rate,
            total_time_ms=(time.monotonic() - record.started) * 1_000,
            audio_duration_seconds=audio.duration,
            performance=_performance(audio),
        )

    @routes.post("/tts", response_class=Response, responses=audio_responses("wav", "opus", "mp3") | speaking)
    async def tts(http: Request, body: Annotated[TtsBody, Body()]) -> Response:
        """Speak a text; the response is an audio file."""
        output = Output(body.output_format, speed=body.speed_factor)
        request = SpeechRequest(body.text, speaker.models[0], body.voice(), body.options())
        file, _ = await speaker.file(request, output, http.state.record)
        return Response(file, media_type=output.content_type, headers=dict(parameters.warning(body.ignored())))


def _add_status(routes: APIRouter, speaker: Speaker, server: ServerStatus, counted: GatewayMetrics) -> None:
    started = time.monotonic()

    @routes.get("/health", responses=documented(PlainError, 500, 503, 504))
    async def health() -> Health:
        """Whether the models can speak now: 503 if not."""
        if unready := await speaker.unready():
            raise Refusal(503, f"the model {unready} is not ready", {"Retry-After": "1"})
        reading = await server.read(speaker.models[0])
        return Health(
            mode="unknown" if not reading.about else "optimized" if reading.optimizations else "standard",
            device=reading.about.get("device", "unknown"),
            optimizations=_optimizations(reading),
            gpu_memory=_gpu_memory(reading),
        )

    @routes.get("/status")
    async def status() -> Status:
        """What is under way."""
        reading = await server.read(speaker.models[0])
        rtfs, ended = (reading.number(f"chatterbox_rtf_ratio_{part}") for part in ("sum", "count"))
        return Status(
            uptime_seconds=round(time.monotonic() - started, 1),
            requests_in_progress=counted.under_way,
            requests_total=counted.spoken,
            audio_seconds_total=round(counted.audio_seconds, 2),
            queue=_count(reading, "chatterbox_utterances_waiting"),
            slots_active=_count(reading, "chatterbox_slots_active"),
            slots_free=_count(reading, "chatterbox_slots_free"),
            server_requests_in_progress=_count(reading, "chatterbox_requests_active"),
            server_requests_total=_count(reading, "chatterbox_requests_total"),
            rtf_mean=round(rtfs / ended, 4) if rtfs is not None and ended else None,
        )


def _add_model_info(routes: APIRouter, speaker: Speaker, settings: Settings, server: ServerStatus) -> None:
    @routes.get("/model/info", responses=documented(PlainError, 400, 404))
    async def model_info(model: str | None = None) -> ModelInfo:
        """What is served, and what requests may choose; `model`: the first."""
        name = speaker.served(model or speaker.models[0])
        reading = await server.read(name)
        used, contract = reading.number("chatterbox_memory_bytes_gpu"), reading.contract
        return ModelInfo(
            model_type=reading.about.get("family", "unknown"),
            checkpoint=reading.about.get("checkpoint", "unknown"),
            device=reading.about.get("device", "unknown"),
            vram_usage_mb=None if used is None else round(used / MEGA, 1),
            optimizations=_optimizations(reading),
            parameters={**json.loads(contract.get("parameters", "{}")), "speed": SPEED},
            presets=json.loads(contract.get("presets", "{}")),
            languages=json.loads(contract.get("languages", "[]")),
            language=contract.get("language"),
            max_characters=int(contract["max_characters"]) if contract else None,
            change_voices=settings.change_voices,
        )


async def _generate(speaker: Speaker, record: Record, body: GenerateBody) -> tuple[bytes, Audio]:
    request = SpeechRequest(body.text, speaker.models[0], body.voice or None, body.options())
    return await speaker.file(request, Output("wav", body.sample_rate, body.speed), record)


def _timing(record: Record, audio: Audio, body: GenerateBody) -> dict[str, Any]:
    """`rtf` is that of the whole request, as its caller measures it."""
    seconds, duration = time.monotonic() - record.started, audio.duration / body.speed
    return {
        "rtf": seconds / duration if duration else None,
        "generation_time": seconds,
        "audio_duration": duration,
        "sample_rate": body.sample_rate or audio.sample_rate,
    }


def _performance(audio: Audio) -> Performance:
    stats = audio.stats
    return Performance(
        real_time_factor=stats["real_time_factor"],
        inference_speedup=stats["inference_speedup"],
        gpu_memory_used_mb=stats["gpu_memory_used_mb"],
        optimizations_active=dict.fromkeys(stats["optimizations_active"], True),
    )


def _optimizations(reading: Reading) -> Optimizations:
    active = reading.optimizations
    return Optimizations(
        bfloat16="bfloat16" in active,
        torch_compile="torch_compile" in active,
        reduced_cache="kv_pool" in active,
        compile_mode=None,
        compilation_time=None,
        active=active,
    )


def _gpu_memory(reading: Reading) -> GpuMemory:
    used, total = reading.number("chatterbox_memory_bytes_gpu"), reading.number("nv_gpu_memory_total_bytes")
    return GpuMemory(
        used_gb=None if used is None else round(used / GIGA, 3),
        total_gb=None if total is None else round(total / GIGA, 3),
        utilization_pct=round(100 * used / total, 1) if used is not None and total else None,
    )


def _count(reading: Reading, name: str) -> int | None:
    value = reading.number(name)
    return None if value is None else int(value)


def _base64(file: bytes) -> str:
    return base64.b64encode(file).decode()
