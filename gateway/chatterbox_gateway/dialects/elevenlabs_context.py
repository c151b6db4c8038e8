"""A context of ElevenLabs' sockets: a text that arrives in pieces, and its audio."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chatterbox_client.errors import ChatterboxClientError
from chatterbox_client.sentences import Sentences
from chatterbox_client.turns import Spoken, Turn
from chatterbox_gateway import errors
from chatterbox_gateway.alignment import Aligned, Alignment
from chatterbox_gateway.draining import cut_off
from chatterbox_gateway.errors import Refusal
from chatterbox_gateway.logs import Outcome, Record
from chatterbox_gateway.output import Encoder, Output
from chatterbox_gateway.sockets import INTERNAL_ERROR, MOST_CHARACTERS, POLICY_VIOLATION, Gone, Socket
from chatterbox_gateway.speech import Speaker, SpeechRequest

_log = logging.getLogger("chatterbox.gateway")


@dataclass(frozen=True)
class Voicing:
    """How a context is spoken and told."""

    request: Callable[[str], SpeechRequest]
    output: Output
    language: str
    schedule: tuple[float, ...] = ()
    """Fewest characters of the first request, of the second and so on; empty: every sentence is one."""
    whole: bool = False
    """Each piece is a sentence or a phrase (`auto_mode`), so that its end need not wait for the next word."""
    absolute: bool = False
    """Times count from the start of the context, not from the end of the alignment before."""
    names: dict[str, str] = field(default_factory=dict)
    """The id of the context, as messages have it; empty where the socket has only one."""


class Context:
    """Speaks what is pushed. Belongs to the task of its socket.

    `over` is called when its last message was sent.
    """

    def __init__(self, speaker: Speaker, socket: Socket, voicing: Voicing, over: Callable[[], None]) -> None:
        self._speaker = speaker
        self._socket = socket
        self._voicing = voicing
        self._over = over
        self._sentences = Sentences(voicing.language)
        self._collected = ""  # whole sentences, fewer than the schedule asks for
        self._requests = 0
        self._alignment = Alignment()
        self._encoder: Encoder | None = None
        self._task: asyncio.Task[None] | None = None
        self._running = False
        self._stopped: tuple[Outcome, str] | None = None
        self._sent_seconds = 0.0
        self._limit: Refusal | None = None
        """Why its key may not speak now."""
        self.ended = False
        """No text may follow."""
        self.refused: Refusal | None = None
        """What ended it early."""
        self.flushed = False
        """Its last message was a flush without text: all that it has to say is known."""
        self._turn = Turn(self._speak)

    @property
    def waiting(self) -> int:
        """Characters that are not spoken yet."""
        return self._turn.waiting + self._sentences.waiting + len(self._collected)

    def push(self, text: str) -> None:
        """Further text. Raises Refusal where too much waits to be spoken."""
        if self.waiting + len(text) > MOST_CHARACTERS:
            raise Refusal(413, f"at most {MOST_CHARACTERS:,} characters of a context may wait to be spoken")
        if self._voicing.whole and self._sentences.ends_with_stop and text[:1].isupper():
            text = f" {text}"  # Pipecat leaves it out
        sentences = self._sentences.push(text)
        if self._voicing.whole:
            sentences += self._sentences.settle()
        for sentence in sentences:
            self._collect(sentence)

    def flush(self) -> None:
        """Speaks all that was pushed."""
        for sentence in self._sentences.flush():
            self._collect(sentence)
        self.speak_collected()

    def speak_collected(self) -> None:
        """Speaks the whole sentences that wait for others."""
        if self._collected.strip():
            self._say(self._collected)
            self._collected = ""

    def end(self) -> None:
        """Speaks all that was pushed, then the context is over."""
        if not self.ended:
            self.flush()
            self.ended = True
            self._turn.end()
            self._begin()

    async def interrupt(self) -> None:
        """Ends the context at once; its last message says what was sent."""
        self._begin()
        await self._stop("interrupted", "the client closed the context")

    async def drop(self) -> None:
        """Ends the context at once, as its socket ends."""
        if self._task is not None:
            await self._stop("disconnected", "the client disconnected")

    async def _stop(self, outcome: Outcome, reason: str) -> None:
        self.ended = True
        self._stopped = (outcome, reason)
        assert self._task is not None
        if self._running:
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _collect(self, sentence: str) -> None:
        self._collected += sentence
        schedule = self._voicing.schedule
        fewest = schedule[min(self._requests, len(schedule) - 1)] if schedule else 0
        if len(self._collected) >= fewest:
            self.speak_collected()

    def _say(self, text: str) -> None:
        self._requests += 1
        self._begin()
        if self._limit is None:
            self._turn.say(text)

    def _begin(self) -> None:
        if self._task is None:
            self._stack = contextlib.ExitStack()
            self._record = self._stack.enter_context(self._socket.turns.turn())
            try:
                self._stack.enter_context(self._speaker.turn(self._record))
            except Refusal as refused:
                self._limit = refused
            self._task = asyncio.ensure_future(self._run())

    def _speak(self, text: str) -> Any:
        return self._speaker.stream(self._voicing.request(text), self._record, in_turn=True, timed=True)

    async def _run(self) -> None:
        self._running = True
        record = self._record
        try:
            with self._stack:
                await self._speak_all(record)
            if self.refused is None or self._voicing.names:
                with contextlib.suppress(Gone):
                    await self._send_final()
        finally:
            self.ended = True
            await self._turn.close()
            self._over()

    async def _speak_all(self, record: Record) -> None:
        try:
            if self._limit is not None:
                raise self._limit
            await self._send_audio(record)
        except asyncio.CancelledError:
            if self._socket.cut:
                await self._refuse(cut_off(), record)
            elif self._stopped is not None:
                record.ended(*self._stopped)
        except Gone:
            record.ended("disconnected", "the client disconnected")
        except Exception as error:
            if not isinstance(error, Refusal | ChatterboxClientError):
                _log.exception("a turn failed")
            await self._refuse(errors.refusal(error), record)

    async def _send_audio(self, record: Record) -> None:
        if self._stopped is not None:
            raise asyncio.CancelledError
        async with contextlib.aclosing(self._turn.spoken()) as parts:
            async for part in parts:
                await self._send(part, record)
                if self._stopped is not None:  # `wait_for` may lose a cancellation before 3.12
                    raise asyncio.CancelledError
        if self._encoder is not None and (rest := await asyncio.to_thread(self._encoder.finish)):
            await self._send_message(rest, None)

    async def _send(self, part: Spoken, record: Record) -> None:
        chunk, output = part.chunk, self._voicing.output
        if self._encoder is None:
            self._encoder = Encoder(output, chunk.sample_rate)
        silence = bytes(2 * round(part.silence * chunk.sample_rate))
        audio = await asyncio.to_thread(self._encoder.encode, silence + chunk.to_bytes())
        record.audio_is_ready()
        aligned = self._alignment.place(
            part.sentence,
            part.number,
            silence=part.silence / output.speed,
            seconds=chunk.duration / output.speed,
            is_last=chunk.is_last,
            words=chunk.words if self._speaker.tells_words(self._record.model) else None,
            speed=output.speed,
        )
        await self._send_message(audio, aligned)
        self._sent_seconds = self._alignment.seconds

    async def _send_message(self, audio: bytes, aligned: Aligned | None) -> None:
        if not audio and aligned is None:
            return
        alignment = None if aligned is None else self._shown(aligned)
        await self._socket.send(
            {
                "audio": base64.b64encode(audio).decode(),
                "isFinal": None,
                "alignment": alignment,
                "normalizedAlignment": alignment,
                **self._voicing.names,
            }
        )

    def _shown(self, aligned: Aligned) -> dict[str, Any]:
        since = 0 if self._voicing.absolute else aligned.since
        return {
            "chars": list(aligned.chars),
            "charStartTimesMs": [start - since for start in aligned.bounds[:-1]],
            "charDurationsMs": aligned.durations,
        }

    async def _send_final(self) -> None:
        await self._socket.send(
            {
                "audio": None,
                "isFinal": True,
                "interrupted": self._stopped is not None,
                "sent_seconds": round(self._sent_seconds, 3),
                "words": [word.shown() for word in self._alignment.words() if word.start < self._sent_seconds],
                **self._voicing.names,
            }
        )

    async def _refuse(self, refused: Refusal, record: Record) -> None:
        record.status = refused.status
        record.ended("broken" if self._sent_seconds else "refused", refused.message)
        self.refused = refused
        if self._voicing.names:  # the socket of a single context ends with the error
            with contextlib.suppress(Gone):
                await self._socket.send(error_message(refused, self._voicing.names))


def error_message(refused: Refusal, names: dict[str, str] | None = None, name: str = "") -> dict[str, Any]:
    """An error in ElevenLabs' form. name: that of the error, by default its status's."""
    code = POLICY_VIOLATION if refused.status < 500 else INTERNAL_ERROR
    return {
        "message": refused.message,
        "error": name or errors.elevenlabs_name(refused),
        "code": code,
        **(names or {}),
    }
