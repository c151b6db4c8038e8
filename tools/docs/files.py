"""Which files the checks read."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def project_files(*patterns: str) -> list[Path]:
    """The project's files, relative to its root: tracked ones and new ones that git does not ignore.

    patterns: git's own, such as `*.md`; all files when there is none.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = {Path(name) for name in listed.split("\0") if name}
    return sorted(path for path in paths if (ROOT / path).is_file())
