"""ElevenLabs' speech API over HTTP: a text in, audio and the times of its characters out; voices.

Reference: https://elevenlabs.io/docs/api-reference/text-to-speech/convert.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel

from chatterbox_gateway import parameters
from chatterbox_gateway.alignment import Aligned, Alignment
from chatterbox_gateway.audio_response import AudioResponse, begun
from chatterbox_gateway.dialects.elevenlabs_fields import DEFAULT_FORMAT, SpeechBody, manner_of, model_parameters
from chatterbox_gateway.errors import ElevenLabsError, Refusal, documented, elevenlabs_name
from chatterbox_gateway.json_route import JsonRoute
from chatterbox_gateway.logs import Record
from chatterbox_gateway.output import Encoder, Output, audio_responses
from chatterbox_gateway.played import PlayedTimes
from chatterbox_gateway.server_status import ServerStatus
from chatterbox_gateway.settings import Settings
from chatterbox_gateway.speech import Speaker, SpeechRequest

OutputFormat = Annotated[str, Query(description="Codec, sampling rate, kilobits per second; or codec and rate.")]


class CharacterTimes(BaseModel):
    """Seconds from the start of the audio."""

    characters: list[str]
    character_start_times_seconds: list[float]
    character_end_times_seconds: list[float]


class TimedAudio(BaseModel):
    """Audio, and when its characters are spoken."""

    audio_base64: str
    alignment: CharacterTimes | None
    normalized_alignment: CharacterTimes | None


class Voice(BaseModel):
    """A voice by its name."""

    voice_id: str
    name: str
    category: str
    """`premade`, the built-in one, or `cloned`."""
    labels: dict[str, str] = {}


class Voices(BaseModel):
    """The built-in voice and the stored ones."""

    voices: list[Voice]


@dataclass(frozen=True)
class Asked:
    """A request, translated."""

    request: SpeechRequest
    output: Output
    record: Record
    headers: dict[str, str]


def router(speaker: Speaker, settings: Settings, server: ServerStatus) -> APIRouter:
    """The routes over HTTP."""
    routes = APIRouter(tags=["ElevenLabs"], route_class=JsonRoute)
    _add_audio(routes, speaker, settings, server)
    _add_timed(routes, speaker, settings, server)

    @routes.get("/v1/voices", responses=documented(ElevenLabsError, 500, 503, 504))
    async def list_voices() -> Voices:
        """List the voices."""
        names = await speaker.voice_names()
        kinds = {True: "premade", False: "cloned"}
        return Voices(voices=[Voice(voice_id=it, name=it, category=kinds[it == names[0]]) for it in names])

    return routes


def _add_audio(routes: APIRouter, speaker: Speaker, settings: Settings, server: ServerStatus) -> None:
    responses = audio_responses("mp3", "opus", "pcm", "ulaw", "alaw") | SPEAKING

    @routes.post("/v1/text-to-speech/{voice}", response_class=Response, responses=responses)
    async def convert(
        http: Request, voice: str, body: Annotated[SpeechBody, Body()], output_format: OutputFormat = DEFAULT_FORMAT
    ) -> Response:
        """Speak a text; the response is the whole audio."""
        asked = await _ask(speaker, server, http, voice, body, output_format)
        file, _ = await speaker.file(asked.request, asked.output, asked.record)
        return Response(file, media_type=asked.output.content_type, headers=asked.headers)

    @routes.post("/v1/text-to-speech/{voice}/stream", response_class=Response, responses=responses)
    async def stream(
        http: Request, voice: str, body: Annotated[SpeechBody, Body()], output_format: OutputFormat = DEFAULT_FORMAT
    ) -> Response:
        """Speak a text; the audio is sent while it is spoken."""
        asked = await _ask(speaker, server, http, voice, body, output_format)
        pieces = await begun(speaker.stream_file(asked.request, asked.output, asked.record))
        return AudioResponse(pieces, asked.output.content_type, timeout=settings.timeout, headers=asked.headers)


def _add_timed(routes: APIRouter, speaker: Speaker, settings: Settings, server: ServerStatus) -> None:
    @routes.post("/v1/text-to-speech/{voice}/with-timestamps", responses=SPEAKING)
    async def convert_with_timestamps(
        http: Request,
        response: Response,
        voice: str,
        body: Annotated[SpeechBody, Body()],
        output_format: OutputFormat = DEFAULT_FORMAT,
    ) -> TimedAudio:
        """Speak a text; the response has the whole audio and the times of the characters."""
        asked = await _ask(speaker, server, http, voice, body, output_format)
        file, audio = await speaker.file(asked.request, asked.output, asked.record, timed=True)
        response.headers.update(asked.headers)
        played = PlayedTimes()
        for samples, rate in audio.stats.get("rates") or [(len(audio.samples), 1.0)]:
            played.add(samples / audio.sample_rate, rate * asked.output.speed)
        words = played.of(audio.words) if speaker.tells_words(asked.request.model) else None
        return _timed(
            file, Alignment().place(body.text, 0, silence=0, seconds=played.seconds, is_last=True, words=words)
        )

    @routes.post("/v1/text-to-speech/{voice}/stream/with-timestamps", response_class=Response, responses=SPEAKING)
    async def stream_with_timestamps(
        http: Request, voice: str, body: Annotated[SpeechBody, Body()], output_format: OutputFormat = DEFAULT_FORMAT
    ) -> Response:
        """Speak a text; a line of JSON is sent for each part of the audio."""
        asked = await _ask(speaker, server, http, voice, body, output_format)
        lines = await begun(_lines(speaker, asked))
        return AudioResponse(
            lines, "application/json", timeout=settings.timeout, headers=asked.headers, error_piece=_error_line
        )


SPEAKING = documented(ElevenLabsError, 400, 403, 404, 413, 429, 500, 503, 504)


async def _ask(
    speaker: Speaker, server: ServerStatus, http: Request, voice: str, body: SpeechBody, output_format: str
) -> Asked:
    manner = await manner_of(speaker, voice, output_format, body)
    options = body.voice_settings.options(await model_parameters(server, manner.model, body.voice_settings))
    output = replace(manner.output, speed=body.voice_settings.speed or 1.0)
    headers = dict(parameters.warning(body.ignored()))
    return Asked(manner.request(body.text.strip() or body.text, options), output, http.state.record, headers)


async def _lines(speaker: Speaker, asked: Asked) -> AsyncGenerator[bytes, None]:
    encoder: Encoder | None = None
    alignment, text, speed = Alignment(), asked.request.text, asked.output.speed
    async with contextlib.aclosing(speaker.stream(asked.request, asked.record, timed=True)) as chunks:
        async for chunk in chunks:
            encoder = encoder or Encoder(asked.output, chunk.sample_rate)
            audio = encoder.encode(chunk.to_bytes()) + (encoder.finish() if chunk.is_last else b"")
            asked.record.audio_is_ready()
            seconds, last = chunk.duration / speed, chunk.is_last
            words = chunk.words if speaker.tells_words(asked.request.model) else None
            times = alignment.place(text, 0, silence=0, seconds=seconds, is_last=last, words=words, speed=speed)
            yield _timed(audio, times).model_dump_json().encode() + b"\n"


def _timed(audio: bytes, aligned: Aligned | None) -> TimedAudio:
    times = None
    if aligned is not None:
        bounds = [bound / 1_000 for bound in aligned.bounds]
        times = CharacterTimes(
            characters=list(aligned.chars),
            character_start_times_seconds=bounds[:-1],
            character_end_times_seconds=bounds[1:],
        )
    return TimedAudio(audio_base64=base64.b64encode(audio).decode(), alignment=times, normalized_alignment=times)


def _error_line(refused: Refusal) -> bytes:
    detail: dict[str, Any] = {"status": elevenlabs_name(refused), "message": refused.message}
    return json.dumps({"detail": detail}).encode() + b"\n"
