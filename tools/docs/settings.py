"""Writes the table of settings into docs/settings.md: python -m tools.docs.settings [--check]

The table comes from `chatterbox_engine.config` alone: each field's name, default, range or words, and docstring. With
`--check` nothing is written and the exit status is 1 when the page is stale.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

from chatterbox_engine.config import CHOICES, RANGES, Config
from chatterbox_engine.environment import PREFIX

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
BEGIN = "<!-- begin: written by `make settings` from engine/chatterbox_engine/config.py -->\n"
END = "<!-- end -->\n"


def descriptions() -> dict[str, str]:
    """The docstring of each field, in one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(Config))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def table() -> str:
    """The settings as a Markdown table. Raises KeyError for a field without a docstring."""
    described = descriptions()
    lines = ["| setting | default | values | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(Config):
        cells = (f"`{PREFIX}{field.name.upper()}`", _default(field), _values(field), described[field.name])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:  # the voice store, whose default depends on the environment
        return "`voices.sqlite` in `CHATTERBOX_CACHE`"
    if isinstance(field.default, bool):
        return f"`{int(field.default)}`"
    return f"`{field.default}`" if field.default != "" else ""


def _values(field: dataclasses.Field[Any]) -> str:
    if field.name in RANGES:
        low, high = RANGES[field.name]
        return f"{low:g} to {high:,g}"
    if field.name in CHOICES:
        return ", ".join(f"`{word}`" for word in CHOICES[field.name])
    return "`1`, `0`" if isinstance(field.default, bool) else ""


def updated(page: str) -> str:
    """The page with today's table. Raises ValueError where its marks are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no place for the table: {BEGIN.strip()} ... {END.strip()}")
    return f"{before}{begin}\n{table()}\n{end}{after}"


def main() -> int:
    """1 when `--check` finds that the page is stale, else 0."""
    page = PAGE.read_text(encoding="utf-8")
    fresh = updated(page)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(fresh, encoding="utf-8")
    elif fresh != page:
        print("docs: docs/settings.md is stale: run `make settings`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
