"""The voice store, the same tests on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from chatterbox_engine.errors import ConfigError, NotFound, Unavailable
from chatterbox_engine.voices.schema import SCHEMA, VOICES
from chatterbox_engine.voices.store import VoiceStore, content_hash
from tests.postgres import Postgres, sql

BLOB = {"sqlite": "BLOB", "postgresql": "BYTEA"}


@pytest.fixture
def open_store(url: str) -> Iterator[Callable[[], VoiceStore]]:
    opened: list[VoiceStore] = []

    def open_one() -> VoiceStore:
        opened.append(VoiceStore(url))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], VoiceStore]) -> VoiceStore:
    return open_store()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_file_that_everybody_could_read_is_so_no_longer(open_store: Callable[[], VoiceStore], tmp_path: Path) -> None:
    open_store().list()
    file = tmp_path / "voices.sqlite"
    file.chmod(0o664)
    open_store()
    assert file.stat().st_mode & 0o777 == 0o660


def test_a_voice_is_kept_with_its_hash_and_times(store: VoiceStore, open_store: Callable[[], VoiceStore]) -> None:
    store.add("anna", b"clip one")
    other = open_store()
    assert other.clip("anna").audio == b"clip one"
    assert other.hashes() == {"anna": content_hash(b"clip one")}
    info = other.get("anna")
    assert (info.voice, info.bytes, info.content_hash) == ("anna", 8, content_hash(b"clip one"))
    assert info.created_at == info.updated_at
    assert info.created_at.endswith("+00:00")
    assert other.list() == [info]


def test_adding_a_voice_again_replaces_its_clip(store: VoiceStore) -> None:
    store.add("anna", b"clip one")
    store.add("anna", b"clip two")
    assert store.clip("anna").audio == b"clip two"
    assert store.look_up("anna", "x").content_hash == content_hash(b"clip two")
    assert len(store.list()) == 1


def test_what_is_unknown_is_not_found(store: VoiceStore) -> None:
    for name in ("nobody", "", "nul\0byte", "'; DROP TABLE tts_voices; --", "x" * 10_000):
        for call in (store.clip, store.get, store.delete, lambda it: store.look_up(it, "x")):
            with pytest.raises(NotFound):
                call(name)


def test_conditionals_belong_to_a_clip_and_a_checkpoint(store: VoiceStore) -> None:
    store.add("anna", b"clip")
    key = content_hash(b"clip")
    assert not store.look_up("anna", "english").prepared
    store.put_conditionals(key, "english", b"computed")
    store.put_conditionals(key, "english", b"computed")
    assert store.look_up("anna", "english").prepared
    assert store.conditionals(key, "english") == b"computed"
    assert store.conditionals(key, "turbo") is None
    assert not store.look_up("anna", "turbo").prepared


def test_conditionals_go_with_the_last_voice_of_their_clip(store: VoiceStore) -> None:
    key = content_hash(b"clip")
    for name in ("anna", "berta"):
        store.add(name, b"clip")
    store.put_conditionals(key, "english", b"computed")
    store.delete("anna")
    assert store.conditionals(key, "english") == b"computed"
    store.add("berta", b"another")
    assert store.conditionals(key, "english") is None


def seed_table(url: str, rows: dict[str, bytes], *, key: str = "PRIMARY KEY") -> None:
    kind = BLOB[sa.make_url(url).get_backend_name()]
    sql(url, f"CREATE TABLE tts_voices (voice_id VARCHAR(255) {key}, audio_data {kind} NOT NULL)")
    for name, audio in rows.items():
        sql(url, "INSERT INTO tts_voices (voice_id, audio_data) VALUES (:name, :audio)", name=name, audio=audio)


@pytest.mark.parametrize("key", ["PRIMARY KEY", "UNIQUE", ""])
def test_a_table_of_two_columns_is_adopted_with_its_rows(url: str, store: VoiceStore, key: str) -> None:
    rows = {"anna": b"clip one", "Björn Ö.": b"clip two"}
    seed_table(url, rows, key=key)
    assert store.hashes() == {name: content_hash(audio) for name, audio in rows.items()}
    assert {name: store.clip(name).audio for name in rows} == rows
    assert all(info.created_at for info in store.list())
    store.add("anna", b"new")
    assert store.clip("anna").audio == b"new"


def test_a_name_that_is_there_twice_stops_the_adoption_and_the_log_says_so(
    url: str, store: VoiceStore, caplog: pytest.LogCaptureFixture
) -> None:
    seed_table(url, {"anna": b"clip"}, key="")
    sql(url, "INSERT INTO tts_voices SELECT * FROM tts_voices")
    with pytest.raises(Unavailable, match="cannot be used now"):
        store.hashes()
    assert "voice_id" in caplog.text


def test_a_voice_that_others_change_in_the_table_gets_its_new_hash(url: str, store: VoiceStore) -> None:
    store.add("anna", b"clip one")
    sql(url, "UPDATE tts_voices SET audio_data = :audio WHERE voice_id = 'anna'", audio=b"clip two")
    assert store.look_up("anna", "x").content_hash == content_hash(b"clip two")
    sql(url, "INSERT INTO tts_voices (voice_id, audio_data) VALUES ('berta', :audio)", audio=b"clip three")
    assert store.hashes() == {"anna": content_hash(b"clip two"), "berta": content_hash(b"clip three")}


def test_concurrent_servers_make_the_tables_once_and_write_together(
    url: str, open_store: Callable[[], VoiceStore]
) -> None:
    seed_table(url, {"seed": b"clip"})
    stores = [open_store() for _ in range(8)]

    def work(number: int) -> None:
        for voice in range(5):
            stores[number].add(f"voice{voice}", f"clip{voice}".encode())
            stores[number].put_conditionals(content_hash(f"clip{voice}".encode()), "english", b"same")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(stores[0].hashes()) == 6
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version FROM tts_schema")).all() == [(SCHEMA,)]
        assert connection.execute(sa.text("SELECT count(*) FROM tts_conditionals")).scalar() == 5
    engine.dispose()


def test_a_store_of_a_newer_version_is_left_alone(
    url: str, store: VoiceStore, open_store: Callable[[], VoiceStore]
) -> None:
    store.hashes()
    sql(url, f"INSERT INTO tts_schema VALUES ({SCHEMA + 1})")
    with pytest.raises(Unavailable, match=f"schema {SCHEMA + 1}"):
        open_store().hashes()


def test_tables_that_vanish_are_made_again(url: str, store: VoiceStore) -> None:
    store.add("anna", b"clip")
    sql(url, "DROP TABLE tts_voices", "DROP TABLE tts_conditionals", "DROP TABLE tts_schema")
    with pytest.raises(Unavailable):
        store.hashes()
    assert store.failing
    store._retry_at = 0.0
    assert store.hashes() == {}
    assert not store.failing


def test_a_database_that_went_away_is_used_again_when_it_is_back(postgres: Postgres) -> None:
    sql(postgres.url, "CREATE DATABASE gone")
    store = VoiceStore(postgres.url_of("gone"))
    store.add("anna", b"clip")
    postgres.stop()
    try:
        for _ in range(3):
            with pytest.raises(Unavailable, match="the voice store cannot be used now"):
                store.look_up("anna", "x")
        assert store.failing
    finally:
        postgres.start()
    store._retry_at = 0.0
    assert store.clip("anna").audio == b"clip"
    store.close()


def test_a_failing_store_is_not_asked_again_at_once_and_only_the_log_says_where_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = VoiceStore("postgresql://nobody@/nothing?host=/nonexistent")
    with pytest.raises(Unavailable) as first:
        store.hashes()
    store._retry_at = float("inf")
    store._engine = None  # type: ignore[assignment]
    with pytest.raises(Unavailable) as second:
        store.hashes()
    assert str(first.value) == str(second.value) == "the voice store cannot be used now; the server's log tells why"
    assert caplog.text.count("/nonexistent") == 1


def test_a_table_of_something_else_is_left_alone(postgres: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    sql(postgres.url, "CREATE DATABASE other")
    url = postgres.url_of("other")
    sql(url, "CREATE TABLE tts_voices (voice_id INTEGER PRIMARY KEY, audio_data TEXT)")
    store = VoiceStore(url)
    with pytest.raises(Unavailable, match="its voice_id is INTEGER"):
        store.hashes()
    store.close()


@pytest.mark.parametrize("url", ["", "mysql://host/db", "sqlite://", "postgresql+psycopg2://host/db", "://"])
def test_a_url_that_cannot_work_is_refused_at_start(url: str) -> None:
    with pytest.raises(ConfigError, match="voice_store"):
        VoiceStore(url)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_uses_the_driver_that_is_installed(scheme: str) -> None:
    assert VoiceStore(f"{scheme}://host/db")._engine.url.drivername == "postgresql+psycopg"


def test_a_plain_path_is_a_file(tmp_path: Path) -> None:
    store = VoiceStore(str(tmp_path / "folder" / "voices.sqlite"))
    store.add("anna", b"clip")
    assert (tmp_path / "folder" / "voices.sqlite").is_file()
    store.close()


def test_voices_that_nobody_has_computed_are_found(store: VoiceStore) -> None:
    for name, clip in (("anna", b"one"), ("berta", b"two"), ("carla", b"two")):
        store.add(name, clip)
    store.put_conditionals(content_hash(b"one"), "english", b"computed")
    two = content_hash(b"two")
    assert store.unprepared("english") == {"berta": two, "carla": two}
    assert store.unprepared("turbo") == store.hashes()
    store.put_conditionals(two, "english", b"computed")
    assert store.unprepared("english") == {}
    store.add("anna", b"three")
    assert store.unprepared("english") == {"anna": content_hash(b"three")}


def test_a_voice_that_was_written_without_a_hash_is_found_too(store: VoiceStore) -> None:
    store.add("anna", b"one")
    store.put_conditionals(content_hash(b"one"), "english", b"computed")
    with store._transaction() as connection:
        connection.execute(sa.update(VOICES).values(audio_data=b"two"))  # the trigger empties the hash
    assert store.unprepared("english") == {"anna": content_hash(b"two")}
