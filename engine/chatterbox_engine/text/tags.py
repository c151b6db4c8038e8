"""Markup in square brackets: pauses, and the sounds that Turbo and Nano make."""

from __future__ import annotations

import re
from collections.abc import Collection

from chatterbox_engine.errors import InvalidRequest, quote
from chatterbox_engine.text.passages import Edit, Passage, Passages, Text

TAGS = ("laugh", "chuckle", "sigh", "cough", "gasp", "sniff", "groan", "shush", "clear throat")
"""Upstream's names (chatterbox-tts 0.1.7, README)."""

PAUSE = 0.5
"""Seconds of `[pause]` alone."""
LONGEST_PAUSE = 10.0
"""Seconds of one pause."""

_TAG = re.compile(rf"\[\s*(?:(?P<pause>pause\b[^\[\]\n]*)|(?P<sound>{'|'.join(TAGS)}))\s*\]", re.IGNORECASE)
_DURATION = re.compile(r"\+?(\d+(?:\.\d*)?|\.\d+)\s*(s|ms)?", re.IGNORECASE)


def parse(text: Text, language: str, sounds: Collection[str], model: str, source: str) -> Passages:
    """The passages between the pauses. Sounds are left out, with a note, unless they are among the model's `sounds`.

    Raises InvalidRequest for a pause whose length is none.
    """
    found = Passages()
    edits: list[Edit] = []
    start = 0

    def end(at: int) -> None:
        part = text[start:at].edited((first - start, last - start, new) for first, last, new in edits)
        found.add(Passage(part, language))
        edits.clear()

    for match in _TAG.finditer(text.string):
        if match["pause"] is None:
            name = match["sound"].lower()
            kept = name in sounds
            edits.append((*match.span(), f"[{name}]" if kept else " "))
            if not kept:
                found.notes.append(f"[{name}] is left out: {model} has no such sound")
            continue
        length = match["pause"][len("pause") :].strip(" :=")
        place = place_of(source, text.place(match.start()))
        seconds = duration(length, f"[pause] at {place}") if length else PAUSE
        end(match.start())
        found.pause(seconds, more=True)
        start = match.end()
    end(len(text))
    return found


def duration(text: str, name: str) -> float:
    """Seconds of "0.5s", "500ms" or "0.5"; raises InvalidRequest, which calls it `name`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(f"{name}: {quote(text)} is no duration; write 0.5s or 500ms")
    seconds = float(match[1]) / (1000 if (match[2] or "").lower() == "ms" else 1)
    if seconds > LONGEST_PAUSE:
        raise InvalidRequest(f"{name}: {quote(text)} is too long; a pause has at most {LONGEST_PAUSE:g} s")
    return seconds


def place_of(source: str, at: int) -> str:
    """Line and column of a character, from 1."""
    before = source[:at].replace("\r\n", "\n").replace("\r", "\n")
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
