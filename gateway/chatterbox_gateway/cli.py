"""The command `chatterbox-gateway`."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Annotated

import typer

from chatterbox_client.cli_common import HeaderOption, Seconds, parse_headers
from chatterbox_client.client import DEFAULT_TIMEOUT
from chatterbox_client.errors import InvalidRequest
from chatterbox_client.transports import URL_VARIABLES, open_async_transport
from chatterbox_client.voices import KEY_VARIABLE
from chatterbox_gateway.draining import serve
from chatterbox_gateway.origins import parse_origins
from chatterbox_gateway.server import AccessLog, SpeechApi

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def gateway(
    url: Annotated[
        str | None,
        typer.Option(envvar=URL_VARIABLES["grpc"], help="host:port of the Triton server's gRPC; localhost:8001."),
    ] = None,
    header: HeaderOption = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model to serve; repeat for several. OpenAI's names mean the first.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="CHATTERBOX_OPENAI_KEYS",
            help="An accepted API key; repeat for several (in the variable: separated by spaces). None: all clients.",
        ),
    ] = None,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Ignore speed, instructions and unknown fields instead of refusing them.")
    ] = False,
    change_voices: Annotated[
        bool,
        typer.Option(
            "--change-voices",
            help=f"Allow clients to store and delete voices; needs the server's key in {KEY_VARIABLE}.",
        ),
    ] = False,
    allowed_origins: Annotated[
        str,
        typer.Option(
            envvar="CHATTERBOX_ALLOWED_ORIGINS",
            help="Other origins whose web pages are accepted, as in https://app.example.com, separated by commas.",
        ),
    ] = "",
    timeout: Seconds = DEFAULT_TIMEOUT,
    grace_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds that requests in progress have to finish after SIGTERM or SIGINT.")
    ] = 30.0,
) -> None:
    """Serve OpenAI's speech API (/v1/audio/speech) in front of a Triton server."""
    if not all(key or ()):  # an unset shell variable would make the empty key valid
        raise typer.BadParameter("is empty", param_hint="--key")
    if change_voices and not os.environ.get(KEY_VARIABLE):
        raise typer.BadParameter(f"{KEY_VARIABLE} is not set", param_hint="--change-voices")
    try:
        origins = parse_origins(allowed_origins)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--allowed-origins") from error
    try:
        transport = open_async_transport(url, "grpc", parse_headers(header or []))
    except InvalidRequest as error:
        raise typer.BadParameter(str(error), param_hint="--url") from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    api = SpeechApi(
        transport,
        model or ["chatterbox"],
        keys=key or (),
        timeout=timeout,
        lenient=lenient,
        change_voices=change_voices,
        allowed_origins=origins,
    )
    try:
        asyncio.run(
            serve(
                api.application(),
                api.drain,
                host=host,
                port=port,
                grace_seconds=grace_seconds,
                handler_cancellation=True,
                access_log_class=AccessLog,
            )
        )
    except OSError as error:
        typer.echo(f"chatterbox-gateway: {error}", err=True)
        raise typer.Exit(1) from error


def main() -> None:
    """Entry point of the installed command."""
    app()


if __name__ == "__main__":
    main()
