"""Checks that files stay at most 400 lines long and functions at most 60: python -m tools.sizes

Kernels may be longer: a file of theirs is compiled as a whole, and what belongs to one launch stands together.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.docs.files import ROOT, project_files

FILE_LINES, FUNCTION_LINES = 400, 60

KERNELS = "engine/chatterbox_engine/kernels/*.py", "*_cuda.py"
"""Files that may be longer. Their functions may not."""


def findings(path: Path, source: str) -> Iterator[str]:
    """A line for what is too long in a file."""
    lines = len(source.splitlines())
    if lines > FILE_LINES and not any(map(path.match, KERNELS)):
        yield f"{path}: {lines} lines, at most {FILE_LINES}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES}"


def main() -> int:
    """1 when a file or a function is too long, else 0."""
    found = [
        line for path in project_files("*.py") for line in findings(path, (ROOT / path).read_text(encoding="utf-8"))
    ]
    for line in found:
        print(f"sizes: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
