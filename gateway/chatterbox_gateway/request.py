"""A request to OpenAI's `POST /v1/audio/speech`, parsed into arguments of the client."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chatterbox_client.errors import InvalidRequest, NotFound, quote
from chatterbox_client.request import speech_request, stream_request
from chatterbox_gateway.encoding import FORMATS, Format

THEIR_MODELS = ("tts-", "gpt-")
"""Prefixes of OpenAI's own model names, which mean the first model that is served."""

THEIR_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse")
)
"""OpenAI's own voices. They mean the built-in voice unless a voice is stored under the name."""

_OURS = frozenset(inspect.signature(stream_request).parameters) - {"text", "voice"}
_OF_STREAMS = _OURS - frozenset(inspect.signature(speech_request).parameters)
_THEIRS = frozenset(("model", "input", "voice", "response_format", "speed", "instructions", "stream_format"))
_KNOWN = _THEIRS | _OURS | {"stream"}
_MOST, _LONGEST = 8, 40
"""Maximum number of unknown fields in a message, and of characters of each name."""


Sent = Literal["whole", "stream", "events"]


@dataclass(frozen=True)
class SpeechRequest:
    """What to synthesise, and how to send it."""

    model: str
    text: str
    voice: str | None
    """None: the built-in voice, or `reference_audio` of the options."""
    options: Mapping[str, Any]
    """Other arguments of `Client.stream`, or of `Client.speak` if `sent` is "whole"."""
    format: Format
    sent: Sent


def parse(body: Any, models: Sequence[str], *, lenient: bool = False) -> SpeechRequest:
    """Parses the JSON body. models: served models, at least one; lenient: ignore unsupported fields.

    Besides OpenAI's fields it may have the arguments of `Client.stream` by name (`reference_audio` in base64 or as a
    `data:` URI) and `stream`; false asks for one whole response. A null field counts as missing. Raises InvalidRequest
    for wrong or unsupported values, NotFound for a model that is not served.
    """
    if not isinstance(body, dict):
        raise InvalidRequest("the body is not a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    if lenient:
        given = {name: value for name, value in given.items() if name in _KNOWN - {"speed", "instructions"}}
    if unknown := sorted(set(given) - _KNOWN):
        names = ", ".join(name[:_LONGEST] for name in unknown[:_MOST])
        raise InvalidRequest(f"unknown field {names}: the known ones are {', '.join(sorted(_KNOWN))}")
    if given.get("speed", 1) != 1:
        raise InvalidRequest("speed: Chatterbox does not support it; leave it out or set it to 1")
    if given.get("instructions"):
        raise InvalidRequest("instructions: Chatterbox does not support them; use preset, exaggeration or cfg_weight")
    if given.get("input") == "":
        raise InvalidRequest("input is empty")
    name = _one_of(given, "response_format", FORMATS, "mp3")
    sent = _sent(given, name)
    if sent == "whole" and (unused := sorted(_OF_STREAMS & set(given))):
        raise InvalidRequest(f"{', '.join(unused)}: this response is not streamed")
    options = _options(given)
    return SpeechRequest(
        model=served_model(_string(given, "model", models[0]), models),
        text=_string(given, "input"),
        voice=_voice(given, options),
        options=options,
        format=FORMATS[name],
        sent=sent,
    )


def served_model(name: str, models: Sequence[str]) -> str:
    """The served model that a name refers to. models: served models, at least one. Raises NotFound."""
    if name in models:
        return name
    if name.startswith(THEIR_MODELS):
        return models[0]
    raise NotFound(f"there is no model {quote(name)}: served is {', '.join(models)}")


def _voice(given: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    voice = given.get("voice")
    if isinstance(voice, dict):  # OpenAI's form for custom voices
        voice = _string(voice, "id")
    elif voice is not None:
        voice = _string(given, "voice")
    if "reference_audio" in options and voice in THEIR_VOICES | {"default"}:  # OpenAI's client always sends a voice
        return None
    return voice


def _sent(given: Mapping[str, Any], name: str) -> Sent:
    events = _one_of(given, "stream_format", ("audio", "sse"), "audio") == "sse"
    # Their header holds the length, which is unknown while streaming; players misread or refuse files without it.
    file = name in ("wav", "flac") and not _OF_STREAMS & set(given)
    stream = given.get("stream", events or not file)
    if not isinstance(stream, bool):
        raise InvalidRequest(f"stream must be true or false, not {quote(stream)}")
    if events and not stream:
        raise InvalidRequest("stream_format: sse needs stream: true")
    return "events" if events else "stream" if stream else "whole"


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in given.items() if name in _OURS}
    for name in ("language", "preset", "reference_audio"):
        if name in options:
            options[name] = _string(options, name)
    if "reference_audio" in options:  # base64 or a data: URI; the server decodes it
        options["reference_audio"] = options["reference_audio"].encode("ascii", "replace")
    return options


def _string(given: Mapping[str, Any], field: str, default: str | None = None) -> str:
    value = given.get(field, default)
    if not isinstance(value, str):
        raise InvalidRequest(
            f"{field} is missing" if value is None else f"{field} must be a string, not {quote(value)}"
        )
    return value


def _one_of(given: Mapping[str, Any], field: str, known: Collection[str], default: str) -> str:
    value = _string(given, field, default)
    if value not in known:
        raise InvalidRequest(f"{field} must be one of {', '.join(known)}, not {quote(value)}")
    return value
