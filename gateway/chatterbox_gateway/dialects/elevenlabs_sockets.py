"""ElevenLabs' sockets: text in pieces in, audio and the times of its characters out.

Reference: https://elevenlabs.io/docs/api-reference/text-to-speech/v-1-text-to-speech-voice-id-multi-stream-input, and
what LiveKit's plugin (livekit-plugins-elevenlabs 1.8) and Pipecat (pipecat-ai 1.14) send and read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, WebSocket
from pydantic import ValidationError

from chatterbox_client.errors import ChatterboxClientError, InvalidRequest
from chatterbox_gateway import errors
from chatterbox_gateway.dialects.elevenlabs_context import Context, Voicing, error_message
from chatterbox_gateway.dialects.elevenlabs_fields import (
    DEFAULT_SETTINGS,
    Manner,
    SocketMessage,
    SocketQuery,
    manner_of,
    model_parameters,
)
from chatterbox_gateway.draining import cut_off
from chatterbox_gateway.errors import Refusal
from chatterbox_gateway.server_status import ServerStatus
from chatterbox_gateway.settings import Settings
from chatterbox_gateway.sockets import (
    INTERNAL_ERROR,
    NORMAL,
    POLICY_VIOLATION,
    SECONDS_FOR_KEY,
    SERVICE_RESTART,
    Gone,
    NotJson,
    Silent,
    Socket,
)
from chatterbox_gateway.speech import Speaker

MOST_CONTEXTS = 64
"""Open at once on a socket."""

_REMEMBERED = 1_000
"""Contexts of a socket that are over: closing one again is no error."""


class Fault(Exception):
    """An error in ElevenLabs' form that ends the socket, unless it belongs to a context of several."""

    def __init__(self, name: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.name = name
        self.refused = Refusal(status, message)


def router(speaker: Speaker, settings: Settings, server: ServerStatus) -> APIRouter:
    """The sockets."""
    routes = APIRouter()

    @routes.websocket("/v1/text-to-speech/{voice}/stream-input")
    async def stream_input(websocket: WebSocket, voice: str) -> None:
        await _serve(Conversation(speaker, settings, server, voice, several=False), websocket, settings)

    @routes.websocket("/v1/text-to-speech/{voice}/multi-stream-input")
    async def multi_stream_input(websocket: WebSocket, voice: str) -> None:
        await _serve(Conversation(speaker, settings, server, voice, several=True), websocket, settings)

    return routes


async def _serve(conversation: Conversation, websocket: WebSocket, settings: Settings) -> None:
    async with Socket(websocket, settings.timeout) as socket:
        code, reason = NORMAL, ""
        try:
            await conversation.run(socket, websocket)
            if socket.draining:
                code, reason = SERVICE_RESTART, "the server is shutting down"
        except Gone:
            socket.record.ended("disconnected", "the client disconnected")
        except Fault as fault:
            socket.record.ended("refused", fault.refused.message)
            await _tell(socket, fault)
            code, reason = _code(fault), fault.refused.message
        except asyncio.CancelledError:
            if not socket.cut:
                raise
            code, reason = SERVICE_RESTART, cut_off().message
        finally:
            await conversation.close()
        await socket.close(code, reason)


async def _tell(socket: Socket, fault: Fault, names: dict[str, str] | None = None) -> None:
    with contextlib.suppress(Gone):
        await socket.send(error_message(fault.refused, names, fault.name))


def _code(fault: Fault) -> int:
    return POLICY_VIOLATION if fault.refused.status < 500 else INTERNAL_ERROR


class Conversation:
    """The contexts of one socket. `stream-input` has a single one."""

    def __init__(
        self, speaker: Speaker, settings: Settings, server: ServerStatus, voice: str, *, several: bool
    ) -> None:
        self._speaker = speaker
        self._settings = settings
        self._server = server
        self._voice = voice
        self._several = several
        self._contexts: dict[str, Context] = {}
        self._over: deque[str] = deque(maxlen=_REMEMBERED)
        self._closing = False
        self._refused: Refusal | None = None
        self._heard: dict[str, float] = {}  # time of each context's last message

    async def run(self, socket: Socket, websocket: WebSocket) -> None:
        """Serves the socket until one side ends it. Raises Fault and Gone."""
        self._socket = socket
        query = _query(websocket)
        self._query = query
        self._manner = await self._manner_of(query)
        while not ((self._closing or socket.draining) and not self._contexts):
            try:
                message = await socket.receive(query.inactivity_timeout if not socket.needs_key else SECONDS_FOR_KEY)
            except Silent:
                self._time_out()
                continue
            except NotJson as error:
                raise Fault("invalid_input_message", str(error)) from error
            if message is not None:
                await self._take(_message(message))
            self._end_silent()
        if self._refused is not None:
            raise Fault("", self._refused.message, self._refused.status)

    async def close(self) -> None:
        """Cancels what is under way."""
        await asyncio.gather(*(context.drop() for context in list(self._contexts.values())))

    async def _manner_of(self, query: SocketQuery) -> Manner:
        options: dict[str, Any] = {"markup": "auto" if query.enable_ssml_parsing else "none"}
        try:
            return await manner_of(self._speaker, self._voice, query.output_format, query, options=options)
        except InvalidRequest as error:
            raise Fault("invalid_output_format", error.message) from error
        except ChatterboxClientError as error:
            refused = errors.refusal(error)
            name = "model_not_found" if refused.status == 404 else "internal_error"
            raise Fault(name, refused.message, refused.status) from error

    async def _take(self, message: SocketMessage) -> None:
        self._authorize(message)
        if message.close_socket and self._several:
            self._close_socket()
            return
        name = (message.context_id or "") if self._several else ""
        try:
            await self._take_for(name, message)
        except Fault as fault:
            if not self._several:
                raise
            await _tell(self._socket, fault, _names(name))

    def _authorize(self, message: SocketMessage) -> None:
        if self._socket.needs_key and not self._socket.admit(message.xi_api_key, message.authorization):
            sent = message.xi_api_key or message.authorization
            name, what = ("invalid_api_key", "wrong") if sent else ("missing_api_key", "missing")
            raise Fault(name, f"the API key is {what}", 401)

    def _close_socket(self) -> None:
        """What was flushed is spoken to its end."""
        self._closing = True
        for context in list(self._contexts.values()):
            context.end()

    async def _take_for(self, name: str, message: SocketMessage) -> None:
        context = self._contexts.get(name)
        if context is None:
            context = await self._begin(name, message)
            if context is None:
                return
        self._heard[name] = asyncio.get_running_loop().time()
        if message.close_context and self._several:
            await self._close(context)
        elif context.ended:
            if message.text or not self._several:
                raise Fault("context_closed", "no text may follow the end of the text")
        else:
            self._speak(context, message)

    async def _begin(self, name: str, message: SocketMessage) -> Context | None:
        """A new context, if the message begins one."""
        if self._several and not message.text:
            if (message.close_context or message.flush) and name not in self._over:
                raise Fault("context_not_found", f"there is no context {name[:100]!r}", 404)
            return None  # a keep-alive, or a context that is over
        if self._closing or self._socket.draining:
            raise Fault("socket_closing", "no context may begin: the socket is closing", 503)
        if len(self._contexts) >= MOST_CONTEXTS:
            raise Fault("too_many_contexts", f"at most {MOST_CONTEXTS} contexts may be open on a socket", 429)
        context = Context(self._speaker, self._socket, await self._voicing(name, message), lambda: self._end_of(name))
        self._contexts[name] = context
        return context

    async def _voicing(self, name: str, message: SocketMessage) -> Voicing:
        query, manner, settings = self._query, self._manner, message.voice_settings or DEFAULT_SETTINGS
        options = settings.options(await model_parameters(self._server, manner.model, settings))
        config = message.generation_config
        lengths = config.chunk_length_schedule if config and not query.auto_mode else None
        return Voicing(
            lambda text: manner.request(text, options),
            replace(manner.output, speed=settings.speed or 1.0),
            query.language_code or "en",
            tuple(lengths or ()),
            query.auto_mode,
            query.sync_alignment,
            _names(name) if self._several else {},
        )

    def _speak(self, context: Context, message: SocketMessage) -> None:
        text = message.text or ""
        if not self._several and message.text == "":
            context.end()
            return
        try:
            context.push(text)
        except Refusal as refused:
            raise Fault("text_too_long", refused.message, refused.status) from refused
        context.flushed = bool(message.flush and not text.strip()) or (context.flushed and not text.strip())
        if message.flush:
            context.flush()
        elif message.try_trigger_generation:
            context.speak_collected()

    async def _close(self, context: Context) -> None:
        """Agents close a context both after its last flush and when their user interrupts."""
        if context.flushed and not context.ended:
            context.end()
        else:
            await context.interrupt()

    def _end_of(self, name: str) -> None:
        context = self._contexts.pop(name)
        del self._heard[name]
        self._over.append(name)
        if not self._several:
            self._closing, self._refused = True, context.refused
        self._socket.wake()

    def _time_out(self) -> None:
        """Goes on while something is spoken."""
        self._end_silent()
        if not any(context.waiting or context.ended for context in self._contexts.values()):
            raise Fault("input_timeout_exceeded", _no_text(self._query.inactivity_timeout))

    def _end_silent(self) -> None:
        """Ends the contexts of several that got no message for too long."""
        if not self._several:
            return
        since = asyncio.get_running_loop().time() - self._query.inactivity_timeout
        for name in [name for name, heard in self._heard.items() if heard <= since]:
            self._contexts[name].end()


def _query(websocket: WebSocket) -> SocketQuery:
    try:
        return SocketQuery.model_validate(dict(websocket.query_params))
    except ValidationError as error:
        raise Fault("invalid_parameters", errors.wrong_fields(error.errors())) from error


def _message(content: dict[str, Any]) -> SocketMessage:
    try:
        return SocketMessage.model_validate(content)
    except ValidationError as error:
        raise Fault("invalid_input_message", errors.wrong_fields(error.errors())) from error


def _names(name: str) -> dict[str, str]:
    """The id of a context: documented as `contextId`, sent by ElevenLabs in snake case too."""
    return {"contextId": name, "context_id": name}


def _no_text(seconds: float) -> str:
    return f"no message came for {seconds:g} s: send text, or an empty one to keep the socket open"
