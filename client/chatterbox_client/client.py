"""The two clients: one for threads, one for asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from copy import copy
from types import TracebackType
from typing import Any, TypeVar

from chatterbox_client.audio import Audio, Chunk
from chatterbox_client.request import (
    NO_CONTEXT,
    OUTPUTS,
    STREAM_OUTPUTS,
    Bound,
    RequestContext,
    Tensors,
    audio_of,
    chunks_of,
    chunks_of_async,
    outputs_of,
    pieces_of,
    pieces_of_async,
    speech_request,
    stream_request,
    takes_arguments_of,
    text_of,
    text_request,
)
from chatterbox_client.transports import (
    AsyncTransport,
    ProtocolName,
    Transport,
    open_async_transport,
    open_transport,
)
from chatterbox_client.turn_threads import speak_pieces
from chatterbox_client.turns import new_seed, speak_pieces_async
from chatterbox_client.voices import AsyncVoiceList, VoiceList

DEFAULT_TIMEOUT = 300.0
"""Seconds: a long text on a server without a GPU takes minutes."""


ClientT = TypeVar("ClientT", "Client", "AsyncClient")


class Client:
    """Speaks through a chatterbox-triton server.

        with Client("localhost:8000") as client:
            client.speak("Hello there.").save("hello.wav")

    `url` is "host:port", optionally after a scheme; https:// and grpcs:// mean TLS. Its default is the variable
    CHATTERBOX_URL (HTTP) or CHATTERBOX_GRPC_URL (gRPC), or else localhost:8000 or localhost:8001. Over gRPC a host of
    several addresses, or "ipv4:10.0.0.1:8001,10.0.0.2:8001", is several servers: requests are distributed round-robin
    over the reachable ones, and a request in progress on a server that dies fails.

    `timeout` bounds every call, in seconds; None means no limit. `headers` are sent with every call, for servers that
    restrict their protocols by a key. `voice_key`, by default the variable CHATTERBOX_VOICE_KEY, is the key that the
    server requires for changes of its voices. `transport` replaces the connection, for tests.

    A client is thread-safe. Every method raises the `ChatterboxClientError`s that its module lists; the constructor
    raises InvalidRequest for a URL that is not one of the protocol, ValueError for another protocol.
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: ProtocolName = "http",
        *,
        model: str = "chatterbox",
        timeout: float | None = DEFAULT_TIMEOUT,
        headers: Mapping[str, str] | None = None,
        voice_key: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._model = model
        self._timeout = timeout
        self._context = NO_CONTEXT
        self._transport = transport or open_transport(url, protocol, headers)
        self.voices = VoiceList(self._transport, timeout, voice_key)
        """The voices that the server keeps."""

    @takes_arguments_of(speech_request)
    def speak(self, request: Callable[[], Tensors]) -> Audio:
        """Speaks `text` (1 to 10,000 characters) and returns its complete audio.

            audio = client.speak("It was a cold day in the middle of winter.", temperature=0.7, seed=7)
            again = client.speak("It was a cold day in the middle of winter.", temperature=0.7, seed=audio.seed)

        Omitted parameters have the server's defaults. `voice` names a voice of the server; `reference_audio` is a WAV,
        FLAC, OGG or MP3 file to clone instead, as a path or as its bytes. `language` is for multilingual models.
        `text_normalization` (`none`, `plain`, `spoken`) makes Markdown, addresses and emoji speakable, and puts numbers
        in words; `markup="auto"` reads SSML and tags like `[pause 0.5s]`; `lexicon` has words and what to say for them.
        `preset` names a set of sampling parameters (`fast`, `calm`, `happy`, ...), which explicit ones override.
        `exaggeration`, `cfg_weight`, `temperature` (0 is greedy), `top_p`, `min_p`, `repetition_penalty`, `top_k` and,
        of Flash, `num_steps`, `time_shift_tau`, `omnivoice_schedule_t_shift` and `position_temperature` are the model's
        own; the server refuses those that its model ignores. The same `seed`, text, voice and
        parameters give the same audio. `max_seconds` bounds the audio of each segment of the text. `priority` is `live`
        or `batch`: work for which nobody waits, done in what live requests leave free. With `word_times` the audio has
        `words`. `guard` ends (`stop`) speech that has gone wrong, or speaks it again (`retry`, `guard_retries` times).

        Raises InvalidRequest, NotFound, Unavailable, Timeout, ConnectionFailed or ServerError, and OSError when the
        reference file cannot be read.
        """
        tensors = request()
        outputs = outputs_of(tensors, OUTPUTS)
        return audio_of(self._transport.infer(self._model, tensors, outputs, self._timeout, self._context))

    @takes_arguments_of(speech_request)
    def show_text(self, request: Callable[[], Tensors]) -> dict[str, Any]:
        """What `speak` would speak of a text, without speaking it.

            client.show_text("It's **10:30**.", text_normalization="spoken")["segments"]

        The `stages` that are on with their passages, the `segments` with the source characters that they stand for
        (`start`, `end`) and the silence after them (`pause`, seconds), and `notes` of what is left out.
        """
        return text_of(self._transport.infer(self._model, text_request(request()), OUTPUTS, self._timeout))

    @takes_arguments_of(stream_request)
    def stream(self, request: Bound) -> Generator[Chunk, None, None]:
        """Speaks `text` and yields its audio while the server is still speaking.

            for chunk in client.stream("It was a cold day in the middle of winter."):
                player.write(chunk.to_bytes())

        Parameters and errors are those of `speak`; an error may come after some chunks. The request starts with the
        first chunk asked for, and leaving the loop cancels it: over gRPC at once, over HTTP at the server's next chunk.
        Over HTTP the samples have 16 bits. `timeout` bounds the whole stream. The first chunk has `first_chunk_tokens`
        tokens of 40 ms, the second `chunk_tokens`, later ones more; the defaults suit a player.

        `text` may also be an iterable of pieces, such as the tokens of a language model. Each sentence is a request of
        its own, all with the same seed: it is decoded as soon as it is complete, while the one before plays. Then the
        last chunk is empty, `timeout` bounds each sentence, and leaving the loop cancels at the server's next chunk.
        """
        if isinstance(request.text, str):
            return self._stream(request())
        seed = new_seed()
        return speak_pieces(lambda text: self._stream(request.of(text, seed)()), pieces_of(request), request.language)

    def _stream(self, tensors: Tensors) -> Generator[Chunk, None, None]:
        model = f"{self._model}_stream"
        outputs = outputs_of(tensors, STREAM_OUTPUTS)
        return chunks_of(self._transport.stream(model, tensors, outputs, self._timeout, self._context))

    def with_context(self, request_id: str = "", headers: Mapping[str, str] | None = None) -> Client:
        """This client, whose `speak` and `stream` send an id, which stands in the server's log, and more headers.

        client.with_context("call-7").speak("Hello.")
        """
        return _with_context(self, RequestContext(request_id, headers or {}))

    def ready(self) -> bool:
        """Whether the server can speak now; raises ConnectionFailed when there is none."""
        return self._transport.ready(self._model, self._timeout)

    def metadata(self) -> Mapping[str, Any]:
        """The model's `name`, `versions`, `platform`, `inputs` and `outputs`, as Triton states them."""
        return self._transport.metadata(self._model, self._timeout)

    def close(self) -> None:
        """Ends the connections."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """`Client` for asyncio: the same parameters, errors and results.

        async with AsyncClient("localhost:8001", "grpc") as client:
            first, second = await asyncio.gather(client.speak("The first one."), client.speak("The second one."))

    Belongs to the event loop of its first call.
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: ProtocolName = "http",
        *,
        model: str = "chatterbox",
        timeout: float | None = DEFAULT_TIMEOUT,
        headers: Mapping[str, str] | None = None,
        voice_key: str | None = None,
        transport: AsyncTransport | None = None,
    ) -> None:
        self._model = model
        self._timeout = timeout
        self._context = NO_CONTEXT
        self._transport = transport or open_async_transport(url, protocol, headers)
        self.voices = AsyncVoiceList(self._transport, timeout, voice_key)
        """The voices that the server keeps."""

    @takes_arguments_of(speech_request)
    async def speak(self, request: Callable[[], Tensors]) -> Audio:
        """`Client.speak`, awaited.

        audio = await client.speak("Good evening.", voice="default", seed=7)
        """
        tensors = request()
        outputs = outputs_of(tensors, OUTPUTS)
        return audio_of(await self._transport.infer(self._model, tensors, outputs, self._timeout, self._context))

    @takes_arguments_of(speech_request)
    async def show_text(self, request: Callable[[], Tensors]) -> dict[str, Any]:
        """`Client.show_text`, awaited."""
        return text_of(await self._transport.infer(self._model, text_request(request()), OUTPUTS, self._timeout))

    @takes_arguments_of(stream_request)
    def stream(self, request: Bound) -> AsyncGenerator[Chunk, None]:
        """`Client.stream` for `async for`; pieces may come from an asynchronous iterable. Leaving the loop early
        cancels the request soon after, or at once with `contextlib.aclosing`."""
        if isinstance(request.text, str):
            return self._stream(request())
        seed, pieces = new_seed(), pieces_of_async(request)
        return speak_pieces_async(lambda text: self._stream(request.of(text, seed)()), pieces, request.language)

    def _stream(self, tensors: Tensors) -> AsyncGenerator[Chunk, None]:
        model = f"{self._model}_stream"
        outputs = outputs_of(tensors, STREAM_OUTPUTS)
        return chunks_of_async(self._transport.stream(model, tensors, outputs, self._timeout, self._context))

    def with_context(self, request_id: str = "", headers: Mapping[str, str] | None = None) -> AsyncClient:
        """See `Client.with_context`."""
        return _with_context(self, RequestContext(request_id, headers or {}))

    async def ready(self) -> bool:
        """See `Client.ready`."""
        return await self._transport.ready(self._model, self._timeout)

    async def metadata(self) -> Mapping[str, Any]:
        """See `Client.metadata`."""
        return await self._transport.metadata(self._model, self._timeout)

    async def close(self) -> None:
        """See `Client.close`."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _with_context(client: ClientT, context: RequestContext) -> ClientT:
    """A copy that shares the connection."""
    other = copy(client)
    other._context = context
    return other
