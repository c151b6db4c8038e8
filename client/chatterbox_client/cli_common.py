"""What all commands share: how they connect, and how they fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal, NoReturn

import typer

from chatterbox_client.client import Client
from chatterbox_client.errors import ChatterboxClientError, InvalidRequest

Connect = Callable[..., Client]

Url = Annotated[
    str | None,
    typer.Option(
        help="host:port of the server; by default CHATTERBOX_URL or localhost:8000 (http), CHATTERBOX_GRPC_URL or "
        "localhost:8001 (grpc)."
    ),
]
ProtocolOption = Annotated[Literal["http", "grpc"], typer.Option(help="How to talk to the server.")]
HeaderOption = Annotated[
    list[str] | None,
    typer.Option(
        envvar="CHATTERBOX_HEADERS",
        help='Sent with every call, "NAME: VALUE": a key for a server that restricts its protocols (the variable: '
        "NAME:VALUE, spaces between several).",
    ),
]
Seconds = Annotated[float, typer.Option(help="Seconds to wait for the answer.")]


def connect(context: typer.Context, url: str | None, protocol: str, timeout: float, **others: str) -> Client:
    """A client as the options say."""
    make: Connect = context.obj
    try:
        return make(url, protocol, timeout=timeout, **others)
    except InvalidRequest as error:
        raise typer.BadParameter(str(error), param_hint="--url") from error


def parse_headers(given: list[str]) -> dict[str, str]:
    """Headers from the values of `--header`. Raises BadParameter."""
    pairs = [entry.partition(":") for entry in given]
    if not all(name.strip() and colon for name, colon, _ in pairs):
        raise typer.BadParameter('give "NAME: VALUE"', param_hint="--header")
    return {name.strip(): value.strip() for name, _, value in pairs}


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
