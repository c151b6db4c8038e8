"""The process between the launcher and tritonserver, so that nothing outlives the launcher, however that ends.

    launcher (any Python program) ── guard ── tritonserver ── stub of each Python model

The guard is a reaper of orphans (PR_SET_CHILD_SUBREAPER): when tritonserver ends, its stubs and whatever they started
become the guard's children, and are killed. It does so when the server has ended, when its owner has ended, or on
SIGQUIT; SIGTERM and SIGINT are handed on to the server, which then has `--stop-seconds`. Should the guard itself be
killed, the kernel kills tritonserver (PR_SET_PDEATHSIG); its stubs notice within 4 seconds unless they hang.

It ends with the server's exit code, or 128 plus the signal's number as in a shell.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from chatterbox_engine.launcher.processes import children
from chatterbox_engine.launcher.regions import remove_regions

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str] | None = None) -> int:
    """Runs the command after `--` until it, or the owner, has ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--owner", type=int, required=True, help="pid of the process to end with, our parent")
    parser.add_argument("--prefix", required=True, help="shared-memory regions to remove at the end")
    parser.add_argument("--folder", type=Path, required=True, help="folder to remove at the end")
    parser.add_argument("--stop-seconds", type=int, required=True, help="patience after SIGTERM")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    try:
        return _run(options.command, options.owner, options.stop_seconds)
    finally:
        remove_regions(options.prefix)
        shutil.rmtree(options.folder, ignore_errors=True)


def _run(command: list[str], owner: int, stop_seconds: int) -> int:
    try:
        owner_ends = os.pidfd_open(owner)
    except ProcessLookupError:
        return 1
    if os.getppid() != owner:  # it ended, and another process got its pid
        return 1
    _control_process(_PR_SET_CHILD_SUBREAPER, 1)
    with subprocess.Popen(command, preexec_fn=_die_with_guard) as server:  # noqa: PLW1509 - this process has one thread
        _hand_signals_on(server, stop_seconds)
        select.select([owner_ends, os.pidfd_open(server.pid)], [], [])
        server.kill()
    _kill_children()
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def _hand_signals_on(server: subprocess.Popen[bytes], stop_seconds: int) -> None:
    def hand_on(number: int, _frame: FrameType | None) -> None:
        server.send_signal(number)
        signal.alarm(stop_seconds)

    def kill(_number: int, _frame: FrameType | None) -> None:
        server.kill()

    signal.signal(signal.SIGTERM, hand_on)
    signal.signal(signal.SIGINT, hand_on)
    signal.signal(signal.SIGQUIT, kill)
    signal.signal(signal.SIGALRM, kill)


def _kill_children() -> None:
    """Kills until none is left: the children of one that dies become ours."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in children(os.getpid()):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def _die_with_guard() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a region that may not grow is an error of its request alone
    _control_process(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _control_process(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} failed")


if __name__ == "__main__":
    sys.exit(main())
