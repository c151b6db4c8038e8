"""The options of `chatterbox-gateway`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from chatterbox_client.transports import URL_VARIABLES
from chatterbox_client.voices import KEY_VARIABLE
from chatterbox_gateway import settings

Url = Annotated[
    str | None,
    typer.Option(
        envvar=URL_VARIABLES["grpc"],
        help="host:port of the Triton server's gRPC, localhost:8001 by default; several servers as "
        "ipv4:10.0.0.1:8001,10.0.0.2:8001.",
    ),
]
MetricsUrl = Annotated[
    list[str] | None,
    typer.Option(
        envvar="CHATTERBOX_METRICS_URL",
        help="host:port of the server's metrics, localhost:8002 by default, which /health, /status and /model/info "
        "show; repeat for several servers, or name a host with an address for each.",
    ),
]
Model = Annotated[
    list[str] | None, typer.Option(help="A model to serve; repeat for several. OpenAI's names mean the first.")
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")]
Key = Annotated[
    list[str] | None,
    typer.Option(
        envvar="CHATTERBOX_GATEWAY_KEYS",
        help="An accepted key as NAME:KEY; repeat for several (in the variable: separated by spaces). The name "
        "stands in logs and metrics. None: all clients.",
    ),
]
BatchKey = Annotated[
    list[str] | None,
    typer.Option(help="Name of a key whose requests have priority batch: they wait for those of others. Repeatable."),
]
MaxRequests = Annotated[
    int, typer.Option(min=0, help="Requests to speak that each key may have under way; 0: no limit.")
]
MaxCharacters = Annotated[
    int, typer.Option(min=0, help="Characters that each key may have spoken per minute; 0: no limit.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse unknown fields and instructions instead of ignoring them.")
]
ChangeVoices = Annotated[
    bool,
    typer.Option(
        "--change-voices",
        help=f"Allow clients to store and delete voices; needs the server's key in {KEY_VARIABLE}.",
    ),
]
Cors = Annotated[
    str,
    typer.Option(
        envvar="CHATTERBOX_ALLOWED_ORIGINS",
        help="Other origins whose web pages are accepted, as in https://app.example.com, separated by commas.",
    ),
]
IdleUnload = Annotated[
    float,
    typer.Option(
        envvar="CHATTERBOX_IDLE_UNLOAD",
        min=0,
        help="Seconds without a request after which the server's models are unloaded, until the next one; 0: never.",
    ),
]
ControlUrl = Annotated[
    str,
    typer.Option(
        envvar="CHATTERBOX_URL",
        help="host:port of the server's HTTP, through which --idle-unload unloads: it needs --open model-repository.",
    ),
]
ControlHeader = Annotated[list[str] | None, typer.Option(envvar="CHATTERBOX_CONTROL_HEADERS", hidden=True)]
FirstChunkTokens = Annotated[
    int, typer.Option(min=1, help="Size of a stream's first chunk, in tokens of 40 ms, unless a request says it.")
]
LogFormat = Annotated[Literal["text", "json"], typer.Option(help="Of the log: one line for each request, on stderr.")]
Owner = Annotated[int | None, typer.Option(hidden=True, help="Pid of a process to end with.")]
GraceSeconds = Annotated[
    float, typer.Option(min=0, help="Seconds that requests in progress have to finish after SIGTERM or SIGINT.")
]
TextNormalization = Annotated[
    settings.TextNormalization,
    typer.Option(
        help="Unless a request says it; plain makes Markdown, links and emoji speakable, spoken also numbers."
    ),
]
Markup = Annotated[
    settings.Markup,
    typer.Option(help="Unless a request says it: auto reads SSML and tags like [pause 0.5s]."),
]
