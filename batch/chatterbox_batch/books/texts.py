"""Plain text and Markdown to books."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from chatterbox_batch.books import Block, Book, BookError, chapters_of
from chatterbox_batch.parts import is_speakable

_EMPTY_LINES = re.compile(r"\n\s*\n")
_SPACE = re.compile(r"\s+")
_NAMED = re.compile(
    r"(?:chapter|part|book|section|volume|letter|act|scene|kapitel|teil|buch|chapitre|partie|livre|cap[i\u00ed]tulo|"
    r"parte|libro|capitolo|hoofdstuk|deel)\s+(?:[ivxlcdm]+|\d+|[\w-]+)\b.{0,60}"
    r"|(?:prologue|epilogue|introduction|preface|foreword|afterword|prolog|epilog|vorwort|nachwort|einleitung)\b.{0,40}",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?:[IVXLC]{1,8}|\d{1,3})\.?")
_SENTENCE = re.compile(r"[.,;:]$")


def from_text(text: str, title: str) -> Book:
    """A book from plain text: paragraphs are separated by empty lines; headings are lines of their own that say
    "Chapter 3", a number, or are in capitals. Raises BookError when there is no text."""
    blocks = [
        Block(_SPACE.sub(" ", paragraph).strip(), _is_heading(paragraph.strip()))
        for paragraph in _EMPTY_LINES.split(text.replace("\r\n", "\n").strip("\ufeff"))
        if is_speakable(paragraph)
    ]
    return _book(blocks, {number: block.text for number, block in enumerate(blocks) if block.heading}, title)


def _is_heading(paragraph: str) -> bool:
    if "\n" in paragraph or len(paragraph) > 80:
        return False
    if _NAMED.fullmatch(paragraph) or _NUMBER.fullmatch(paragraph):
        return True
    letters = [char for char in paragraph if char.isalpha()]
    return len(letters) > 3 and paragraph.isupper() and not _SENTENCE.search(paragraph)


def from_markdown(text: str, title: str) -> Book:
    """A book from Markdown: chapters begin at the headings of the highest level that has several; a single heading
    above them is the title. Raises BookError when there is no text."""
    levels: list[tuple[int, int]] = []  # block, level
    blocks: list[Block] = []
    for node in SyntaxTreeNode(MarkdownIt("commonmark").parse(text)).walk():
        if node.type not in ("heading", "paragraph"):
            continue
        words = _SPACE.sub(" ", "".join(_words(node))).strip()
        if is_speakable(words):
            if node.type == "heading":
                levels.append((len(blocks), int(node.tag[1:])))
            blocks.append(Block(words, node.type == "heading"))
    counts = {level: [number for number, other in levels if other == level] for _, level in levels}
    several = [level for level in sorted(counts) if len(counts[level]) > 1]
    chosen = several[0] if several else min(counts, default=0)
    above = [number for number, level in levels if level < chosen]
    named = blocks[above[0]].text if len(above) == 1 else title
    return _book(blocks, {number: blocks[number].text for number in counts.get(chosen, [])}, named)


def _words(node: SyntaxTreeNode) -> list[str]:
    """The texts inside of a heading or paragraph; pictures have none that are spoken."""
    found: list[str] = []
    for child in node.children:
        if child.type in ("text", "code_inline"):
            found.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            found.append(" ")
        elif child.type != "image":
            found += _words(child)
    return found


def _book(blocks: list[Block], starts: dict[int, str], title: str) -> Book:
    if not blocks:
        raise BookError("the book has no text")
    return Book(title, chapters_of(blocks, _without_runs(starts), title))


def _without_runs(starts: dict[int, str]) -> dict[int, str]:
    """Headings that follow each other, as "CHAPTER I" and its name do, begin one chapter."""
    merged: dict[int, str] = {}
    first = previous = -2
    for number in sorted(starts):
        if number == previous + 1:
            merged[first] += f" {starts[number]}"
        else:
            first = number
            merged[number] = starts[number]
        previous = number
    return merged
