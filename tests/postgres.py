"""A real PostgreSQL for the tests: Debian's, on a Unix socket in a folder of its own, stopped and started at will."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

USER = "chatterbox"


class Postgres:
    """One cluster. PostgreSQL refuses to run as root, so root runs it as `nobody`."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self.folder = Path(
            tempfile.mkdtemp(prefix="chatterbox-pg-", dir="/tmp")
        )  # short: a socket's path has 107 characters at most
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._run("initdb", "--auth=trust", f"--username={USER}", "--no-sync", "--encoding=UTF8", "--locale=C")

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """SQLAlchemy's URL of a database of the cluster."""
        return f"postgresql+psycopg://{USER}@/{database}?host={self.folder}"

    def url_of_schema(self, schema: str) -> str:
        """SQLAlchemy's URL of a schema, which to its user is a database: made in a millisecond, and without files."""
        return f"{self.url}&options=-csearch_path%3D{schema}"

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "start", "--wait", f"--log={self.folder}/log", f"--options={options}")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    @contextmanager
    def hung(self) -> Iterator[None]:
        """All of its processes stand still: connections stay open, and nobody answers."""
        main = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        self._signal([main], signal.SIGSTOP)  # first, so that it starts no more
        children = [int(pid) for pid in Path(f"/proc/{main}/task/{main}/children").read_text().split()]
        self._signal(children, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal([*children, main], signal.SIGCONT)

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _signal(self, pids: Sequence[int], number: signal.Signals) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):  # a connection that has just ended
                os.kill(pid, number)

    def _run(self, program: str, *arguments: str) -> None:
        data = f"--pgdata={self.folder}/data"
        output = self.folder / "output"  # a file, not a pipe: the server that pg_ctl leaves behind keeps it open
        with output.open("w") as file:
            done = subprocess.run(
                [self._binaries / program, data, *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
                **self._as,
            )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {output.read_text()}")


def find_binaries() -> Path | None:
    """The folder of PostgreSQL's server programs. Debian keeps them off the PATH."""
    on_path = shutil.which("pg_ctl")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def install() -> None:
    """Debian's and Ubuntu's package, as root."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", "postgresql"]):
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def sql(url: str, *statements: str, **parameters: object) -> None:
    """What somebody else does in a database, SQLite or PostgreSQL."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement), parameters)
    engine.dispose()


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Somebody holds the voices of a database, SQLite or PostgreSQL, in a transaction."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    sqlite = engine.dialect.name == "sqlite"
    with engine.connect() as connection:
        for statement in (
            ("BEGIN EXCLUSIVE",) if sqlite else ("BEGIN", "LOCK TABLE tts_voices IN ACCESS EXCLUSIVE MODE")
        ):
            connection.exec_driver_sql(statement)
        try:
            yield
        finally:
            connection.exec_driver_sql("ROLLBACK")
    engine.dispose()
