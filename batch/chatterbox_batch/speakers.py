"""What speaks a part: a running server, or an engine of this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from chatterbox_client import Audio, ChatterboxClientError, Client, ConnectionFailed, Unavailable
from chatterbox_client.client import DEFAULT_TIMEOUT

RETRIES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds to wait before a request that no server could take is sent again."""


class SpeechFailed(Exception):
    """A text was not spoken; the message says why."""


class Speaker(Protocol):
    """Speaks texts, from any number of threads at once."""

    def speak(self, text: str, inputs: Mapping[str, Any]) -> Audio:
        """Speaks a text. inputs: other arguments of `Client.speak`. Raises SpeechFailed."""


class ServerSpeaker:
    """Running servers; requests are distributed over them in turn."""

    def __init__(self, clients: list[Client], sleep: Callable[[float], None] = time.sleep) -> None:
        self._clients = clients
        self._sleep = sleep
        self._turn = 0

    def speak(self, text: str, inputs: Mapping[str, Any]) -> Audio:
        """See `Speaker.speak`. A request that no server could take is sent again, to the next one."""
        for delay in (*RETRIES, None):
            self._turn += 1  # races between threads change the order, nothing else
            try:
                client = self._clients[self._turn % len(self._clients)]
                return client.speak(text, **{"priority": "batch", **inputs})
            except (ConnectionFailed, Unavailable) as error:
                if delay is None:
                    raise SpeechFailed(str(error)) from error
                self._sleep(delay)
            except ChatterboxClientError as error:
                raise SpeechFailed(str(error)) from error
        raise AssertionError("the last attempt returns or raises")


class EngineSpeaker:
    """An engine of this process, which is loaded and started here. Raises its CheckpointError or ConfigError."""

    def __init__(self, checkpoint: str) -> None:
        from chatterbox_engine import assemble, presets
        from chatterbox_engine.config import Config
        from chatterbox_engine.serving import contract

        config = Config.load({"checkpoint": checkpoint})
        self._engine = assemble.build(config, on_failure=_end_process)
        presets.sampling(self._engine.family, config.preset)  # an invalid preset stops the start
        self._engine.start()
        self._terms = contract.Terms(
            max_text_chars=config.max_text_chars,
            max_seconds=config.max_seconds,
            family=self._engine.family,
            preset=config.preset,
        )

    def speak(self, text: str, inputs: Mapping[str, Any]) -> Audio:
        """See `Speaker.speak`. The same checks as a server's."""
        from chatterbox_client.request import speech_request
        from chatterbox_engine.errors import RequestError
        from chatterbox_engine.serving import contract
        from chatterbox_engine.types import SAMPLE_RATE, SynthesisResult

        answered: Future[SynthesisResult | RequestError] = Future()
        try:
            call = contract.parse(speech_request(text, **inputs), self._terms)
            self._engine.submit(call.request, answered.set_result)
        except (RequestError, ChatterboxClientError) as error:
            raise SpeechFailed(str(error)) from error
        result = answered.result()
        if isinstance(result, RequestError):
            raise SpeechFailed(str(result)) from result
        return Audio(result.samples, SAMPLE_RATE, result.speech_tokens, result.stats)


@dataclass(frozen=True)
class Servers:
    """Makes a `ServerSpeaker` in the process that uses it."""

    connect: Callable[..., Client]
    urls: tuple[str | None, ...] = (None,)
    protocol: str = "grpc"
    model: str = "chatterbox"
    timeout: float = DEFAULT_TIMEOUT

    def __call__(self) -> Speaker:
        return ServerSpeaker(self.clients())

    def clients(self) -> list[Client]:
        """A client for each server. Raises InvalidRequest for a URL that is not one of the protocol."""
        options: dict[str, Any] = {"model": self.model, "timeout": self.timeout}
        return [self.connect(url, self.protocol, **options) for url in self.urls]


@dataclass(frozen=True)
class Engines:
    """Makes an `EngineSpeaker` in the process that uses it, with the settings of the process that asked for it."""

    checkpoint: str
    settings: Mapping[str, str]
    """Variables of the environment."""

    def __call__(self) -> Speaker:
        os.environ.update(self.settings)
        return EngineSpeaker(self.checkpoint)


def _end_process(_error: BaseException) -> None:
    """The engine is gone: Ray starts another process and gives it what this one was speaking."""
    os._exit(1)
