"""Words and their times as subtitles, SubRip or WebVTT."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chatterbox_client.audio import Word

LINE = 42
"""Characters of a line, as broadcasters have it. A cue has two lines at most."""
GAP = 0.8
"""Seconds of silence that end a cue."""
LONGEST = 6.0
"""Seconds of a cue."""
_ENDS = (".", "!", "?", "\u2026", "\u3002", "\uff01", "\uff1f")


@dataclass(frozen=True)
class Cue:
    """Words that are shown together."""

    start: float
    """Seconds."""
    end: float
    lines: tuple[str, ...]


def cues(words: Sequence[Word]) -> list[Cue]:
    """The words in cues: a sentence or less, two lines, six seconds. Words that are not spoken are shown with those
    before them."""
    return [Cue(group[0].start, max(word.end for word in group), tuple(_lines(group))) for group in _groups(words)]


def subtitles(words: Sequence[Word], format: str) -> str:
    """The words as the content of a file; format: `srt` or `vtt`. Raises ValueError for another format."""
    if format not in ("srt", "vtt"):
        raise ValueError(f"unknown format of subtitles {format!r}: use srt or vtt")
    point = "," if format == "srt" else "."
    blocks = ["WEBVTT"] if format == "vtt" else []
    for number, cue in enumerate(cues(words), 1):
        times = " --> ".join(_clock(seconds, point) for seconds in (cue.start, cue.end))
        blocks.append("\n".join([str(number), times, *map(_escaped if format == "vtt" else str, cue.lines)]))
    return "\n\n".join(blocks) + "\n"


def subtitle_format(path: str | os.PathLike[str]) -> str:
    """The format that a file name's extension asks for; raises ValueError when it is neither .srt nor .vtt."""
    extension = Path(path).suffix.lower().removeprefix(".")
    if extension not in ("srt", "vtt"):
        raise ValueError(f"{os.fspath(path)!r}: use the extension .srt or .vtt")
    return extension


def _groups(words: Sequence[Word]) -> Iterator[list[Word]]:
    group: list[Word] = []
    for word in words:
        if group and _is_full(group, word):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _is_full(group: Sequence[Word], word: Word) -> bool:
    """Whether a word begins another cue."""
    if word.end <= word.start:
        return False
    if word.start - group[-1].end >= GAP or word.end - group[0].start > LONGEST:
        return True
    ends = group[-1].word.rstrip("\"')\u201d\u2019\u300d").endswith(_ENDS)
    return ends or len(list(_lines([*group, word]))) > 2


def _lines(group: Sequence[Word]) -> Iterator[str]:
    """Filled lines; words that are neighbours in the text, as in Chinese, have no space between them."""
    line = ""
    before: Word | None = None
    for word in group:
        space = " " if before is not None and before.span[1] != word.span[0] else ""
        if line and len(line) + len(space) + len(word.word) > LINE:
            yield line
            line, space = "", ""
        line += space + word.word
        before = word
    yield line


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
