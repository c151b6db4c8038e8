"""Checks the links between the project's Markdown files, anchors included: python -m tools.docs.links

Addresses of other sites are not visited.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tools.docs.files import ROOT, project_files

_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.*?) *#*$", re.MULTILINE)


def without_fences(text: str) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", text)


def slug(heading: str) -> str:
    """The anchor that forges and the site give to a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors of a Markdown file."""
    return frozenset(slug(heading) for heading in _HEADING.findall(without_fences(path.read_text(encoding="utf-8"))))


def targets(text: str) -> Iterator[str]:
    """The targets of a page's links within the project."""
    for target in _LINK.findall(_CODE.sub("", without_fences(text))):
        if "://" not in target and not target.startswith("mailto:"):
            yield target


def broken(page: Path) -> list[str]:
    """A line for each link of a page that leads nowhere. A page of the site (docs/) may link only to the site."""
    found = []
    site = ROOT / "docs"
    for target in targets(page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            found.append(f"{target}: no such file")
        elif page.is_relative_to(site) and not path.is_relative_to(site):
            found.append(f"{target}: outside of the site; name the file without a link")
        elif anchor and anchor not in anchors(path):
            found.append(f"{target}: no such heading")
    return [f"{page.relative_to(ROOT)}: {line}" for line in found]


def main() -> int:
    """1 when a link is broken, else 0."""
    pages = [ROOT / path for path in project_files("*.md")]
    lines = [line for page in pages for line in broken(page)]
    for line in lines:
        print(f"docs: {line}", file=sys.stderr)
    print(f"docs: links of {len(pages)} pages checked, {len(lines)} broken")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
