"""Locust's users: each speaks one line after the other through the project's own client."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from typing import Any, ClassVar

import gevent  # type: ignore[import-untyped]
from locust import User, constant, task

from chatterbox_client import Audio, ChatterboxClientError, Client, Timeout, concatenate
from loadtest import recorder
from loadtest.records import Record, WrongAudio, check
from loadtest.scenarios import SCENARIOS
from loadtest.texts import Line, choose

MAX_SECONDS = 30.0
REQUEST_TIMEOUT = 240.0
PAUSE_SECONDS = (0.05, 0.3)
LEAVE_SECONDS = (0.02, 12.0)
"""Of patience of a client that leaves."""


class Speaker(User):
    """Pauses for a moment, speaks, waits for the answer and checks it.

    The pause is part of the task, not Locust's `wait_time`: a user that is stopped in the latter is killed, perhaps a
    moment too late, when its next request is on its way and would be counted by the server alone.
    """

    abstract = True
    wait_time = constant(0)
    protocol: ClassVar[str]

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self._cancelled = SCENARIOS[options.scenario].cancelled
        self._voices = options.voices.split(",")
        self._source = random.Random()
        self._client = self._connect(options)

    def on_stop(self) -> None:
        self._client.close()
        # tritonclient closes its channel once more when it is collected. Left to the end of the process, when gevent's
        # hub is gone, that can wait for ever for a lock of gRPC's.
        del self._client

    @task
    def speak(self) -> None:
        """One request, recorded."""
        gevent.sleep(self._source.uniform(*PAUSE_SECONDS))
        line = choose(self._source, self._voices)
        if self._source.random() < self._cancelled:
            self._leave(line)
            return
        began, clock = time.time(), time.perf_counter()
        try:
            audio, ttfa = self._say(line, lambda: time.perf_counter() - clock)
            latency = time.perf_counter() - clock
            check(audio, seed=line.seed, max_seconds=MAX_SECONDS)
        except (ChatterboxClientError, WrongAudio) as error:
            latency = time.perf_counter() - clock
            message = f"{type(error).__name__}: {error}"
            record = Record(began, self.protocol, line.kind, line.voice, latency, latency, error=message)
        else:
            queued = float(audio.stats["queue_ms"]) / 1000
            record = Record(began, self.protocol, line.kind, line.voice, latency, ttfa, audio.duration, queued)
        recorder.add(self.environment, record)

    def _leave(self, line: Line) -> None:
        """One request whose client leaves at a random moment, perhaps after its end."""
        began, clock, error = time.time(), time.perf_counter(), None
        options = self.environment.parsed_options
        with contextlib.closing(self._connect(options, self._source.uniform(*LEAVE_SECONDS))) as client:
            try:
                self._begin(client, line)
            except Timeout:
                pass
            except ChatterboxClientError as failure:
                error = f"{type(failure).__name__}: {failure}"
        latency = time.perf_counter() - clock
        record = Record(
            began, self.protocol, line.kind, line.voice, latency, latency, error=error, cancelled=error is None
        )
        recorder.add(self.environment, record)

    def _connect(self, options: Any, timeout: float = REQUEST_TIMEOUT) -> Client:
        raise NotImplementedError

    def _begin(self, client: Client, line: Line) -> None:
        """The request of one who leaves."""
        client.speak(line.text, voice=line.voice, seed=line.seed, max_seconds=MAX_SECONDS)

    def _say(self, line: Line, elapsed: Callable[[], float]) -> tuple[Audio, float]:
        """The audio, and the seconds until its first part was there."""
        audio = self._client.speak(line.text, voice=line.voice, seed=line.seed, max_seconds=MAX_SECONDS)
        return audio, elapsed()


class HttpSpeaker(Speaker):
    """Whole utterances over HTTP."""

    protocol = "http"

    def _connect(self, options: Any, timeout: float = REQUEST_TIMEOUT) -> Client:
        return Client(options.http_address, "http", timeout=timeout)


class GrpcSpeaker(Speaker):
    """Whole utterances over gRPC."""

    protocol = "grpc"

    def _connect(self, options: Any, timeout: float = REQUEST_TIMEOUT) -> Client:
        return Client(options.grpc_address, "grpc", timeout=timeout)


class StreamSpeaker(GrpcSpeaker):
    """Audio in chunks over gRPC."""

    protocol = "stream"

    def _say(self, line: Line, elapsed: Callable[[], float]) -> tuple[Audio, float]:
        chunks, ttfa = [], 0.0
        for chunk in self._client.stream(line.text, voice=line.voice, seed=line.seed, max_seconds=MAX_SECONDS):
            ttfa = ttfa or elapsed()
            chunks.append(chunk)
        return concatenate(chunks), ttfa

    def _begin(self, client: Client, line: Line) -> None:
        """Leaves when its patience ends, after a chunk at random, or at the last one."""
        after = self._source.randrange(8)
        for chunk in client.stream(line.text, voice=line.voice, seed=line.seed, max_seconds=MAX_SECONDS):
            if chunk.is_last or chunk.index == after:
                break


SPEAKERS: dict[str, type[Speaker]] = {
    speaker.protocol: speaker for speaker in (HttpSpeaker, GrpcSpeaker, StreamSpeaker)
}
