"""Refusals: their statuses, and their form in each dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from chatterbox_client.errors import (
    ChatterboxClientError,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    Timeout,
    Unavailable,
    quote,
)

_STATUS: dict[type[ChatterboxClientError], int] = {
    InvalidRequest: 400,
    NotFound: 404,
    ConnectionFailed: 503,
    Unavailable: 503,
    Timeout: 504,
}

ELEVENLABS = ("/v1/text-to-speech/", "/v1/voices")
"""Prefixes of the paths of ElevenLabs' dialect."""

_ELEVENLABS_NAMES = {
    401: "invalid_api_key",
    404: "not_found",
    429: "too_many_concurrent_requests",
    500: "internal_error",
    503: "system_busy",
    504: "timeout",
}

_MOST = 4
"""Maximum number of wrong fields in a message."""


class Refusal(Exception):
    """A request ends with this status and message. `headers` are those of the response."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


class ErrorDetail(BaseModel):
    """OpenAI's error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIError(BaseModel):
    """The body of an error under `/v1/`."""

    error: ErrorDetail


class ElevenLabsDetail(BaseModel):
    """ElevenLabs' error."""

    status: str
    message: str


class ElevenLabsError(BaseModel):
    """The body of an error of ElevenLabs' routes."""

    detail: ElevenLabsDetail


class PlainError(BaseModel):
    """The body of an error elsewhere."""

    detail: str


def refusal(error: Exception) -> Refusal:
    """The refusal for an error of the client or of the request's validation."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        return Refusal(400, wrong_fields(error.errors(), outer=1))
    if isinstance(error, ChatterboxClientError):
        status = _STATUS.get(type(error), 500)
        return Refusal(status, error.message, {"Retry-After": "1"} if status == 503 else None)
    return Refusal(500, "the gateway failed; its log has the reason")


def response(path: str, refused: Refusal) -> JSONResponse:
    """The response in the form of the dialect that the path belongs to."""
    body: dict[str, Any] = {"detail": refused.message}
    if path.startswith(ELEVENLABS):
        body = {"detail": {"status": elevenlabs_name(refused), "message": refused.message}}
    elif path.startswith("/v1/"):
        body = openai_error(refused)
    return JSONResponse(body, status_code=refused.status, headers=refused.headers)


def elevenlabs_name(refused: Refusal) -> str:
    """ElevenLabs' name of an error."""
    return _ELEVENLABS_NAMES.get(refused.status, "invalid_request")


def openai_error(refused: Refusal) -> dict[str, Any]:
    """OpenAI's form."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    return OpenAIError(error=ErrorDetail(message=refused.message, type=kind)).model_dump()


def documented(model: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route, for its schema."""
    meaning = {
        400: "the request is wrong",
        401: "the key is missing or wrong",
        403: "a web page of a foreign origin sent the request",
        404: "the voice or model does not exist",
        413: "the body is too large",
        429: "the key's limit is reached; Retry-After tells when to try again",
        500: "the server failed",
        503: "the server is full, stopping or not reachable",
        504: "the server did not answer in time",
    }
    return {status: {"model": model, "description": meaning[status]} for status in statuses}


def wrong_fields(errors: Sequence[Mapping[str, Any]], outer: int = 0) -> str:
    """The fields that are wrong, and why. A message does not repeat megabytes of the request."""
    lines = []
    for error in errors[:_MOST]:
        if error["type"] == "json_invalid":
            return f"the body is not JSON: {error['ctx']['error']}"
        name = ".".join(str(part)[:40] for part in error["loc"][outer : outer + 2]) or "the body"
        what = str(error["msg"])[:200]
        shown = "" if error["type"] == "missing" else f", not {quote(error['input'])}"
        lines.append(f"{name}: {what[:1].lower()}{what[1:]}{shown}")
    return "; ".join(lines)
