"""Rows of the input: an id, a text, and any input of the request contract."""

from __future__ import annotations

import base64
import inspect
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from chatterbox_client.request import speech_request

_PARAMETERS = inspect.signature(speech_request).parameters
INPUTS = tuple(name for name in _PARAMETERS if name != "text")
"""Columns that become inputs of the request, as the client names them."""

_INTEGERS = {name for name in INPUTS if str(_PARAMETERS[name].annotation).startswith("int")}
_NUMBERS = {name for name in INPUTS if str(_PARAMETERS[name].annotation).startswith("float")}


@dataclass(frozen=True)
class Row:
    """One text to speak."""

    id: str
    text: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `Client.speak`: texts, numbers, and `lexicon` as a mapping."""
    error: str = ""
    """Why it cannot be spoken; empty: it can."""


def make_row(record: Mapping[str, Any], fallback: str, ignored: Collection[str] = ()) -> Row:
    """A row of a table's record. `fallback` is the id of one that has none, `ignored` are columns to leave out."""
    given = {name: value for name, value in record.items() if name not in ignored and not _is_empty(value)}
    name = str(given.pop("id", fallback)).encode("utf-8", "replace").decode()
    text = given.pop("text", None)
    if not isinstance(text, str):
        return Row(name, "", error="the column 'text' is missing or no text")
    unknown = [repr(column) for column in given if column not in INPUTS]
    if unknown:
        message = f"unknown column {', '.join(unknown)}: the inputs are {', '.join(INPUTS)}; --ignore leaves one out"
        return Row(name, text, error=message)
    try:
        text.encode()  # half a surrogate pair is JSON, but no text
        return Row(name, text, {column: _converted(column, value) for column, value in given.items()})
    except ValueError as error:
        return Row(name, "", error=str(error))


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _converted(column: str, value: Any) -> Any:
    """A value as the client takes it: CSV has texts only, and Parquet floats where a column of integers has gaps."""
    try:
        if column in _INTEGERS:
            number = int(value) if isinstance(value, str) else value
            if isinstance(number, bool) or number != int(number) or abs(number) >= 1 << 63:
                raise ValueError
            return int(number)
        if column in _NUMBERS:
            return float(value)
        if column == "lexicon":
            return _lexicon(value)
    except (TypeError, ValueError, OverflowError) as error:
        wanted = {"lexicon": "a JSON object of texts"}.get(
            column, "an integer of 64 bits" if column in _INTEGERS else "a number"
        )
        raise ValueError(f"{column} is {value!r}; it must be {wanted}") from error
    if column == "reference_audio" and isinstance(value, bytes):
        return "data:;base64," + base64.b64encode(value).decode()
    if not isinstance(value, str):
        raise ValueError(f"{column} is {value!r}; it must be a text")
    return value


def _lexicon(value: Any) -> dict[str, str]:
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise TypeError
    words = {word: spoken for word, spoken in found.items() if spoken is not None}  # Parquet fills missing keys
    if not all(isinstance(spoken, str) for spoken in words.values()):
        raise TypeError
    return words
