"""Reads a server's output as lines, and knows which of them matter."""

from __future__ import annotations

import collections
import os
import re

_FAILED = re.compile(r"\"(failed to load '[^']+' version .*)\"$")
_CONSEQUENCE = ": EngineFailed: "
"""Of a front whose engine did not start."""
_OURS = re.compile(r"(: (?:Config|Checkpoint)Error: .*)\n\nAt:\n.*", flags=re.DOTALL)
"""An error that its message explains, and the lines of code that say no more."""
_TAIL = 8


class LogReader:
    """Lines from a pipe that is read whenever there is something in it."""

    def __init__(self, pipe: int) -> None:
        """`pipe` is the file descriptor to read from; it is made non-blocking."""
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._rest = b""
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL)
        self._failures: list[str] = []
        self.at_end = False

    @property
    def last_line(self) -> str:
        """The newest line that is not blank; empty before the first."""
        return self._tail[-1] if self._tail else ""

    def read(self) -> list[str] | None:
        """The lines that are whole now, at the end also one without its line feed; None when nothing has arrived."""
        try:
            data = os.read(self._pipe, 1 << 16)
        except BlockingIOError:
            return None
        self.at_end = not data
        *whole, self._rest = (self._rest + data).split(b"\n")
        if self.at_end and self._rest:
            whole, self._rest = [self._rest], b""
        lines = [line.decode("utf-8", "replace") for line in whole]
        for line in lines:
            self._remember(line)
        return lines

    def failure(self) -> str:
        """Why the server did not start: the models' own errors, or its last lines when no model is to blame."""
        causes = [failure for failure in self._failures if _CONSEQUENCE not in failure]
        return "\n".join(_OURS.sub(r"\1", failure) for failure in causes or self._failures or self._tail)

    def _remember(self, line: str) -> None:
        if line.strip():
            self._tail.append(line)
        failed = _FAILED.search(line)
        if failed:
            # The server prints a message of several lines as one, in C's notation.
            self._failures.append(failed[1].replace("\\n", "\n").replace('\\"', '"').rstrip())
