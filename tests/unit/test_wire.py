"""The socket between engine and front: endings, cancellation, and either side's death."""

from __future__ import annotations

import os
import pickle
import pwd
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatterbox_engine.errors import Cancelled, ConfigError, EngineFailed, InvalidRequest, RequestError, Unavailable
from chatterbox_engine.serving import wire
from chatterbox_engine.serving.codec import Cancel, Failed, Open, Part, Ready, Tensors, decode, encode
from chatterbox_engine.serving.wire import Host, Link, Outlet, engine_of, socket_path

WAIT = 20.0
INPUTS: Tensors = {"text": np.array([[b"Hello"]], dtype=object)}


class Engine:
    """Takes streams and keeps their outlets; a stream whose text is "no" is refused."""

    def __init__(self) -> None:
        self.opened: queue.SimpleQueue[tuple[Tensors, Outlet]] = queue.SimpleQueue()
        self.cancelled: queue.SimpleQueue[Outlet] = queue.SimpleQueue()

    @staticmethod
    def load() -> int:
        return 0

    def start(self, tensors: Tensors, outlet: Outlet) -> Callable[[], None]:
        if tensors["text"].item() == b"no":
            raise InvalidRequest("no")
        self.opened.put((tensors, outlet))
        return lambda: self.cancelled.put(outlet)


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as path:  # not pytest's: a socket's path may have 107 characters
        yield path


@contextmanager
def connected(folder: str) -> Iterator[tuple[Engine, Host, Link]]:
    engine, host = Engine(), Host(socket_path("model", folder))
    host.serve(engine.start, engine.load)
    link = Link(socket_path("model", folder), report=lambda _line: None)
    try:
        yield engine, host, link
    finally:
        link.close()
        host.close()


def take(messages: queue.SimpleQueue[Any]) -> Any:
    return messages.get(timeout=WAIT)


def test_a_stream_gets_its_parts_in_order_and_nothing_of_another(folder: str) -> None:
    with connected(folder) as (engine, _, link):
        received: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(3)]
        for messages in received:
            link.open(INPUTS, messages.put)
        outlets = [take(engine.opened)[1] for _ in received]
        for index in range(5):
            for number, outlet in enumerate(outlets):
                outlet.part({"audio": np.full(3, 10 * number + index)}, last=index == 4)
        for number, messages in enumerate(received):
            parts: list[Part] = [take(messages) for _ in range(5)]
            assert [part.tensors["audio"][0] for part in parts] == [10 * number + index for index in range(5)]
            assert [part.last for part in parts] == [False] * 4 + [True]


def test_the_folder_s_path_may_be_longer_than_a_socket_s_address(folder: str) -> None:
    long = Path(folder, "x" * 120)
    long.mkdir(mode=0o700)
    with connected(str(long)) as (engine, _, link):
        messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        link.open(INPUTS, messages.put)
        take(engine.opened)[1].part({}, last=True)
        assert take(messages).last


def test_inputs_and_errors_cross_as_they_are(folder: str) -> None:
    with connected(folder) as (engine, _, link):
        messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        link.open({"text": np.array([[b"no"]], dtype=object)}, messages.put)
        failed = take(messages)
        assert isinstance(failed.error, InvalidRequest)
        link.open({**INPUTS, "seed": np.array([[7]])}, messages.put)
        tensors, outlet = take(engine.opened)
        assert (tensors["text"].item(), tensors["seed"].item()) == (b"Hello", 7)
        outlet.fail(Cancelled("gone"))
        assert isinstance(take(messages).error, Cancelled)


def test_a_cancellation_reaches_the_engine_once_and_not_after_the_end(folder: str) -> None:
    with connected(folder) as (engine, _, link):
        messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        ended, running = link.open(INPUTS, messages.put), link.open(INPUTS, messages.put)
        first, second = take(engine.opened)[1], take(engine.opened)[1]
        first.part({}, last=True)
        take(messages)
        link.cancel(ended)
        link.cancel(running)
        assert take(engine.cancelled) is second
        second.fail(Cancelled("gone"))
        take(messages)
        link.cancel(running)
        link.open(INPUTS, messages.put)
        take(engine.opened)
        assert engine.cancelled.empty()


def test_when_the_front_disconnects_the_engine_cancels_its_streams_and_accepts_another_front(folder: str) -> None:
    with connected(folder) as (engine, _, link):
        link.open(INPUTS, lambda _message: None)
        outlet = take(engine.opened)[1]
        link.close()
        assert take(engine.cancelled) is outlet
        outlet.part({}, last=False)  # to nobody
        outlet.fail(Cancelled("gone"))
        messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        again = Link(socket_path("model", folder), report=lambda _line: None)
        again.open(INPUTS, messages.put)
        take(engine.opened)[1].part({}, last=True)
        assert take(messages).last
        again.close()


def test_when_the_engine_goes_every_stream_fails_and_no_other_opens(folder: str) -> None:
    with connected(folder) as (engine, host, link):
        received: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(3)]
        for messages in received:
            link.open(INPUTS, messages.put)
            take(engine.opened)
        host.close()
        for messages in received:
            failed = take(messages)
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, EngineFailed)
        with pytest.raises(Unavailable, match="not loaded"):
            link.open(INPUTS, received[0].put)
        assert all(messages.empty() for messages in received)


def raw(folder: str) -> Connection:
    """A connection to the engine by something that is no front."""
    end = socket.socket(socket.AF_UNIX)
    end.connect(str(socket_path("model", folder)))
    return Connection(end.detach())


HOSTILE = [b"", b"\x00" * 100, pickle.dumps(Cancel(1)), encode(Part(1, {}, last=True)), encode(Ready())]


@pytest.mark.parametrize("data", HOSTILE)
def test_what_no_front_sends_ends_the_connection_and_the_next_is_served(folder: str, data: bytes) -> None:
    engine, host = Engine(), Host(socket_path("model", folder))
    host.serve(engine.start, engine.load)
    with raw(folder) as stranger:
        assert decode(stranger.recv_bytes()) == Ready()
        stranger.send_bytes(encode(Open(1, INPUTS)))
        outlet = take(engine.opened)[1]
        stranger.send_bytes(data)
        assert take(engine.cancelled) is outlet
        with pytest.raises((EOFError, ConnectionResetError)):
            stranger.recv_bytes()
    with raw(folder) as another:
        assert decode(another.recv_bytes()) == Ready()
    host.close()


@pytest.mark.parametrize("data", [*HOSTILE[:3], encode(Cancel(1)), encode(Part(9, {}, last=True))])
def test_what_no_engine_sends_ends_the_front_s_streams(folder: str, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(socket_path("model", folder)))
        listening.listen()
        with ThreadPoolExecutor(1) as pool:
            link = pool.submit(Link, socket_path("model", folder), report=lambda _line: None)
            with Connection(listening.accept()[0].detach()) as engine:
                engine.send_bytes(encode(Ready()))
                messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
                link.result(WAIT).open(INPUTS, messages.put)
                engine.send_bytes(data)
                assert isinstance(take(messages).error, EngineFailed)
                engine.recv_bytes()
                with pytest.raises((EOFError, ConnectionResetError)):
                    engine.recv_bytes()
        link.result().close()


def test_a_front_is_not_fooled_by_what_is_not_ready(folder: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(socket_path("model", folder)))
        listening.listen()
        with ThreadPoolExecutor(1) as pool:
            link = pool.submit(Link, socket_path("model", folder), report=lambda _line: None)
            with Connection(listening.accept()[0].detach()) as engine:
                engine.send_bytes(encode(Part(1, {}, last=True)))
                with pytest.raises(EngineFailed, match="before it was ready"):
                    link.result(WAIT)


def test_a_request_that_is_too_large_is_refused_and_the_others_go_on(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LARGEST", 1000)
    with connected(folder) as (engine, _, link):
        messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        link.open(INPUTS, messages.put)
        with pytest.raises(InvalidRequest, match="at most"):
            link.open({"text": np.array([[b"x" * 1000]], dtype=object)}, messages.put)
        take(engine.opened)[1].part({}, last=True)
        assert take(messages).last


@contextmanager
def as_nobody() -> Iterator[None]:
    """What is connected and listens from here belongs to another user."""
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        os.seteuid(os.getuid())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_at_both_ends(folder: str) -> None:
    path = socket_path("model", folder)
    host = Host(path)
    host.serve(Engine().start, Engine.load)
    Path(folder).chmod(0o777)  # as if the folder were not private
    path.chmod(0o777)
    with as_nobody():
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(str(path))
    with stranger:
        assert stranger.recv(1) == b""
    host.close()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        with as_nobody():
            listening.listen()
        with pytest.raises(EngineFailed, match="another user listens"):
            Link(path, report=lambda _line: None)


def test_a_front_whose_engine_is_loaded_again_goes_on(folder: str) -> None:
    with connected(folder) as (engine, host, link):
        messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        link.open(INPUTS, messages.put)
        host.close()
        assert isinstance(take(messages).error, EngineFailed)
        again = Host(socket_path("model", folder))
        again.serve(engine.start, engine.load)
        try:
            take(engine.opened)
            opened_again(link, messages)
            take(engine.opened)[1].part({}, last=True)
            assert take(messages).last
        finally:
            again.close()


def opened_again(link: Link, messages: queue.SimpleQueue[Any]) -> None:
    """Opens a stream as soon as the link has found its engine."""
    deadline = time.monotonic() + WAIT
    while True:
        try:
            link.open(INPUTS, messages.put)
            return
        except Unavailable:
            assert time.monotonic() < deadline


def test_an_engine_that_takes_another_s_place_keeps_its_socket(folder: str) -> None:
    path = socket_path("model", folder)
    old = Host(path)
    new = Host(path)
    old.close()
    assert path.exists()
    new.close()
    assert not path.exists()


def test_a_front_is_drained_once_its_last_stream_has_been_handed_on(folder: str) -> None:
    with connected(folder) as (engine, _, link):
        handed: queue.SimpleQueue[Any] = queue.SimpleQueue()
        link.open(INPUTS, handed.put)
        outlet = take(engine.opened)[1]
        link.drain(1000.0, lambda: handed.put("drained"))
        outlet.part({}, last=False)
        outlet.part({}, last=True)
        assert [take(handed).last, take(handed).last, take(handed)] == [False, True, "drained"]
        link.drain(1000.0, lambda: handed.put("still drained"))
        assert take(handed) == "still drained"


def test_a_front_waits_for_an_engine_that_comes_later_and_is_not_ready_yet(folder: str) -> None:
    path = socket_path("model", folder)
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    links: queue.SimpleQueue[Link] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: links.put(Link(path, report=said.put)))
    thread.start()
    assert "waiting for the model" in said.get(timeout=WAIT)
    host = Host(path)
    assert "waiting for the engine to be ready" in said.get(timeout=WAIT)
    assert links.empty()
    host.serve(Engine().start, Engine.load)
    links.get(timeout=WAIT).close()
    thread.join(WAIT)
    host.close()


def test_a_front_whose_engine_fails_while_starting_says_so(folder: str) -> None:
    path = socket_path("model", folder)
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    host = Host(path)
    errors: queue.SimpleQueue[RequestError] = queue.SimpleQueue()

    def connect() -> None:
        try:
            Link(path, report=said.put)
        except RequestError as error:
            errors.put(error)

    thread = threading.Thread(target=connect)
    thread.start()
    while "ready" not in said.get(timeout=WAIT):
        pass
    host.close()
    assert "ended before it was ready" in str(errors.get(timeout=WAIT))
    thread.join(WAIT)


def test_a_front_without_an_engine_gives_up(folder: str) -> None:
    with pytest.raises(EngineFailed, match="nobody listens"):
        Link(socket_path("model", folder), wait_seconds=0.0, report=lambda _line: None)


def test_a_folder_that_others_may_enter_is_refused(folder: str) -> None:
    Path(folder).chmod(0o755)
    with pytest.raises(ConfigError, match="others may enter"):
        socket_path("model", folder)


def test_nothing_is_left_open(folder: str) -> None:
    def files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - pathlib would open one more

    with connected(folder):
        pass
    before, threads = files(), threading.active_count()
    for _ in range(5):
        with connected(folder) as (_, _, link):
            link.open(INPUTS, lambda _message: None)
    assert (files(), threading.active_count()) == (before, threads)


def test_a_front_is_named_after_its_engine() -> None:
    assert engine_of("chatterbox_stream") == "chatterbox"
    assert engine_of("my_stream_stream") == "my_stream"
    for name in ("chatterbox", "_stream", "stream"):
        with pytest.raises(ConfigError, match=f"{name} is a streaming front"):
            engine_of(name)
