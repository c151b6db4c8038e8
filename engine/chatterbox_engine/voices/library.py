"""Voices by the content hash of their clip: in memory, else in the store. Any thread."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from safetensors import SafetensorError

from chatterbox_engine.errors import Unavailable
from chatterbox_engine.metrics import Metrics, VoiceSource
from chatterbox_engine.voices.cache import Voice, VoiceCache
from chatterbox_engine.voices.conditionals import from_bytes, to_bytes
from chatterbox_engine.voices.store import VoiceStore

PREPARATION = 1
"""Version of the conditionals' computation, so that results stored by older code are not used."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """A voice and its source."""

    voice: Voice
    source: VoiceSource


class VoiceLibrary:
    """What is computed from clips, in memory and in the store, and how often each gave a voice."""

    def __init__(self, store: VoiceStore, checkpoint: str, *, cache_bytes: int, metrics: Metrics) -> None:
        """checkpoint: the identity of the one that conditionals are computed with."""
        self.cache = VoiceCache(cache_bytes)
        self.identity = f"{checkpoint}/{PREPARATION}"
        """Of the conditionals' computation: that of another one is not used."""
        self.report: Report = lambda _line: None
        self._store = store
        self._metrics = metrics
        self._lock = threading.Lock()
        self.counts: Counter[VoiceSource] = Counter()
        """Number of voices by source since the start; guarded by the lock."""

    def found(self, voice: Voice, source: VoiceSource) -> Found:
        """A voice for a request, counted."""
        with self._lock:
            self.counts[source] += 1
        self._metrics.voiced(source)
        return Found(voice, source)

    def in_memory(self, key: str) -> Found | None:
        """The voice if it is in memory."""
        voice = self.cache.get(key)
        return None if voice is None else self.found(voice, "memory")

    def stored(self, key: str) -> Found | None:
        """The voice if its conditionals are in the store, which stay in memory from then on. Raises Unavailable."""
        data = self._store.conditionals(key, self.identity)
        if data is None:
            return None
        try:
            voice = Voice(key, from_bytes(data))
        except (SafetensorError, KeyError) as error:
            self.report(f"the stored conditionals of clip {key} are damaged and are computed again: {error}")
            return None
        self.cache.put(voice)
        return self.found(voice, "store")

    def write_back(self, voice: Voice) -> None:
        """Stores a voice's conditionals; reports it when the store is unavailable."""
        try:
            self._store.put_conditionals(voice.key, self.identity, to_bytes(voice.conditionals))
        except Unavailable as error:
            self.report(f"a voice could not be written back: {error}")
