"""The one internal call under all dialects: a text, a voice, parameters and an output in, audio out.

Closing a stream cancels its request in the server. No policy and no queue is here but the limits of a key.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from chatterbox_client.audio import Audio, Chunk, Word
from chatterbox_client.client import AsyncClient
from chatterbox_client.errors import InvalidRequest, NotFound, quote
from chatterbox_client.transports import AsyncTransport
from chatterbox_client.voices import AsyncVoiceList
from chatterbox_gateway.idle import IdleModels
from chatterbox_gateway.logs import Record
from chatterbox_gateway.metrics import GatewayMetrics
from chatterbox_gateway.output import Encoder, Output, encode_file
from chatterbox_gateway.played import PlayedTimes
from chatterbox_gateway.settings import Settings
from chatterbox_gateway.tracing import CallSpan, Tracing


@dataclass(frozen=True)
class SpeechRequest:
    """What to speak, in the client's terms."""

    text: str
    model: str
    voice: str | None = None
    """None: the built-in voice, or `reference_audio` of the options."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Other arguments of `AsyncClient.stream`; those of `speak` for a whole answer."""


class Speaker:
    """Speaks through one or many Triton servers. transport: gRPC transport to them; idle: unloads their models."""

    def __init__(
        self,
        transport: AsyncTransport,
        settings: Settings,
        metrics: GatewayMetrics,
        tracing: Tracing,
        idle: IdleModels | None = None,
    ) -> None:
        self._transport = transport
        self._idle = idle
        self._metrics = metrics
        self._tracing = tracing
        self._without_words: set[str] = set()  # models that cannot tell when a word is spoken
        self._first_chunk_tokens = settings.first_chunk_tokens
        self._text = {"text_normalization": settings.text_normalization, "markup": settings.markup}
        self._clients = {
            name: AsyncClient(model=name, timeout=settings.timeout, transport=transport) for name in settings.models
        }

    @property
    def models(self) -> list[str]:
        """The served models. Names of other services mean the first."""
        return list(self._clients)

    def served(self, name: str) -> str:
        """The name, if it is that of a served model. Raises NotFound."""
        if name not in self._clients:
            raise NotFound(f"there is no model {quote(name)}: served is {', '.join(self._clients)}")
        return name

    @property
    def voices(self) -> AsyncVoiceList:
        """The stored voices, which all models share."""
        return next(iter(self._clients.values())).voices

    async def stream(
        self, request: SpeechRequest, record: Record, *, in_turn: bool = False, timed: bool = False
    ) -> AsyncGenerator[Chunk, None]:
        """The server's audio, chunk by chunk. Raises Refusal where a limit of the key is reached, and the client's
        errors. in_turn: the request is a sentence of a `turn`; timed: with the times of the words if the model can tell
        them."""
        options = {"first_chunk_tokens": self._first_chunk_tokens, **self._options(request, record)}
        async with self._call(request, record, "stream", in_turn=in_turn) as (client, span):
            ask = partial(client.stream, request.text, voice=request.voice, **options)
            chunks = self._stream_timed(ask, request.model) if timed else ask()
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    _note(record, span, chunk)
                    yield chunk

    @contextlib.contextmanager
    def turn(self, record: Record) -> Iterator[None]:
        """A text that arrives in pieces: one request of its key, however many sentences of it are spoken at once.

        Raises Refusal where the key's limit of requests is reached.
        """
        with record.caller.speaking(0), self._metrics.speaking():
            yield

    async def speak(self, request: SpeechRequest, record: Record, *, timed: bool = False) -> Audio:
        """The server's whole audio. Raises what `stream` does, where `timed` is explained."""
        options = self._options(request, record)
        async with self._call(request, record, "speak") as (client, span):
            ask = partial(client.speak, request.text, voice=request.voice, **options)
            audio = await (self._speak_timed(ask, request.model) if timed else ask())
            _note(record, span, audio)
        return audio

    async def show_text(self, request: SpeechRequest, record: Record) -> dict[str, Any]:
        """What `speak` would speak, stage by stage. Raises the client's errors."""
        client = self._clients[self.served(request.model)]
        record.model, record.voice = request.model, request.voice or "default"
        rated = self._rated(request)
        async with self._loaded():
            return await client.show_text(rated.text, voice=rated.voice, **{**self._text, **rated.options})

    async def stream_file(
        self, request: SpeechRequest, output: Output, record: Record, *, words: list[Word] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """An audio file in pieces, as they are spoken. Raises what `stream` does. words: gets the words of the chunks
        that have been spoken, if the request asks for them."""
        encoder: Encoder | None = None
        played = PlayedTimes()
        async with contextlib.aclosing(self.stream(self._rated(request), record)) as chunks:
            async for chunk in chunks:
                encoder = encoder or Encoder(output, chunk.sample_rate)
                rate = chunk.stats.get("rate", 1.0)
                played.add(chunk.duration, rate * output.speed)
                if words is not None:
                    words += played.of(chunk.words)
                if piece := await asyncio.to_thread(encoder.encode, chunk.to_bytes(), rate):
                    record.audio_is_ready()
                    yield piece
        if encoder is not None and (piece := await asyncio.to_thread(encoder.finish)):
            record.audio_is_ready()
            yield piece

    async def file(
        self, request: SpeechRequest, output: Output, record: Record, *, timed: bool = False
    ) -> tuple[bytes, Audio]:
        """A whole audio file, whose header has its length, and what the server answered. Raises what `stream` does."""
        audio = await self.speak(self._rated(request), record, timed=timed)
        samples, rates = audio.to_bytes("s16"), audio.stats.get("rates")
        file = await asyncio.to_thread(encode_file, output, audio.sample_rate, samples, rates)
        record.audio_is_ready()
        return file, audio

    def _rated(self, request: SpeechRequest) -> SpeechRequest:
        """The request, whose SSML may ask for other rates of speech: what is encoded here can have them."""
        markup = request.options.get("markup", self._text["markup"])
        if markup != "auto":
            return request
        return replace(request, options={**request.options, "markup": "auto_rate"})

    async def stored_voice(self, names: Iterable[str]) -> str | None:
        """The first of the names under which a voice is stored."""
        for name in names:
            with contextlib.suppress(NotFound):
                return (await self.voices.get(name)).name
        return None

    async def voice_names(self) -> list[str]:
        """The built-in voice and the stored ones."""
        try:
            stored = [voice.name for voice in await self.voices.list()]
        except NotFound:  # the server runs without the voices model
            stored = []
        return ["default", *stored]

    async def unready(self) -> str | None:
        """A model that cannot speak now; one that a request would load can. Raises ConnectionFailed where no server can
        be reached."""
        if self._idle is not None and self._idle.asleep:
            return None
        for name, client in self._clients.items():
            if not await client.ready():
                return name
        return None

    async def close(self) -> None:
        """Ends the connections."""
        await self._transport.close()

    def tells_words(self, model: str) -> bool:
        """Whether a model tells when words are spoken, once it was asked."""
        return model not in self._without_words

    async def _stream_timed(
        self, ask: Callable[..., AsyncGenerator[Chunk, None]], model: str
    ) -> AsyncGenerator[Chunk, None]:
        if self.tells_words(model):
            with self._refusable(model):
                async with contextlib.aclosing(ask(word_times=True)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
        async with contextlib.aclosing(ask()) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _speak_timed(self, ask: Callable[..., Awaitable[Audio]], model: str) -> Audio:
        if self.tells_words(model):
            with self._refusable(model):
                return await ask(word_times=True)
        return await ask()

    @contextlib.contextmanager
    def _refusable(self, model: str) -> Iterator[None]:
        """Remembers a model that refuses to tell the times of words."""
        try:
            yield
        except InvalidRequest as error:
            if not error.message.startswith("word_times"):  # others quote the request
                raise
            self._without_words.add(model)

    def _options(self, request: SpeechRequest, record: Record) -> dict[str, Any]:
        priority = record.caller.priority(request.options.get("priority"))
        return {**self._text, **request.options, **({"priority": priority} if priority else {})}

    def _loaded(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Keeps the models loaded."""
        return contextlib.nullcontext() if self._idle is None else self._idle.used()

    @contextlib.asynccontextmanager
    async def _call(
        self, request: SpeechRequest, record: Record, method: str, *, in_turn: bool = False
    ) -> AsyncIterator[tuple[AsyncClient, CallSpan]]:
        """The client for a request, which counts as long as it is used, and the span of its call."""
        self.served(request.model)
        record.model = request.model
        record.characters += len(request.text)
        record.voice = request.voice or ("reference_audio" if "reference_audio" in request.options else "default")
        async with contextlib.AsyncExitStack() as stack:
            if in_turn:
                record.caller.charge(len(request.text))
            else:
                stack.enter_context(record.caller.speaking(len(request.text)))
                stack.enter_context(self._metrics.speaking())
            span = stack.enter_context(self._tracing.call(f"{request.model}.{method}", record.span))
            await stack.enter_async_context(self._loaded())
            yield self._clients[request.model].with_context(record.id, span.headers), span


def _note(record: Record, span: CallSpan, spoken: Audio | Chunk) -> None:
    record.audio_seconds += spoken.duration
    record.tokens += len(spoken.speech_tokens)
    if spoken.stats.get("rtf") is not None:  # silence has none
        record.rtf = float(spoken.stats["rtf"])
    span.engine(spoken.stats)
