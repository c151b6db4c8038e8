"""Lookup of voices: in memory, in the store, or computed; with a fake encoder and real databases."""

from __future__ import annotations

from collections.abc import Callable

import torch

from chatterbox_engine.errors import InvalidRequest, NotFound
from chatterbox_engine.voices.store import content_hash
from tests.clips import encoded, tone
from tests.postgres import sql
from tests.unit.voice_desk import ANNA, BERTA, SIZE, Desk


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


def test_the_metrics_are_told_where_every_voice_came_from(desk: Desk, open_desk: Callable[..., Desk]) -> None:
    desk.store.add("anna", ANNA)
    for options in ({"voice": "anna"}, {"voice": "anna"}, {"clip": ANNA}, {"clip": BERTA}, {"voice": "default"}):
        desk.ask(**options)
    assert desk.told.sources == ["encoded", "memory", "memory", "encoded", "memory"]
    restarted = open_desk().start()
    restarted.ask("anna")
    assert restarted.told.sources == ["store", "memory"]


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
    desk.finish_encodings()
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
    assert small.voices.cached == 1 + 3  # the built-in one
    assert small.voices.counts["encoded"] == 0


def test_a_bad_clip_answers_only_its_own_requests(desk: Desk) -> None:
    desk.store.add("bad", b"not audio")
    assert isinstance(desk.ask("bad"), InvalidRequest)
    assert isinstance(desk.ask(clip=b"not audio"), InvalidRequest)
    assert isinstance(desk.ask(clip=bytes(40 << 20)), InvalidRequest)
    assert desk.encoder.made == 0
    assert desk.source(clip=ANNA) == "encoded"


def test_what_is_damaged_in_the_store_is_computed_anew(desk: Desk, open_desk: Callable[..., Desk]) -> None:
    desk.store.add("anna", ANNA)
    desk.store.put_conditionals(content_hash(ANNA), "checkpoint/1", b"rubbish")
    assert desk.source("anna") == "encoded"
    assert any("are damaged and are computed again" in line for line in desk.lines)
    assert open_desk().source("anna") == "store"


def test_a_checkpoint_without_a_built_in_voice_has_no_default(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(built_in=False).start()
    refusal = desk.ask()
    assert isinstance(refusal, NotFound)
    assert "this checkpoint has no built-in voice: name a stored voice, or send a clip" in str(refusal)
