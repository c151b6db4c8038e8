"""The command `chatterbox status`."""

from __future__ import annotations

import re
import urllib.request
from typing import Annotated

import typer

from chatterbox_client.cli_common import ProtocolOption, Seconds, Url, connect, fail, one_line_errors
from chatterbox_client.client import Client
from chatterbox_client.errors import NotFound

_INFO = re.compile(r"^chatterbox_info\{(.*)\} 1(?:\.0+)?$", re.MULTILINE)
_IN_MEMORY = re.compile(r"^chatterbox_voices_cached\{(.*)\} ([\d.]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def status(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Which model of a server that has several.")] = "chatterbox",
    url: Url = None,
    protocol: ProtocolOption = "http",
    metrics_url: Annotated[
        str, typer.Option(envvar="CHATTERBOX_METRICS_URL", help="host:port of the metrics, which tell what is served.")
    ] = "localhost:8002",
    timeout: Seconds = 10.0,
) -> None:
    """Show whether the server is ready (exit status 0 or 1), what it serves, and what its model takes and gives."""
    with one_line_errors(), connect(context, url, protocol, timeout, model=model) as client:
        if not client.ready():
            fail("the server is there, but its model is not ready")
        metadata = client.metadata()
        stored = _stored(client)
    typer.echo(f"{metadata['name']}: ready, version {', '.join(metadata['versions'])}, {metadata['platform']}")
    for line in _served(model, metrics_url, timeout):
        typer.echo(line)
    typer.echo(f"stored voices: {stored}")
    for side in ("inputs", "outputs"):
        typer.echo(f"{side}:")
        for tensor in metadata[side]:
            typer.echo(f"  {tensor['name']:<20}{tensor['datatype']:<7}{tensor['shape']}")


def _stored(client: Client) -> str:
    try:
        return str(len(client.voices.list()))
    except NotFound:  # the model of voices is left out
        return "this server does not say"


def _served(model: str, metrics_url: str, timeout: float) -> list[str]:
    """What the metrics page tells of a model."""
    address = metrics_url if "://" in metrics_url else f"http://{metrics_url}"
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/metrics", timeout=timeout) as answer:
            page = answer.read().decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        return [f"checkpoint, device: unknown, no metrics at {metrics_url} ({error}): see --metrics-url"]
    engines = [labels for line in _INFO.findall(page) if (labels := _labels(line)).get("model") == model]
    if not engines:
        return [f"checkpoint, device: unknown, the metrics at {metrics_url} have no model {model}"]
    cached = [float(count) for line, count in _IN_MEMORY.findall(page) if _labels(line).get("model") == model]
    about, devices = engines[0], ", ".join(engine["device"] for engine in engines)
    return [
        f"checkpoint: {about['checkpoint']} ({about['family']})",
        f"device: {devices}",
        f"optimisations: {about['optimizations']}",
        f"voices in memory: {max(map(int, cached))}",
    ]


def _labels(text: str) -> dict[str, str]:
    return dict(_LABEL.findall(text))
