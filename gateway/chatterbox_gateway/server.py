"""The HTTP side: `POST /v1/audio/speech`, voices, and the lists that programs ask for beside it.

A client like any other: it holds no model and no queue, and what the Triton server refuses is refused here in the same
words with OpenAI's status. OpenAI's reference: https://platform.openai.com/docs/api-reference/audio/createSpeech.
`/v1/audio/voices` and `/v1/audio/models` are what Open WebUI asks a server that is not OpenAI's
(backend/open_webui/routers/audio.py).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import logging
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from aiohttp.web_log import AccessLogger

from chatterbox_client.audio import Audio, Chunk
from chatterbox_client.client import AsyncClient
from chatterbox_client.errors import (
    ChatterboxClientError,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    Timeout,
    Unavailable,
)
from chatterbox_client.transports import AsyncTransport
from chatterbox_client.voices import AsyncVoiceList
from chatterbox_gateway.draining import Drain, cut_off
from chatterbox_gateway.encoding import Encoder, Format, encode_file
from chatterbox_gateway.origins import foreign_origin
from chatterbox_gateway.request import THEIR_VOICES, SpeechRequest, parse, served_model

MAX_BODY = 64 << 20
"""Bytes of a request: a reference clip is in it as base64."""

_STATUS: dict[type[ChatterboxClientError], int] = {
    InvalidRequest: 400,
    NotFound: 404,
    ConnectionFailed: 503,
    Unavailable: 503,
    Timeout: 504,
}

_READING = ("GET", "HEAD", "OPTIONS")

_log = logging.getLogger("chatterbox.openai")


class AccessLog(AccessLogger):
    """A line for each request but those of health checks."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """See aiohttp."""
        if request.path != "/health":
            super().log(request, response, time)


class SpeechApi:
    """The handlers.

    transport: reaches the Triton server over gRPC; models: its models that are served, not empty; keys: the bearer
    tokens of those who may ask, empty for everybody; timeout: seconds that speaking may take, and that a reader may
    keep a piece waiting; lenient: whether what a request asks for and Chatterbox has not is ignored; change_voices:
    whether those who may ask may store and delete voices, too; allowed_origins: in lower case, whose pages may ask.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        models: Sequence[str],
        *,
        keys: Sequence[str] = (),
        timeout: float | None,
        lenient: bool = False,
        change_voices: bool = False,
        allowed_origins: frozenset[str] = frozenset(),
    ) -> None:
        self._transport = transport
        self._timeout = timeout
        self._lenient = lenient
        self._change_voices = change_voices
        self._allowed_origins = allowed_origins
        self._clients = {name: AsyncClient(model=name, timeout=timeout, transport=transport) for name in models}
        self._keys = [key.encode() for key in keys]
        self.drain = Drain()
        """How its requests end when the front does."""

    def application(self) -> web.Application:
        """To be run with `handler_cancellation`, so that who goes away gives the request up."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard, self.drain.admit])
        app.router.add_post("/v1/audio/speech", self._speech)
        app.router.add_get("/v1/audio/voices", self._list_voices)
        if self._change_voices:
            app.router.add_post("/v1/audio/voices", self._add_voice)
            app.router.add_delete("/v1/audio/voices/{name}", self._delete_voice)
        app.router.add_get("/v1/audio/models", self._models)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name}", self._model)
        app.router.add_get("/health", self._health)
        app.on_cleanup.append(self._close)
        return app

    async def _speech(self, http: web.Request) -> web.StreamResponse:
        request = parse(await _json(http), list(self._clients), lenient=self._lenient)
        client = self._clients[request.model]
        arguments = {**request.options, "voice": await _stored_voice(client, request.voice)}
        if request.sent == "whole":
            audio = await client.speak(request.text, **arguments)
            file = await asyncio.to_thread(_encode, audio, request.format)
            return web.Response(body=file, content_type=request.format.content_type)
        chunks = client.stream(request.text, **arguments)
        return await _send_stream(http, request, chunks, self._timeout, self.drain)

    @property
    def _voices(self) -> AsyncVoiceList:
        """All models' voices are the same."""
        return next(iter(self._clients.values())).voices

    async def _list_voices(self, _http: web.Request) -> web.Response:
        try:
            stored = [voice.name for voice in await self._voices.list()]
        except NotFound:  # a server that leaves the model of voices out
            stored = []
        return web.json_response({"voices": [{"id": name, "name": name} for name in ["default", *stored]]})

    async def _add_voice(self, http: web.Request) -> web.Response:
        """OpenAI's form, of which `consent` is left to the caller."""
        try:
            form = await http.post()
        except (ValueError, LookupError, RuntimeError, web.RequestPayloadError) as error:  # a boundary, charset, coding
            raise InvalidRequest(f"the body is not a form: {error}") from error
        name, sample = form.get("name"), form.get("audio_sample")
        if not isinstance(name, str) or not isinstance(sample, web.FileField):
            raise InvalidRequest("give a form with the field name and the file audio_sample")
        voice = await self._voices.add(name, sample.file.read())
        return web.json_response({"object": "audio.voice", "id": voice.name, "name": voice.name})

    async def _delete_voice(self, http: web.Request) -> web.Response:
        name = http.match_info["name"]
        await self._voices.delete(name)
        return web.json_response({"object": "audio.voice", "id": name, "deleted": True})

    async def _models(self, _http: web.Request) -> web.Response:
        models = [_about(name) for name in self._clients]
        return web.json_response({"object": "list", "data": models, "models": models})

    async def _model(self, http: web.Request) -> web.Response:
        name = http.match_info["name"]
        return web.json_response(_about(served_model(name, list(self._clients))))

    async def _health(self, _http: web.Request) -> web.Response:
        for name, client in self._clients.items():
            if not await client.ready():
                raise Unavailable(f"the model {name} is not ready")
        return web.json_response({"status": "ok"})

    async def _close(self, _app: web.Application) -> None:
        await self._transport.close()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Refuses the pages of other origins, asks for a key, and answers errors in OpenAI's form."""
        foreign = foreign_origin(request.headers.getall("Origin", ()), request.host, self._allowed_origins)
        if foreign is not None and request.method not in _READING:
            return _refusal(403, f"pages of {foreign[:100]!r} may not use this server: see --allowed-origins")
        if self._keys and request.path != "/health" and not self._is_known(request.headers.get("Authorization", "")):
            return _refusal(401, "the API key is missing or wrong")
        try:
            return await handler(request)
        except ChatterboxClientError as error:
            return _refusal(_status(error), error.message)
        except web.HTTPException as error:  # no such path, a wrong method, a body that is too large
            return _refusal(error.status, error.reason, allow=error.headers.get("Allow"))

    def _is_known(self, authorization: str) -> bool:
        kind, _, key = authorization.partition(" ")
        sent = key.strip().encode(errors="surrogateescape")  # as aiohttp decodes what is not UTF-8
        matches = [hmac.compare_digest(sent, known) for known in self._keys]
        return kind.lower() == "bearer" and any(matches)


async def _json(http: web.Request) -> Any:
    try:
        return json.loads(await http.read())
    except (ValueError, RecursionError, web.RequestPayloadError) as error:  # the last: not compressed as it says
        raise InvalidRequest(f"the body is not JSON: {error}") from error


def _about(model: str) -> dict[str, Any]:
    return {"id": model, "name": model, "object": "model", "created": 0, "owned_by": "resemble-ai"}


async def _stored_voice(client: AsyncClient, voice: str | None) -> str | None:
    """The voice to ask the server for; None is the built-in one."""
    if voice not in THEIR_VOICES:
        return voice
    try:
        return (await client.voices.get(voice)).name
    except NotFound:
        return None


async def _send_stream(
    http: web.Request, request: SpeechRequest, chunks: AsyncGenerator[Chunk, None], timeout: float | None, drain: Drain
) -> web.StreamResponse:
    """Sends the audio while it is spoken. Until the first chunk is there an error is raised: it has its own status.

    timeout: seconds that the reader may keep a piece waiting; drain: tells whether the front cuts it off.
    """
    events = request.sent == "events"
    response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})  # nginx's
    response.content_type = "text/event-stream" if events else request.format.content_type
    tokens = 0

    async def send(data: bytes) -> None:
        if data:
            await asyncio.wait_for(response.write(data), timeout)

    async def send_audio(piece: bytes) -> None:
        await send(_delta(piece) if events and piece else piece)

    try:
        try:
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    if not response.prepared:
                        encoder = Encoder(request.format, chunk.sample_rate)
                        await response.prepare(http)
                    await send_audio(await asyncio.to_thread(encoder.encode, chunk.to_bytes()))
                    tokens += len(chunk.speech_tokens)
            await send_audio(await asyncio.to_thread(encoder.finish))
            if events:
                await send(_event(_done(len(request.text), tokens)))
        except (ChatterboxClientError, asyncio.CancelledError) as cause:
            # before anything is sent there is a status for it; and one who has gone away is told nothing
            if not response.prepared or (isinstance(cause, asyncio.CancelledError) and not drain.over):
                raise
            error = cause if isinstance(cause, ChatterboxClientError) else cut_off()
            _log.warning("a stream broke: %s", error)
            if events:
                await send(_event({"type": "error", **_error(_status(error), error.message)}))
            else:
                _break_off(http)
                return response
        await asyncio.wait_for(response.write_eof(), timeout)
    except asyncio.TimeoutError:
        _log.warning("a stream was broken off: its reader did not take a piece within %g s", timeout)
        _break_off(http)
    except asyncio.CancelledError:
        if not (response.prepared and drain.over):
            raise
        _break_off(http)  # while the last of it was sent
    except ConnectionError:
        _log.info("the reader of a stream has gone away")
    return response


def _break_off(http: web.Request) -> None:
    """Resets the connection, so that half of the audio does not pass for all of it: to an HTTP/1.0 client, as nginx may
    be one, a closed connection is the end of the body."""
    if http.transport is not None:
        connection = http.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        http.transport.abort()


def _encode(audio: Audio, format: Format) -> bytes:
    return encode_file(format, audio.sample_rate, audio.to_bytes("s16"))


def _delta(piece: bytes) -> bytes:
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})


def _done(characters: int, tokens: int) -> dict[str, Any]:
    """The last event. Its usage counts what this server knows: characters in, S3 tokens (of 40 ms) out."""
    usage = {"input_tokens": characters, "output_tokens": tokens, "total_tokens": characters + tokens}
    return {"type": "speech.audio.done", "usage": usage}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def _status(error: ChatterboxClientError) -> int:
    return _STATUS.get(type(error), 500)


def _error(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _refusal(status: int, message: str, allow: str | None = None) -> web.Response:
    headers = None if allow is None else {"Allow": allow}
    return web.json_response(_error(status, message), status=status, headers=headers)
