"""Computes the voices of clips that nobody has computed: queued clips, several at once, each of them once.

Everything runs on one thread, the encoder's; the other methods queue work for it.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

from chatterbox_engine.errors import EngineFailed, NotFound, RequestError
from chatterbox_engine.metrics import VoiceSource
from chatterbox_engine.types import Encoder, ReferenceClip
from chatterbox_engine.voices.cache import Voice
from chatterbox_engine.voices.clips import ClipLimits, read_clip
from chatterbox_engine.voices.library import Found, VoiceLibrary
from chatterbox_engine.voices.store import Clip, VoiceStore

_PROGRESS_SECONDS = 5.0

T = TypeVar("T")

Done = Callable[[Found | RequestError], None]


@dataclass(frozen=True)
class Wanted:
    """A queued clip and its callback."""

    clip: Clip
    keep: bool
    """Whether the clip belongs to a stored voice, whose conditionals are stored too. Inline clips stay in memory
    only."""
    done: Done


def attempt(body: Callable[[], T]) -> T | RequestError:
    """The return value of `body`, or its exception as a RequestError."""
    try:
        return body()
    except RequestError as error:
        return error
    except Exception as error:
        traceback.print_exc()
        return EngineFailed(f"the voice could not be prepared: {type(error).__name__}: {error}")


def guard(done: Done, body: Callable[[], None]) -> None:
    """Runs a stage of a request; its error answers this request only."""
    error = attempt(body)
    if error is not None:
        done(error)


class VoiceEncoding:
    """The encoders, their thread and its queue."""

    def __init__(
        self,
        library: VoiceLibrary,
        store: VoiceStore,
        *,
        make_encoder: Callable[[], Encoder],
        limits: ClipLimits,
        batch: int,
        prepare_thread: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make_encoder` takes seconds, so it is called at the first unknown clip. At most `batch` clips are encoded
        together. `prepare_thread` is called first on the thread (to choose a CUDA stream)."""
        self._library = library
        self._store = store
        self._make_encoder = make_encoder
        self._limits = limits
        self._batch = batch
        self._clock = clock
        self._waiting: list[Wanted] = []  # guarded by the lock
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="voice-encoder", initializer=prepare_thread)

    def put(self, wanted: Wanted) -> None:
        """Queues a clip."""
        with self._lock:
            self._waiting.append(wanted)
        self._thread.submit(self._encode_waiting)

    def write_back(self, voice: Voice) -> None:
        """Stores a voice's conditionals, without making the caller wait for it."""
        self._thread.submit(self._library.write_back, voice)

    def encode_stored(self, names: Sequence[str]) -> Future[None]:
        """Computes stored voices; reports those that fail. The future may raise Unavailable."""
        return self._thread.submit(self._encode_stored, names)

    def bring_in(self, clips: Mapping[str, str]) -> Future[None]:
        """Loads the stored conditionals of clips (hash to name) and computes the others, as many as fit into memory;
        reports how far it is. The future may raise Unavailable."""
        return self._thread.submit(self._bring_in, clips)

    def load(self) -> None:
        """Waits until the encoders are loaded and warm; reports how long it took, or their error."""
        began = self._clock()
        error = self._thread.submit(attempt, self._warm_up).result()
        seconds = self._clock() - began
        self._library.report(f"encoders: {error}" if error else f"encoders: ready after {seconds:.1f} s")

    def close(self) -> None:
        """Ends the thread and drops queued work."""
        self._thread.shutdown(cancel_futures=True)

    # The thread

    @cached_property
    def _encoder(self) -> Encoder:
        return self._make_encoder()

    def _warm_up(self) -> None:
        self._encoder.warm_up()

    def _encode_waiting(self) -> None:
        """Runs once for each queued clip; does nothing when an earlier run has encoded it."""
        with self._lock:
            taken, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
        self._encode(taken)

    def _encode(self, wanted: Sequence[Wanted]) -> None:
        """Calls back for each clip, with its voice or its error."""
        clips = {one.clip.content_hash: one.clip for one in wanted}
        known = {key: voice for key in clips if (voice := self._library.cache.get(key)) is not None}
        new = self._compute([clip for key, clip in clips.items() if key not in known])
        for one in wanted:
            guard(one.done, partial(self._answer, one, known, new))

    def _answer(self, one: Wanted, known: dict[str, Voice], new: Mapping[str, Voice | RequestError]) -> None:
        key = one.clip.content_hash
        source: VoiceSource = "memory" if key in known else "encoded"
        voice = known[key] if key in known else new[key]
        if isinstance(voice, RequestError):
            raise voice
        known[key] = voice
        found = self._library.found(voice, source)
        if one.keep:
            self._library.write_back(voice)
        one.done(found)

    def _compute(self, clips: Sequence[Clip]) -> dict[str, Voice | RequestError]:
        """The voices of distinct clips by their hashes, or the errors of the clips that fail."""
        prepared = {clip.content_hash: attempt(partial(self._prepare, clip)) for clip in clips}
        good = {key: clip for key, clip in prepared.items() if isinstance(clip, ReferenceClip)}
        bad = {key: error for key, error in prepared.items() if isinstance(error, RequestError)}
        return bad | (self._compute_together(good) if good else {})

    def _prepare(self, clip: Clip) -> ReferenceClip:
        samples, rate = read_clip(clip.audio, self._limits)  # first: an invalid clip does not load the encoders
        return self._encoder.prepare(samples, rate)

    def _compute_together(self, clips: Mapping[str, ReferenceClip]) -> dict[str, Voice | RequestError]:
        conditionals = attempt(lambda: self._encoder.encode(list(clips.values())))
        if not isinstance(conditionals, RequestError):
            voices = dict(zip(clips, map(Voice, clips, conditionals), strict=True))
            for voice in voices.values():
                self._library.cache.put(voice)
            return dict(voices)
        if len(clips) == 1:
            return dict.fromkeys(clips, conditionals)
        # one at a time, so that only the invalid clip fails
        return {key: self._compute_together({key: clip})[key] for key, clip in clips.items()}

    def _bring_in(self, clips: Mapping[str, str]) -> None:
        began = shown = self._clock()
        cache, counts, report = self._library.cache, self._library.counts, self._library.report
        for ready in self._brought_in(clips):
            if cache.full:
                report(f"voices: memory holds {len(cache)} of {len(clips)}; the others load at use")
                break
            if self._clock() - shown > _PROGRESS_SECONDS:
                shown = self._clock()
                report(f"voices: {ready} of {len(clips)}")
        seconds = self._clock() - began
        report(
            f"voices: {len(cache)} ready in {seconds:.1f} s, {counts['store']} from the store, "
            f"{counts['encoded']} computed, {cache.bytes / 1e6:.1f} MB"
        )

    def _brought_in(self, clips: Mapping[str, str]) -> Iterator[int]:
        """Yields the number of clips that are done, after each that is loaded and each batch that is computed."""
        new: list[str] = []
        for number, (key, name) in enumerate(clips.items(), start=1):
            if not self._library.cache.get(key) and not self._library.stored(key):
                new.append(name)
            yield number - len(new)
        loaded = len(clips) - len(new)
        for start in range(0, len(new), self._batch):
            batch = new[start : start + self._batch]
            self._encode_stored(batch)
            yield loaded + start + len(batch)

    def _encode_stored(self, names: Sequence[str]) -> None:
        self._encode([one for name in names if (one := self._stored(name)) is not None])

    def _stored(self, name: str) -> Wanted | None:
        try:
            return Wanted(self._store.clip(name), True, partial(self._report_error, name))
        except NotFound as error:
            self._report_error(name, error)
            return None

    def _report_error(self, name: str, answer: Found | RequestError) -> None:
        """An error of one voice is reported only, so that the others are still served."""
        if isinstance(answer, RequestError):
            self._library.report(f"voice {name!r} is left out: {answer}")
