"""Voices while the database is gone, locked or hangs."""

from __future__ import annotations

from contextlib import AbstractContextManager

from chatterbox_engine.errors import Unavailable
from chatterbox_engine.voices.store import content_hash
from tests.clips import encoded, tone
from tests.postgres import Postgres, locked, sql
from tests.unit.voice_desk import ANNA, BERTA, WAIT, Desk


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
    desk.store._retry_at = 0.0  # RETRY_SECONDS later
    assert desk.source("berta") == "encoded"
    desk.store.add("anna", BERTA)
    assert desk.ask("anna").voice.key == content_hash(BERTA)


def test_while_the_database_is_locked_voices_in_memory_go_on_and_it_recovers_by_itself(desk: Desk, url: str) -> None:
    hold(desk, locked(url))


def test_while_the_database_hangs_voices_in_memory_go_on_and_it_recovers_by_itself(postgres: Postgres) -> None:
    sql(postgres.url, "CREATE DATABASE hung")
    desk = Desk(postgres.url_of("hung")).start()
    hold(desk, postgres.hung())
    desk.voices.close()
