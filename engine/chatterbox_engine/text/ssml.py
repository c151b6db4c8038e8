"""SSML to passages. The parser is expat; document types and entities of one's own are refused.

Source: W3C, Speech Synthesis Markup Language 1.1, of which this is a part.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import NoReturn
from xml.parsers import expat

from chatterbox_engine.errors import InvalidRequest, quote
from chatterbox_engine.text.passages import Passage, Passages, Text, is_speakable, joined
from chatterbox_engine.text.sentence_ends import PARAGRAPH_PAUSE, SENTENCE_PAUSE
from chatterbox_engine.text.tags import duration, place_of

ELEMENTS: Mapping[str, tuple[str, ...]] = {
    "speak": ("version", "xml:lang", "xmlns", "xmlns:xsi", "xsi:schemaLocation"),
    "p": ("xml:lang",),
    "s": ("xml:lang",),
    "break": ("time", "strength"),
    "sub": ("alias",),
    "say-as": ("interpret-as", "format", "detail"),
    "prosody": ("rate",),
    "lang": ("xml:lang",),
}
"""The elements, and the attributes of each."""

STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.2, "medium": 0.4, "strong": 0.7, "x-strong": 1.0}
"""Seconds of a break that has no time."""

_PAUSES = {"p": PARAGRAPH_PAUSE, "s": SENTENCE_PAUSE}
_RATES = {"x-slow": 0.5, "slow": 0.75, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.5}
_RATE = re.compile(r"(?P<change>[+-])?(?P<number>\d+(?:\.\d+)?)(?P<percent>%)?")
SLOWEST, FASTEST = 0.25, 4.0
"""Rates of `prosody`."""
_SPACES = re.compile(r"\s+")
_DOCUMENT = re.compile(r"\s*(?:<\?xml\b[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:speak\b|!doctype)", re.IGNORECASE | re.DOTALL)

SayAs = Callable[[str, str, str, str], "str | None"]
"""A text, how it is to be read, its format, its language, to what is spoken; None for a way that is not known."""


def is_ssml(text: str) -> bool:
    """Whether a text is a document whose root is `speak`."""
    return _DOCUMENT.match(text) is not None


def parse(
    text: Text, language: str, languages: Collection[str], say_as: SayAs, source: str, *, rates: bool
) -> Passages:
    """The passages of a document. rates: whether `prosody` may ask for other rates than the usual one.

    Raises InvalidRequest, with line and column in `source`, for what is malformed, an element or an attribute that is
    not in ELEMENTS, a language that is not among `languages`.
    """
    return _Reader(text, language, languages, say_as, source, rates=rates).read()


@dataclass
class _Open:
    """An element whose end has not come yet."""

    name: str
    attributes: Mapping[str, str]
    language: str
    rate: float
    begins: int
    """The number of pieces before it."""


class _Reader:
    def __init__(
        self, text: Text, language: str, languages: Collection[str], say_as: SayAs, source: str, *, rates: bool
    ) -> None:
        self._text = text
        self._languages = languages
        self._say_as = say_as
        self._source = source
        self._language = language
        self._rates = rates
        self._rate = 1.0
        self._open: list[_Open] = []
        self._pieces: list[Text] = []
        self._found = Passages()
        self._due = 0.0  # seconds, before the next passage
        encoded = text.string.encode()
        self._encoded = encoded
        ascii_only = len(encoded) == len(text.string)
        self._bytes = None if ascii_only else [0, *accumulate(len(char.encode()) for char in text.string)]
        self._parser = parser = expat.ParserCreate("utf-8")
        parser.buffer_text = False
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._doctype
        parser.EntityDeclHandler = self._doctype

    def read(self) -> Passages:
        try:
            self._parser.Parse(self._encoded, True)
        except expat.ExpatError as error:
            self._refuse(f"malformed: {expat.errors.messages[error.code]}", self._parser.ErrorByteIndex)
        return self._found

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name not in ELEMENTS:
            self._refuse(f"the element {quote(name)} is unknown; the elements are {', '.join(ELEMENTS)}")
        if (name == "speak") != (not self._open):
            self._refuse("the outermost element must be 'speak', and no other one")
        for attribute in attributes:
            if attribute not in ELEMENTS[name]:
                self._refuse(f"{quote(attribute)} is no attribute of {name!r}, which has {', '.join(ELEMENTS[name])}")
        outer = self._open[-1].name if self._open else ""
        if outer in ("sub", "say-as", "break"):
            self._refuse(f"{outer!r} holds no element, but {name!r}")
        if name in _PAUSES:
            self._flush(_PAUSES[name])
        language = self._language_of(name, attributes)
        rate = self._rate_of(attributes["rate"]) if "rate" in attributes else self._rate
        if (language, rate) != (self._language, self._rate):
            self._flush(None)
        self._open.append(_Open(name, attributes, self._language, self._rate, len(self._pieces)))
        self._language, self._rate = language, rate
        if name == "break":
            self._break(attributes)

    def _end(self, name: str) -> None:
        element = self._open.pop()
        if name in ("sub", "say-as"):
            self._replace(element)
        if name in _PAUSES:
            self._flush(_PAUSES[name])
        if (element.language, element.rate) != (self._language, self._rate) or name == "speak":
            self._flush(None)
        self._language, self._rate = element.language, element.rate

    def _characters(self, data: str) -> None:
        at = self._at(self._parser.CurrentByteIndex)
        if not self._open[-1:] or (self._open[-1].name == "break" and data.strip()):
            self._refuse("'break' holds no text")
        length = len(data)
        if self._text.string.startswith("&", at) and not self._text.string.startswith(data + data, at):
            length = self._text.string.find(";", at) + 1 - at
        piece = self._text[at : at + length]
        self._pieces.append(piece if piece.string == data else piece.edited([(0, len(piece), data)]))

    def _replace(self, element: _Open) -> None:
        """Puts what is spoken in the place of what an element holds."""
        held = joined(self._pieces[element.begins :])
        if element.name == "sub":
            spoken = element.attributes.get("alias")
            if spoken is None:
                self._refuse("'sub' needs the attribute alias")
        else:
            way = element.attributes.get("interpret-as", "")
            spoken = self._say_as(held.string.strip(), way, element.attributes.get("format", ""), self._language)
            if spoken is None:
                self._refuse(f"{quote(held.string.strip())} cannot be read as {quote(way)}")
        self._pieces[element.begins :] = [held.edited([(0, len(held), spoken)])] if len(held) else []

    def _break(self, attributes: Mapping[str, str]) -> None:
        strength = attributes.get("strength", "medium")
        if strength not in STRENGTHS:
            self._refuse(f"the strength is {quote(strength)}; it must be one of {', '.join(STRENGTHS)}")
        seconds = STRENGTHS[strength]
        if "time" in attributes:
            seconds = duration(attributes["time"], f"SSML, {self._place()}: break")
        if seconds:
            self._flush(None)
            self._found.pause(seconds, more=True)

    def _rate_of(self, given: str) -> float:
        match = _RATE.fullmatch(given.strip())
        rate = _RATES.get(given.strip())
        if match is not None:
            rate = float(match["number"]) / (100 if match["percent"] else 1)
            rate = {"+": 1 + rate, "-": 1 - rate, None: rate}[match["change"]]
        if rate is None or not SLOWEST <= rate <= FASTEST:
            names = ", ".join(_RATES)
            self._refuse(f"the rate is {quote(given)}; it must be one of {names}, or from 25% to 400%")
        if rate != 1 and not self._rates:
            self._refuse(f"the rate is {quote(given)}; other rates than medium need the gateway, or markup auto_rate")
        return rate

    def _language_of(self, name: str, attributes: Mapping[str, str]) -> str:
        given = attributes.get("xml:lang")
        if given is None:
            if name == "lang":
                self._refuse("'lang' needs the attribute xml:lang")
            return self._language
        language = given.strip().lower().partition("-")[0]
        if language not in self._languages:
            self._refuse(f"the language is {quote(given)}; the model speaks {', '.join(self._languages)}")
        return language

    def _flush(self, pause: float | None) -> None:
        """Ends a passage. Its pause waits for the next one: there is none after the last."""
        text = joined(self._pieces).sub(_SPACES, " ").strip()
        self._pieces.clear()
        for element in self._open:
            element.begins = 0
        if is_speakable(text.string):
            if self._due and self._found.passages:
                self._found.pause(self._due)
            self._due = 0.0
            self._found.add(Passage(text, self._language, rate=self._rate))
        self._due = max(self._due, pause or 0.0)

    def _doctype(self, *_: object) -> None:
        self._refuse("document types and entities are not allowed")

    def _at(self, byte: int) -> int:
        """The character at a byte."""
        return byte if self._bytes is None else bisect_left(self._bytes, byte)

    def _place(self, byte: int | None = None) -> str:
        at = self._at(self._parser.CurrentByteIndex if byte is None else byte)
        return place_of(self._source, self._text.place(at))

    def _refuse(self, reason: str, byte: int | None = None) -> NoReturn:
        raise InvalidRequest(f"SSML, {self._place(byte)}: {reason}")
