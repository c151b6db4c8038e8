"""The voices that requests speak with: found in memory, in the store, or computed from their clip, once.

A voice is known by the content hash of its clip. Threads:

    caller   `resolve`: the built-in voice and inline clips that are in memory are answered at once
    lookup   asks the store which clip a name means now, and for what was computed from it
    patience waits for the store for requests whose voice is in memory, up to PATIENCE_SECONDS
    encoder  `VoiceEncoding`: computes missing conditionals
    watch    `VoiceWatch`: loads the encoders and has new voices computed, ahead of requests

The store is asked at every request that names a stored voice (one indexed row), so that a voice's replacement or
deletion takes effect at the next request, whichever server made it. While the store is unavailable, the voices in
memory are used as last seen, without waiting for it. A store that hangs makes the first of them wait PATIENCE_SECONDS.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout  # another class than TimeoutError on Python 3.10
from functools import partial

from chatterbox_engine.errors import NotFound, RequestError, Unavailable
from chatterbox_engine.metrics import Metrics, NoMetrics, VoiceSource
from chatterbox_engine.types import Conditionals, Encoder, SynthesisRequest
from chatterbox_engine.voices.cache import Voice
from chatterbox_engine.voices.clips import ClipLimits, check_bytes
from chatterbox_engine.voices.encoding import Done, VoiceEncoding, Wanted, guard
from chatterbox_engine.voices.library import Found, Report, VoiceLibrary
from chatterbox_engine.voices.store import Clip, Entry, VoiceStore, content_hash
from chatterbox_engine.voices.watch import SECONDS, VoiceWatch

DEFAULT = "default"
"""The name of the checkpoint's built-in voice."""

_NO_DEFAULT = "this checkpoint has no built-in voice: name a stored voice, or send a clip as reference_audio"

PATIENCE_SECONDS = 1.0
"""Seconds that a request whose voice is in memory waits for the store to confirm its name."""


class Voices:
    """Resolves the voice of each request. Holds no state of requests."""

    def __init__(
        self,
        *,
        built_in: Conditionals | None,
        identity: str,
        store: VoiceStore,
        make_encoder: Callable[[], Encoder],
        limits: ClipLimits,
        cache_bytes: int,
        encoder_batch: int,
        ahead: bool = False,
        watch_seconds: float = SECONDS,
        prepare_thread: Callable[[], None] = lambda: None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`identity` is the checkpoint's. `make_encoder` takes seconds, so it is called at the first unknown clip.
        At most `encoder_batch` clips are encoded together. `ahead`: the encoder is made, and voices that are new in the
        store are computed, before a request asks. `prepare_thread` is called first on the encoder's thread (to choose a
        CUDA stream)."""
        self.built_in = None if built_in is None else Voice(f"{identity}/{DEFAULT}", built_in)
        """The checkpoint's own voice."""
        self._store = store
        self._library = VoiceLibrary(store, identity, cache_bytes=cache_bytes, metrics=metrics or NoMetrics())
        self._encoding = VoiceEncoding(
            self._library,
            store,
            make_encoder=make_encoder,
            limits=limits,
            batch=encoder_batch,
            prepare_thread=prepare_thread,
            clock=clock,
        )
        self._limits = limits
        self._seen: dict[str, str] = {}  # names and the hashes that they had when the store was last asked
        self._lookups = ThreadPoolExecutor(1, thread_name_prefix="voice-lookup")
        self._waits = ThreadPoolExecutor(1, thread_name_prefix="voice-patience")
        self._late: Future[Entry] | None = None  # the last lookup that took longer
        self._watch = VoiceWatch(
            load=self._encoding.load,
            find=lambda: store.unprepared(self._library.identity),
            compute=lambda names: self._encoding.encode_stored(names).result(),
            batch=encoder_batch,
            seconds=watch_seconds,
        )
        self._ahead = ahead

    def start(self, report: Report) -> None:
        """Loads the stored voices into memory, as far as they fit. A voice that cannot be read, or an unavailable
        store, is reported and does not stop the start."""
        self._library.report = report
        try:
            names = self._store.hashes()
            self._seen.update(names)
            self._encoding.bring_in({key: name for name, key in names.items()}).result()
        except Unavailable as error:
            report(f"voices: {error}; requests for stored voices get 503 until it is back")

    def work_ahead(self) -> None:
        """Starts the work that `ahead` enables. Not before the engine is warm: no graph can be captured while another
        thread uses the GPU."""
        if self._ahead:
            self._watch.start()

    def stop_ahead(self) -> None:
        """Ends that work; returns once the encoders that are being loaded, or the voices that are being computed, are
        done."""
        self._watch.close()

    @property
    def cached(self) -> int:
        """Voices in memory, the built-in one included."""
        return len(self._library.cache) + (self.built_in is not None)

    @property
    def counts(self) -> Counter[VoiceSource]:
        """Number of voices by source since the start."""
        return self._library.counts

    def resolve(self, request: SynthesisRequest) -> Future[Found]:
        """The request's voice: at once if it is in memory and needs no lookup, else from another thread.

        The future's exception is a RequestError: InvalidRequest for a clip that cannot be used, NotFound for an unknown
        name, Unavailable when the store is needed and unavailable. It is never done when `close` comes first.
        """
        future: Future[Found] = Future()

        def done(outcome: Found | RequestError) -> None:
            if isinstance(outcome, RequestError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self._resolve(request, done)
        return future

    def _resolve(self, request: SynthesisRequest, done: Done) -> None:
        clip = request.reference_audio
        if clip is not None:
            guard(done, partial(self._resolve_clip, clip, done))
        elif request.voice == DEFAULT and self.built_in is not None:
            self._remembered(self.built_in, done)
        elif (voice := self._last_seen(request.voice)) is None:
            self._lookups.submit(guard, done, partial(self._find, request.voice, done))
        else:
            entry = self._lookups.submit(self._ask, request.voice)
            if self._store_is_stuck():
                self._remembered(voice, done)
            else:
                confirm = partial(self._confirm, request.voice, voice, entry, time.monotonic() + PATIENCE_SECONDS, done)
                self._waits.submit(guard, done, confirm)

    def close(self) -> None:
        """Ends the threads and drops queued work."""
        self._watch.close()
        self._waits.shutdown(cancel_futures=True)
        self._lookups.shutdown(cancel_futures=True)
        self._encoding.close()
        self._store.close()

    # Caller's thread

    def _resolve_clip(self, audio: bytes, done: Done) -> None:
        check_bytes(len(audio), self._limits)
        clip = Clip(content_hash(audio), audio)
        if (found := self._library.in_memory(clip.content_hash)) is not None:
            done(found)
        else:
            self._lookups.submit(guard, done, partial(self._find_clip, clip, done))

    def _last_seen(self, name: str) -> Voice | None:
        key = self._seen.get(name)
        return None if key is None else self._library.cache.get(key)

    def _store_is_stuck(self) -> bool:
        return self._store.failing or (self._late is not None and not self._late.done())

    # Patience thread: lookups finish in the order in which they were queued, so one thread waits for all

    def _confirm(self, name: str, voice: Voice, asked: Future[Entry], deadline: float, done: Done) -> None:
        """Answers with the voice in memory, unless the store replies in time that the name refers to another one."""
        try:
            entry = asked.result(max(0.0, deadline - time.monotonic()))
        except FutureTimeout:
            self._late = asked
        except Unavailable:
            pass  # the store has logged it
        else:
            if entry.content_hash != voice.key or not entry.prepared:
                self._lookups.submit(guard, done, partial(self._get, name, entry, done))
                return
        self._remembered(voice, done)

    # Lookup thread

    def _find(self, name: str, done: Done) -> None:
        self._get(name, self._ask(name), done)

    def _get(self, name: str, entry: Entry, done: Done) -> None:
        voice = self._library.cache.get(entry.content_hash)
        if voice is not None:
            self._remembered(voice, done)
            if not entry.prepared:  # first used as an inline clip
                self._encoding.write_back(voice)
        elif entry.prepared and (found := self._library.stored(entry.content_hash)) is not None:
            done(found)
        else:
            self._encoding.put(Wanted(self._store.clip(name), True, done))  # if replaced meanwhile, the newer clip

    def _find_clip(self, clip: Clip, done: Done) -> None:
        try:
            found = self._library.in_memory(clip.content_hash) or self._library.stored(clip.content_hash)
        except Unavailable:
            found = None  # an inline clip needs no store
        if found is not None:
            done(found)
        else:
            self._encoding.put(Wanted(clip, False, done))

    def _ask(self, name: str) -> Entry:
        try:
            entry = self._store.look_up(name, self._library.identity)
        except NotFound as error:
            self._seen.pop(name, None)
            if name == DEFAULT:
                raise NotFound(_NO_DEFAULT) from error
            raise
        self._seen[name] = entry.content_hash
        return entry

    # Any thread

    def _remembered(self, voice: Voice, done: Done) -> None:
        done(self._library.found(voice, "memory"))
