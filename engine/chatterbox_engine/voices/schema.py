"""The tables of the voice store, and how a database gets them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from chatterbox_engine.errors import Unavailable

SCHEMA = 1
"""The version of the tables that this code reads and writes."""

_LOCK = 0x7474735F  # "tts_": PostgreSQL's advisory lock while the tables are made or changed

_metadata = sa.MetaData()
VOICES = sa.Table(
    "tts_voices",
    _metadata,
    sa.Column("voice_id", sa.Text, primary_key=True),
    sa.Column("audio_data", sa.LargeBinary, nullable=False),
    sa.Column("content_hash", sa.Text),
    sa.Column("created_at", sa.DateTime(timezone=True)),
    sa.Column("updated_at", sa.DateTime(timezone=True)),
)
_by_hash = sa.Index("tts_voices_content_hash", VOICES.c.content_hash)
CONDITIONALS = sa.Table(
    "tts_conditionals",
    _metadata,
    sa.Column("content_hash", sa.Text, primary_key=True),
    sa.Column("checkpoint", sa.Text, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
_schema = sa.Table("tts_schema", _metadata, sa.Column("version", sa.Integer, primary_key=True))

_TRIGGERS = {
    "sqlite": (
        """
        CREATE TRIGGER tts_voices_changed AFTER UPDATE OF audio_data ON tts_voices
        WHEN NEW.audio_data IS NOT OLD.audio_data AND NEW.content_hash IS OLD.content_hash
        BEGIN UPDATE tts_voices SET content_hash = NULL WHERE voice_id = NEW.voice_id; END
        """,
    ),
    "postgresql": (
        """
        CREATE OR REPLACE FUNCTION tts_voices_changed() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN NEW.content_hash := NULL; RETURN NEW; END $$
        """,
        """
        CREATE TRIGGER tts_voices_changed BEFORE UPDATE OF audio_data ON tts_voices FOR EACH ROW
        WHEN (NEW.audio_data IS DISTINCT FROM OLD.audio_data AND NEW.content_hash IS NOT DISTINCT FROM OLD.content_hash)
        EXECUTE FUNCTION tts_voices_changed()
        """,
    ),
}


def adopt(connection: sa.Connection) -> None:
    """Brings a database to this version, in the transaction that `connection` is in; concurrent servers wait.

    Raises Unavailable when it is of a newer version or its `tts_voices` is a table of something else.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    _schema.create(connection, checkfirst=True)
    version = connection.execute(sa.select(sa.func.max(_schema.c.version))).scalar() or 0
    if version > SCHEMA:
        raise Unavailable(f"the voice store has schema {version}; this server knows {SCHEMA}: update it")
    for step in _STEPS[version:]:
        step(connection)
    if version < SCHEMA:
        connection.execute(_schema.insert().values(version=SCHEMA))


def _to_1(connection: sa.Connection) -> None:
    """From nothing, or from a table of two columns."""
    inspector = sa.inspect(connection)
    found = inspector.has_table(VOICES.name)
    columns = {column["name"]: column["type"] for column in inspector.get_columns(VOICES.name)} if found else {}
    if found and connection.dialect.name == "postgresql":  # SQLite's columns take anything
        _check_types(columns)
    unique = found and _is_unique(inspector)
    _metadata.create_all(connection, tables=[CONDITIONALS] if found else [VOICES, CONDITIONALS])
    for column in VOICES.columns if found else ():
        if column.name not in columns:
            kind = column.type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {VOICES.name} ADD COLUMN {column.name} {kind}")
    if found:
        _by_hash.create(connection)
    if found and not unique:
        connection.exec_driver_sql(f"CREATE UNIQUE INDEX tts_voices_voice_id ON {VOICES.name} (voice_id)")
    for statement in _TRIGGERS[connection.dialect.name]:
        connection.exec_driver_sql(statement)


_STEPS = (_to_1,)
"""What leads from each version to the next."""


def _check_types(columns: Mapping[str, Any]) -> None:
    for name, kind in (("voice_id", str), ("audio_data", bytes)):
        found = columns.get(name)
        if found is None or found.python_type is not kind:
            raise Unavailable(f"the table tts_voices is not one of voices: its {name} is {found or 'missing'}")


def _is_unique(inspector: sa.Inspector) -> bool:
    keys: Iterable[Any] = (
        inspector.get_pk_constraint(VOICES.name)["constrained_columns"],
        *(item["column_names"] for item in inspector.get_unique_constraints(VOICES.name)),
        *(item["column_names"] for item in inspector.get_indexes(VOICES.name) if item["unique"]),
    )
    return ["voice_id"] in list(keys)
