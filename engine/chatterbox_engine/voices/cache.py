"""Caches that are bounded: voices by their bytes, other results by their number or by a size of their own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from chatterbox_engine.types import Conditionals
from chatterbox_engine.voices.conditionals import size_of

V = TypeVar("V")


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice that can speak; `key` tells its contents apart from any other's."""

    key: str
    conditionals: Conditionals


class VoiceCache:
    """The most recently used voices, as many as fit into a number of bytes. Any thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self.full = False
        """Whether a voice ever had to go."""
        self._voices: OrderedDict[str, Voice] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """What the kept voices take."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._voices)

    def get(self, key: str) -> Voice | None:
        """The voice of this key, which is now the most recently used one."""
        with self._lock:
            if key in self._voices:
                self._voices.move_to_end(key)
            return self._voices.get(key)

    def put(self, voice: Voice) -> None:
        """Keeps a voice; the ones not used for longest go when there is no room."""
        with self._lock:
            if voice.key not in self._voices:
                self._bytes += size_of(voice.conditionals)
            self._voices[voice.key] = voice
            while self._bytes > self._max_bytes:
                _, oldest = self._voices.popitem(last=False)
                self._bytes -= size_of(oldest.conditionals)
                self.full = True


class Memo(Generic[V]):
    """The most recently used results of a computation, as many as fit. Belongs to one thread."""

    def __init__(self, limit: int, size: Callable[[V], int] = lambda _result: 1) -> None:
        """limit: of the sizes of all kept results together; by default of their number."""
        self._limit = limit
        self._size = size
        self._total = 0
        self._kept: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], V]) -> V:
        """The result kept under `key`, computed when there is none."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        result = self._kept[key] = compute()
        self._total += self._size(result)
        while self._total > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self._total -= self._size(oldest)
        return result
