"""The command `chatterbox openai`, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import httpx

from chatterbox_engine.launcher.ports import ReservedPorts


class Front:
    """Runs between `__enter__` and `__exit__`, which says when it did not end well; its output is in the log."""

    def __init__(
        self,
        grpc_url: str,
        log: Path,
        options: Sequence[str] = (),
        before: Sequence[str] = (),
        program: Path = Path(sys.executable).parent / "chatterbox",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """options: of the command, beside its addresses; before: of `chatterbox` itself, which is `program`."""
        ports = ReservedPorts("127.0.0.1", [0])
        ports.release()
        self.address = f"127.0.0.1:{ports.numbers[0]}"
        self._command = [str(program), *before, "openai", "--url", grpc_url, "--port", str(ports.numbers[0]), *options]
        self._environment = {**os.environ, **(environment or {})}
        self._log = log

    def __enter__(self) -> Front:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def terminate(self) -> None:
        """Ends it, which it does by itself within half a minute whatever is under way."""
        self._process.terminate()
        assert self._process.wait(30) == 0, self._log.read_text()

    def _answers(self) -> bool:
        try:
            httpx.get(f"http://{self.address}/health", timeout=10)
        except httpx.TransportError:
            return False
        return True
