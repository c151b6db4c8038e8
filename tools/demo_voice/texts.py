"""What T3 reads: sentences from Debian packages.

    python -m tools.demo_voice.texts FOLDER

Downloads the packages of `PACKAGES` with apt-get into FOLDER/packages, once, and installs none of them. Writes
FOLDER/texts.txt, a sentence a line, in random order. Sentences of `held_out` and all with one of its words are left
out.
"""

from __future__ import annotations

import argparse
import html
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tools.demo_voice.held_out import SENTENCES, UNSEEN
from tools.demo_voice.lines import LINES

PACKAGES = ("wordnet-base", "fortunes", "debian-handbook", "anarchism", "wamerican")
SHARES = {"glosses": 0.25, "anarchism": 0.8}
"""Of the sentences of a source, where it is not all of them: they are all of a kind."""
COUNT = 90_000
SHORT = 3500
"""Texts of one to three words, which are cut out of sentences."""
REPEATED = 150
"""Times that each line of the demo and the documents is among them."""
_SENTENCE = re.compile(r"[A-Z][A-Za-z' ,]*[.?!]")
_UNSEEN = re.compile(r"\b(" + "|".join(UNSEEN) + ")", re.IGNORECASE)
_ENDS = re.compile(r"(?<=[.?!])[\"')]*\s+(?=[\"'A-Z])")
_BLOCKS = re.compile(r"</?(?:p|div|li|h\d|blockquote|dd|dt|td|ul|br)[^>]*>", re.IGNORECASE)


def unpacked(folder: Path) -> Path:
    """The packages' files."""
    root, archives = folder / "packages" / "root", folder / "packages"
    if not root.exists():
        archives.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *PACKAGES], check=True, cwd=archives)
        for archive in archives.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
    return root / "usr" / "share"


def sources(share: Path) -> Iterator[tuple[str, str]]:
    """Names of sources, and pieces of text."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (share / "wordnet" / f"data.{part}").read_text().splitlines():
            gloss = line.partition(" | ")[2]
            yield from (("examples", example) for example in re.findall(r'"([^"]+)"', gloss))
            yield from (("glosses", piece) for piece in re.sub(r'"[^"]*"', "", gloss).split(";"))
    for path in sorted((share / "games" / "fortunes").iterdir()):
        if not path.suffix and not path.is_symlink() and path.name not in ("art", "ascii-art", "perl"):
            for quote in path.read_text(errors="ignore").split("\n%\n"):
                yield from (("fortunes", piece) for piece in _split(re.split(r"\n\s*--", quote)[0]))
    for name, pages in (("debian-handbook", "html/en-US"), ("anarchism", "html")):
        for path in sorted((share / "doc" / name / pages).glob("*.html")):
            text = re.sub(r"(?s)<(script|style|pre).*?</\1>", " ", path.read_text(errors="ignore"))
            for block in _BLOCKS.split(text):
                yield from ((name, piece) for piece in _split(re.sub(r"<[^>]+>", "", block)))


def _split(text: str) -> list[str]:
    return _ENDS.split(re.sub(r"\s+", " ", text))


def cleaned(piece: str, known: frozenset[str]) -> str | None:
    """A sentence of known words and plain punctuation; None where it cannot be made one."""
    text = html.unescape(piece).translate(str.maketrans("’‘", "''", '"“”'))
    text = re.sub(r" ?(--+|[;:—–]) ?", ", ", re.sub(r"\s+", " ", text)).replace("-", " ")
    text = re.sub(r"\([^)]*\)", "", text.replace(" ,", ",").replace(",,", ","))
    text = re.sub(r" +(?=[,.?!])", "", text.replace("  ", " ").strip(" ,'"))
    if not text:
        return None
    text = text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")
    words = re.findall(r"[A-Za-z']+", text)
    strange = sum(word not in known and word.lower() not in known for word in words)
    if strange > 1 or any(len(word) > 1 and word.isupper() for word in words):
        return None
    return text if _SENTENCE.fullmatch(text) and 3 <= len(words) <= 20 and len(text) <= 100 else None


def plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def chosen(share: Path) -> list[str]:
    """The sentences, of which some are said more than once."""
    dictionary = (share / "dict" / "american-english").read_text().split()
    known = frozenset(word for word in dictionary if re.fullmatch(r"[A-Za-z]+('[a-z]+)?", word))
    seen = {plain(text) for text in SENTENCES}
    found = []
    for source, piece in sources(share):
        text = cleaned(piece, known)
        if text and not _UNSEEN.search(text) and plain(text) not in seen:
            seen.add(plain(text))
            if random.random() < SHARES.get(source, 1.0):
                found.append(text)
    random.shuffle(found)
    found = [*found[:COUNT], *sorted(shortened(found)), *LINES * REPEATED]
    random.shuffle(found)
    return found


def shortened(texts: list[str]) -> set[str]:
    """`SHORT` beginnings and ends of sentences."""
    found: set[str] = set()
    while len(found) < SHORT:
        words = re.findall(r"[A-Za-z]+(?:'[a-z]+)?", random.choice(texts))
        count = random.choice((1, 1, 2, 2, 3))
        text = " ".join(random.choice((words[:count], words[-count:])))
        if len(text) > 2:
            found.add(text[0].upper() + text[1:] + random.choice("...?!"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    random.seed(0)
    texts = chosen(unpacked(folder))
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")
    words = [word for text in texts for word in plain(text).split()]
    print(f"texts: {len(texts)} sentences, {len(words)} words, {len(set(words))} different ones")


if __name__ == "__main__":
    main()
