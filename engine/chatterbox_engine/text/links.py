"""Addresses of the web and of mail in words. The parser is linkify-it."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from linkify_it import LinkifyIt

from chatterbox_engine.text.passages import Edit, Text

_WORDS = {  # "dot", "at"
    "ar": ("نقطة", "آت"),
    "da": ("punktum", "snabel-a"),
    "de": ("Punkt", "ätt"),
    "el": ("τελεία", "παπάκι"),
    "en": ("dot", "at"),
    "es": ("punto", "arroba"),
    "fi": ("piste", "ät"),
    "fr": ("point", "arobase"),
    "he": ("נקודה", "שטרודל"),
    "hi": ("डॉट", "ऐट"),
    "it": ("punto", "chiocciola"),
    "ja": ("ドット", "アットマーク"),
    "ko": ("점", "골뱅이"),
    "ms": ("titik", "di"),
    "nl": ("punt", "apenstaartje"),
    "no": ("punktum", "krøllalfa"),
    "pl": ("kropka", "małpa"),
    "pt": ("ponto", "arroba"),
    "ru": ("точка", "собака"),
    "sv": ("punkt", "snabel-a"),
    "sw": ("nukta", "kwa"),
    "tr": ("nokta", "et"),
    "zh": ("点", "艾特"),
}
_CANDIDATE = re.compile(r"[^\W_][.@]\w|://")
_LONGEST_COUNTRY = 2
_SIGNS = re.compile(r"[-_+]+")


def spoken_links(text: Text, language: str) -> Text:
    """Web addresses as their host ("example dot org"), mail addresses in full."""
    if not _CANDIDATE.search(text.string):
        return text
    return text.edited(
        edit for match in _finder().match(text.string) or [] for edit in _edits(match, text.string, language)
    )


def _edits(match: Any, string: str, language: str) -> list[Edit]:
    dot, at = _WORDS[language]
    shown = string[match.index : match.last_index]
    if match.schema == "mailto:":
        user, _, host = shown.removeprefix("mailto:").partition("@")
        words = f"{_labels(user, dot)} {at} {_labels(host, dot)}"
    else:
        host = re.split(r"[/?#:]", shown.split("://")[-1], maxsplit=1)[0].rpartition("@")[2]
        if not match.schema and not _is_host(host):
            return []
        words = _labels(re.sub(r"^www\.", "", host, flags=re.IGNORECASE), dot)
    return [(match.index, match.last_index, words)]


def _labels(name: str, dot: str) -> str:
    return f" {dot} ".join(_SIGNS.sub(" ", label).strip() for label in name.split(".") if label)


def _is_host(name: str) -> bool:
    """Whether a name without a scheme is one: in "done.It" only the space after a full stop is missing."""
    last = name.rpartition(".")[2]
    return name.lower().startswith("www.") or (len(last) > _LONGEST_COUNTRY and last.islower())


@cache
def _finder() -> Any:
    return LinkifyIt()
