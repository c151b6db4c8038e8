"""What /proc says about the server's processes."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from chatterbox_engine.launcher.triton import STUB

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """The fields of /proc/PID/stat that are needed here (proc(5))."""

    pid: int
    parent: int
    start_time: int
    """Clock ticks since boot; with the pid it names a process for ever."""
    wait_status: int
    """As of waitpid; meaningful once the process is a zombie."""


def read_process(pid: int) -> Process | None:
    """The process, or None when there is none with that pid."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the name in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return Process(pid, parent=int(fields[1]), start_time=int(fields[19]), wait_status=int(fields[49]))


def children(pid: int) -> list[int]:
    """The direct children, zombies included."""
    found = (read_process(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdigit())
    return [process.pid for process in found if process and process.parent == pid]


@dataclass(frozen=True)
class Stub:
    """The process of one Python model."""

    pid: int
    server: int
    """Pid of its tritonserver."""
    model: str


def model_stubs(guard: int) -> list[Stub]:
    """The processes of all Python models of the server under the guard `guard`."""
    commands = [(server, pid, _command_line(pid)) for server in children(guard) for pid in children(server)]
    return [
        Stub(pid, server, _model_name(command)) for server, pid, command in commands if Path(command[0]).name == STUB
    ]


def ending(pid: int) -> str:
    """How a process that just ended did, in words. Its parent may have reaped it already."""
    process = read_process(pid)
    return describe_exit(os.waitstatus_to_exitcode(process.wait_status)) if process else "gone"


def describe_exit(code: int) -> str:
    """An exit code as of `subprocess`: negative for a signal."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _command_line(pid: int) -> list[str]:
    try:
        return (_PROC / str(pid) / "cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return [""]


def _model_name(arguments: list[str]) -> str:
    # The stub's first argument is REPOSITORY/MODEL/VERSION/model.py.
    parts = Path(arguments[1]).parts if len(arguments) > 1 else ()
    return parts[-3] if len(parts) > 2 else "?"
