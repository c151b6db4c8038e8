"""A turn of a conversation: sentences that arrive one by one are spoken in order, two of them decoded at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chatterbox_client.audio import Chunk
from chatterbox_client.errors import InvalidRequest, says_nothing
from chatterbox_client.sentence_ends import pause_after
from chatterbox_client.sentences import Sentences

AHEAD = 2
"""Sentences that are decoded at once: the one whose audio is awaited, and the next."""

SpeakAsync = Callable[[str], AsyncGenerator[Chunk, None]]


@dataclass(frozen=True)
class Spoken:
    """A part of a turn's audio."""

    chunk: Chunk
    sentence: str
    number: int
    """Of the sentence, from 0."""
    silence: float
    """Seconds of silence before it, which the end of the sentence before asks for."""


@dataclass
class _Stream:
    sentence: str
    chunks: asyncio.Queue[Chunk | Exception | None] = field(default_factory=asyncio.Queue)
    """Ends with None, or with the error that ended it."""
    task: asyncio.Task[None] | None = None

    async def spoken(self) -> AsyncGenerator[Chunk, None]:
        """Nothing, if there is nothing to speak."""
        while (chunk := await self.chunks.get()) is not None:
            if isinstance(chunk, Exception):
                if says_nothing(chunk):
                    return
                raise chunk
            yield chunk


class Turn:
    """Speaks sentences in their order. Belongs to one event loop.

        turn = Turn(client.stream)
        turn.say("Hello there. ")
        turn.end()
        async with contextlib.aclosing(turn.spoken()) as parts:
            async for part in parts:
                player.write(part.chunk.to_bytes())

    Closing `spoken` cancels what the server still speaks.
    """

    def __init__(self, speak: SpeakAsync) -> None:
        """speak: begins the stream of a sentence."""
        self._speak = speak
        self._sentences: deque[_Stream] = deque()  # the first is the one that `spoken` gives out
        self._ended = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def say(self, sentence: str) -> None:
        """Adds a sentence. Its decoding begins at once if at most one other is under way."""
        self._sentences.append(_Stream(sentence))
        self._open()
        self._changed.set()

    @property
    def waiting(self) -> int:
        """Characters of the sentences that are not spoken to their end."""
        return sum(len(stream.sentence) for stream in self._sentences)

    def end(self, error: Exception | None = None) -> None:
        """No sentence follows. An error is raised by `spoken` after the last one."""
        self._ended, self._error = True, error
        self._changed.set()

    async def spoken(self) -> AsyncGenerator[Spoken, None]:
        """The audio. Raises the errors of the streams; a sentence that has nothing to speak is skipped."""
        silence, number = 0.0, 0
        try:
            while (stream := await self._next()) is not None:
                heard = False
                async for chunk in stream.spoken():
                    yield Spoken(chunk, stream.sentence, number, 0.0 if heard else silence)
                    heard = True
                if heard or number:
                    silence = max(0.0 if heard else silence, pause_after(stream.sentence))
                number += heard
                self._sentences.popleft()
                self._open()
            if self._error is not None:
                raise self._error
        finally:
            await self.close()

    async def _next(self) -> _Stream | None:
        """The next sentence, when it is there; None after the last."""
        while not self._sentences and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        return self._sentences[0] if self._sentences else None

    def _open(self) -> None:
        for stream in itertools.islice(self._sentences, AHEAD):
            if stream.task is None:
                stream.task = asyncio.ensure_future(self._fill(stream))

    async def _fill(self, stream: _Stream) -> None:
        try:
            async with contextlib.aclosing(self._speak(stream.sentence.strip())) as chunks:
                async for chunk in chunks:
                    stream.chunks.put_nowait(chunk)
        except Exception as error:
            stream.chunks.put_nowait(error)
        else:
            stream.chunks.put_nowait(None)

    async def close(self) -> None:
        """Cancels what the server still speaks. `spoken` does this at its end."""
        tasks = [stream.task for stream in self._sentences if stream.task is not None]
        self._sentences.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Assembly:
    """Makes one stream's chunks of those of sentences."""

    def __init__(self) -> None:
        self._chunks = self._tokens = 0
        self._now = self._begin = 0.0  # seconds of the turn's audio; before the sentence
        self._last: Chunk | None = None
        self._stats: Mapping[str, Any] = {}

    def add(self, chunk: Chunk, silence: float) -> Chunk:
        """The next chunk, after seconds of silence. Words keep their characters in their sentence."""
        samples = chunk.samples
        if silence:
            samples = np.concatenate([np.zeros(round(silence * chunk.sample_rate), np.float32), samples])
        if chunk.is_last:
            self._stats = chunk.stats
            self._tokens += int(chunk.stats.get("tokens", 0))
        if chunk.index == 0:
            self._begin = self._now + silence
        self._now += len(samples) / chunk.sample_rate
        words = [replace(word, start=self._begin + word.start, end=self._begin + word.end) for word in chunk.words]
        added = replace(chunk, samples=samples, index=self._chunks, is_last=False, stats={}, words=words)
        self._chunks += 1
        self._last = chunk
        return added

    def last(self) -> Chunk:
        """The last chunk, which has no audio: only the end of the text tells that none follows. Its statistics are
        those of the last sentence, `tokens` of all. Raises InvalidRequest where nothing was spoken."""
        if self._last is None:
            raise InvalidRequest("text has nothing to speak")
        return replace(
            self._last,
            samples=np.empty(0, np.float32),
            speech_tokens=np.empty(0, np.int32),
            index=self._chunks,
            is_last=True,
            stats={**self._stats, "tokens": self._tokens},
            words=(),
        )


def new_seed() -> int:
    """A seed for all sentences of a turn."""
    return secrets.randbits(31)


async def speak_pieces_async(
    speak: SpeakAsync, pieces: AsyncIterable[str], language: str
) -> AsyncGenerator[Chunk, None]:
    """The chunks of a text that arrives in pieces. Raises what `speak` and `pieces` do."""
    turn, assembly = Turn(speak), Assembly()
    reading = asyncio.ensure_future(_read(pieces, Sentences(language), turn))
    try:
        async with contextlib.aclosing(turn.spoken()) as parts:
            async for part in parts:
                yield assembly.add(part.chunk, part.silence)
        yield assembly.last()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _read(pieces: AsyncIterable[str], sentences: Sentences, turn: Turn) -> None:
    try:
        async for piece in pieces:
            for sentence in sentences.push(piece):
                turn.say(sentence)
        for sentence in sentences.flush():
            turn.say(sentence)
    except Exception as error:
        turn.end(error)
    else:
        turn.end()
