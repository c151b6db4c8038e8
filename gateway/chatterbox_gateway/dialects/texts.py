"""What would be spoken of a text, stage by stage, and the server's lexicons."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, ConfigDict, Field

from chatterbox_gateway import parameters
from chatterbox_gateway.dialects.openai import served_model
from chatterbox_gateway.errors import OpenAIError, documented
from chatterbox_gateway.json_route import JsonRoute
from chatterbox_gateway.speech import Speaker, SpeechRequest


class TextBody(parameters.Body):
    """A text and how it is read."""

    text: str = Field(min_length=1)
    model: str | None = Field(None, description="A served model.")
    voice: str | None = Field(None, description="A stored voice, whose lexicon is used.")
    language: str | None = Field(None, description="Of a multilingual model.")
    text_normalization: str | None = Field(None, description="`none`, `plain` or `spoken`.")
    markup: str | None = Field(None, description="`none` or `auto`: SSML, and tags like [pause 0.5s].")
    lexicon: dict[str, str] | None = Field(None, description="What to say for a word.")

    model_config = ConfigDict(extra="forbid")


class Part(BaseModel):
    """A part of the text."""

    text: str
    start: int
    """First character of the source that it stands for, from 0."""
    end: int
    """Character after its last one."""
    language: str
    pause: float | None
    """Seconds of silence after it; null: not decided yet."""
    rate: float
    """How many times as fast as usual it is played."""


class Stage(BaseModel):
    """What a stage makes of the text."""

    stage: str
    passages: list[Part]


class ShownText(BaseModel):
    """What would be spoken, and how it came about."""

    stages: list[Stage]
    segments: list[Part]
    lead: float
    """Seconds of silence before the first segment."""
    notes: list[str]
    """What is left out and why."""


class Lexicons(BaseModel):
    """Words and what is spoken for them."""

    words: dict[str, str]
    """For every voice."""
    voices: dict[str, dict[str, str]]
    """Of single voices, before those of all."""
    error: str | None
    """Why the file as it is now cannot be used: the entries are those before it."""


def router(speaker: Speaker) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["Text"], route_class=JsonRoute)

    @routes.post("/v1/text", responses=documented(OpenAIError, 400, 403, 404, 413, 500, 503, 504))
    async def show_text(http: Request, body: Annotated[TextBody, Body()]) -> ShownText:
        """Show what would be spoken of a text, without speaking it."""
        options = body.model_dump(exclude={"text", "model", "voice"}, exclude_none=True)
        request = SpeechRequest(body.text, served_model(body.model, speaker.models), body.voice or None, options)
        return ShownText.model_validate(await speaker.show_text(request, http.state.record))

    @routes.get("/v1/lexicons", responses=documented(OpenAIError, 404, 500, 503, 504))
    async def list_lexicons() -> Lexicons:
        """List the pronunciations of the server and of its voices."""
        return Lexicons.model_validate(vars(await speaker.voices.lexicons()))

    return routes
