"""EPUB 2 and 3 to books. The archive is an untrusted file: sizes are checked before anything is decompressed."""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import BinaryIO
from urllib.parse import unquote, urldefrag
from xml.etree import ElementTree

from chatterbox_batch.books import Block, Book, BookError, chapters_of
from chatterbox_batch.parts import is_speakable

LARGEST = 64 << 20
"""Bytes of one file in the archive."""

_PARAGRAPHS = frozenset(
    (
        "p",
        "li",
        "dt",
        "dd",
        "blockquote",
        "figcaption",
        "td",
        "th",
        "caption",
        "pre",
        "div",
        "section",
        "article",
        "body",
    )
)
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_SILENT = frozenset(("script", "style", "head", "nav", "svg", "math", "rp", "rt", "template"))
_SPACE = re.compile(r"\s+")
_XHTML = "application/xhtml+xml"


def read(file: BinaryIO) -> Book:
    """A book from an EPUB file. Chapters are those of its table of contents; without one, its documents.

    Raises BookError.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _Epub(archive).book()
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError, NotImplementedError, RuntimeError) as error:
        raise BookError(f"not an EPUB that can be read: {error}") from error


class _Epub:
    """An open archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        if "META-INF/encryption.xml" in archive.namelist() and "META-INF/rights.xml" in archive.namelist():
            raise BookError("the EPUB is encrypted (DRM)")
        container = self._xml("META-INF/container.xml")
        root = next(it for it in container.iter() if _tag(it) == "rootfile").attrib["full-path"]
        self._folder = posixpath.dirname(root)
        self._package = self._xml(root)
        items = [it for it in self._package.iter() if _tag(it) == "item"]
        self._items = {item.attrib["id"]: item.attrib for item in items}

    def book(self) -> Book:
        """Everything that is spoken of it."""
        blocks: list[Block] = []
        places: dict[str, int] = {}  # document or document#fragment: number of the first block from there on
        documents = [self._path(item["href"]) for item in self._spine() if item.get("media-type") == _XHTML]
        for document in documents:
            places[document] = len(blocks)
            page = _Page()
            page.feed(self._file(document).decode("utf-8", "replace"))
            page.close()
            places |= {f"{document}#{name}": len(blocks) + number for name, number in page.anchors.items()}
            blocks += page.blocks
        if not blocks:
            raise BookError("the EPUB has no text")
        title = self._metadata("title") or "Untitled"
        starts: dict[int, str] = {}
        for target, name in self._contents():
            place = places.get(target, places.get(urldefrag(target)[0]))
            if place is not None and name:
                starts.setdefault(place, name)
        starts = starts or {
            place: _first_heading(blocks[place:], f"Chapter {number}")
            for number, place in enumerate(sorted({places[document] for document in documents}), 1)
            if place < len(blocks)
        }
        author, language = self._metadata("creator"), self._metadata("language")
        return Book(
            title, chapters_of(blocks, starts, title), author, language.partition("-")[0].lower(), self._cover()
        )

    def _spine(self) -> Iterator[dict[str, str]]:
        for reference in self._package.iter():
            if _tag(reference) == "itemref" and reference.get("linear") != "no":
                yield self._items[reference.attrib["idref"]]

    def _contents(self) -> Iterator[tuple[str, str]]:
        """Targets and titles of the table of contents' upper level."""
        nav = next((item for item in self._items.values() if "nav" in item.get("properties", "").split()), None)
        if nav is not None:
            path = self._path(nav["href"])
            lists = [it for it in self._xml(path).iter() if _tag(it) == "nav" and "toc" in _values(it)]
            top = next((it for found in lists for it in found.iter() if _tag(it) == "ol"), None)
            for entry in top if top is not None else ():
                link = next((it for it in entry.iter() if _tag(it) == "a" and it.get("href")), None)
                if link is not None:
                    yield self._target(path, link.attrib["href"]), _text(link)
            return
        ncx = next((it for it in self._items.values() if it.get("media-type") == "application/x-dtbncx+xml"), None)
        if ncx is not None:
            path = self._path(ncx["href"])
            for map_ in (it for it in self._xml(path).iter() if _tag(it) == "navMap"):
                for point in (it for it in map_ if _tag(it) == "navPoint"):
                    content = next(it for it in point if _tag(it) == "content")
                    label = next(it for it in point if _tag(it) == "navLabel")
                    yield self._target(path, content.attrib["src"]), _text(label)

    def _cover(self) -> bytes:
        named = {it.get("content") for it in self._package.iter() if _tag(it) == "meta" and it.get("name") == "cover"}
        for name, item in self._items.items():
            pictured = item.get("media-type") in ("image/jpeg", "image/png")
            if pictured and (name in named or "cover-image" in item.get("properties", "").split()):
                return self._file(self._path(item["href"]))
        return b""

    def _metadata(self, name: str) -> str:
        return next((_text(it) for it in self._package.iter() if _tag(it) == name and _text(it)), "")

    def _path(self, href: str) -> str:
        return posixpath.normpath(posixpath.join(self._folder, unquote(href)))

    def _target(self, base: str, href: str) -> str:
        document, fragment = urldefrag(href)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(document))) if document else base
        return f"{path}#{fragment}" if fragment else path

    def _file(self, path: str) -> bytes:
        if self._archive.getinfo(path).file_size > LARGEST:
            raise BookError(f"{path} in the EPUB has more than {LARGEST >> 20} MB")
        return self._archive.read(path)

    def _xml(self, path: str) -> ElementTree.Element:
        return ElementTree.fromstring(self._file(path))  # expat bounds the expansion of entities


class _Page(HTMLParser):
    """Headings and paragraphs of a document, and the fragments that its links lead to."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self.anchors: dict[str, int] = {}
        self._words: list[str] = []
        self._heading = False
        self._silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _PARAGRAPHS or tag in _HEADINGS:
            self._end()
            self._heading = tag in _HEADINGS
        elif tag == "br":
            self._words.append(" ")
        if tag in _SILENT:
            self._silent.append(tag)
        if name := dict(attrs).get("id"):
            self.anchors.setdefault(name, len(self.blocks))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in _PARAGRAPHS or tag in _HEADINGS:
            self._end()
        if self._silent and tag == self._silent[-1]:
            self._silent.pop()

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._words.append(data)

    def close(self) -> None:
        super().close()
        self._end()

    def _end(self) -> None:
        text = _SPACE.sub(" ", "".join(self._words)).strip()
        self._words.clear()
        if is_speakable(text):
            self.blocks.append(Block(text, self._heading))
        self._heading = False


def _first_heading(blocks: list[Block], otherwise: str) -> str:
    return blocks[0].text if blocks and blocks[0].heading else otherwise


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _values(element: ElementTree.Element) -> list[str]:
    return [word for value in element.attrib.values() for word in value.split()]


def _text(element: ElementTree.Element) -> str:
    return _SPACE.sub(" ", "".join(element.itertext())).strip()
