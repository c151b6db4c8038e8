"""What all commands share: how they connect, and how they fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal, NoReturn

import typer

from chatterbox_client.client import Client
from chatterbox_client.errors import ChatterboxClientError, InvalidRequest

Connect = Callable[..., Client]

HEADERS = "chatterbox.headers"
"""Where the context's `meta` has what `--header` gave."""

Url = Annotated[
    str | None,
    typer.Option(
        help="host:port of the server; by default CHATTERBOX_URL or localhost:8000 (http), CHATTERBOX_GRPC_URL or "
        "localhost:8001 (grpc)."
    ),
]
ProtocolOption = Annotated[Literal["http", "grpc"], typer.Option(help="How to talk to the server.")]
Seconds = Annotated[float, typer.Option(help="Seconds to wait for the answer.")]


def connect(context: typer.Context, url: str | None, protocol: str, timeout: float, **others: str) -> Client:
    """A client as the options say."""
    make: Connect = context.obj
    try:
        return make(url, protocol, timeout=timeout, **others)
    except InvalidRequest as error:
        raise typer.BadParameter(str(error), param_hint="--url") from error


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the command with one line for what the server or the file system said."""
    try:
        yield
    except (ChatterboxClientError, OSError) as error:
        fail(str(error))


def complain(message: str) -> None:
    """One line on stderr."""
    typer.echo("chatterbox: " + " ".join(message.split()), err=True)


def fail(message: str) -> NoReturn:
    """Ends the command with status 1 and one line on stderr."""
    complain(message)
    raise typer.Exit(1)
