"""The voices that requests speak with: found in memory, in the store, or computed from their clip, once.

A voice is known by the content hash of its clip. Threads:

    caller   `resolve`: the built-in voice and inline clips that are in memory are answered at once
    lookup   asks the store which clip a name means now, and for what was computed from it
    patience waits for the store for requests whose voice is in memory, up to PATIENCE_SECONDS
    encoder computes missing conditionals: the queued clips, several at once, each of them once
    watch starts the loading of the encoders and the computation of new voices, ahead of requests

The store is asked at every request that names a stored voice (one indexed row), so that a voice's replacement or
deletion takes effect at the next request, whichever server made it. While the store is unavailable, the voices in
memory are used as last seen, without waiting for it. A store that hangs makes the first of them wait PATIENCE_SECONDS.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout  # another class than TimeoutError on Python 3.10
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

from safetensors import SafetensorError

from chatterbox_engine.errors import EngineFailed, NotFound, RequestError, Unavailable
from chatterbox_engine.metrics import Metrics, NoMetrics, VoiceSource
from chatterbox_engine.types import Conditionals, Encoder, ReferenceClip, SynthesisRequest
from chatterbox_engine.voices.cache import Voice, VoiceCache
from chatterbox_engine.voices.clips import ClipLimits, check_bytes, read_clip
from chatterbox_engine.voices.conditionals import from_bytes, to_bytes
from chatterbox_engine.voices.store import Clip, Entry, VoiceStore, content_hash
from chatterbox_engine.voices.watch import SECONDS, VoiceWatch

DEFAULT = "default"
"""The name of the checkpoint's built-in voice."""

PREPARATION = 1
"""Version of the conditionals' computation, so that results stored by older code are not used."""

PATIENCE_SECONDS = 1.0
"""Seconds that a request whose voice is in memory waits for the store to confirm its name."""

_PROGRESS_SECONDS = 5.0

T = TypeVar("T")

Report = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """A voice and its source."""

    voice: Voice
    source: VoiceSource


Done = Callable[[Found | RequestError], None]


@dataclass(frozen=True)
class _Wanted:
    """A queued clip and its callbacks."""

    clip: Clip
    keep: bool
    """Whether the clip belongs to a stored voice, whose conditionals are stored too. Inline clips stay in memory
    only."""
    done: Done


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
        self._identity = f"{identity}/{PREPARATION}"
        self._store = store
        self._make_encoder = make_encoder
        self._limits = limits
        self._cache = VoiceCache(cache_bytes)
        self._seen: dict[str, str] = {}  # names and the hashes that they had when the store was last asked
        self._encoder_batch = encoder_batch
        self._waiting: list[_Wanted] = []  # guarded by the lock
        self._lookups = ThreadPoolExecutor(1, thread_name_prefix="voice-lookup")
        self._waits = ThreadPoolExecutor(1, thread_name_prefix="voice-patience")
        self._late: Future[Entry] | None = None  # the last lookup that took longer
        self._encodings = ThreadPoolExecutor(1, thread_name_prefix="voice-encoder", initializer=prepare_thread)
        self._watch = VoiceWatch(
            load=self._load_encoder,
            find=lambda: self._store.unprepared(self._identity),
            compute=lambda names: self._encodings.submit(self._encode_stored, names).result(),
            batch=encoder_batch,
            seconds=watch_seconds,
        )
        self._ahead = ahead
        self._report: Report = lambda _line: None
        self._metrics = metrics or NoMetrics()
        self._clock = clock
        self._lock = threading.Lock()
        self.counts: Counter[VoiceSource] = Counter()
        """Number of voices by source since the start; guarded by the lock."""

    def start(self, report: Report) -> None:
        """Loads the stored voices into memory, as far as they fit. A voice that cannot be read, or an unavailable
        store, is reported and does not stop the start."""
        self._report = report
        self._encodings.submit(self._preload).result()

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
        return len(self._cache) + (self.built_in is not None)

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
            self._guard(done, partial(self._resolve_clip, clip, done))
        elif request.voice == DEFAULT and self.built_in is not None:
            self._remembered(self.built_in, done)
        elif (voice := self._last_seen(request.voice)) is None:
            self._lookups.submit(self._guard, done, partial(self._find, request.voice, done))
        else:
            entry = self._lookups.submit(self._ask, request.voice)
            if self._store_is_stuck():
                self._remembered(voice, done)
            else:
                confirm = partial(self._confirm, request.voice, voice, entry, time.monotonic() + PATIENCE_SECONDS, done)
                self._waits.submit(self._guard, done, confirm)

    def close(self) -> None:
        """Ends the threads and drops queued work."""
        self._watch.close()
        self._waits.shutdown(cancel_futures=True)
        self._lookups.shutdown(cancel_futures=True)
        self._encodings.shutdown(cancel_futures=True)
        self._store.close()

    # Caller's thread

    def _resolve_clip(self, audio: bytes, done: Done) -> None:
        check_bytes(len(audio), self._limits)
        clip = Clip(content_hash(audio), audio)
        if not self._from_memory(clip.content_hash, done):
            self._lookups.submit(self._guard, done, partial(self._find_clip, clip, done))

    def _last_seen(self, name: str) -> Voice | None:
        key = self._seen.get(name)
        return None if key is None else self._cache.get(key)

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
                self._lookups.submit(self._guard, done, partial(self._get, name, entry, done))
                return
        self._remembered(voice, done)

    # Lookup thread

    def _find(self, name: str, done: Done) -> None:
        self._get(name, self._ask(name), done)

    def _get(self, name: str, entry: Entry, done: Done) -> None:
        voice = self._cache.get(entry.content_hash)
        if voice is not None:
            self._remembered(voice, done)
            if not entry.prepared:  # first used as an inline clip
                self._encodings.submit(self._write_back, voice)
        elif not entry.prepared or not self._from_store(entry.content_hash, done):
            self._want(_Wanted(self._store.clip(name), True, done))  # if replaced meanwhile, the newer clip

    def _find_clip(self, clip: Clip, done: Done) -> None:
        try:
            known = self._from_memory(clip.content_hash, done) or self._from_store(clip.content_hash, done)
        except Unavailable:
            known = False  # an inline clip needs no store
        if not known:
            self._want(_Wanted(clip, False, done))

    def _want(self, wanted: _Wanted) -> None:
        with self._lock:
            self._waiting.append(wanted)
        self._encodings.submit(self._encode_waiting)

    def _ask(self, name: str) -> Entry:
        try:
            entry = self._store.look_up(name, self._identity)
        except NotFound:
            self._seen.pop(name, None)
            raise
        self._seen[name] = entry.content_hash
        return entry

    def _from_memory(self, key: str, done: Done) -> bool:
        voice = self._cache.get(key)
        if voice is not None:
            self._remembered(voice, done)
        return voice is not None

    def _from_store(self, key: str, done: Done) -> bool:
        voice = self._load(key)
        if voice is not None:
            done(Found(voice, "store"))
        return voice is not None

    def _load(self, key: str) -> Voice | None:
        data = self._store.conditionals(key, self._identity)
        if data is None:
            return None
        try:
            voice = Voice(key, from_bytes(data))
        except (SafetensorError, KeyError) as error:
            self._report(f"the stored conditionals of clip {key} are damaged and are computed again: {error}")
            return None
        self._count("store")
        self._cache.put(voice)
        return voice

    # Watch's thread

    def _load_encoder(self) -> None:
        began = self._clock()
        error = self._encodings.submit(self._attempt, self._warm_up).result()
        seconds = self._clock() - began
        self._report(f"encoders: {error}" if error else f"encoders: ready after {seconds:.1f} s")

    # Encoder thread

    @cached_property
    def _encoder(self) -> Encoder:
        return self._make_encoder()

    def _warm_up(self) -> None:
        self._encoder.warm_up()

    def _encode_waiting(self) -> None:
        """Runs once for each queued clip; does nothing when an earlier run has encoded it."""
        with self._lock:
            taken, self._waiting = self._waiting[: self._encoder_batch], self._waiting[self._encoder_batch :]
        self._encode(taken)

    def _encode(self, wanted: Sequence[_Wanted]) -> None:
        """Calls back for each clip, with its voice or its error."""
        clips = {one.clip.content_hash: one.clip for one in wanted}
        known = {key: voice for key in clips if (voice := self._cache.get(key)) is not None}
        new = self._compute([clip for key, clip in clips.items() if key not in known])
        for one in wanted:
            self._guard(one.done, partial(self._answer, one, known, new))

    def _answer(self, one: _Wanted, known: dict[str, Voice], new: Mapping[str, Voice | RequestError]) -> None:
        key = one.clip.content_hash
        source: VoiceSource = "memory" if key in known else "encoded"
        voice = known[key] if key in known else new[key]
        if isinstance(voice, RequestError):
            raise voice
        known[key] = voice
        self._count(source)
        if one.keep:
            self._write_back(voice)
        one.done(Found(voice, source))

    def _compute(self, clips: Sequence[Clip]) -> dict[str, Voice | RequestError]:
        """The voices of distinct clips by their hashes, or the errors of the clips that fail."""
        prepared = {clip.content_hash: self._attempt(partial(self._prepare, clip)) for clip in clips}
        good = {key: clip for key, clip in prepared.items() if isinstance(clip, ReferenceClip)}
        bad = {key: error for key, error in prepared.items() if isinstance(error, RequestError)}
        return bad | (self._compute_together(good) if good else {})

    def _prepare(self, clip: Clip) -> ReferenceClip:
        samples, rate = read_clip(clip.audio, self._limits)  # first: an invalid clip does not load the encoders
        return self._encoder.prepare(samples, rate)

    def _compute_together(self, clips: Mapping[str, ReferenceClip]) -> dict[str, Voice | RequestError]:
        conditionals = self._attempt(lambda: self._encoder.encode(list(clips.values())))
        if not isinstance(conditionals, RequestError):
            voices = dict(zip(clips, map(Voice, clips, conditionals), strict=True))
            for voice in voices.values():
                self._cache.put(voice)
            return dict(voices)
        if len(clips) == 1:
            return dict.fromkeys(clips, conditionals)
        # one at a time, so that only the invalid clip fails
        return {key: self._compute_together({key: clip})[key] for key, clip in clips.items()}

    def _write_back(self, voice: Voice) -> None:
        try:
            self._store.put_conditionals(voice.key, self._identity, to_bytes(voice.conditionals))
        except Unavailable as error:
            self._report(f"a voice could not be written back: {error}")

    def _preload(self) -> None:
        began = shown = self._clock()
        try:
            names = self._store.hashes()
            self._seen.update(names)
            clips = {key: name for name, key in names.items()}
            for ready in self._bring_in(clips):
                if self._cache.full:
                    self._report(f"voices: memory holds {len(self._cache)} of {len(clips)}; the others load at use")
                    break
                if self._clock() - shown > _PROGRESS_SECONDS:
                    shown = self._clock()
                    self._report(f"voices: {ready} of {len(clips)}")
        except Unavailable as error:
            self._report(f"voices: {error}; requests for stored voices get 503 until it is back")
            return
        seconds = self._clock() - began
        self._report(
            f"voices: {len(self._cache)} ready in {seconds:.1f} s, {self.counts['store']} from the store, "
            f"{self.counts['encoded']} computed, {self._cache.bytes / 1e6:.1f} MB"
        )

    def _bring_in(self, clips: Mapping[str, str]) -> Iterator[int]:
        """Loads the stored conditionals of the clips (hash to name) and computes the others; yields the number done."""
        new: list[str] = []
        for number, (key, name) in enumerate(clips.items(), start=1):
            if not self._cache.get(key) and not self._load(key):
                new.append(name)
            yield number - len(new)
        loaded = len(clips) - len(new)
        for start in range(0, len(new), self._encoder_batch):
            batch = new[start : start + self._encoder_batch]
            self._encode_stored(batch)
            yield loaded + start + len(batch)

    def _encode_stored(self, names: Sequence[str]) -> None:
        self._encode([one for name in names if (one := self._stored(name)) is not None])

    def _stored(self, name: str) -> _Wanted | None:
        try:
            return _Wanted(self._store.clip(name), True, partial(self._preloaded, name))
        except NotFound as error:
            self._preloaded(name, error)
            return None

    def _preloaded(self, name: str, answer: Found | RequestError) -> None:
        """Reports an error of one voice, so that the others are still served."""
        if isinstance(answer, RequestError):
            self._report(f"voice {name!r} is left out: {answer}")

    # Any thread

    def _remembered(self, voice: Voice, done: Done) -> None:
        self._count("memory")
        done(Found(voice, "memory"))

    def _count(self, source: VoiceSource) -> None:
        with self._lock:
            self.counts[source] += 1
        self._metrics.voiced(source)

    def _guard(self, done: Done, body: Callable[[], None]) -> None:
        """Runs a stage; an error answers this request only."""
        error = self._attempt(body)
        if error is not None:
            done(error)

    def _attempt(self, body: Callable[[], T]) -> T | RequestError:
        """The return value of `body`, or its exception as a RequestError."""
        try:
            return body()
        except RequestError as error:
            return error
        except Exception as error:
            traceback.print_exc()
            return EngineFailed(f"the voice could not be prepared: {type(error).__name__}: {error}")
