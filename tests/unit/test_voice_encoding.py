"""Computation of voices: what is queued, at the start and ahead of requests; with a fake encoder."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Any

from chatterbox_engine.errors import EngineFailed, InvalidRequest
from chatterbox_engine.voices.library import Found
from chatterbox_engine.voices.schema import VOICES
from tests.clips import encoded, tone
from tests.unit.voice_desk import ANNA, BATCH, BERTA, WAIT, Desk, mark_of


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
    desk.finish_lookups()
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


def test_the_encoders_are_left_out_until_a_clip_needs_them(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk().start()
    desk.store.add("anna", ANNA)
    assert desk.source() == "memory"
    assert desk.encoder.made == 0
    assert desk.source("anna") == "encoded"
    assert (desk.encoder.made, desk.encoder.warm.is_set()) == (1, False)


def test_ahead_of_requests_the_encoders_load_and_new_voices_are_computed(open_desk: Callable[..., Desk]) -> None:
    """Regardless of the server that stores them and of their names, on each server that sees them uncomputed."""
    desk, other = open_desk(ahead=True).start(), open_desk(ahead=True).start()
    for one in (desk, other):
        assert one.encoder.warm.wait(WAIT)
        assert one.encoder.batches == []
        one.encoder.gate.clear()
    writer = open_desk()
    writer.store.add("anna", ANNA)
    for one in (desk, other):  # neither stores the result before both have seen the voice
        assert one.encoder.began.wait(WAIT)
    for one in (desk, other):
        one.encoder.gate.set()
        assert one.told.news.get(timeout=WAIT) == "encoded"
        assert one.source("anna") == "memory"
        assert one.told.news.get(timeout=WAIT) == "memory"
    other.voices.stop_ahead()
    writer.store.add("anna", BERTA)  # replaced
    writer.store.add("again", ANNA)
    while desk.told.news.get(timeout=WAIT) != "encoded":
        pass  # the replaced clip, perhaps after one that is in memory
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
    desk.finish_lookups()
    assert answer.empty()
    desk.encoder.gate.set()
    assert answer.get(timeout=WAIT).source == "encoded"
    assert mark_of(BERTA) in {mark for batch in desk.encoder.batches[:2] for mark in batch}


def test_encoders_that_cannot_be_loaded_are_told_and_the_rest_goes_on(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(ahead=True, make_encoder=lambda: 1 // 0).start()
    while "encoders: the voice could not be prepared: ZeroDivisionError" not in desk.reported.get(timeout=WAIT):
        pass
    assert desk.source() == "memory"
