"""Transports: the seam between the clients and `tritonclient`.

Importing this package imports neither gevent nor grpc nor aiohttp; opening a transport imports what that one needs
(Locust, for one, must patch gevent first).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any, Literal, Protocol

from chatterbox_client.errors import InvalidRequest
from chatterbox_client.request import NO_CONTEXT, RequestContext, Tensors

ProtocolName = Literal["http", "grpc"]

DEFAULT_URLS: dict[str, str] = {"http": "localhost:8000", "grpc": "localhost:8001"}

URL_VARIABLES = {"http": "CHATTERBOX_URL", "grpc": "CHATTERBOX_GRPC_URL"}
"""Environment variables with the default URL of each protocol."""

_SCHEMES = {"http": ("http", False), "https": ("http", True), "grpc": ("grpc", False), "grpcs": ("grpc", True)}
"""The protocol of each URL scheme, and whether it uses TLS."""


class Transport(Protocol):
    """Sends named tensors to one server, from any thread. Every method raises `ChatterboxClientError`s.

    `timeout` is in seconds and bounds the whole call; None means no limit.
    """

    def infer(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensors:
        """Runs the model once and returns the requested outputs by name, as far as the server returned them."""

    def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Generator[Tensors, None, None]:
        """Runs a model that sends several responses. Starts with the first `next`; closing the generator cancels it."""

    def ready(self, model: str, timeout: float | None) -> bool:
        """Whether the server can run the model now."""

    def metadata(self, model: str, timeout: float | None) -> Mapping[str, Any]:
        """The model's `name`, `versions`, `platform`, `inputs` and `outputs` (each `name`, `datatype`, `shape`)."""

    def close(self) -> None:
        """Ends the connections."""


class AsyncTransport(Protocol):
    """The same for asyncio; belongs to the event loop of its first call."""

    async def infer(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensors:
        """See `Transport.infer`."""

    def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> AsyncGenerator[Tensors, None]:
        """See `Transport.stream`."""

    async def ready(self, model: str, timeout: float | None) -> bool:
        """See `Transport.ready`."""

    async def metadata(self, model: str, timeout: float | None) -> Mapping[str, Any]:
        """See `Transport.metadata`."""

    async def close(self) -> None:
        """See `Transport.close`."""


def open_transport(url: str | None, protocol: ProtocolName, headers: Mapping[str, str] | None = None) -> Transport:
    """A transport to `url` ("host:port"; None means that of `URL_VARIABLES`, or the protocol's usual port on this
    machine). It may begin with a scheme; https:// and grpcs:// use TLS.

    `headers` (HTTP) or metadata (gRPC) are sent with every call.

    Raises ValueError for another protocol, InvalidRequest for a URL that is not one of the protocol.
    """
    kinds = {"http": ("http", "HttpTransport"), "grpc": ("grpc", "GrpcTransport")}
    transport: Transport = _open(kinds, url, protocol, headers)
    return transport


def open_async_transport(
    url: str | None, protocol: ProtocolName, headers: Mapping[str, str] | None = None
) -> AsyncTransport:
    """`open_transport` for asyncio."""
    kinds = {"http": ("http_aio", "AsyncHttpTransport"), "grpc": ("grpc", "AsyncGrpcTransport")}
    transport: AsyncTransport = _open(kinds, url, protocol, headers)
    return transport


def _open(
    kinds: Mapping[str, tuple[str, str]], url: str | None, protocol: str, headers: Mapping[str, str] | None
) -> Any:
    if protocol not in kinds:
        raise ValueError(f"unknown protocol {protocol!r}: use http or grpc")
    address, secure = _address(url or os.environ.get(URL_VARIABLES[protocol]) or DEFAULT_URLS[protocol], protocol)
    module, name = kinds[protocol]
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)(address, dict(headers or {}), secure=secure)


def _address(url: str, protocol: str) -> tuple[str, bool]:
    """A URL without its scheme, and whether it uses TLS."""
    scheme, separator, rest = url.rpartition("://")
    meant, secure = _SCHEMES.get(scheme.lower(), ("", False)) if separator else (protocol, False)
    if not meant:
        raise InvalidRequest(f"{url!r}: give host:port, or begin it with http://, https://, grpc:// or grpcs://")
    if meant != protocol:
        raise InvalidRequest(f"{url!r} is an address for the protocol {meant}, and this asks for {protocol}")
    rest = rest.rstrip("/")
    if protocol == "http" and ("," in rest or rest.startswith(("ipv4:", "ipv6:", "dns:"))):
        raise InvalidRequest(f"{url!r}: several addresses are for gRPC alone")
    if protocol == "grpc" and separator and "/" in rest:
        raise InvalidRequest(f"{url!r}: an address for gRPC has no path")
    return rest, secure
