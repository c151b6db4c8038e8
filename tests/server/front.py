"""The command `chatterbox-gateway`, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from chatterbox_engine.launcher.ports import ReservedPorts


class Front:
    """Runs between `__enter__` and `__exit__`, which says when it did not end well; its errors are in the log."""

    def __init__(
        self,
        grpc_url: str,
        log: Path,
        options: Sequence[str] = (),
        program: Path = Path(sys.executable).parent / "chatterbox-gateway",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """options: of the command, beside its addresses."""
        ports = ReservedPorts("127.0.0.1", [0])
        ports.release()
        self.address = f"127.0.0.1:{ports.numbers[0]}"
        self._command = [str(program), "--url", grpc_url, "--port", str(ports.numbers[0]), *options]
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._log = log

    def __enter__(self) -> Front:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, env=self._environment, text=True
            )
        assert self._process.stdout is not None
        assert "Running on" in self._process.stdout.readline(), self._log.read_text()
        return self

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:  # which closes its pipe
            self._process.terminate()
            try:
                code = self._process.wait(30)  # it ends by itself, whatever is under way
            finally:
                self._process.kill()
        assert code == 0, self._log.read_text()
