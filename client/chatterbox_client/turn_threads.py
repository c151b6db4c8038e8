"""`turns` for threads: a text that arrives in pieces, read by one thread while two others stream its sentences."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field

from chatterbox_client.audio import Chunk
from chatterbox_client.errors import says_nothing
from chatterbox_client.sentence_ends import pause_after
from chatterbox_client.sentences import Sentences
from chatterbox_client.turns import AHEAD, Assembly

Speak = Callable[[str], Generator[Chunk, None, None]]


@dataclass
class _Stream:
    sentence: str
    chunks: queue.SimpleQueue[Chunk | Exception | None] = field(default_factory=queue.SimpleQueue)
    """Ends with None, or with the error that ended it."""

    def spoken(self) -> Iterator[Chunk]:
        """Nothing, if there is nothing to speak."""
        while (chunk := self.chunks.get()) is not None:
            if isinstance(chunk, Exception):
                if says_nothing(chunk):
                    return
                raise chunk
            yield chunk


def speak_pieces(speak: Speak, pieces: Iterable[str], language: str) -> Generator[Chunk, None, None]:
    """The chunks of a text that arrives in pieces. Raises what `speak` and `pieces` do.

    Closing it cancels the streams at their next chunk. The thread that waits for a piece ends with the piece.
    """
    reading = _Reading(speak, language)
    threading.Thread(target=reading.read, args=[pieces], daemon=True).start()
    assembly, silence, spoken = Assembly(), 0.0, False
    try:
        for stream in reading.streams():
            heard = False
            for chunk in stream.spoken():
                yield assembly.add(chunk, 0.0 if heard else silence)
                heard = spoken = True
            if spoken:
                silence = max(0.0 if heard else silence, pause_after(stream.sentence))
        yield assembly.last()
    finally:
        reading.stop()


class _Reading:
    """What the threads share."""

    def __init__(self, speak: Speak, language: str) -> None:
        self._speak = speak
        self._sentences = Sentences(language)
        self._order: queue.SimpleQueue[_Stream | Exception | None] = queue.SimpleQueue()
        self._free = threading.Semaphore(AHEAD)
        self._stopped = threading.Event()

    def read(self, pieces: Iterable[str]) -> None:
        """Begins a stream for each sentence; waits while `AHEAD` are under way."""
        try:
            for piece in pieces:
                if not self._begin(self._sentences.push(piece)):
                    return
            self._begin(self._sentences.flush())
        except Exception as error:
            self._order.put(error)
        else:
            self._order.put(None)

    def streams(self) -> Iterator[_Stream]:
        """The streams in the order of their sentences."""
        while (stream := self._order.get()) is not None:
            if isinstance(stream, Exception):
                raise stream
            yield stream
            self._free.release()

    def stop(self) -> None:
        """Ends the threads."""
        self._stopped.set()
        self._free.release(AHEAD)

    def _begin(self, sentences: Iterable[str]) -> bool:
        """False once stopped."""
        for sentence in sentences:
            self._free.acquire()
            if self._stopped.is_set():
                return False
            stream = _Stream(sentence)
            self._order.put(stream)
            threading.Thread(target=self._fill, args=[stream], daemon=True).start()
        return True

    def _fill(self, stream: _Stream) -> None:
        chunks = self._speak(stream.sentence.strip())
        try:
            for chunk in chunks:
                stream.chunks.put(chunk)
                if self._stopped.is_set():
                    break
        except Exception as error:
            stream.chunks.put(error)
        else:
            stream.chunks.put(None)
        finally:
            chunks.close()
