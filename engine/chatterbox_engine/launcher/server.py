"""A Triton server as a context manager: started, watched, and stopped with all that belongs to it."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from chatterbox_engine.errors import ChatterboxError
from chatterbox_engine.launcher import draining, gateway
from chatterbox_engine.launcher.access import Keys, hide_keys
from chatterbox_engine.launcher.gateway import Gateway
from chatterbox_engine.launcher.instances import AUTO, VARIABLE, arranged
from chatterbox_engine.launcher.options import (
    STOP_SECONDS,
    Addresses,
    ServerOptions,
    describe_reach,
    find_repository,
    model_environment,
    tritonserver_command,
)
from chatterbox_engine.launcher.ports import ReservedPorts
from chatterbox_engine.launcher.processes import children
from chatterbox_engine.launcher.regions import (
    hide_regions,
    new_prefix,
    region_bytes,
    remove_regions,
    remove_stale_regions,
)
from chatterbox_engine.launcher.triton import find_triton
from chatterbox_engine.launcher.watch import Watch
from chatterbox_engine.limits import limit_regions
from chatterbox_engine.serving.wire import FOLDER_VARIABLE

_CLOSING_SECONDS = 10
"""What the models have for closing after `STOP_SECONDS`."""


class ServerFailed(ChatterboxError):
    """The server did not start, or it ended without being asked to."""


class TritonServer:
    """One server, the processes of its models and a thread that watches them.

    When tritonserver ends, or a model's process that was not unloaded, the thread takes down the rest. The server also
    ends with this process, even when that is killed.

        with TritonServer(ServerOptions(environment={"CHATTERBOX_CHECKPOINT": "tiny"})) as server:
            client = tritonclient.http.InferenceServerClient(server.http_url)

    An object serves once.
    """

    addresses: Addresses
    """Where the server answers; known once `start` has begun."""

    def __init__(self, options: ServerOptions | None = None) -> None:
        self._options = options or ServerOptions()
        self._cleanup = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._run, name="triton-watch", daemon=True)
        self._ended = threading.Event()

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def http_url(self) -> str:
        """`host:port`, no scheme."""
        return self.addresses.http

    @property
    def grpc_url(self) -> str:
        """`host:port`, no scheme."""
        return self.addresses.grpc

    @property
    def metrics_url(self) -> str:
        """`host:port`, no scheme; the page is `/metrics`."""
        return self.addresses.metrics

    @property
    def stub_pids(self) -> tuple[int, ...]:
        """The processes of the Python models."""
        return tuple(self._watch.stubs)

    def shared_memory_bytes(self) -> int:
        """Memory that the models' shared-memory regions take, of this server alone."""
        return sum(region_bytes(self._prefix, pid) for pid in children(self._watch.guard_pid))

    def start(self) -> bool:
        """Starts the server and waits until all models are ready.

        Returns False when a stop was requested meanwhile. Raises ConfigError when it cannot be started on this machine
        and ServerFailed, with the model's own error, when it ends or takes longer than `startup_timeout`.
        """
        with self._cleanup as cleanup:
            self._launch(cleanup)
            self._cleanup = cleanup.pop_all()
        self._thread.start()
        try:
            self._watch.settled.wait()
        except BaseException:  # Ctrl-C: no __exit__ follows when __enter__ fails
            self.stop(kill=True)
            raise
        if self._watch.failure:
            self.wait()
        return self._watch.ready

    def stop(self, *, kill: bool = False) -> None:
        """Ends the server; returns when its processes, regions and files are gone. May be called again.

        The server is no longer ready, refuses new requests and has `grace_seconds` to finish those it has, which are
        then told that it ends; with `kill`, or when a signal handler raises meanwhile (a second Ctrl-C), it just ends.
        """
        self._watch.request_stop(kill=kill)
        try:
            self._thread.join()
        except BaseException:
            self._watch.request_stop(kill=True)
            self._thread.join()
            raise

    def wait(self) -> None:
        """Returns when the server has ended on request. Raises ServerFailed when it ended for any other reason."""
        self._ended.wait()
        if self._watch.failure:
            raise ServerFailed(self._watch.failure)

    def _launch(self, cleanup: contextlib.ExitStack) -> None:
        options = self._options
        for name in remove_stale_regions():
            options.say(f"removed the shared-memory region {name}, its launcher was killed")
        repository = find_repository(options)
        folder = Path(tempfile.mkdtemp(prefix="chatterbox-"))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        environment = {**os.environ, **options.environment}
        instances = options.instances or environment.get(VARIABLE) or AUTO
        served = arranged(repository, folder / "models", instances, environment)
        (folder / draining.REPOSITORY).mkdir()
        triton = find_triton(folder)
        wanted = [options.http_port, options.grpc_port, options.metrics_port, options.gateway_port]
        ports = ReservedPorts(options.host, [port for port in wanted if port is not None])
        cleanup.callback(ports.release)
        self._prefix = prefix = new_prefix()
        cleanup.callback(remove_regions, prefix)
        self.addresses = Addresses.of(options.host, ports.numbers)
        options.say(describe_reach(options.host))
        options.say(f"starting tritonserver with the models in {repository}")
        keys = Keys.of(options.key_file)
        repositories = [served, folder / draining.REPOSITORY]
        command = tritonserver_command(options, triton, repositories, ports.numbers[:3], prefix, keys)
        guard = subprocess.Popen(
            [*_guard_command(prefix, folder, STOP_SECONDS + _CLOSING_SECONDS), *command],
            env={**model_environment(options, triton), FOLDER_VARIABLE: str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            umask=0o077,  # stored voices and caches are nobody else's
            start_new_session=True,  # a Ctrl-C in the terminal is for the launcher, which hands it on
        )
        self._watch = Watch(
            guard,
            http_url=self.addresses.http,
            folder=folder,
            headers=keys.headers,
            gateway=self._gateway(repository, keys) if options.gateway_port is not None else None,
            grace_seconds=options.grace_seconds,
            startup_timeout=options.startup_timeout,
            log=_sink(options.log, cleanup),
            say=options.say,
            on_output=functools.partial(self._hide_keys, guard.pid, keys),
            on_ready=functools.partial(self._seal, guard.pid, keys),
        )

    def _gateway(self, repository: Path, keys: Keys) -> Gateway:
        options, port = self._options, int((self.addresses.gateway or "").rpartition(":")[2])
        variables = gateway.environment(
            self.addresses, repository, keys, inherited={**os.environ, **options.environment}
        )
        return Gateway(gateway.command(options.host, port, options.grace_seconds), variables, options.say)

    def _hide_keys(self, guard: int, keys: Keys, server: int) -> None:
        """Takes the keys off the command lines, which Triton has read when it prints something."""
        if not all(tuple(hide_keys(pid, keys) for pid in (guard, server))):
            self._options.say("the server's keys show in this machine's list of processes: its kernel hides none")

    def _seal(self, guard: int, keys: Keys, server: int) -> None:
        """A model that has its region open needs no name of it, by which others could open it (Triton lets every user
        read it, and tells the name in an error). None may fill the machine's memory."""
        self._hide_keys(guard, keys, server)  # should the first line have been another program's
        hide_regions(self._prefix, self.stub_pids)
        limit_regions(server)

    def _run(self) -> None:
        try:
            with self._cleanup:
                self._watch.run()
        finally:
            self._ended.set()
            self._watch.settled.set()


def _guard_command(prefix: str, folder: Path, seconds: int) -> list[str]:
    options = ["--owner", str(os.getpid()), "--prefix", prefix, "--folder", str(folder), "--stop-seconds", str(seconds)]
    return [sys.executable, "-m", "chatterbox_engine.launcher.guard", *options, "--"]


def _sink(log: Callable[[str], None] | Path, cleanup: contextlib.ExitStack) -> Callable[[str], None]:
    if not isinstance(log, Path):
        return log
    file = cleanup.enter_context(log.open("w", encoding="utf-8", buffering=1))
    return functools.partial(print, file=file)
