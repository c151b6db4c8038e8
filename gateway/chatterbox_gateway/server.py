"""HTTP handlers: `POST /v1/audio/speech`, voices, and lists of models.

The gateway holds no model and no queue. Errors of the Triton server are passed on with their message and OpenAI's
status. Reference: https://platform.openai.com/docs/api-reference/audio/createSpeech. Open WebUI requests
`/v1/audio/voices` and `/v1/audio/models` of servers other than OpenAI's (backend/open_webui/routers/audio.py).
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
"""Maximum size of a request in bytes; it may hold a reference clip in base64."""

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
    """Logs every request except health checks."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """See aiohttp."""
        if request.path != "/health":
            super().log(request, response, time)


class SpeechApi:
    """The handlers.

    transport: gRPC transport to the Triton server; models: served models, at least one; keys: accepted bearer tokens,
    empty to accept all clients; timeout: seconds for the synthesis, and for a client to read a piece of a stream;
    lenient: ignore unsupported fields of requests; change_voices: allow clients to store and delete voices;
    allowed_origins: other origins whose pages are accepted, in lower case.
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
        """Ends the requests in progress at shutdown."""

    def application(self) -> web.Application:
        """Run the application with `handler_cancellation`, so that a client that disconnects cancels its request."""
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
        """All models share the voices."""
        return next(iter(self._clients.values())).voices

    async def _list_voices(self, _http: web.Request) -> web.Response:
        try:
            stored = [voice.name for voice in await self._voices.list()]
        except NotFound:  # the server runs without the voices model
            stored = []
        return web.json_response({"voices": [{"id": name, "name": name} for name in ["default", *stored]]})

    async def _add_voice(self, http: web.Request) -> web.Response:
        """Takes OpenAI's form and ignores its `consent`."""
        try:
            form = await http.post()
        except (ValueError, LookupError, RuntimeError, web.RequestPayloadError) as error:  # boundary, charset, encoding
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
        """Checks origin and key, and turns errors into OpenAI's format."""
        foreign = foreign_origin(request.headers.getall("Origin", ()), request.host, self._allowed_origins)
        if foreign is not None and request.method not in _READING:
            return _refusal(403, f"pages of {foreign[:100]!r} may not use this server: see --allowed-origins")
        if self._keys and request.path != "/health" and not self._is_known(request.headers.get("Authorization", "")):
            return _refusal(401, "the API key is missing or wrong")
        try:
            return await handler(request)
        except ChatterboxClientError as error:
            return _refusal(_status(error), error.message)
        except web.HTTPException as error:  # unknown path, wrong method, body too large
            return _refusal(error.status, error.reason, allow=error.headers.get("Allow"))

    def _is_known(self, authorization: str) -> bool:
        kind, _, key = authorization.partition(" ")
        sent = key.strip().encode(errors="surrogateescape")  # as aiohttp decodes bytes that are not UTF-8
        matches = [hmac.compare_digest(sent, known) for known in self._keys]
        return kind.lower() == "bearer" and any(matches)


async def _json(http: web.Request) -> Any:
    try:
        return json.loads(await http.read())
    except (ValueError, RecursionError, web.RequestPayloadError) as error:  # the last: wrong Content-Encoding
        raise InvalidRequest(f"the body is not JSON: {error}") from error


def _about(model: str) -> dict[str, Any]:
    return {"id": model, "name": model, "object": "model", "created": 0, "owned_by": "resemble-ai"}


async def _stored_voice(client: AsyncClient, voice: str | None) -> str | None:
    """The voice to request from the server; None is the built-in one."""
    if voice not in THEIR_VOICES:
        return voice
    try:
        return (await client.voices.get(voice)).name
    except NotFound:
        return None


async def _send_stream(
    http: web.Request, request: SpeechRequest, chunks: AsyncGenerator[Chunk, None], timeout: float | None, drain: Drain
) -> web.StreamResponse:
    """Sends the audio as it is synthesised. Errors before the first chunk are raised, so that they get their status.

    timeout: seconds for the client to read a piece; drain: tells whether the shutdown cancelled the request.
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
            # before the first byte it gets a status; a disconnected client gets nothing
            if not response.prepared or (isinstance(cause, asyncio.CancelledError) and not drain.over):
                raise
            error = cause if isinstance(cause, ChatterboxClientError) else cut_off()
            _log.warning("a stream failed: %s", error)
            if events:
                await send(_event({"type": "error", **_error(_status(error), error.message)}))
            else:
                _abort(http)
                return response
        await asyncio.wait_for(response.write_eof(), timeout)
    except asyncio.TimeoutError:
        _log.warning("a stream was aborted: the client did not read a piece within %g s", timeout)
        _abort(http)
    except asyncio.CancelledError:
        if not (response.prepared and drain.over):
            raise
        _abort(http)  # cancelled while sending the end
    except ConnectionError:
        _log.info("the client of a stream disconnected")
    return response


def _abort(http: web.Request) -> None:
    """Resets the connection, so that truncated audio does not look complete: for an HTTP/1.0 client, such as nginx, a
    closed connection ends the body."""
    if http.transport is not None:
        connection = http.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        http.transport.abort()


def _encode(audio: Audio, format: Format) -> bytes:
    return encode_file(format, audio.sample_rate, audio.to_bytes("s16"))


def _delta(piece: bytes) -> bytes:
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})


def _done(characters: int, tokens: int) -> dict[str, Any]:
    """The last event. Usage: characters of the input, speech tokens (40 ms each) of the output."""
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
