"""The command `chatterbox-gateway`."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Literal

import typer

from chatterbox_client.cli_common import HeaderOption, Seconds, parse_headers
from chatterbox_client.client import DEFAULT_TIMEOUT
from chatterbox_client.errors import InvalidRequest
from chatterbox_client.transports import URL_VARIABLES, open_async_transport
from chatterbox_client.voices import KEY_VARIABLE
from chatterbox_gateway import logs, tracing
from chatterbox_gateway.app import create
from chatterbox_gateway.keys import Keys, Limits
from chatterbox_gateway.origins import parse_origins
from chatterbox_gateway.server import Server, listen
from chatterbox_gateway.settings import FIRST_CHUNK_TOKENS, Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(context_settings={"auto_envvar_prefix": "CHATTERBOX_GATEWAY"})
def gateway(
    url: Annotated[
        str | None,
        typer.Option(
            envvar=URL_VARIABLES["grpc"],
            help="host:port of the Triton server's gRPC, localhost:8001 by default; several servers as "
            "ipv4:10.0.0.1:8001,10.0.0.2:8001.",
        ),
    ] = None,
    header: HeaderOption = None,
    metrics_url: Annotated[
        list[str] | None,
        typer.Option(
            envvar="CHATTERBOX_METRICS_URL",
            help="host:port of the server's metrics, localhost:8002 by default, which /health, /status and /model/info "
            "show; repeat for several servers.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model to serve; repeat for several. OpenAI's names mean the first.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8080,
    key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="CHATTERBOX_GATEWAY_KEYS",
            help="An accepted key as NAME:KEY; repeat for several (in the variable: separated by spaces). The name "
            "stands in logs and metrics. None: all clients.",
        ),
    ] = None,
    max_requests: Annotated[
        int, typer.Option(min=0, help="Requests to speak that each key may have under way; 0: no limit.")
    ] = 0,
    max_characters: Annotated[
        int, typer.Option(min=0, help="Characters that each key may have spoken per minute; 0: no limit.")
    ] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse unknown fields and instructions instead of ignoring them.")
    ] = False,
    change_voices: Annotated[
        bool,
        typer.Option(
            "--change-voices",
            help=f"Allow clients to store and delete voices; needs the server's key in {KEY_VARIABLE}.",
        ),
    ] = False,
    cors: Annotated[
        str,
        typer.Option(
            envvar="CHATTERBOX_ALLOWED_ORIGINS",
            help="Other origins whose web pages are accepted, as in https://app.example.com, separated by commas.",
        ),
    ] = "",
    first_chunk_tokens: Annotated[
        int, typer.Option(min=1, help="Size of a stream's first chunk, in tokens of 40 ms, unless a request says it.")
    ] = FIRST_CHUNK_TOKENS,
    log_format: Annotated[
        Literal["text", "json"], typer.Option(help="Of the log: one line for each request, on stderr.")
    ] = "text",
    owner: Annotated[int | None, typer.Option(hidden=True, help="Pid of a process to end with.")] = None,
    timeout: Seconds = DEFAULT_TIMEOUT,
    grace_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds that requests in progress have to finish after SIGTERM or SIGINT.")
    ] = 30.0,
) -> None:
    """Serve OpenAI's speech API, other Chatterbox servers' routes and a page in front of one or many Triton servers."""
    if change_voices and not os.environ.get(KEY_VARIABLE):
        raise typer.BadParameter(f"{KEY_VARIABLE} is not set", param_hint="--change-voices")
    limits = Limits(max_requests, max_characters)
    try:
        Keys(key or (), limits)
    except ValueError as error:  # an unset shell variable would make the empty key valid
        raise typer.BadParameter(str(error), param_hint="--key") from error
    try:
        origins = parse_origins(cors)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--cors") from error
    try:
        transport = open_async_transport(url, "grpc", parse_headers(header or []))
    except InvalidRequest as error:
        raise typer.BadParameter(str(error), param_hint="--url") from error
    logs.configure(log_format)
    settings = Settings(
        models=model or Settings.models,
        keys=key or (),
        limits=limits,
        strict=strict,
        change_voices=change_voices,
        origins=origins,
        metrics_urls=metrics_url or Settings.metrics_urls,
        timeout=timeout,
        first_chunk_tokens=first_chunk_tokens,
    )
    try:
        with listen(host, port) as listening:
            made = create(transport, settings, tracing.from_environment())
            asyncio.run(Server(made, grace_seconds=grace_seconds, owner=owner).serve([listening]))
    except OSError as error:
        typer.echo(f"chatterbox-gateway: {error}", err=True)
        raise typer.Exit(1) from error


def main() -> None:
    """Entry point of the installed command."""
    app()


if __name__ == "__main__":
    main()
