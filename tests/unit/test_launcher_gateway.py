"""The gateway's process beside a server, here a script in its place."""

from __future__ import annotations

import contextlib
import selectors
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatterbox_engine.launcher.access import Keys
from chatterbox_engine.launcher.gateway import Gateway, environment
from chatterbox_engine.launcher.options import Addresses

ADDRESSES = Addresses.of("127.0.0.1", [8000, 8001, 8002, 8080])

SERVES = "print('Running on http://127.0.0.1:8080', flush=True); import signal; signal.pause()"
DRAINS = f"import signal; signal.signal(signal.SIGTERM, lambda *_: exit(0)); {SERVES}"


class Run:
    """A gateway, and the loop of its owner."""

    def __init__(self, script: str) -> None:
        self.events: list[str] = []
        self.selector = selectors.DefaultSelector()
        self.gateway = Gateway([sys.executable, "-c", script], {}, self.events.append)
        self.gateway.start(self.selector, lambda: self.events.append("ready"), self.events.append)

    def until(self, event: str) -> None:
        while not self.events or self.events[-1] != event:
            happened = self.selector.select(60)
            assert happened, f"waiting for {event!r}, so far {self.events}"
            for key, _ in happened:
                key.data()


@contextlib.contextmanager
def run(script: str) -> Iterator[Run]:
    with contextlib.closing(selectors.DefaultSelector()):
        it = Run(script)
        try:
            yield it
        finally:
            it.gateway.close()
            it.selector.close()


def test_it_is_ready_once_it_listens_and_drained_once_it_has_ended() -> None:
    with run(DRAINS) as it:
        it.until("ready")
        it.gateway.drain(lambda: it.events.append("drained"))
        assert it.events == ["ready"]
        it.until("drained")


def test_one_that_ends_before_it_listens_is_a_failure_with_its_exit_code() -> None:
    with run("exit(3)") as it:
        it.until("the gateway did not start (exit code 3)")


def test_one_that_dies_is_started_again(tmp_path: Path) -> None:
    once = tmp_path / "once"
    dies = f"import os, pathlib; p = pathlib.Path({str(once)!r}); again = p.exists(); p.touch()"
    with run(f"{dies}\nif again: {SERVES}\nprint('Running on x', flush=True); os.kill(os.getpid(), 9)") as it:
        it.until("the gateway ended (killed by SIGKILL) and is started again")
        it.until("ready")
        assert it.events == ["ready", "the gateway ended (killed by SIGKILL) and is started again", "ready"]


def test_draining_one_that_has_not_come_up_yet_ends_it() -> None:
    with run("import signal; signal.pause()") as it:
        it.gateway.drain(lambda: it.events.append("drained"))
        it.until("drained")


def test_closing_ends_it() -> None:
    with run(SERVES) as it:
        it.until("ready")
    assert it.events == ["ready"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("another", "another_stream", "chatterbox", "chatterbox_stream", "chatterbox_voices"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_it_is_told_the_server_and_its_models(repository: Path) -> None:
    found = environment(
        ADDRESSES, repository, Keys(None, "token"), {"HOME": "/root", "CHATTERBOX_GRPC_URL": "elsewhere:8001"}
    )
    assert found == {
        "HOME": "/root",
        "CHATTERBOX_GATEWAY_MODEL": "chatterbox another",
        "CHATTERBOX_GRPC_URL": "127.0.0.1:8001",
        "CHATTERBOX_METRICS_URL": "127.0.0.1:8002",
    }


@pytest.mark.parametrize(("own", "expected"), [({}, "server:secret"), ({"CHATTERBOX_GATEWAY_KEYS": "a:b"}, "a:b")])
def test_behind_a_server_with_a_key_it_asks_for_one_too(repository: Path, own: dict[str, str], expected: str) -> None:
    found = environment(ADDRESSES, repository, Keys("secret", "token"), own)
    assert found["CHATTERBOX_GATEWAY_KEYS"] == expected
    assert found["CHATTERBOX_HEADERS"] == "chatterbox-key:secret"


def test_one_that_unloads_idle_models_is_let_into_the_servers_repository_api(repository: Path) -> None:
    found = environment(ADDRESSES, repository, Keys("secret", "token"), {"CHATTERBOX_IDLE_UNLOAD": "600"})
    assert found["CHATTERBOX_URL"] == "127.0.0.1:8000"
    assert found["CHATTERBOX_CONTROL_HEADERS"] == "chatterbox-key:secret chatterbox-launcher:token"
