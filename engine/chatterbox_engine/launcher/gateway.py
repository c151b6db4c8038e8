"""The gateway beside a server: `chatterbox-gateway` as a process of the launcher's."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from chatterbox_engine.launcher.access import KEY_HEADER, Keys
from chatterbox_engine.launcher.log import LogReader
from chatterbox_engine.launcher.options import Addresses
from chatterbox_engine.launcher.processes import describe_exit

MODULE = "chatterbox_gateway.cli"

IDLE_VARIABLE = "CHATTERBOX_IDLE_UNLOAD"
"""Seconds without a request after which it unloads the models."""

READY = "Running on "
"""How the line begins that it prints once it listens."""

_KILLED_SECONDS = 10.0


def is_installed() -> bool:
    """Whether this environment has the gateway."""
    return importlib.util.find_spec(MODULE.partition(".")[0]) is not None


def command(host: str, port: int, grace_seconds: float) -> list[str]:
    """Its command line. It ends with this process, however that ends."""
    options = ["--host", host, "--port", str(port), "--grace-seconds", str(grace_seconds), "--owner", str(os.getpid())]
    return [sys.executable, "-m", MODULE, *options]


def environment(addresses: Addresses, repository: Path, keys: Keys, inherited: Mapping[str, str]) -> dict[str, str]:
    """Its environment: which server it is for, and what the variables `inherited` say beside that.

    keys: the gateway sends the user's, of `--key-file`, and asks its own callers for it unless they have keys of their
    own; the launcher's opens the model-repository API to a gateway that unloads idle models.
    """
    models = sorted(path.name for path in repository.iterdir() if (repository / f"{path.name}_stream").is_dir())
    defaults = {"CHATTERBOX_GATEWAY_MODEL": " ".join(sorted(models, key="chatterbox".__ne__))}
    server = {"CHATTERBOX_GRPC_URL": addresses.grpc, "CHATTERBOX_METRICS_URL": addresses.metrics}
    if keys.user is not None:
        defaults["CHATTERBOX_GATEWAY_KEYS"] = f"server:{keys.user}"
        server["CHATTERBOX_HEADERS"] = f"{KEY_HEADER}:{keys.user}"
    if inherited.get(IDLE_VARIABLE):
        server["CHATTERBOX_URL"] = addresses.http
        server["CHATTERBOX_CONTROL_HEADERS"] = " ".join(f"{name}:{value}" for name, value in keys.headers.items())
    return {**defaults, **inherited, **server}


class Gateway:
    """Started once the server is ready, started again when it ends by itself, and drained before the server is."""

    def __init__(self, command: list[str], environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        """`say` is called with what happens to it; what it logs itself goes to stderr."""
        self._command, self._environment, self._say = command, environment, say
        self._process: subprocess.Popen[bytes] | None = None
        self._listens = False
        self._drained: Callable[[], None] | None = None

    def start(self, selector: selectors.BaseSelector, ready: Callable[[], None], failed: Callable[[str], None]) -> None:
        """Starts it. Whoever owns the selector calls its keys' data. `ready` is called once it listens, each time that
        it has been started; `failed`, with the reason, when it ends before the first time."""
        self._selector, self._ready, self._failed = selector, ready, failed
        self._launch()

    def drain(self, drained: Callable[[], None]) -> None:
        """Has it refuse new requests, finish those under way and end. `drained` is then called; at once when it does
        not run."""
        self._drained = drained
        if self._process is None:
            drained()
        else:
            self._process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Ends it, if it still runs."""
        self._drained = lambda: None
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_KILLED_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._end(self._process)

    def _launch(self) -> None:
        process = subprocess.Popen(
            self._command,
            env=dict(self._environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal is for the launcher
        )
        assert process.stdout is not None
        self._process = process
        reader = LogReader(process.stdout.fileno())
        self._selector.register(process.stdout, selectors.EVENT_READ, lambda: self._read(process, reader))

    def _read(self, process: subprocess.Popen[bytes], reader: LogReader) -> None:
        for line in reader.read() or []:
            if line.startswith(READY):
                self._listens = True
                self._ready()
        if reader.at_end:  # it closes its output when it ends, and never before
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(KeyError):
            self._selector.unregister(process.stdout)
        process.stdout.close()
        how = describe_exit(process.wait())
        self._process = None
        if self._drained is not None:
            self._drained()
        elif self._listens:
            self._say(f"the gateway ended ({how}) and is started again")
            self._launch()
        else:
            self._failed(f"the gateway did not start ({how})")
