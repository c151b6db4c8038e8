"""`stream` with a text that arrives in pieces: both clients, and `chatterbox say --stream -`."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from chatterbox_client import AsyncClient, Client, InvalidRequest, NotFound, concatenate
from chatterbox_client.request import NO_CONTEXT, RequestContext, Tensors
from tests.unit.client_fakes import SAMPLES, FakeAsyncTransport, FakeTransport, fake_server, spoken_chunks

PIECES = ["Hello", " Dr", ". Smith. How", " are", " you? ", "Fine"]
SENTENCES = [b"Hello Dr. Smith.", b"How are you?", b"Fine"]
PAUSE = np.zeros(7_200, np.float32)

both = pytest.mark.parametrize("kind", [Client, AsyncClient])


async def slowly(pieces: Sequence[str]) -> AsyncIterator[str]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


def streamed(kind: Any, transport: FakeTransport, text: Any, **options: Any) -> list[Any]:
    if kind is Client:
        return list(Client(transport=transport).stream(text, **options))
    asynchronous = FakeAsyncTransport()
    asynchronous.sync = transport

    async def listen() -> list[Any]:
        return [chunk async for chunk in AsyncClient(transport=asynchronous).stream(text, **options)]

    return asyncio.run(listen())


@pytest.mark.parametrize(
    ("kind", "text"), [(Client, iter(PIECES)), (AsyncClient, PIECES), (AsyncClient, slowly(PIECES))]
)
def test_sentences_are_requests_with_one_seed(kind: Any, text: Any) -> None:
    transport = FakeTransport()
    chunks = streamed(kind, transport, text, voice="anna", language="en")
    requests = [tensors for _, tensors, _, _ in transport.calls]
    assert sorted(tensors["text"].item() for tensors in requests) == sorted(SENTENCES)
    assert len({tensors["seed"].item() for tensors in requests}) == 1
    assert {tensors["voice"].item() for tensors in requests} == {b"anna"}
    assert [chunk.index for chunk in chunks] == list(range(10))
    assert [chunk.is_last for chunk in chunks] == [False] * 9 + [True]
    audio = concatenate(chunks)
    np.testing.assert_array_equal(audio.samples, np.concatenate([SAMPLES, PAUSE, SAMPLES, PAUSE, SAMPLES]))
    assert (audio.seed, audio.stats["tokens"], len(audio.speech_tokens)) == (7, 9, 9)


@both
def test_a_seed_is_kept(kind: Any) -> None:
    transport = FakeTransport()
    streamed(kind, transport, PIECES, seed=3)
    assert [tensors["seed"].item() for _, tensors, _, _ in transport.calls] == [3, 3, 3]


@both
@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (3, {}, "text must be a string or an iterable of strings, not 3"),
        (b"Hello.", {}, "text must be a string or an iterable of strings, not b'Hello.'"),
        (["Hello.", 3], {}, "a piece of the text must be a string, not 3"),
        (["Hello."], {"top_k": "many"}, "top_k must be an integer of 32 bits"),
        ([" ", "\n"], {}, "text has nothing to speak"),
    ],
)
def test_what_is_wrong_is_told(kind: Any, text: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        streamed(kind, FakeTransport(), text, **options)


@both
def test_errors_of_the_text_and_of_the_server_are_raised(kind: Any) -> None:
    def broken() -> Iterator[str]:
        yield "One. Two"
        raise OSError("the pipe broke")

    with pytest.raises(OSError, match="the pipe broke"):
        streamed(kind, FakeTransport(), broken())
    with pytest.raises(NotFound, match="no voice"):
        streamed(kind, FakeTransport(NotFound("there is no voice 'anna'")), PIECES)


class Gated(FakeTransport):
    """Streams that wait after their first chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.begun, self.closed = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)

    def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Generator[Tensors, None, None]:
        self.begun.release()
        try:
            for chunk in spoken_chunks():
                yield chunk
                self.gate.wait()
        finally:
            self.closed.release()


def test_audio_comes_while_the_text_is_written_and_leaving_cancels() -> None:
    transport, more = Gated(), threading.Event()

    def text() -> Iterator[str]:
        yield "One. Two. Three "
        more.wait()
        yield "."

    stream = Client(transport=transport).stream(text())
    assert next(stream).index == 0
    assert all(transport.begun.acquire(timeout=20) for _ in range(2))
    stream.close()
    transport.gate.set()
    assert all(transport.closed.acquire(timeout=20) for _ in range(2))
    more.set()


def test_audio_comes_while_the_text_is_written_and_leaving_cancels_at_once_in_asyncio() -> None:
    closed: list[str] = []

    class Waiting(FakeAsyncTransport):
        async def stream(self, model: str, tensors: Tensors, *args: Any) -> AsyncGenerator[Tensors, None]:
            try:
                yield spoken_chunks()[0]
                await asyncio.Event().wait()
            finally:
                closed.append(tensors["text"].item().decode())

    async def text() -> AsyncIterator[str]:
        yield "One. Two. Three "
        await asyncio.Event().wait()

    async def listen() -> None:
        stream = AsyncClient(transport=Waiting()).stream(text())
        assert (await anext(stream)).index == 0
        await asyncio.sleep(0)
        await stream.aclose()
        assert sorted(closed) == ["One.", "Two."]

    asyncio.run(listen())


def test_say_speaks_from_a_pipe_while_it_is_written() -> None:
    with fake_server() as server:
        command = [sys.executable, "-m", "chatterbox_client.cli", "say", "--stream", "-", "-o", "-", "--seed", "1"]
        command += ["--url", server.grpc_url]
        said = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert said.stdin is not None
        assert said.stdout is not None
        said.stdin.write("One caf\N{LATIN SMALL LETTER E WITH ACUTE}. Two ".encode())
        said.stdin.flush()
        heard = said.stdout.read(2 * len(SAMPLES))  # of the first sentence, before the second is complete
        said.stdin.write(b"more.")
        said.stdin.close()
        rest = said.stdout.read()
        said.stdout.close()
        assert said.stderr is not None
        with said.stderr:
            complaint = said.stderr.read().decode()
        assert said.wait(60) == 0, complaint
        texts = [request["text"][2][4:].decode() for request in server.received]
    assert texts == ["One caf\N{LATIN SMALL LETTER E WITH ACUTE}.", "Two more."]
    assert len(heard) + len(rest) == 2 * (2 * len(SAMPLES) + len(PAUSE))
    assert "seed 7" in complaint


def test_say_refuses_a_pipe_that_is_not_utf8() -> None:
    with fake_server() as server:
        command = [
            sys.executable,
            "-m",
            "chatterbox_client.cli",
            "say",
            "--stream",
            "-",
            "-o",
            "-",
            "--url",
            server.grpc_url,
        ]
        done = subprocess.run(command, input=b"One. \xff", capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("chatterbox: standard input is not UTF-8")
