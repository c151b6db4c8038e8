"""The voices of one or more servers in a database: reference clips by name, and what was computed from them.

    tts_voices        voice_id (primary key), audio_data, content_hash, created_at, updated_at
    tts_conditionals  content_hash and checkpoint (primary key), data
    tts_schema        version

SQLite and PostgreSQL, with the same statements. A `tts_voices` with only the first two columns is adopted: the others
are added and its rows kept. Whoever changes `audio_data` without knowing `content_hash` needs not care: a trigger
empties the hash, and an empty one is computed at the next look. Imports no torch.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from chatterbox_engine.errors import NotFound, Unavailable, quote
from chatterbox_engine.voices.database import open_database
from chatterbox_engine.voices.schema import CONDITIONALS, VOICES, adopt

RETRY_SECONDS = 0.25
"""The longest time for which the store fails at once after a failure. What queued up while a database hung is answered
in it; the next call finds out whether the database is back."""

_GONE = "the voice store cannot be used now; the server's log tells why"

_log = logging.getLogger(__name__)

_INSERT: dict[str, Callable[..., Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def content_hash(audio: bytes) -> str:
    """What tells one clip from another: SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(audio).hexdigest()


@dataclass(frozen=True)
class Clip:
    """An encoded reference clip."""

    content_hash: str
    audio: bytes


@dataclass(frozen=True)
class Entry:
    """What a request needs to know of a stored voice."""

    content_hash: str
    prepared: bool
    """What is computed from the clip is stored too."""


@dataclass(frozen=True)
class VoiceInfo:
    """What is known of a stored voice without its audio."""

    voice: str
    bytes: int
    content_hash: str
    """Empty for a voice that somebody else has written and nobody has used yet; so are the times."""
    created_at: str  # ISO 8601, UTC
    updated_at: str


class VoiceStore:
    """The database. Any thread may call any method; all but the constructor raise Unavailable when it is gone.

    Nothing is connected before the first call. A database that is locked or hangs holds a call up for some seconds
    (`voice_database`). After a failure the store fails at once for as long as that failure took to show, at most
    RETRY_SECONDS, so that the calls that wait for each other do not all wait that long.
    """

    def __init__(self, url: str) -> None:
        """`url` is a path, or SQLAlchemy's URL of a SQLite or PostgreSQL database. Raises ConfigError."""
        self._engine = open_database(url)
        self._insert = _INSERT[self._engine.dialect.name]
        self._lock = threading.Lock()
        self._adopted = False
        self._failing = False
        self._retry_at = 0.0

    @property
    def failing(self) -> bool:
        """Whether the latest call found the database gone."""
        return self._failing

    def hashes(self) -> dict[str, str]:
        """The content hash of every voice."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(VOICES.c.voice_id, VOICES.c.content_hash)).all()
        return self._filled(rows)

    def unprepared(self, checkpoint: str) -> dict[str, str]:
        """The content hash of every voice for which there are no conditionals for the checkpoint."""
        hashes = sa.select(VOICES.c.content_hash)  # by its index: in SQLite the rows are as long as their clips
        done = sa.select(CONDITIONALS.c.content_hash).where(CONDITIONALS.c.checkpoint == checkpoint)
        new = VOICES.c.content_hash.in_(sa.except_(hashes, done)) | VOICES.c.content_hash.is_(None)
        with self._transaction() as connection:
            rows = connection.execute(sa.select(VOICES.c.voice_id, VOICES.c.content_hash).where(new)).all()
        return self._filled(rows)

    def _filled(self, rows: Iterable[Any]) -> dict[str, str]:
        """Names and hashes, where one is missing it is computed."""
        known = {name: found for name, found in rows if found}
        for name, found in rows:
            if not found and (filled := self._fill(name)):
                known[name] = filled
        return known

    def look_up(self, name: str, checkpoint: str) -> Entry:
        """The clip that a name means now, and whether there are conditionals for the checkpoint. Raises NotFound."""
        with self._transaction() as connection:
            row = connection.execute(
                sa.select(VOICES.c.content_hash, _is_prepared(checkpoint)).where(VOICES.c.voice_id == _known(name))
            ).first()
        if row is None:
            raise _unknown(name)
        if row[0] is not None:
            return Entry(*row)
        filled = self._fill(name)
        if filled is None:
            raise _unknown(name)
        return Entry(filled, self.conditionals(filled, checkpoint) is not None)

    def clip(self, name: str) -> Clip:
        """The clip of a voice. Raises NotFound."""
        with self._transaction() as connection:
            row = connection.execute(sa.select(VOICES.c.audio_data).where(VOICES.c.voice_id == _known(name))).first()
        if row is None:
            raise _unknown(name)
        audio = bytes(row[0])
        return Clip(content_hash(audio), audio)

    def list(self) -> list[VoiceInfo]:
        """All voices by name."""
        with self._transaction() as connection:
            rows = connection.execute(_info().order_by(VOICES.c.voice_id)).all()
        return [_voice_info(row) for row in rows]

    def get(self, name: str) -> VoiceInfo:
        """What is known of one voice. Raises NotFound."""
        with self._transaction() as connection:
            row = connection.execute(_info().where(VOICES.c.voice_id == _known(name))).first()
        if row is None:
            raise _unknown(name)
        return _voice_info(row)

    def add(self, name: str, audio: bytes) -> None:
        """Stores a clip under a name, in place of the one that was there."""
        now = _now()
        values = {"audio_data": audio, "content_hash": content_hash(audio), "updated_at": now}
        statement = self._insert(VOICES).values(voice_id=name, created_at=now, **values)
        with self._transaction() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=["voice_id"], set_=values))
            connection.execute(_forget_orphans())

    def delete(self, name: str) -> None:
        """Removes a voice and what only it needed. Raises NotFound."""
        with self._transaction() as connection:
            gone = connection.execute(sa.delete(VOICES).where(VOICES.c.voice_id == _known(name))).rowcount
            connection.execute(_forget_orphans())
        if not gone:
            raise _unknown(name)

    def conditionals(self, clip_hash: str, checkpoint: str) -> bytes | None:
        """What was computed from a clip with a checkpoint's encoders, as `put_conditionals` stored it."""
        of_clip = (CONDITIONALS.c.content_hash == clip_hash) & (CONDITIONALS.c.checkpoint == checkpoint)
        with self._transaction() as connection:
            row = connection.execute(sa.select(CONDITIONALS.c.data).where(of_clip)).first()
        return None if row is None else bytes(row[0])

    def put_conditionals(self, clip_hash: str, checkpoint: str, data: bytes) -> None:
        """Stores what was computed. Servers that computed the same at the same time overwrite it with its equal."""
        statement = self._insert(CONDITIONALS).values(content_hash=clip_hash, checkpoint=checkpoint, data=data)
        keys = ["content_hash", "checkpoint"]
        with self._transaction() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=keys, set_={"data": data}))

    def close(self) -> None:
        """Ends the connections."""
        self._engine.dispose()

    def _fill(self, name: str) -> str | None:
        """Computes the hash of a voice that somebody else has written; None when it is gone again."""
        now = _now()
        with self._transaction() as connection:
            row = connection.execute(sa.select(VOICES.c.audio_data).where(VOICES.c.voice_id == name)).first()
        if row is None:
            return None
        audio = bytes(row[0])
        values = {
            "content_hash": content_hash(audio),
            "created_at": sa.func.coalesce(VOICES.c.created_at, now),
            "updated_at": now,
        }
        same = (VOICES.c.voice_id == name) & (VOICES.c.audio_data == audio)  # or it was written once more meanwhile
        with self._transaction() as connection:
            connection.execute(sa.update(VOICES).where(same).values(values))
        return content_hash(audio)

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """A transaction on tables that are ours. Turns every failure of the database into Unavailable."""
        began = time.monotonic()
        if self._failing and began < self._retry_at:
            raise Unavailable(_GONE)
        try:
            self._adopt()
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            self._fail(error, time.monotonic() - began)
            raise Unavailable(_GONE) from error
        if self._failing:
            self._failing = False
            _log.warning("the voice store is back")

    def _fail(self, error: Exception, took: float) -> None:
        if not self._failing:
            # for the log only: it names hosts and users
            _log.warning("the voice store cannot be used: %s", getattr(error, "orig", None) or error)
        self._failing, self._retry_at = True, time.monotonic() + min(took, RETRY_SECONDS)
        self._adopted = False  # it may come back as another database

    def _adopt(self) -> None:
        """Brings the tables to this version, once; concurrent servers wait for each other."""
        with self._lock:
            if self._adopted:
                return
            with self._engine.connect().execution_options(exclusive=True) as connection, connection.begin():
                adopt(connection)
            self._adopted = True


def _is_prepared(checkpoint: str) -> sa.ColumnElement[bool]:
    of_clip = (CONDITIONALS.c.content_hash == VOICES.c.content_hash) & (CONDITIONALS.c.checkpoint == checkpoint)
    return sa.select(CONDITIONALS.c.checkpoint).where(of_clip).exists()


def _info() -> sa.Select[Any]:
    size = sa.func.length(VOICES.c.audio_data).label("bytes")
    return sa.select(VOICES.c.voice_id, size, VOICES.c.content_hash, VOICES.c.created_at, VOICES.c.updated_at)


def _voice_info(row: sa.Row[Any]) -> VoiceInfo:
    return VoiceInfo(row.voice_id, row.bytes, row.content_hash or "", _iso(row.created_at), _iso(row.updated_at))


def _forget_orphans() -> sa.Delete:
    """Removes what was computed from clips that no voice has any more."""
    kept = sa.select(VOICES.c.content_hash).where(VOICES.c.content_hash == CONDITIONALS.c.content_hash)
    return sa.delete(CONDITIONALS).where(~kept.exists())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _iso(moment: datetime.datetime | None) -> str:
    if moment is None:
        return ""
    utc = datetime.timezone.utc
    aware = moment.replace(tzinfo=utc) if moment.tzinfo is None else moment.astimezone(utc)  # SQLite keeps no zone
    return aware.isoformat(timespec="seconds")


def _known(name: str) -> str:
    """A name as a parameter; PostgreSQL's text takes no NUL, and such a name is nobody's."""
    if "\0" in name:
        raise _unknown(name)
    return name


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no voice {quote(name)}")
