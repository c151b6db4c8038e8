"""Lookup, computation and storage of voices, with a fake encoder and real databases."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from chatterbox_engine.errors import EngineFailed, InvalidRequest, NotFound, Unavailable
from chatterbox_engine.metrics import NoMetrics, VoiceSource
from chatterbox_engine.types import (
    Conditionals,
    ReferenceClip,
    S3GenConditionals,
    Samples,
    SynthesisRequest,
    T3Conditionals,
)
from chatterbox_engine.voices.cache import Memo, Voice, VoiceCache
from chatterbox_engine.voices.clips import ClipLimits, read_clip
from chatterbox_engine.voices.conditionals import from_bytes, to_bytes
from chatterbox_engine.voices.schema import VOICES
from chatterbox_engine.voices.service import Found, Voices
from chatterbox_engine.voices.store import VoiceStore, content_hash
from tests.clips import encoded, tone
from tests.postgres import Postgres, locked, sql

WAIT = 20.0
BATCH = 4
ANNA, BERTA = (encoded(tone(1.0, pitch=pitch)) for pitch in (120, 220))
SIZE = 4 * (4 + 80 * 10 + 192) + 8 * (3 + 5)


def conditionals(mark: float) -> Conditionals:
    """A voice whose speaker embedding identifies its clip."""
    return Conditionals(
        T3Conditionals(torch.full((4,), mark), torch.arange(3)),
        S3GenConditionals(torch.arange(5), torch.ones(10, 80), torch.zeros(192)),
    )


def mark(audio: Samples) -> float:
    return float(abs(audio).sum())


def mark_of(clip: bytes) -> float:
    return mark(read_clip(clip, ClipLimits())[0])


class FakeEncoder:
    """Marks a voice with the sum of its clip's samples."""

    def __init__(self) -> None:
        self.made = 0
        self.began = threading.Event()
        self.warm = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.broken: Callable[[float], bool] = lambda _mark: False
        """Marks of the clips that make it fail."""
        self.batches: list[list[float]] = []
        self.seconds = 0.0
        """The time on its clock, of which every clip takes one second."""

    def __call__(self) -> FakeEncoder:
        self.made += 1
        return self

    def prepare(self, audio: Samples, sample_rate: int) -> ReferenceClip:
        return ReferenceClip(wide=audio, narrow=audio)

    def warm_up(self) -> None:
        self.warm.set()

    def encode(self, clips: Sequence[ReferenceClip]) -> list[Conditionals]:
        self.began.set()
        assert self.gate.wait(WAIT)
        marks = [mark(clip.wide) for clip in clips]
        if any(map(self.broken, marks)):
            raise ValueError("broken part")
        self.batches.append(marks)
        self.seconds += len(clips)
        return [conditionals(number) for number in marks]


class Told(NoMetrics):
    """Records the events of voices."""

    def __init__(self) -> None:
        self.sources: list[VoiceSource] = []
        self.news: queue.SimpleQueue[VoiceSource] = queue.SimpleQueue()

    def voiced(self, source: VoiceSource) -> None:
        self.sources.append(source)
        self.news.put(source)


class Desk:
    """Voices with a fake encoder; `ask` waits for an answer."""

    def __init__(self, store: str, *, cache_bytes: int = 1 << 20, built_in: bool = True, ahead: bool = False) -> None:
        self.encoder = FakeEncoder()
        self.lines: list[str] = []
        self.reported: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.told = Told()
        self.store = VoiceStore(store)
        self.voices = Voices(
            built_in=conditionals(0.0) if built_in else None,
            identity="checkpoint",
            store=self.store,
            make_encoder=self.encoder,
            limits=ClipLimits(),
            cache_bytes=cache_bytes,
            encoder_batch=BATCH,
            ahead=ahead,
            watch_seconds=0.001,
            metrics=self.told,
            clock=lambda: self.encoder.seconds,
        )

    def start(self) -> Desk:
        self.voices.start(self._report)
        self.voices.work_ahead()
        return self

    def _report(self, line: str) -> None:
        self.lines.append(line)
        self.reported.put(line)

    def ask_later(self, voice: str = "default", clip: bytes | None = None) -> queue.SimpleQueue[Any]:
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        found = self.voices.resolve(SynthesisRequest("Hello.", 1, voice=voice, reference_audio=clip))
        found.add_done_callback(lambda future: answers.put(future.exception() or future.result()))
        return answers

    def ask(self, voice: str = "default", clip: bytes | None = None) -> Any:
        return self.ask_later(voice, clip).get(timeout=WAIT)

    def source(self, voice: str = "default", clip: bytes | None = None) -> str:
        answer = self.ask(voice, clip)
        assert isinstance(answer, Found), answer
        return answer.source

    @property
    def counts(self) -> tuple[int, int]:
        return self.voices.counts["encoded"], self.voices.counts["store"]


@pytest.fixture
def open_desk(url: str) -> Iterator[Callable[..., Desk]]:
    opened: list[Desk] = []

    def open_one(store: str = url, **options: Any) -> Desk:
        opened.append(Desk(store, **options))
        return opened[-1]

    yield open_one
    for desk in opened:
        desk.encoder.gate.set()
        desk.voices.close()


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    return open_desk().start()


def test_the_built_in_voice_is_answered_at_once_on_the_callers_thread(desk: Desk) -> None:
    assert not desk.ask_later().empty()
    assert desk.counts == (0, 0)


def test_a_stored_voice_is_computed_once_and_then_in_memory(desk: Desk) -> None:
    desk.store.add("anna", ANNA)
    assert desk.source("anna") == "encoded"
    assert desk.source("anna") == "memory"
    assert desk.counts == (1, 0)


def test_after_a_restart_nothing_is_computed_and_no_encoder_is_made(desk: Desk, open_desk: Callable[..., Desk]) -> None:
    desk.store.add("anna", ANNA)
    before = desk.ask("anna").voice
    restarted = open_desk().start()
    assert restarted.counts == (0, 1)
    after = restarted.ask("anna")
    assert after.source == "memory"
    assert torch.equal(after.voice.conditionals.t3.speaker, before.conditionals.t3.speaker)
    assert restarted.encoder.made == 0


def test_a_voice_that_another_server_computed_comes_from_the_store(desk: Desk, open_desk: Callable[..., Desk]) -> None:
    other = open_desk().start()
    desk.store.add("anna", ANNA)
    assert (desk.source("anna"), other.source("anna"), other.source("anna")) == ("encoded", "store", "memory")


def test_starting_computes_what_nobody_has_and_tells_what_it_did(desk: Desk, open_desk: Callable[..., Desk]) -> None:
    for number in range(12):
        desk.store.add(f"voice{number}", encoded(tone(1.0, pitch=100 + number)))
    desk.store.add("bad", b"not audio")
    desk.source("voice3")
    started = open_desk().start()
    assert started.counts == (11, 1)
    assert any("'bad' is left out: the reference audio is damaged" in line for line in started.lines)
    assert any("voices: 12 ready in" in line and "1 from the store, 11 computed" in line for line in started.lines)
    assert all(started.source(f"voice{number}") == "memory" for number in range(12))
    assert sorted(len(batch) for batch in started.encoder.batches) == [3, 4, 4]  # the bad one was in one of them


def test_pre_loading_many_voices_tells_every_few_seconds_how_far_it_is(
    desk: Desk, open_desk: Callable[..., Desk]
) -> None:
    for number in range(40):
        desk.store.add(f"voice{number}", encoded(tone(0.5, rate=8000, pitch=100 + number), 8000))
    computed = open_desk().start().lines
    assert computed[:-1] == [f"voices: {number} of 40" for number in range(8, 41, 8)]
    assert computed[-1].startswith("voices: 40 ready in 40.0 s, 0 from the store, 40 computed")
    (loaded,) = open_desk().start().lines
    assert loaded.startswith("voices: 40 ready in 0.0 s, 40 from the store, 0 computed")


def test_the_metrics_are_told_where_every_voice_came_from(desk: Desk, open_desk: Callable[..., Desk]) -> None:
    desk.store.add("anna", ANNA)
    for options in ({"voice": "anna"}, {"voice": "anna"}, {"clip": ANNA}, {"clip": BERTA}, {"voice": "default"}):
        desk.ask(**options)
    assert desk.told.sources == ["encoded", "memory", "memory", "encoded", "memory"]
    restarted = open_desk().start()
    restarted.ask("anna")
    assert restarted.told.sources == ["store", "memory"]


def test_many_requests_for_a_new_clip_wait_for_one_computation(desk: Desk) -> None:
    desk.encoder.gate.clear()
    waiting = [desk.ask_later(clip=ANNA) for _ in range(8)]
    desk.encoder.gate.set()
    answers = [answer.get(timeout=WAIT) for answer in waiting]
    assert [answer.source for answer in answers].count("encoded") == 1
    assert len({id(answer.voice) for answer in answers}) == 1
    assert desk.counts == (1, 0)


def wait_together(desk: Desk, clips: Sequence[bytes]) -> list[queue.SimpleQueue[Any]]:
    """Requests clips while the encoder is busy with another one, so that all of them are queued."""
    desk.encoder.gate.clear()
    desk.ask_later(clip=encoded(tone(1.0, pitch=500)))
    assert desk.encoder.began.wait(WAIT)
    waiting = [desk.ask_later(clip=clip) for clip in clips]
    desk.voices._lookups.submit(lambda: None).result(WAIT)
    desk.encoder.gate.set()
    return waiting


def test_clips_that_wait_are_computed_together_up_to_a_bound_and_each_once(desk: Desk) -> None:
    clips = [encoded(tone(1.0, pitch=100 + 10 * number)) for number in range(6)]
    asked = [clips[number] for number in (0, 1, 0, 2, 3, 4, 5, 0)]
    answers = [answer.get(timeout=WAIT) for answer in wait_together(desk, asked)]
    marks = [mark_of(clip) for clip in clips]
    assert desk.encoder.batches[1:] == [marks[:3], marks[3:]]
    assert [float(found.voice.conditionals.t3.speaker[0]) for found in answers] == [mark_of(clip) for clip in asked]
    sources = ["encoded", "encoded", "memory", "encoded", "encoded", "encoded", "encoded", "memory"]
    assert [found.source for found in answers] == sources
    assert desk.counts == (7, 0)


def test_a_clip_that_cannot_be_encoded_fails_alone_among_those_that_wait_with_it(desk: Desk) -> None:
    desk.encoder.broken = lambda mark: mark == mark_of(BERTA)
    clips = [encoded(tone(1.0, pitch=300)), BERTA, b"not audio", ANNA]
    answers = [answer.get(timeout=WAIT) for answer in wait_together(desk, clips)]
    assert [type(answer) for answer in answers] == [Found, EngineFailed, InvalidRequest, Found]
    assert desk.counts == (3, 0)


def test_a_stored_voice_does_not_wait_for_a_computation(desk: Desk, open_desk: Callable[..., Desk]) -> None:
    desk.store.add("anna", ANNA)
    desk.source("anna")
    other = open_desk()
    other.encoder.gate.clear()
    slow = other.ask_later(clip=BERTA)
    assert other.source("anna") == "store"
    assert slow.empty()


def test_two_clips_are_two_voices_and_a_name_means_its_clip(desk: Desk) -> None:
    desk.store.add("anna", ANNA)
    named, same, other = desk.ask("anna"), desk.ask(clip=ANNA), desk.ask(clip=BERTA)
    assert named.voice is same.voice
    assert named.voice.key == content_hash(ANNA) != other.voice.key
    assert not torch.equal(named.voice.conditionals.t3.speaker, other.voice.conditionals.t3.speaker)


def test_inline_clips_leave_nothing_in_the_store_until_they_are_a_voice(desk: Desk) -> None:
    key = content_hash(ANNA)
    desk.source(clip=ANNA)
    assert desk.store.conditionals(key, "checkpoint/1") is None
    desk.store.add("anna", ANNA)
    assert desk.source("anna") == "memory"
    desk.voices._encodings.submit(lambda: None).result(WAIT)
    assert desk.store.conditionals(key, "checkpoint/1") is not None
    assert desk.counts == (1, 0)


def test_a_voice_that_is_replaced_or_deleted_is_so_from_the_next_request_on(desk: Desk, url: str) -> None:
    desk.store.add("anna", ANNA)
    assert desk.ask("anna").voice.key == content_hash(ANNA)
    sql(url, "UPDATE tts_voices SET audio_data = :audio", audio=BERTA)
    assert desk.ask("anna").voice.key == content_hash(BERTA)
    sql(url, "DELETE FROM tts_voices")
    assert isinstance(desk.ask("anna"), NotFound)


def test_memory_is_bounded_and_keeps_what_was_used_last(desk: Desk, open_desk: Callable[..., Desk]) -> None:
    for number in range(5):
        desk.store.add(f"voice{number}", encoded(tone(1.0, pitch=100 + number)))
        desk.source(f"voice{number}")
    small = open_desk(cache_bytes=3 * SIZE).start()
    assert any("memory holds 3 of 5" in line for line in small.lines)
    assert [small.source(f"voice{number}") for number in (0, 1, 2, 0, 4, 0)].count("memory") >= 2
    assert len(small.voices._cache) == 3
    assert small.voices.counts["encoded"] == 0


def test_the_cache_counts_bytes_and_drops_the_least_recently_used() -> None:
    cache = VoiceCache(2 * SIZE)
    for key in ("a", "b", "a"):
        cache.put(Voice(key, conditionals(1.0)))
    assert (cache.bytes, cache.full) == (2 * SIZE, False)
    cache.get("a")
    cache.put(Voice("c", conditionals(1.0)))
    assert (cache.get("b"), cache.full, cache.bytes) == (None, True, 2 * SIZE)
    assert cache.get("a") is not None


def test_computed_results_are_kept_by_their_size_and_the_least_recently_used_one_goes() -> None:
    memo: Memo[str] = Memo(5, len)
    made: list[str] = []

    def get(key: str) -> str:
        def compute() -> str:
            made.append(key)
            return key

        return memo.get(key, compute)

    assert [get(key) for key in ("aa", "bb", "aa", "cc", "aa", "bb")] == ["aa", "bb", "aa", "cc", "aa", "bb"]
    assert made == ["aa", "bb", "cc", "bb"]
    assert get("larger") == get("larger") == "larger"  # more than fit
    assert made[4:] == ["larger", "larger"]


def test_a_bad_clip_answers_only_its_own_requests(desk: Desk) -> None:
    desk.store.add("bad", b"not audio")
    assert isinstance(desk.ask("bad"), InvalidRequest)
    assert isinstance(desk.ask(clip=b"not audio"), InvalidRequest)
    assert isinstance(desk.ask(clip=bytes(40 << 20)), InvalidRequest)
    assert desk.encoder.made == 0
    assert desk.source(clip=ANNA) == "encoded"


def test_an_encoder_that_breaks_answers_only_its_own_requests(desk: Desk) -> None:
    desk.encoder.broken = lambda _mark: True
    answer = desk.ask(clip=ANNA)
    assert isinstance(answer, EngineFailed)
    assert "broken part" in str(answer)
    desk.encoder.broken = lambda _mark: False
    assert desk.source(clip=ANNA) == "encoded"


def test_a_voice_that_breaks_the_encoder_does_not_keep_the_server_from_starting(desk: Desk) -> None:
    for name, clip in (("anna", ANNA), ("berta", BERTA)):
        desk.store.add(name, clip)
    desk.encoder.broken = lambda mark: mark == mark_of(ANNA)
    desk.start()
    assert "voice 'anna' is left out: the voice could not be prepared: ValueError: broken part" in desk.lines
    assert desk.source("berta") == "memory"


def test_what_is_damaged_in_the_store_is_computed_anew(desk: Desk, open_desk: Callable[..., Desk]) -> None:
    desk.store.add("anna", ANNA)
    desk.store.put_conditionals(content_hash(ANNA), "checkpoint/1", b"rubbish")
    assert desk.source("anna") == "encoded"
    assert any("are damaged and are computed again" in line for line in desk.lines)
    assert open_desk().source("anna") == "store"


def test_conditionals_survive_the_store_exactly() -> None:
    voice = conditionals(0.123)
    copy = from_bytes(to_bytes(voice))
    for one, other in (
        (voice.t3.speaker, copy.t3.speaker),
        (voice.t3.prompt_tokens, copy.t3.prompt_tokens),
        (voice.s3gen.prompt_tokens, copy.s3gen.prompt_tokens),
        (voice.s3gen.prompt_mel, copy.s3gen.prompt_mel),
        (voice.s3gen.embedding, copy.s3gen.embedding),
    ):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert copy.exaggeration == voice.exaggeration


def test_a_checkpoint_without_a_built_in_voice_has_no_default(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(built_in=False).start()
    assert isinstance(desk.ask(), NotFound)


def test_while_the_database_is_gone_voices_in_memory_go_on_and_it_recovers_by_itself(postgres: Postgres) -> None:
    sql(postgres.url, "CREATE DATABASE outage")
    desk = Desk(postgres.url_of("outage")).start()
    for name, clip in (("anna", ANNA), ("berta", BERTA)):
        desk.store.add(name, clip)
    desk.source("anna")
    postgres.stop()
    try:
        for _ in range(3):
            assert desk.source("anna") == "memory"
            assert isinstance(desk.ask("berta"), Unavailable)
            assert desk.source() == "memory"
            assert desk.source(clip=encoded(tone(1.0, pitch=300))) in ("encoded", "memory")
        gone = Desk(postgres.url_of("outage")).start()
        assert any("get 503 until it is back" in line for line in gone.lines)
    finally:
        postgres.start()
    for it in (desk, gone):
        it.store._retry_at = 0.0
        assert it.source("berta") in ("encoded", "store")
        it.voices.close()


def test_the_encoders_are_left_out_until_a_clip_needs_them(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk().start()
    desk.store.add("anna", ANNA)
    assert desk.source() == "memory"
    assert desk.encoder.made == 0
    assert desk.source("anna") == "encoded"
    assert (desk.encoder.made, desk.encoder.warm.is_set()) == (1, False)


def test_ahead_of_requests_the_encoders_load_and_new_voices_are_computed(open_desk: Callable[..., Desk]) -> None:
    """Regardless of the server that stores them and of their names, on each of several servers."""
    desk, other = open_desk(ahead=True).start(), open_desk(ahead=True).start()
    for one in (desk, other):
        assert one.encoder.warm.wait(WAIT)
        assert one.encoder.batches == []
    writer = open_desk()
    writer.store.add("anna", ANNA)
    computed = [one.told.news.get(timeout=WAIT) for one in (desk, other) if one.encoder.began.wait(WAIT)]
    assert computed[0] == "encoded"
    assert desk.source("anna") == "memory"
    writer.store.add("anna", BERTA)  # replaced
    writer.store.add("again", ANNA)
    assert desk.told.news.get(timeout=WAIT) == "memory"  # the request above
    assert desk.told.news.get(timeout=WAIT) == "encoded"
    assert [desk.source(name) for name in ("anna", "again")] == ["memory", "memory"]
    assert sorted(mark for batch in desk.encoder.batches for mark in batch) == sorted([mark_of(ANNA), mark_of(BERTA)])


def test_a_bad_voice_is_tried_once_and_told(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(ahead=True).start()
    desk.store.add("anna", b"no clip")
    while "voice 'anna' is left out: the reference audio is damaged" not in desk.reported.get(timeout=WAIT):
        pass
    desk.store.add("berta", BERTA)
    assert desk.told.news.get(timeout=WAIT) == "encoded"  # at a later look
    assert sum("left out" in line for line in desk.lines) == 1


def test_a_request_waits_for_one_batch_of_new_voices_at_most(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(ahead=True).start()
    assert desk.encoder.warm.wait(WAIT)
    desk.encoder.gate.clear()
    clips = [encoded(tone(0.6, pitch=100 + 10 * number)) for number in range(3 * BATCH)]
    with desk.store._transaction() as connection:  # all at once
        for number, clip in enumerate(clips):
            connection.execute(desk.store._insert(VOICES).values(voice_id=f"voice{number}", audio_data=clip))
    assert desk.encoder.began.wait(WAIT)
    answer = desk.ask_later(clip=BERTA)
    while not desk.voices._waiting:
        assert answer.empty()
    desk.encoder.gate.set()
    assert answer.get(timeout=WAIT).source == "encoded"
    assert mark_of(BERTA) in {mark for batch in desk.encoder.batches[:2] for mark in batch}


def test_encoders_that_cannot_be_loaded_are_told_and_the_rest_goes_on(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(ahead=True)
    desk.voices._make_encoder = lambda: 1 // 0  # type: ignore[assignment]
    desk.start()
    while "encoders: the voice could not be prepared: ZeroDivisionError" not in desk.reported.get(timeout=WAIT):
        pass
    assert desk.source() == "memory"


def hold(desk: Desk, held: AbstractContextManager[None]) -> None:
    """While a database is locked, voices in memory are used and others are refused; afterwards it is used again."""
    for name, clip in (("anna", ANNA), ("berta", BERTA)):
        desk.store.add(name, clip)
    desk.source("anna")
    with held:
        waiting = [desk.ask_later("berta"), *(desk.ask_later("anna") for _ in range(3))]
        assert [it.get(timeout=WAIT).source for it in waiting[1:]] == ["memory"] * 3
        assert waiting[0].empty(), "those in memory have waited as long as the others"
        assert not desk.ask_later("anna").empty(), "later ones do not wait at all"
        assert isinstance(waiting[0].get(timeout=WAIT), Unavailable)
        assert not desk.ask_later("anna").empty()
        assert isinstance(desk.ask("berta"), Unavailable)
    deadline = time.monotonic() + WAIT
    while isinstance(answer := desk.ask("berta"), Unavailable):  # for RETRY_SECONDS at most
        assert time.monotonic() < deadline
    assert answer.source == "encoded"
    desk.store.add("anna", BERTA)
    assert desk.ask("anna").voice.key == content_hash(BERTA)


def test_while_the_database_is_locked_voices_in_memory_go_on_and_it_recovers_by_itself(desk: Desk, url: str) -> None:
    hold(desk, locked(url))


def test_while_the_database_hangs_voices_in_memory_go_on_and_it_recovers_by_itself(postgres: Postgres) -> None:
    sql(postgres.url, "CREATE DATABASE hung")
    desk = Desk(postgres.url_of("hung")).start()
    hold(desk, postgres.hung())
    desk.voices.close()
