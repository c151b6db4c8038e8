"""The socket `/ws/generate` of other Chatterbox servers: a text in, its audio by the sentence or the chunk."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, WebSocket
from pydantic import ValidationError

from chatterbox_client.audio import Chunk, Word
from chatterbox_client.errors import ChatterboxClientError
from chatterbox_client.sentences import Sentences
from chatterbox_client.turns import Spoken, Turn, new_seed
from chatterbox_gateway import errors
from chatterbox_gateway.alignment import Alignment
from chatterbox_gateway.dialects.classic import GenerateBody
from chatterbox_gateway.draining import cut_off
from chatterbox_gateway.errors import Refusal
from chatterbox_gateway.logs import Record
from chatterbox_gateway.output import Encoder, Output, encode_file
from chatterbox_gateway.settings import Settings
from chatterbox_gateway.sockets import (
    MOST_CHARACTERS,
    NORMAL,
    POLICY_VIOLATION,
    SECONDS_FOR_KEY,
    SERVICE_RESTART,
    Gone,
    NotJson,
    Silent,
    Socket,
)
from chatterbox_gateway.speech import Speaker, SpeechRequest

_log = logging.getLogger("chatterbox.gateway")


class GenerateMessage(GenerateBody):
    """A text and how to speak it."""

    type: Literal["generate"]
    stream_mode: Literal["sentence", "chunk"] = "sentence"
    api_key: str | None = None


@dataclass(frozen=True)
class Part:
    """The audio of a message."""

    audio: bytes
    format: str
    """`wav`, a file, or `pcm`, 16-bit samples."""
    seconds: float
    silence: float
    """Of these seconds, before the speech."""
    sentence: int
    text: str
    """The sentence."""
    is_last: bool
    """Of the sentence."""
    words: Sequence[Word] = ()
    """As the server times them."""


def router(speaker: Speaker, settings: Settings) -> APIRouter:
    """The socket."""
    routes = APIRouter()

    @routes.websocket("/ws/generate")
    async def generate(websocket: WebSocket) -> None:
        async with Socket(websocket, settings.timeout) as socket:
            await _serve(Dialogue(speaker, socket), socket)

    return routes


async def _serve(dialogue: Dialogue, socket: Socket) -> None:
    code, reason = NORMAL, ""
    try:
        code = await dialogue.run()
    except Gone:
        socket.record.ended("disconnected", "the client disconnected")
    except asyncio.CancelledError:
        if not socket.cut:
            raise
        code, reason = SERVICE_RESTART, cut_off().message
    finally:
        await dialogue.stop()
    await socket.close(code, reason)


class Dialogue:
    """The texts of one socket, spoken one after the other."""

    def __init__(self, speaker: Speaker, socket: Socket) -> None:
        self._speaker = speaker
        self._socket = socket
        self._waiting: list[GenerateMessage] = []
        self._task: asyncio.Task[None] | None = None
        self._alignment = Alignment()

    async def run(self) -> int:
        """Serves the socket until one side ends it. Returns the code of the close. Raises Gone."""
        while not (self._socket.draining and self._task is None):
            try:
                message = await self._socket.receive(SECONDS_FOR_KEY if self._socket.needs_key else None)
                if message is not None and not await self._take(message):
                    return POLICY_VIOLATION
            except NotJson as error:
                await self._refuse(Refusal(400, str(error)))
            except Silent:
                await self._refuse(Refusal(401, "the API key is missing"))
                return POLICY_VIOLATION
            self._begin()
        return SERVICE_RESTART

    async def stop(self) -> None:
        """Ends what is spoken."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _take(self, message: dict[str, Any]) -> bool:
        """False where the socket must end."""
        key, authorization = (message.get(name) for name in ("api_key", "authorization"))
        if self._socket.needs_key and not self._socket.admit(_text(key), _text(authorization)):
            await self._refuse(Refusal(401, "the API key is missing or wrong"))
            return False
        if message.get("type") == "stop":
            await self.stop()
            words = [word.shown() for word in self._alignment.words()]
            await self._socket.send(
                {"type": "stopped", "sent_seconds": round(self._alignment.seconds, 3), "words": words}
            )
        elif message.get("type") == "ping":
            await self._socket.send({"type": "pong"})
        elif self._socket.draining:
            await self._refuse(Refusal(503, "the server is shutting down"))
        else:
            await self._add(message)
        return True

    async def _add(self, message: dict[str, Any]) -> None:
        try:
            asked = GenerateMessage.model_validate(message)
        except ValidationError as error:
            await self._refuse(Refusal(400, errors.wrong_fields(error.errors())))
            return
        if len(asked.text) + sum(len(waiting.text) for waiting in self._waiting) > MOST_CHARACTERS:
            await self._refuse(Refusal(413, f"at most {MOST_CHARACTERS:,} characters may wait to be spoken"))
            return
        self._waiting.append(asked)

    def _begin(self) -> None:
        if self._task is None and self._waiting:
            self._task = asyncio.ensure_future(self._speak(self._waiting.pop(0)))
            self._task.add_done_callback(self._end)

    def _end(self, _task: asyncio.Task[None]) -> None:
        self._task = None
        self._socket.wake()

    async def _speak(self, message: GenerateMessage) -> None:
        with self._socket.turns.turn() as record:
            try:
                with self._speaker.turn(record):
                    await self._send_all(message, record)
            except asyncio.CancelledError:
                if self._socket.cut:
                    await self._refuse(cut_off(), record)
                else:
                    record.ended("interrupted", "the client ended it")
            except Gone:
                record.ended("disconnected", "the client disconnected")
            except Exception as error:
                if not isinstance(error, Refusal | ChatterboxClientError):
                    _log.exception("a text failed")
                await self._refuse(errors.refusal(error), record)

    async def _send_all(self, message: GenerateMessage, record: Record) -> None:
        sent = record.started
        index, self._alignment = 0, Alignment()
        async with contextlib.aclosing(self._parts(message, record)) as parts:
            async for part in parts:
                record.audio_is_ready()
                now = time.monotonic()
                await self._socket.send(
                    {
                        "type": "audio_chunk",
                        "index": index,
                        "sentence_index": part.sentence,
                        "audio": base64.b64encode(part.audio).decode(),
                        "format": part.format,
                        "sample_rate": message.sample_rate or 24_000,
                        "audio_duration": round(part.seconds, 4),
                        "generation_time": round(now - sent, 4),
                        "text": part.text,
                    }
                )
                index, sent = index + 1, now
        seconds, took = self._alignment.seconds, time.monotonic() - record.started
        await self._socket.send(
            {
                "type": "complete",
                "chunks": index,
                "audio_duration": round(seconds, 4),
                "generation_time": round(took, 4),
                "rtf": round(took / seconds, 4) if seconds else None,
            }
        )

    async def _parts(self, message: GenerateMessage, record: Record) -> AsyncGenerator[Part, None]:
        options = {"seed": new_seed(), **message.options()}
        model, voice = self._speaker.models[0], message.voice or None

        def speak(text: str) -> AsyncGenerator[Chunk, None]:
            asked = SpeechRequest(text, model, voice, options)
            return self._speaker.stream(asked, record, in_turn=True, timed=True)

        turn = Turn(speak)
        sentences = Sentences(message.language or "en")
        for sentence in [*sentences.push(message.text), *sentences.flush()]:
            turn.say(sentence)
        turn.end()
        whole = message.stream_mode == "sentence"
        async with contextlib.aclosing(turn.spoken()) as parts:
            async for part in _sentences(parts, message) if whole else _chunks(parts, message):
                yield part
                self._alignment.place(
                    part.text,
                    part.sentence,
                    silence=part.silence,
                    seconds=part.seconds - part.silence,
                    is_last=part.is_last,
                    words=part.words if self._speaker.tells_words(model) else None,
                    speed=message.speed,
                )

    async def _refuse(self, refused: Refusal, record: Record | None = None) -> None:
        if record is not None:
            record.status = refused.status
            record.ended("refused", refused.message)
        with contextlib.suppress(Gone):
            await self._socket.send(
                {"type": "error", "reason": refused.message, "message": refused.message, "status": refused.status}
            )


async def _sentences(parts: AsyncGenerator[Spoken, None], message: GenerateMessage) -> AsyncGenerator[Part, None]:
    """A WAV file for each sentence, with the silence before it."""
    samples, silence, words = b"", 0.0, list[Word]()
    output = Output("wav", message.sample_rate, message.speed)
    async for part in parts:
        samples += _samples(part)
        silence += part.silence / message.speed
        words += part.chunk.words
        if part.chunk.is_last:
            file = await asyncio.to_thread(encode_file, output, part.chunk.sample_rate, samples)
            seconds = len(samples) / 2 / part.chunk.sample_rate / message.speed
            text = part.sentence.strip()
            yield Part(file, "wav", seconds, silence, part.number, text, is_last=True, words=words)
            samples, silence, words = b"", 0.0, []


async def _chunks(parts: AsyncGenerator[Spoken, None], message: GenerateMessage) -> AsyncGenerator[Part, None]:
    """Samples as they are spoken: one stream without headers."""
    encoder: Encoder | None = None
    number, text = 0, ""
    async for part in parts:
        encoder = encoder or Encoder(Output("pcm", message.sample_rate, message.speed), part.chunk.sample_rate)
        samples, number, text = _samples(part), part.number, part.sentence.strip()
        audio = await asyncio.to_thread(encoder.encode, samples)
        seconds = len(samples) / 2 / part.chunk.sample_rate / message.speed
        silence, words = part.silence / message.speed, part.chunk.words
        yield Part(audio, "pcm", seconds, silence, number, text, part.chunk.is_last, words)
    if encoder is not None and (rest := await asyncio.to_thread(encoder.finish)):
        yield Part(rest, "pcm", 0.0, 0.0, number, text, is_last=True)


def _samples(part: Spoken) -> bytes:
    return bytes(2 * round(part.silence * part.chunk.sample_rate)) + part.chunk.to_bytes()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
