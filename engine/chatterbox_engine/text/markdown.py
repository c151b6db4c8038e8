"""Markdown to the passages that it shows. The parser is markdown-it; only the places of its inline tokens are added."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import unescape
from html.parser import HTMLParser
from itertools import accumulate, pairwise
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.parser_inline import ParserInline
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType

from chatterbox_engine.text.passages import Text, joined
from chatterbox_engine.text.sentence_ends import PARAGRAPH_PAUSE, SENTENCE_PAUSE

LINE_CHARS = 50
"""A line at least this long without punctuation at its end is wrapped: its end is a space. A shorter one is a block."""

_BREAK = re.compile(r"<br\b", re.IGNORECASE)
_ORDINAL = re.compile(r"\d+[.)]")
_ENDED = (".", "!", "?", ":", ";", "\u0964", "\u061f", "\u3002", "\uff01", "\uff1f")
_MARKUP_CHARS = 100
"""More than the signs that begin a piece of code or an image."""
_UNSPOKEN = {"script", "style", "head", "title", "template"}
# fmt: off
_WITHIN_LINE = {
    "a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "dfn", "em", "font", "i", "kbd", "mark", "q", "s",
    "samp", "small", "span", "strong", "sub", "sup", "time", "u", "var",
}
# fmt: on


@dataclass(frozen=True)
class Block:
    """A line, a heading, a list item, a table's row."""

    text: Text
    pause: float
    """Seconds of silence after it."""


@dataclass
class Blocks:
    """The blocks of a text in their order, and what was left out."""

    blocks: list[Block] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, text: Text, pause: float) -> None:
        """Appends a block that is not blank."""
        if text.string.strip():
            self.blocks.append(Block(text, pause))


def parse(text: Text) -> Blocks:
    """The blocks of a Markdown text."""
    tokens = _parser().parse(text.string)
    found = Blocks()
    lines = _Lines(text)
    markers: list[Text] = []  # numbers of list items whose text has not come yet
    cells: list[Text] | None = None  # of a table's row
    for token, following in pairwise([*tokens, Token("", "", 0)]):
        if token.type == "tr_open":
            cells = []
        elif token.type == "tr_close" and cells is not None:
            found.add(joined(cells, ", "), SENTENCE_PAUSE)
            cells = None
        elif token.type == "list_item_open" and token.info and token.map:
            markers += lines.marker(token.map[0])
        elif token.type == "list_item_close":
            found.add(joined(markers, " "), SENTENCE_PAUSE)
            markers = []
        elif token.type == "fence":
            found.notes.append("a block of code is left out")
        elif token.type == "html_block" and token.map:
            for line in _html_lines(lines.between(*token.map)):
                found.add(line, SENTENCE_PAUSE)
        elif token.type == "inline" and cells is not None:
            cells.append(joined(list(_shown(token.children or [], lines.content(token))), " "))
        elif token.type == "inline":
            first, *others = _shown(token.children or [], lines.content(token))
            shown = [joined([*markers, first], " "), *others]
            markers = []
            for line in shown[:-1]:
                found.add(line, SENTENCE_PAUSE)
            inside = token.level > 1 and following.type != "heading_close"  # of a list or a quotation
            found.add(shown[-1], SENTENCE_PAUSE if inside else PARAGRAPH_PAUSE)
    return found


class _Lines:
    """The source's lines, and where a token's content stands in them."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._lines = text.string.split("\n")
        self._starts = [0, *accumulate(len(line) + 1 for line in self._lines)]
        self._cursor = 0

    def between(self, first: int, last: int) -> Text:
        """Lines [first, last)."""
        return self._text[self._starts[first] : self._starts[last] - 1]

    def marker(self, line: int) -> list[Text]:
        """The number that begins an item of an ordered list."""
        start = max(self._starts[line], self._cursor)
        match = _ORDINAL.search(self._text.string, start, self._starts[line + 1])
        if match is None:
            return []
        self._cursor = match.end()
        return [self._text[match.start() : match.end()]]

    def content(self, token: Token) -> Text:
        """The content of an inline token, line by line the end of a source line or a part of it."""
        parts: list[Text] = []
        first = token.map[0] if token.map else 0
        self._cursor = max(self._cursor, self._starts[first])
        for number, content in enumerate(token.content.split("\n"), first):
            at = self._find(content, min(number, len(self._lines) - 1))
            if parts:
                gap = self._text[max(0, at - 1) : at] if at else self._text[0:1]
                parts.append(Text("\n", gap.starts, gap.ends))
            parts.append(self._text[at : at + len(content)])
            self._cursor = at + len(content)
            if parts[-1].string != content:  # a cell whose bars are escaped
                parts[-1] = parts[-1].edited([(0, len(parts[-1]), content)])
        return Text.join(parts)

    def _find(self, content: str, line: int) -> int:
        tail = self._starts[line] + len(self._lines[line].rstrip()) - len(content)
        if tail >= self._cursor and self._text.string.startswith(content, tail):
            return tail
        found = self._text.string.find(content, self._cursor, self._starts[line + 1])
        return found if found >= 0 else min(self._cursor, len(self._text.string) - 1)


def _shown(children: Sequence[Token], content: Text) -> Iterator[Text]:
    """The lines that a paragraph shows."""
    line: list[Text] = []
    wrapped_at = 0  # where the source's line begins in `line`
    for token in children:
        at = token.meta.get("at", 0)
        if token.type in ("text", "code_inline", "image"):
            text = _literal(content, at, token.content)
            line.append(_code(text) if token.type == "code_inline" else text)
        elif token.type == "text_special":
            line.append(content[at : at + len(token.markup)].edited([(0, len(token.markup), token.content)]))
        elif token.type == "softbreak" and _is_wrapped(line[wrapped_at:]):
            line.append(_space(content, at))
            wrapped_at = len(line)
        elif token.type in ("softbreak", "hardbreak") or (token.type == "html_inline" and _BREAK.match(token.content)):
            yield joined(line)
            line, wrapped_at = [], 0
    yield joined(line)


def _literal(content: Text, at: int, string: str) -> Text:
    """A token's string, which stands in the content at or soon after `at`; a space in it may be a line end there."""
    window = content.string[at : at + len(string) + _MARKUP_CHARS].replace("\n", " ")
    found = max(0, window.find(string.replace("\n", " ")))
    part = content[at + found : at + found + len(string)]
    return part if part.string == string else part.edited([(0, len(part), string)])


def _is_wrapped(line: Sequence[Text]) -> bool:
    """Whether a line end only keeps a paragraph narrow: the sentence goes on after it."""
    shown = "".join(part.string for part in line).rstrip()
    return len(shown) >= LINE_CHARS and not shown.endswith(_ENDED)


_CALL = re.compile(r"\(\s*\)")
_DOT = re.compile(r"(?<=\w)\.(?=\w)")
_SIGNS = re.compile(r"[^\w.,\s]|_")


def _code(text: Text) -> Text:
    """The words of a piece of code."""
    return text.sub(_CALL, "").sub(_DOT, " dot ").sub(_SIGNS, " ")


def _html_lines(text: Text) -> Iterator[Text]:
    """The text between tags; those that are not part of a line end one."""
    reader = _HTMLReader(text)
    reader.feed(text.string)
    reader.close()
    reader.end_line()
    yield from reader.lines


class _HTMLReader(HTMLParser):
    def __init__(self, text: Text) -> None:
        super().__init__(convert_charrefs=False)
        self.lines: list[Text] = []
        self._line: list[Text] = []
        self._text = text
        self._hidden = 0
        self._starts = [0, *accumulate(len(line) + 1 for line in text.string.split("\n"))]

    def end_line(self) -> None:
        if self._line:
            self.lines.append(joined(self._line))
        self._line = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self._hidden += tag in _UNSPOKEN
        self._tag(tag)

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in _UNSPOKEN))
        self._tag(tag)

    def handle_data(self, data: str) -> None:
        self._add(data, len(data))

    def handle_entityref(self, name: str) -> None:
        self._add(unescape(f"&{name};"), len(name) + 2)

    def handle_charref(self, name: str) -> None:
        self._add(unescape(f"&#{name};"), len(name) + 3)

    def _tag(self, tag: str) -> None:
        if tag not in _WITHIN_LINE:
            self.end_line()

    def _add(self, shown: str, length: int) -> None:
        line, column = self.getpos()
        at = self._starts[line - 1] + column
        if not self._hidden:
            part = self._text[at : at + length]
            self._line.append(part if part.string == shown else part.edited([(0, len(part), shown)]))


def _space(content: Text, at: int) -> Text:
    return Text(" ", content.starts[at : at + 1], content.ends[at : at + 1])


class _PlacedState(StateInline):
    """Notes where each token begins in the inline content."""

    def push(self, ttype: str, tag: str, nesting: Literal[-1, 0, 1]) -> Token:
        token = super().push(ttype, tag, nesting)
        token.meta["at"] = self.pos
        return token

    def pushPending(self) -> Token:  # noqa: N802
        token = super().pushPending()
        content = token.content
        at = self.pos - len(content)
        if not self.src.startswith(content, max(0, at)):  # the spaces before a line end are left out
            at = self.src.rfind(content, 0, self.pos)
        token.meta["at"] = max(0, at)
        return token


class _PlacedInline(ParserInline):
    def parse(self, src: str, md: MarkdownIt, env: EnvType, tokens: list[Token]) -> list[Token]:
        state = _PlacedState(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens


@cache
def _parser() -> MarkdownIt:
    """CommonMark with tables. Indented text is no code: people indent poems and letters."""
    parser = MarkdownIt("commonmark")
    parser.inline = _PlacedInline()
    parser.inline.ruler.disable(["linkify", "strikethrough"])
    parser.inline.ruler2.enableOnly(["balance_pairs", "emphasis"])  # joined tokens would lose their places
    parser.core.ruler.disable(["text_join"])
    return parser.enable("table").disable("code")
