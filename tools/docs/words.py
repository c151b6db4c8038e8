"""Checks spelling (codespell) and wording: python -m tools.docs.words [--count] [PATH ...]

Phrases that a reader has to decode are refused, each with the standard term for it. `--count` prints how many there are
in every file, those that are not rewritten yet included.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tools.docs.files import ROOT, project_files

PHRASES = {
    r"\bbehind (?:(?:a|the|its|every|each) )?(?:(?:voice|longest|shorter) )?(?:prompt|prefix|end|text)\b": "after",
    r"\bin (?:any|its|their|other|whatever) company\b": "regardless of the batch",
    r"\bhears?\b|\b(?:is|are|be|was|not|what it) heard\b|\bheard of\b": "uses, used, audible",
    r"\bgiv(?:e|es|en|ing) (?:\w+ ){0,2}up\b|\bgave (?:\w+ ){0,2}up\b": "cancel",
    r"\b(?:goes|go|went|going) away\b": "disconnect",
    r"\bheed(?:s|ed|ing)?\b": "support",
    r"\btak(?:e|es|ing) no notice of\b": "ignore",
    r"\banew\b": "again",
    r"\btak(?:e|es|ing) [^.\n]{0,60}\balong\b(?! with)": "fuse",
    r"\b(?:leave|leaves) it to the next\b": "fuse",
    r"\bwait(?:s|ed|ing)? awake\b": "busy-wait",
    r"\bup to which\b": "maximum",
    r"\bwhat there is not\b": "padded",
    r"\b(?:audio seconds|seconds of audio|audio) a second\b": "audio seconds per second",
    r"\b(?:asks?|search|looks?|looking) for garbage\b": "garbage collection",
    r"\bbetween two questions\b": "polling interval",
}
"""A regular expression, ignoring case, and what to write instead."""

ON_PURPOSE = (
    Path("tools/docs/words.py"),
    Path("tests/unit/test_documents.py"),
    Path("engine/chatterbox_engine/checkpoint/random_text.py"),
)
"""Files that contain such phrases on purpose: the check, its test, and a text whose tokens must not change."""

NOT_SPELT = (
    *("*.lock", "*.json", "*.jsonl", "*.svg", "*/random_text.py", "tests/fidelity/sentences.txt", "*/sentences.py"),
    *("*/test_text_spoken.py", "*/test_text_split.py", "*/text/links.py"),
)
"""Not text of ours: for codespell."""

MEANT = "widht,temprature,caf,thur,nd,tieth"
"""Misspelt on purpose, in tests of messages, and the abbreviations and endings of English normalisation."""

TO_REWRITE: tuple[str, ...] = (
    "tests/server/test_demo_voice.py",
    "tools/demo_voice/recogniser.py",
    "tools/demo_voice/train_codec.py",
    "tools/demo_voice/train_t3.py",
)
"""Files, or folders with a slash at the end, whose words are not rewritten yet. Only gets shorter."""

_PATTERN = re.compile("|".join(f"({phrase})" for phrase in PHRASES).replace(" ", " +"), re.IGNORECASE)


def findings(text: str) -> list[tuple[int, str, str]]:
    """Line, phrase, and what to write instead. Phrases may be split over two lines."""
    joined = re.sub(r"\n[ \t]*(?:#|//|\|)?[ \t]*", lambda gap: "\n" + " " * (len(gap[0]) - 1), text)
    found = []
    for match in _PATTERN.finditer(re.sub(r"\n", " ", joined)):
        better = list(PHRASES.values())[(match.lastindex or 1) - 1]
        found.append((text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), better))
    return found


def read(path: Path) -> str:
    """The text of a file; empty for one that is not text."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def chosen(names: list[str]) -> list[Path]:
    """The files to check: those named, or all but the ones that are not rewritten yet."""
    paths = [path for path in project_files(*names) if path not in ON_PURPOSE and path.suffix != ".lock"]
    return paths if names else [path for path in paths if not path.as_posix().startswith(TO_REWRITE)]


def spelled() -> bool:
    """Runs codespell over the whole project."""
    files = [str(path) for path in project_files() if not any(path.match(pattern) for pattern in NOT_SPELT)]
    program = Path(sys.executable).parent / "codespell"
    return subprocess.run([program, f"--ignore-words-list={MEANT}", *files], cwd=ROOT, check=False).returncode == 0


def main() -> int:
    """1 when a word is misspelt or a phrase is to be replaced, else 0."""
    names = [name for name in sys.argv[1:] if name != "--count"]
    if "--count" in sys.argv[1:]:
        for path in project_files(*names):
            if path not in ON_PURPOSE and (found := findings(read(path))):
                print(f"{len(found):4} {path}")
        return 0
    wrong = [(path, *found) for path in chosen(names) for found in findings(read(path))]
    for path, line, phrase, better in wrong:
        print(f"words: {path}:{line}: {phrase!r}; write: {better}", file=sys.stderr)
    return 0 if spelled() and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
