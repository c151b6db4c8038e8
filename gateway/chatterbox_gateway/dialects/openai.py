"""OpenAI's speech API: `POST /v1/audio/speech`, voices, and lists of models.

Reference: https://platform.openai.com/docs/api-reference/audio/createSpeech. Open WebUI requests `/v1/audio/voices` and
`/v1/audio/models` of servers other than OpenAI's (backend/open_webui/routers/audio.py).
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, File, Form, Query, Request, UploadFile
from fastapi.responses import Response
from pydantic import BaseModel, Field

from chatterbox_client.audio import Word
from chatterbox_client.errors import InvalidRequest, NotFound, quote
from chatterbox_gateway import errors, parameters
from chatterbox_gateway.audio_response import AudioResponse, begun
from chatterbox_gateway.errors import OpenAIError, documented
from chatterbox_gateway.json_route import JsonRoute
from chatterbox_gateway.logs import Record
from chatterbox_gateway.output import FORMATS, Output, audio_responses
from chatterbox_gateway.parameters import SampleRate, Sampling, Speed
from chatterbox_gateway.settings import Settings
from chatterbox_gateway.speech import Speaker, SpeechRequest

THEIR_MODELS = ("tts-", "gpt-")
"""Prefixes of OpenAI's own model names, which mean the first model that is served."""

THEIR_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse")
)
"""OpenAI's own voices. They mean the built-in voice unless a voice is stored under the name."""

ResponseFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm", "ulaw", "alaw"]

_WITH_LENGTH = ("wav", "flac")
"""Formats whose header holds the length, which is unknown while streaming; players misread files without it."""


class CustomVoice(BaseModel):
    """OpenAI's form for a stored voice."""

    id: str


class SpeechFields(Sampling):
    """What to speak, and how."""

    input: str = Field(min_length=1, description="The text.")
    model: str | None = Field(None, description="A served model; OpenAI's own names mean the first.")
    response_format: ResponseFormat = "mp3"
    speed: Speed = 1.0
    sample_rate: SampleRate | None = None
    stream: bool | None = Field(None, description="Send the audio while it is spoken; wav and flac are sent whole.")
    stream_format: Literal["audio", "sse"] = "audio"
    preset: str | None = Field(None, description="A named set of sampling parameters.")
    first_chunk_tokens: int | None = Field(None, description="Size of a stream's first chunk, in tokens of 40 ms.")
    chunk_tokens: int | None = Field(None, description="Size of its second chunk.")
    word_times: bool | None = Field(None, description="Events with the times of words; needs stream_format sse.")
    instructions: str | None = Field(None, description="Ignored.")

    def ignored(self) -> list[str]:
        """See `Body`."""
        return sorted([*super().ignored(), *(["instructions"] if self.instructions else [])])

    def options(self) -> dict[str, Any]:
        """See `Sampling`."""
        others = {"preset": self.preset, "word_times": self.word_times or None, **self._chunking()}
        return super().options() | {name: value for name, value in others.items() if value is not None}

    def sent(self) -> Literal["whole", "stream", "events"]:
        """How the audio is sent. Raises InvalidRequest for fields that exclude each other."""
        chunking = [name for name, value in self._chunking().items() if value is not None]
        events = self.stream_format == "sse"
        whole = self.response_format in _WITH_LENGTH and not chunking
        stream = self.stream if self.stream is not None else events or not whole
        if self.word_times and not events:
            raise InvalidRequest("word_times needs stream_format: sse")
        if events and not stream:
            raise InvalidRequest("stream_format: sse needs stream: true")
        if chunking and not stream:
            raise InvalidRequest(f"{', '.join(chunking)}: this response is not streamed")
        return "events" if events else "stream" if stream else "whole"

    def _chunking(self) -> dict[str, int | None]:
        return {"first_chunk_tokens": self.first_chunk_tokens, "chunk_tokens": self.chunk_tokens}


class SpeechBody(SpeechFields):
    """OpenAI's request, with the server's own inputs by name. Unknown fields are ignored, and named in `Warning`."""

    voice: str | CustomVoice | None = Field(
        None, description="A stored voice; OpenAI's own names mean the built-in one unless one is stored under them."
    )


class SpeechQuery(SpeechFields):
    """The same as a query, for `<audio src>`."""

    voice: str | None = None


class Voice(BaseModel):
    """A voice by its name."""

    id: str
    name: str


class Voices(BaseModel):
    """The built-in voice and the stored ones."""

    voices: list[Voice]


class StoredVoice(Voice):
    """A voice that was stored."""

    object: Literal["audio.voice"] = "audio.voice"


class DeletedVoice(BaseModel):
    """A voice that was deleted."""

    object: Literal["audio.voice"] = "audio.voice"
    id: str
    deleted: bool = True


class Model(BaseModel):
    """A served model."""

    id: str
    name: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "resemble-ai"


class Models(BaseModel):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[Model]
    models: list[Model]
    """The same, where Open WebUI looks for it."""


AUDIO = audio_responses(*FORMATS)
AUDIO[200]["content"]["text/event-stream"] = {}


def router(speaker: Speaker, settings: Settings) -> APIRouter:
    """The routes. Those that change voices are there only if the settings allow it."""
    routes = APIRouter(tags=["OpenAI"], route_class=JsonRoute)
    speaking = documented(OpenAIError, 400, 403, 404, 413, 429, 500, 503, 504)
    reading = documented(OpenAIError, 500, 503, 504)

    @routes.post("/v1/audio/speech", response_class=Response, responses={**AUDIO, **speaking})
    async def create_speech(http: Request, body: Annotated[SpeechBody, Body()]) -> Response:
        """Speak a text."""
        return await _speak(speaker, settings, http, body, body.voice)

    @routes.get("/v1/audio/speech", response_class=Response, responses={**AUDIO, **speaking})
    async def get_speech(http: Request, query: Annotated[SpeechQuery, Query()]) -> Response:
        """Speak a text: the address for `<audio src>`."""
        return await _speak(speaker, settings, http, query, query.voice)

    @routes.get("/v1/audio/voices", responses=reading)
    async def list_voices() -> Voices:
        """List the voices."""
        return Voices(voices=[Voice(id=name, name=name) for name in await speaker.voice_names()])

    @routes.get("/v1/models")
    @routes.get("/v1/audio/models")
    async def list_models() -> Models:
        """List the served models."""
        models = [Model(id=name, name=name) for name in speaker.models]
        return Models(data=models, models=models)

    @routes.get("/v1/models/{name}", responses=documented(OpenAIError, 404))
    async def get_model(name: str) -> Model:
        """Find a served model."""
        found = served_model(name, speaker.models)
        return Model(id=found, name=found)

    if settings.change_voices:
        _add_voice_changes(routes, speaker)
    return routes


def _add_voice_changes(routes: APIRouter, speaker: Speaker) -> None:
    changing = documented(OpenAIError, 400, 403, 404, 413, 500, 503, 504)

    @routes.post("/v1/audio/voices", responses=changing)
    async def add_voice(name: Annotated[str, Form()], audio_sample: Annotated[UploadFile, File()]) -> StoredVoice:
        """Store a clip under a name. OpenAI's `consent` is ignored."""
        voice = await speaker.voices.add(name, await audio_sample.read())
        return StoredVoice(id=voice.name, name=voice.name)

    @routes.delete("/v1/audio/voices/{name}", responses=changing)
    async def delete_voice(name: str) -> DeletedVoice:
        """Delete a voice."""
        await speaker.voices.delete(name)
        return DeletedVoice(id=name)


def served_model(name: str | None, models: list[str]) -> str:
    """The served model that a name refers to. Raises NotFound."""
    if name is None or (name not in models and name.startswith(THEIR_MODELS)):
        return models[0]
    if name not in models:
        raise NotFound(f"there is no model {quote(name)}: served is {', '.join(models)}")
    return name


async def _speak(
    speaker: Speaker, settings: Settings, http: Request, fields: SpeechFields, voice: str | CustomVoice | None
) -> Response:
    ignored = fields.ignored()
    if settings.strict and ignored:
        raise InvalidRequest(f"unknown field {', '.join(name[:40] for name in ignored[:8])}")
    record: Record = http.state.record
    sent, output = fields.sent(), Output(fields.response_format, fields.sample_rate, fields.speed)
    options, model = fields.options(), served_model(fields.model, speaker.models)
    named = await _stored(speaker, voice.id if isinstance(voice, CustomVoice) else voice, options)
    request = SpeechRequest(fields.input, model, named, options)
    headers = parameters.warning(ignored)
    if sent == "whole":
        file, _ = await speaker.file(request, output, record)
        return Response(file, media_type=output.content_type, headers=dict(headers))
    words: list[Word] = []
    pieces = await begun(speaker.stream_file(request, output, record, words=words))
    if sent == "stream":
        return AudioResponse(pieces, output.content_type, timeout=settings.timeout, headers=headers)
    events = _events(pieces, words, record)
    return AudioResponse(
        events, "text/event-stream", timeout=settings.timeout, headers=headers, error_piece=_error_event
    )


async def _stored(speaker: Speaker, voice: str | None, options: dict[str, Any]) -> str | None:
    """The voice to request from the server; None is the built-in one."""
    if not voice or ("reference_audio" in options and voice.lower() in THEIR_VOICES | {"default"}):
        return None  # OpenAI's client always sends a voice
    if voice.lower() not in THEIR_VOICES:
        return voice
    return await speaker.stored_voice(dict.fromkeys((voice, voice.lower())))


async def _events(
    pieces: AsyncGenerator[bytes, None], words: list[Word], record: Record
) -> AsyncGenerator[bytes, None]:
    """OpenAI's events, and of ours those with words. Usage: characters of the input, speech tokens (40 ms each) of the
    output. words: of what has been spoken, taken from it."""
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            if shown := _words_event(words):
                yield shown
            yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})
    if shown := _words_event(words):
        yield shown
    spoken, total = record.tokens, record.characters + record.tokens
    usage = {"input_tokens": record.characters, "output_tokens": spoken, "total_tokens": total}
    yield _event({"type": "speech.audio.done", "usage": usage})


def _words_event(words: list[Word]) -> bytes | None:
    """The words, which are then taken."""
    if not words:
        return None
    shown = [asdict(word) for word in words]
    words.clear()
    return _event({"type": "speech.audio.words", "words": shown})


def _error_event(refused: errors.Refusal) -> bytes:
    return _event({"type": "error", **errors.openai_error(refused)})


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"
