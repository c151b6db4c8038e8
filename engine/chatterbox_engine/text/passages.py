"""Text that knows where it comes from: every character keeps its place in the text of the request."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from unicodedata import category

INVISIBLE_LETTERS = "\u115f\u1160\u3164\uffa0"
"""Hangul's fillers."""

CharSpan = tuple[int, int]
"""Characters [start, end) of a text."""

Edit = tuple[int, int, str]
"""Characters [start, end) of a text, and what replaces them."""


@dataclass(frozen=True)
class Text:
    """A string, and for each of its characters the part of the source that it stands for.

    Immutable: every change makes another one, whose characters still lead to the same source. A replacement stands for
    all of what it replaces.
    """

    string: str
    starts: Sequence[int]
    """[characters] First source character of each."""
    ends: Sequence[int]
    """[characters] Source character after its last one."""

    @classmethod
    def of(cls, source: str) -> Text:
        """The source itself."""
        return cls(source, range(len(source)), range(1, len(source) + 1))

    @classmethod
    def join(cls, parts: Iterable[Text]) -> Text:
        """Texts of one source, one after the other."""
        parts = list(parts)
        if len(parts) == 1:
            return parts[0]
        starts, ends = array("q"), array("q")
        for part in parts:
            starts.extend(part.starts)
            ends.extend(part.ends)
        return cls("".join(part.string for part in parts), starts, ends)

    def __len__(self) -> int:
        return len(self.string)

    def __getitem__(self, part: slice) -> Text:
        return Text(self.string[part], self.starts[part], self.ends[part])

    def source(self, start: int = 0, end: int | None = None) -> CharSpan:
        """The source characters [start, end) that characters [start, end) stand for; this text must have some."""
        last = len(self) if end is None else end
        return min(self.starts[start:last]), max(self.ends[start:last])

    def place(self, at: int) -> int:
        """The source character at which a character begins, or at which the text ends."""
        if at < len(self):
            return self.starts[at]
        return self.ends[-1] if len(self) else 0

    def edited(self, edits: Iterable[Edit]) -> Text:
        """With some parts replaced. The edits are in order and do not overlap."""
        done, strings, starts, ends = 0, [], array("q"), array("q")
        for start, end, new in edits:
            strings += [self.string[done:start], new]
            starts.extend(self.starts[done:start])
            ends.extend(self.ends[done:start])
            if new:
                first = self.starts[start] if end > start else self.place(start)
                starts.extend([first] * len(new))
                ends.extend([self.ends[end - 1] if end > start else first] * len(new))
            done = end
        if not strings:
            return self
        starts.extend(self.starts[done:])
        ends.extend(self.ends[done:])
        return Text("".join([*strings, self.string[done:]]), starts, ends)

    def sub(self, pattern: re.Pattern[str], new: str | Callable[[re.Match[str]], str]) -> Text:
        """With all matches of a pattern replaced, as `re.sub` does; a string is taken as it is."""
        replace = new if callable(new) else lambda _match: new
        matches = pattern.finditer(self.string)
        return self.edited((*m.span(), word) for m in matches if (word := replace(m)) != m[0])

    def strip(self) -> Text:
        """Without the whitespace around it."""
        start = len(self) - len(self.string.lstrip())
        return self[start : max(start, len(self.string.rstrip()))]


def joined(parts: Sequence[Text], between: str = "") -> Text:
    """Texts of one source in one, with a string between them."""
    pieces: list[Text] = []
    for part in parts:
        if pieces and between:
            at = [pieces[-1].place(len(pieces[-1]))] * len(between)
            pieces.append(Text(between, at, at))
        pieces.append(part)
    return Text.join(pieces) if pieces else Text("", (), ())


def is_speakable(text: str) -> bool:
    """Whether a text has letters or numbers of any script; punctuation, symbols, emoji and lone marks are silent."""
    return any(category(char)[0] in "LN" and char not in INVISIBLE_LETTERS for char in text)


@dataclass(frozen=True)
class Passage:
    """A part of a request's text that nothing is joined to: a line, a heading, what is between two pauses."""

    text: Text
    language: str
    pause: float | None = None
    """Seconds of silence after it; None leaves it to the punctuation."""
    rate: float = 1.0
    """How many times as fast as usual it is to be played."""


@dataclass
class Passages:
    """Passages in their order, while a stage makes them, with the silence between them and what was left out."""

    lead: float = 0.0
    """Seconds of silence before the first."""
    passages: list[Passage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    asked: float = 0.0
    """Seconds of the pauses that markup asks for."""

    def add(self, passage: Passage) -> None:
        """Appends a passage. One that has nothing to speak leaves its pause."""
        if is_speakable(passage.text.string):
            self.passages.append(passage)
        elif passage.pause is not None:
            self.pause(passage.pause)

    def pause(self, seconds: float, *, more: bool = False) -> None:
        """Makes the silence at the end at least this long, or this much longer."""
        self.asked += seconds * more
        last = self.passages[-1] if self.passages else None
        before = self.lead if last is None else last.pause or 0.0
        pause = before + seconds if more else max(before, seconds)
        if last is None:
            self.lead = pause
        else:
            self.passages[-1] = replace(last, pause=pause)
