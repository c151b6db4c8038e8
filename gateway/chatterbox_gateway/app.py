"""The application: dialects and pages over one `Speaker`, and the middleware around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from chatterbox_client.errors import ChatterboxClientError
from chatterbox_client.transports import AsyncTransport
from chatterbox_gateway import errors, metrics
from chatterbox_gateway.dialects import classic, classic_socket, elevenlabs, elevenlabs_sockets, openai, texts
from chatterbox_gateway.draining import Drain
from chatterbox_gateway.errors import Refusal
from chatterbox_gateway.idle import IdleModels, TritonControl, activity
from chatterbox_gateway.keys import KeyGuard, Keys
from chatterbox_gateway.logs import RequestLog
from chatterbox_gateway.metrics import GatewayMetrics
from chatterbox_gateway.origins import OriginGuard
from chatterbox_gateway.server_status import ServerStatus
from chatterbox_gateway.settings import Settings
from chatterbox_gateway.speech import Speaker
from chatterbox_gateway.tracing import Tracing

PAGE = Path(__file__).parent / "page"
"""The page at `/`, and its files under `/page/`. Their links are relative, so that they work behind a sub-path."""

SWAGGER = Path(fastapi_offline.__file__).parent / "static"

EXPOSED = ["X-Request-ID", "X-RTF", "X-Generation-Time", "X-Audio-Duration", "X-Sample-Rate", "Warning", "Retry-After"]
"""Headers that pages of other origins may read."""


FRESH = {"Cache-Control": "no-cache"}
"""Of the page's files: a browser asks whether they have changed, so that it does not mix those of two versions."""


@dataclass(frozen=True)
class Gateway:
    """The ASGI application, and what ends its requests at a shutdown."""

    asgi: ASGIApp
    drain: Drain


def create(transport: AsyncTransport, settings: Settings, tracing: Tracing | None = None) -> Gateway:
    """A gateway. transport: gRPC transport to the Triton servers; tracing: None records no spans.

    Raises ValueError for keys that cannot be used.
    """
    counted, tracing = GatewayMetrics(), tracing or Tracing()
    status = ServerStatus(settings.metrics_urls)
    idle = _idle(transport, settings, status) if settings.idle_unload else None
    speaker = Speaker(transport, settings, counted, tracing, idle)
    api = _api(speaker, settings, counted, status, idle)
    app: ASGIApp = KeyGuard(api, Keys(settings.keys, settings.limits, settings.batch_keys))
    app = OriginGuard(app, settings.origins)
    app = CORSMiddleware(
        app,
        allow_origins=sorted(settings.origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
    )
    drain = Drain(app)
    return Gateway(RequestLog(drain, counted, tracing), drain)


def _idle(transport: AsyncTransport, settings: Settings, status: ServerStatus) -> IdleModels:
    async def loaded() -> bool:
        return all([await transport.ready(f"{model}_stream", settings.timeout) for model in settings.models])

    return IdleModels(
        TritonControl(settings.control_url, settings.control_headers),
        settings.models,
        settings.idle_unload,
        loaded=loaded,
        active=partial(activity, status, settings.models),
    )


def _api(
    speaker: Speaker, settings: Settings, counted: GatewayMetrics, status: ServerStatus, idle: IdleModels | None
) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        unloading = None if idle is None else asyncio.create_task(idle.run())
        yield
        if unloading is not None:
            unloading.cancel()
        await speaker.close()

    api = FastAPI(
        title="chatterbox-gateway",
        version=version("chatterbox-gateway"),
        description="Speech by a chatterbox-triton server.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    kinds = (Refusal, ChatterboxClientError, RequestValidationError, HTTPException, Exception)
    for kind in kinds:
        api.add_exception_handler(kind, _refuse)
    secured = [Security(HTTPBearer(auto_error=False))] if settings.keys else []
    dialects = [
        openai.router(speaker, settings),
        elevenlabs.router(speaker, settings, status),
        classic.router(speaker, settings, status, counted),
        texts.router(speaker),
    ]
    pages = _pages(counted)
    for routes in dialects:
        api.include_router(routes, dependencies=secured)
    api.include_router(elevenlabs_sockets.router(speaker, settings, status))
    api.include_router(classic_socket.router(speaker, settings))
    api.include_router(pages)
    api.state.routes = [route for routes in (*dialects, pages) for route in routes.routes]
    api.mount("/page", _PageFiles(directory=PAGE))
    api.mount("/swagger", StaticFiles(directory=SWAGGER))
    vars(api)["openapi"] = lambda: _schema(api)
    return api


class _PageFiles(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """See Starlette."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(FRESH)
        return response


def _pages(counted: GatewayMetrics) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={**FRESH, "Content-Security-Policy": "frame-ancestors 'none'"})

    @routes.get("/docs")
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="chatterbox-gateway",
            swagger_js_url="swagger/swagger-ui-bundle.js",
            swagger_css_url="swagger/swagger-ui.css",
            swagger_favicon_url="swagger/favicon.png",
        )

    @routes.get("/metrics")
    async def metrics_page() -> Response:
        return Response(counted.page(), headers={"Content-Type": metrics.CONTENT_TYPE})

    return routes


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # unknown path, wrong method, body too large or unreadable
        refused = Refusal(error.status_code, str(error.detail), error.headers)
        if error.status_code == 405:
            refused.headers["Allow"] = ", ".join(_methods(request))
    else:
        refused = errors.refusal(error)
    request.state.record.ended("refused", refused.message)
    return errors.response(request.url.path, refused)


def _methods(request: Request) -> list[str]:
    """Those of all routes of the request's path: Starlette names only the first route's."""
    matching = [route for route in request.app.state.routes if route.path_regex.match(request.url.path)]
    return sorted({name for route in matching for name in route.methods})


def _schema(api: FastAPI) -> dict[str, Any]:
    """FastAPI's schema without its 422: what is wrong with a request is answered 400."""
    if api.openapi_schema is None:
        schema = get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(name, None)
        api.openapi_schema = schema
    return api.openapi_schema
