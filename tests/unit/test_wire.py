"""The socket between engine and front: endings, cancellation, and either side's death."""

from __future__ import annotations

import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatterbox_engine.errors import Cancelled, ConfigError, EngineFailed, InvalidRequest, RequestError
from chatterbox_engine.serving.wire import Failed, Host, Link, Outlet, Part, Tensors, engine_of, socket_path

WAIT = 20.0
INPUTS: Tensors = {"text": np.array([[b"Hello"]], dtype=object)}


class Engine:
    """Takes streams and keeps their outlets; a stream whose text is "no" is refused."""

    def __init__(self) -> None:
        self.opened: queue.SimpleQueue[tuple[Tensors, Outlet]] = queue.SimpleQueue()
        self.given_up: queue.SimpleQueue[Outlet] = queue.SimpleQueue()

    def start(self, tensors: Tensors, outlet: Outlet) -> Callable[[], None]:
        if tensors["text"].item() == b"no":
            raise InvalidRequest("no")
        self.opened.put((tensors, outlet))
        return lambda: self.given_up.put(outlet)


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as path:  # not pytest's: a socket's path may have 107 characters
        yield path


@contextmanager
def connected(folder: str) -> Iterator[tuple[Engine, Host, Link]]:
    engine, host = Engine(), Host(socket_path("model", folder))
    host.serve(engine.start)
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


def test_giving_up_reaches_the_engine_once_and_not_after_the_end(folder: str) -> None:
    with connected(folder) as (engine, _, link):
        messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        ended, running = link.open(INPUTS, messages.put), link.open(INPUTS, messages.put)
        first, second = take(engine.opened)[1], take(engine.opened)[1]
        first.part({}, last=True)
        take(messages)
        link.give_up(ended)
        link.give_up(running)
        assert take(engine.given_up) is second
        second.fail(Cancelled("gone"))
        take(messages)
        link.give_up(running)
        link.open(INPUTS, messages.put)
        take(engine.opened)
        assert engine.given_up.empty()


def test_when_the_front_goes_the_engine_gives_its_streams_up_and_takes_another_front(folder: str) -> None:
    with connected(folder) as (engine, _, link):
        link.open(INPUTS, lambda _message: None)
        outlet = take(engine.opened)[1]
        link.close()
        assert take(engine.given_up) is outlet
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
        with pytest.raises(EngineFailed):
            link.open(INPUTS, received[0].put)
        assert all(messages.empty() for messages in received)


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
    host.serve(Engine().start)
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
