"""The command `chatterbox-gateway`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from chatterbox_client.cli_common import HeaderOption, Seconds, parse_headers
from chatterbox_client.client import DEFAULT_TIMEOUT
from chatterbox_client.errors import InvalidRequest
from chatterbox_client.transports import AsyncTransport, open_async_transport
from chatterbox_client.voices import KEY_VARIABLE
from chatterbox_gateway import logs, options, tracing
from chatterbox_gateway.app import create
from chatterbox_gateway.keys import Keys, Limits
from chatterbox_gateway.origins import parse_origins
from chatterbox_gateway.server import Server, listen
from chatterbox_gateway.settings import FIRST_CHUNK_TOKENS, Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(context_settings={"auto_envvar_prefix": "CHATTERBOX_GATEWAY"})
def gateway(
    url: options.Url = None,
    header: HeaderOption = None,
    metrics_url: options.MetricsUrl = None,
    model: options.Model = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8080,
    key: options.Key = None,
    batch_key: options.BatchKey = None,
    max_requests: options.MaxRequests = 0,
    max_characters: options.MaxCharacters = 0,
    strict: options.Strict = False,
    change_voices: options.ChangeVoices = False,
    cors: options.Cors = "",
    first_chunk_tokens: options.FirstChunkTokens = FIRST_CHUNK_TOKENS,
    log_format: options.LogFormat = "text",
    owner: options.Owner = None,
    idle_unload: options.IdleUnload = 0.0,
    control_url: options.ControlUrl = Settings.control_url,
    control_header: options.ControlHeader = None,
    text_normalization: options.TextNormalization = Settings.text_normalization,
    markup: options.Markup = Settings.markup,
    timeout: Seconds = DEFAULT_TIMEOUT,
    grace_seconds: options.GraceSeconds = 30.0,
) -> None:
    """Serve OpenAI's speech API, other Chatterbox servers' routes and a page in front of one or many Triton servers."""
    if change_voices and not os.environ.get(KEY_VARIABLE):
        raise typer.BadParameter(f"{KEY_VARIABLE} is not set", param_hint="--change-voices")
    limits = Limits(max_requests, max_characters)
    with _naming("--key"):  # an unset shell variable would make the empty key valid
        Keys(key or (), limits)
    with _naming("--batch-key"):
        Keys(key or (), limits, batch_key or ())
    with _naming("--cors"):
        origins = parse_origins(cors)
    transport = _connect(url, header)
    if idle_unload and url is not None and "," in url:
        raise typer.BadParameter("it is for one server, and --url names several", param_hint="--idle-unload")
    logs.configure(log_format)
    settings = Settings(
        models=model or Settings.models,
        keys=key or (),
        batch_keys=batch_key or (),
        limits=limits,
        strict=strict,
        change_voices=change_voices,
        origins=origins,
        metrics_urls=metrics_url or Settings.metrics_urls,
        idle_unload=idle_unload,
        control_url=control_url.removeprefix("http://"),
        control_headers=parse_headers(control_header or []),
        timeout=timeout,
        first_chunk_tokens=first_chunk_tokens,
        text_normalization=text_normalization,
        markup=markup,
    )
    with _one_line_errors(), listen(host, port) as listening:
        made = create(transport, settings, tracing.from_environment())
        asyncio.run(Server(made, grace_seconds=grace_seconds, owner=owner).serve([listening]))


def _connect(url: str | None, header: list[str] | None) -> AsyncTransport:
    try:
        return open_async_transport(url, "grpc", parse_headers(header or []))
    except InvalidRequest as error:
        raise typer.BadParameter(str(error), param_hint="--url") from error


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        typer.echo(f"chatterbox-gateway: {error}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Reports a ValueError as wrong usage of an option."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def main() -> None:
    """Entry point of the installed command."""
    app()


if __name__ == "__main__":
    main()
