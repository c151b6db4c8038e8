"""Connections to the database of the voice store: which kinds there are, and how long one may hold a call up.

PostgreSQL itself ends what waits for a lock or takes too long. One whose processes hang cannot do that, so the client
closes a connection on which nothing moves.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.abc import PQGen

from chatterbox_engine.errors import ConfigError

CONNECT_SECONDS = 2
"""For a connection to PostgreSQL."""
LIMITS = {"lock_timeout": "2s", "statement_timeout": "2500ms"}
"""PostgreSQL's own limits, for each statement."""
SILENCE_SECONDS = 3.0
"""Until a connection on which nothing moves is closed; longer than the limits, so that a database that works is the one
that says what took too long. SQLite waits as long for a lock."""

_SET_LIMITS = sa.select(*(sa.func.set_config(name, limit, True) for name, limit in LIMITS.items()))
"""For the transaction alone: a pooler such as PgBouncer hands its connections on."""

R = TypeVar("R")


def open_database(url: str) -> sa.Engine:
    """An engine that connects at its first use. `url` is a path, or SQLAlchemy's URL. Raises ConfigError."""
    if not url:
        raise ConfigError("voice_store is empty: name a file or the URL of a database")
    try:
        parsed = sa.make_url(_with_driver(url))
    except sa.exc.ArgumentError as error:
        raise ConfigError(f"voice_store is not the URL of a database: {error}") from error
    if parsed.drivername == "postgresql+psycopg":
        return _open_postgresql(parsed)
    if parsed.drivername != "sqlite":
        raise ConfigError(f"voice_store is of the kind {parsed.drivername!r}; it must be sqlite or postgresql+psycopg")
    if not parsed.database:
        raise ConfigError("voice_store must name a file: several processes use it")
    try:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        _keep_from_others(Path(parsed.database))
    except OSError as error:
        raise ConfigError(f"the folder of voice_store cannot be made: {error}") from error
    engine = sa.create_engine(parsed, connect_args={"timeout": SILENCE_SECONDS})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _keep_from_others(file: Path) -> None:
    """A database that an earlier release left readable by everybody; a new one is made under the launcher's umask."""
    with contextlib.suppress(FileNotFoundError):
        status = file.stat()
        if status.st_uid == os.geteuid() and status.st_mode & 0o007:
            file.chmod(stat.S_IMODE(status.st_mode) & ~0o007)


def _open_postgresql(url: sa.URL) -> sa.Engine:
    # a host that vanishes without a word is noticed in the same time
    options = {"connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": CONNECT_SECONDS * 1000}
    engine = sa.create_engine(url, pool_pre_ping=True, connect_args=options)
    sa.event.listen(engine, "do_connect", lambda _dialect, _record, args, kwargs: _Connection.connect(*args, **kwargs))
    sa.event.listen(engine, "begin", lambda connection: connection.execute(_SET_LIMITS))
    return engine


class _Connection(psycopg.Connection[Any]):
    """One that closes itself when nothing moves on it for SILENCE_SECONDS: only the client can tell that a database
    hangs."""

    def wait(self, gen: PQGen[R], *args: Any, **kwargs: Any) -> R:
        """Consumes a generator that operates on the connection. Raises OperationalError when the database hangs."""
        return super().wait(self._watched(gen), *args, **kwargs)

    def _watched(self, generator: PQGen[R]) -> PQGen[R]:
        moved = time.monotonic()
        try:
            wanted = next(generator)
            while True:
                ready = yield wanted  # a false one several times a second while nothing moves
                if ready:
                    moved = time.monotonic()
                elif time.monotonic() - moved > SILENCE_SECONDS:
                    self.close()
                    raise psycopg.OperationalError(f"the database has not answered for {SILENCE_SECONDS:g} seconds")
                wanted = generator.send(ready)
        except StopIteration as end:
            result: R = end.value
            return result


def _with_driver(url: str) -> str:
    """A plain path means SQLite, and PostgreSQL is reached with the driver that is installed."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return f"sqlite:///{Path(url).expanduser()}"
    return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else url


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # Python's own would begin no transaction before CREATE and ALTER


def _begin_sqlite(connection: sa.Connection) -> None:
    exclusive = connection.get_execution_options().get("exclusive", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if exclusive else "BEGIN")
