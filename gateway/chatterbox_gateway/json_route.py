"""Routes that read a JSON body whatever its content type says, as their callers rely on: `curl -d` sends a form's."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders

_FORMS = "multipart/form-data"


class JsonRoute(APIRoute):
    """Reads every body that is not a multipart form as JSON. Foreign pages, which may send plain text to any address,
    are refused by their origin."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            headers = MutableHeaders(scope=request.scope)
            if not headers.get("content-type", "").lower().startswith(_FORMS):
                headers["content-type"] = "application/json"
            return await handle(Request(request.scope, request.receive))

        return handle_json
