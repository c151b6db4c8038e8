"""The stage `plain`: Markdown, HTML, addresses and emoji become words and pauses, or are left out."""

from __future__ import annotations

import re
from dataclasses import replace

from chatterbox_engine.text import markdown
from chatterbox_engine.text.links import spoken_links
from chatterbox_engine.text.passages import Passage, Text, is_speakable
from chatterbox_engine.text.tags import TAGS

_PICTURES = re.compile(
    "[\U0001f000-\U0001faff\u2190-\u21ff\u2300-\u23ff\u2460-\u24ff\u2500-\u27bf\u2900-\u297f\u2b00-\u2bff\u3030\u303d"
    "\u20e3\U000e0020-\U000e007f\ufffd]+"
)
"""Emoji, arrows, boxes, and what stands for an unreadable character. Circled digits are not spoken either."""
_SIGNS = re.compile(
    rf"(\[(?:{'|'.join(TAGS)})\])|[*`\\|^{{}}~\[\]]+|_+|[<>](?!\s?\d)|(?<!\d)(?<!\d\s)[<>]|&(?=#?\w+;)", re.IGNORECASE
)
"""Signs of Markdown and HTML that are left where something is unfinished."""
_HASHTAG = re.compile(r"#(?=[^\W\d])|^#+\s")
_MARK = re.compile(r"^\s*(?:[-+*>\u2022\u25e6\u25aa\u2023\u00b7\u2013\u2014]+\s+)+")
_TASK = re.compile(r"^\s*\[[ xX]\]\s+")
"""A box of a task list."""
_SPACES = re.compile(r"\s+")
_BEFORE_PUNCTUATION = re.compile(r" +(?=[,.!?;:](?:\s|$))")
_OPEN_END = re.compile(r"[^\W_][\"')\]]*$")
_STOPS = {"hi": "\u0964", "ja": "\u3002", "zh": "\u3002"}


def plain(passage: Passage, *, marked_up: bool) -> tuple[list[Passage], list[str]]:
    """The passages that a text shows, each with a full stop where it has no end of its own; notes of what is left out.

    marked_up: SSML has said what is a passage, so there is no Markdown in it.
    """
    language = passage.language
    if marked_up:
        return [replace(passage, text=words(passage.text, language))], []
    found = markdown.parse(passage.text)
    passages = [Passage(words(block.text, language), language, block.pause) for block in found.blocks]
    passages = [block for block in passages if is_speakable(block.text.string)]
    if not passages:
        return [Passage(passage.text[:0], language, passage.pause)], found.notes
    last = passages[-1]
    passages[-1] = Passage(last.text, language, passage.pause)
    return [Passage(_closed(block.text, language), language, block.pause) for block in passages], found.notes


def words(text: Text, language: str) -> Text:
    """One line without signs that are not spoken."""
    while True:
        links = spoken_links(text.sub(_PICTURES, " "), language)
        shown = links.sub(_TASK, "").sub(_SIGNS, lambda sign: sign[1] or " ").sub(_MARK, "").sub(_HASHTAG, "")
        shown = shown.sub(_SPACES, " ").sub(_BEFORE_PUNCTUATION, "").strip()
        if shown.string == text.string:
            return shown
        text = shown  # an address may have come out of what stood around it


def _closed(text: Text, language: str) -> Text:
    if not _OPEN_END.search(text.string):
        return text
    end = len(text)
    return text.edited([(end, end, _STOPS.get(language, "."))])
