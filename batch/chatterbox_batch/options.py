"""The options that `chatterbox batch` and `chatterbox book` share, and what they make of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from chatterbox_batch.records import Records
from chatterbox_batch.run import Executor, Job, Summary, run
from chatterbox_batch.speakers import Engines, Servers, Speaker
from chatterbox_batch.worker import Worker
from chatterbox_client.cli_common import Connect, complain, fail
from chatterbox_client.client import DEFAULT_TIMEOUT
from chatterbox_gateway.output import Output

Checkpoint = Annotated[
    str | None,
    typer.Option(help="Speak with engines of this command's own, one per GPU: a folder, a Hugging Face id, or `demo`."),
]
Url = Annotated[
    list[str] | None,
    typer.Option(
        help="Speak through a running server at host:port; repeat for several. By default CHATTERBOX_GRPC_URL or "
        "localhost:8001, unless --checkpoint is given."
    ),
]
ProtocolName = Annotated[Literal["http", "grpc"], typer.Option(help="How to talk to the servers.")]
Model = Annotated[str, typer.Option(help="Which model of servers that have several.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for the audio of a part.")]
Address = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS", help="A Ray cluster, or `auto`; by default Ray is started on this machine for the run."
    ),
]
Actors = Annotated[
    int | None, typer.Option(min=1, help="Processes that speak.", show_default="one per GPU; one with --url")
]
Concurrency = Annotated[int, typer.Option(min=1, help="Parts that each of them speaks at once.")]
PartChars = Annotated[
    int, typer.Option(min=40, help="Longer texts are split into parts, which are what a killed run loses at most.")
]
Seed = Annotated[int, typer.Option(help="Other audio for all that has no seed of its own.")]


@dataclass(frozen=True)
class Speech:
    """Who speaks, and where."""

    checkpoint: str | None
    urls: tuple[str, ...]
    protocol: str = "grpc"
    model: str = "chatterbox"
    timeout: float = DEFAULT_TIMEOUT
    address: str | None = None
    actors: int | None = None
    concurrency: int = 32

    def __post_init__(self) -> None:
        if self.checkpoint and self.urls:
            raise typer.BadParameter("give --checkpoint or --url, not both", param_hint="--checkpoint")

    def maker(self, connect: Connect) -> Engines | Servers:
        """What makes the speaker in the process that uses it."""
        if self.checkpoint:
            local = Path(self.checkpoint).absolute()
            checkpoint = str(local) if local.exists() else self.checkpoint
            settings = {
                name: value
                for name, value in os.environ.items()
                if name.startswith("CHATTERBOX_") and name != "CHATTERBOX_CHECKPOINT"
            }
            return Engines(checkpoint, settings)
        return Servers(connect, self.urls or (None,), self.protocol, self.model, self.timeout)


@dataclass(frozen=True)
class MakeWorker:
    """Makes a worker in the process that uses it."""

    speaker: Callable[[], Speaker]
    records: Records
    output: Output

    def __call__(self) -> Worker:
        return Worker(self.speaker(), self.records, self.output)


def speak(job: Job, speech: Speech, connect: Connect) -> Summary:
    """Runs a job on Ray, with its progress on stderr. Raises typer.Exit where Ray fails or a server is not there."""
    speaker = speech.maker(connect)

    @contextmanager
    def on_ray() -> Iterator[Executor]:
        if isinstance(speaker, Servers):
            _check(speaker)
        from chatterbox_batch import pipeline

        resources = pipeline.Resources(speech.actors, speech.concurrency, own_engine=bool(speech.checkpoint))
        try:
            with pipeline.cluster(speech.address, resources) as running:
                yield running
        except (pipeline.RayFailed, ConnectionError) as error:
            fail(f"Ray: {_reason(error)}")

    return run(job, on_ray, MakeWorker(speaker, job.records, job.output), complain)


def _check(servers: Servers) -> None:
    """Ends the command when a server is not ready, for which every part would wait. Raises the client's errors."""
    for url, client in zip(servers.urls, servers.clients(), strict=True):
        with client:
            if not client.ready():
                fail(f"{url or 'the server'} is there, but its model {servers.model} is not ready")


def _reason(error: BaseException) -> str:
    """The last line of Ray's report, which is the exception of the process that failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
