"""Watches a running server from a thread of its own: its log, its process and those of its models."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from chatterbox_engine.launcher.draining import Models, answers_ready, withdraw
from chatterbox_engine.launcher.gateway import Gateway
from chatterbox_engine.launcher.log import LogReader
from chatterbox_engine.launcher.processes import Stub, children, describe_exit, ending, model_stubs, read_process

_DRAINED_SECONDS = 5.0
"""What a model has, after the time for its requests, to say that it is drained."""
_DELIVERY_SECONDS = 1.0
"""What the last answers have to reach their clients. Triton ends all calls as soon as it is told to stop."""
_FAILURE_SECONDS = 3.0
"""How long a server with a dead model may still send the answers it has; requests that the model held never end."""

_LOADED = re.compile(r"successfully loaded '([^']+)'")
_UNLOADED = re.compile(r"successfully unloaded '([^']+)'")
_REGULAR_ENDS = ("exit code 0", "gone")


def _nothing(_server: int) -> None:
    pass


class Watch:
    """What is known about a server, for any thread to read, and the loop that finds it out.

    Nothing is polled: the loop waits for the log's pipe and for pidfds, which become readable when a process ends.
    """

    def __init__(
        self,
        guard: subprocess.Popen[bytes],
        *,
        http_url: str,
        folder: Path,
        headers: Mapping[str, str],
        gateway: Gateway | None = None,
        startup_timeout: float,
        grace_seconds: float,
        log: Callable[[str], None],
        say: Callable[[str], None],
        progress_seconds: float = 10.0,
        on_output: Callable[[int], None] = _nothing,
        on_ready: Callable[[int], None] = _nothing,
    ) -> None:
        """`guard` runs the server, its stdout being the pipe of the log; `folder` is the launcher's private one;
        `headers` open the server's repository API; `gateway` runs beside the server. `on_output` is called with the
        server's pid once it has printed something, `on_ready` once all models are ready, and when one was loaded later.

        While the models load, something is said every `progress_seconds`; after `startup_timeout` it is a failure.
        Requests under way at a stop have `grace_seconds`.
        """
        assert guard.stdout is not None
        self.stubs: dict[int, Stub] = {}
        self._unloaded: set[Stub] = set()
        """Processes that end because somebody unloaded their model."""
        self._ended: set[Stub] = set()
        """Processes that have ended regularly while it is not known why."""
        self.failure: str | None = None
        self.ready = False
        self.settled = threading.Event()
        """Set once the server is ready. The owner sets it, too, when the server has ended."""
        self._guard = guard
        self._pipe: IO[bytes] = guard.stdout
        self._reader = LogReader(self._pipe.fileno())
        self._http_url = http_url
        self._folder = folder
        self._headers = headers
        self._gateway = gateway
        self._grace_seconds = grace_seconds
        self._log = log
        self._say = say
        self._on_output: Callable[[int], None] | None = on_output
        self._on_ready = on_ready
        self._stopping = False
        self._draining = False
        self._last_moment = 0.0  # time.monotonic() at which requests under way at a stop end
        self._stop_told, self._stop_asked = socket.socketpair()
        self._models = Models(folder)
        self._selector = selectors.DefaultSelector()
        self._progress_seconds = progress_seconds
        self._started = time.monotonic()
        # What to do at which time.monotonic().
        self._alarms: dict[Callable[[], None], float] = {
            self._report_progress: self._started + progress_seconds,
            self._time_out: self._started + startup_timeout,
        }

    @property
    def guard_pid(self) -> int:
        """The server is its child."""
        return self._guard.pid

    def request_stop(self, *, kill: bool) -> None:
        """Ends the server, from any thread or signal handler; does nothing when it has ended. Requests under way may
        finish first, unless it is killed."""
        self._stopping = True
        if kill:
            self._guard.send_signal(signal.SIGQUIT)
        else:
            with contextlib.suppress(OSError):  # it has ended
                self._stop_asked.send(b".")

    def run(self) -> None:
        """Returns when the server and all its processes have ended."""
        guard_ends = os.pidfd_open(self._guard.pid)
        self._selector.register(self._pipe, selectors.EVENT_READ, self._read_log)
        self._selector.register(guard_ends, selectors.EVENT_READ, self._guard.wait)
        self._selector.register(self._stop_told, selectors.EVENT_READ, self._stop)
        self._models.attend(self._selector)
        try:
            while self._guard.returncode is None:
                for key, _ in self._selector.select(self._seconds_to_alarm()):
                    key.data()
                self._ring_alarms()
            self._report_end()
        except Exception as error:  # of a log sink, for one: a server that nobody watches must not go on
            self.failure = self.failure or f"the launcher failed: {error!r}"
        finally:
            self._guard.send_signal(signal.SIGQUIT)
            self._guard.wait()
            if self._gateway is not None:
                self._gateway.close()
            self._close(guard_ends)

    def _stop(self) -> None:
        """Drains the gateway, which may need the models for what it has begun, then the models, while Triton goes on
        serving: once it stops, it counts no stream as a request, takes no connection, and has no words for those whom
        it cuts off."""
        self._selector.unregister(self._stop_told)
        if not self.ready:
            self._terminate()
            return
        self._say(f"stopping; requests under way have {self._grace_seconds:g} s")
        threading.Thread(target=self._withdraw, name="withdraw", daemon=True).start()
        self._last_moment = time.monotonic() + self._grace_seconds
        self._alarms[self._drain_models] = self._last_moment
        self._alarms[self._terminate] = self._last_moment + _DRAINED_SECONDS
        if self._gateway is None:
            self._drain_models()
        else:
            self._gateway.drain(self._drain_models)

    def _drain_models(self) -> None:
        self._alarms.pop(self._drain_models, None)
        if not self._draining:
            self._draining = True
            self._models.drain(max(0.0, round(self._last_moment - time.monotonic(), 3)), self._drained)

    def _drained(self) -> None:
        self._alarms[self._terminate] = time.monotonic() + _DELIVERY_SECONDS

    def _withdraw(self) -> None:
        if not withdraw(self._http_url, self._folder, self._headers):
            self._say("Triton says that it is ready until it ends: it does not control models explicitly")

    def _terminate(self) -> None:
        self._guard.send_signal(signal.SIGTERM)

    def _read_log(self) -> None:
        for line in self._reader.read() or []:
            self._log(line)
            if self._on_output is not None:
                self._tell(self._on_output)
                self._on_output = None
            if _LOADED.search(line):
                self._find_stubs()
                if self.ready:
                    self._tell(self._on_ready)
            if unloaded := _UNLOADED.search(line):
                self._unloaded |= {it for it in (*self.stubs.values(), *self._ended) if it.model == unloaded[1]}
            if "Started Metrics Service" in line:  # the last port that is opened
                self._check_ready()
        if self._reader.at_end:
            self._selector.unregister(self._pipe)

    def _find_stubs(self) -> None:
        for stub in model_stubs(self._guard.pid):
            if stub.pid not in self.stubs:
                self.stubs[stub.pid] = stub
                self._watch_stub(stub)

    def _watch_stub(self, stub: Stub) -> None:
        try:
            ends = os.pidfd_open(stub.pid)
        except ProcessLookupError:
            self._stub_ended(stub)
        else:
            self._selector.register(ends, selectors.EVENT_READ, functools.partial(self._stub_ended, stub, ends))

    def _stub_ended(self, stub: Stub, pidfd: int | None = None) -> None:
        if pidfd is not None:
            self._selector.unregister(pidfd)
            os.close(pidfd)
        del self.stubs[stub.pid]
        # When the server is gone, that is what killed the stub: the end of the guard tells.
        if self._stopping or not read_process(stub.server):
            return
        how = ending(stub.pid)
        failure = f"the process {stub.pid} of the model {stub.model} died ({how})"
        if not self.ready:  # most likely it did not load: then the server says why, and ends by itself
            self._alarms[functools.partial(self._fail_to_start, failure)] = time.monotonic() + _FAILURE_SECONDS
        elif how in _REGULAR_ENDS:  # most likely the model is unloaded: then the server says so
            self._ended.add(stub)
            self._alarms[functools.partial(self._fail_unless_unloaded, stub, failure)] = (
                time.monotonic() + _FAILURE_SECONDS
            )
        else:
            self._fail(failure)

    def _fail_unless_unloaded(self, stub: Stub, failure: str) -> None:
        self._ended.discard(stub)
        if stub not in self._unloaded:
            self._fail(failure)
        self._unloaded.discard(stub)

    def _fail_to_start(self, failure: str) -> None:
        self._fail(f"{failure}\n{self._reader.failure()}")

    def _check_ready(self) -> None:
        if self.ready or not answers_ready(self._http_url):
            return
        self._find_stubs()
        self._tell(self._on_ready)
        self.ready = True
        if self._gateway is None:
            self._settle()
        else:
            self._gateway.start(self._selector, self._settle, self._fail)

    def _settle(self) -> None:
        """Everything answers."""
        if self.settled.is_set():
            return
        for alarm in (self._report_progress, self._time_out):
            self._alarms.pop(alarm, None)
        self._say(f"ready after {time.monotonic() - self._started:.1f} s")
        self.settled.set()

    def _tell(self, listener: Callable[[int], None]) -> None:
        for server in children(self._guard.pid):
            listener(server)

    def _report_progress(self) -> None:
        self._alarms[self._report_progress] = time.monotonic() + self._progress_seconds
        self._say(f"starting, {time.monotonic() - self._started:.0f} s: {self._reader.last_line}")
        self._check_ready()

    def _time_out(self) -> None:
        seconds = time.monotonic() - self._started
        self._fail(f"the models are not ready after {seconds:.0f} s; the last line: {self._reader.last_line}")

    def _fail(self, failure: str) -> None:
        if self.failure:
            return
        self.failure = failure
        self._alarms = {self._kill: time.monotonic() + _FAILURE_SECONDS}
        self._guard.send_signal(signal.SIGTERM)
        self._say(failure)

    def _kill(self) -> None:
        self._guard.send_signal(signal.SIGQUIT)

    def _report_end(self) -> None:
        while not self._reader.at_end and (lines := self._reader.read()) is not None:
            for line in lines:
                self._log(line)
        code = self._guard.returncode
        how = describe_exit(128 - code if code > 128 else code)  # the guard's code is a shell's
        if self._stopping or self.failure:
            self._say(f"stopped ({how})")
        elif self.ready:
            self._fail(f"tritonserver ended ({how})")
        else:
            self._fail(f"the server did not start ({how})\n{self._reader.failure()}")

    def _seconds_to_alarm(self) -> float | None:
        return max(0.0, min(self._alarms.values()) - time.monotonic()) if self._alarms else None

    def _ring_alarms(self) -> None:
        for alarm in [alarm for alarm, due in self._alarms.items() if due <= time.monotonic()]:
            self._alarms.pop(alarm, None)
            alarm()

    def _close(self, guard_ends: int) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, int) and key.fileobj != guard_ends:
                os.close(key.fileobj)
        for end in (self._stop_told, self._stop_asked, self._models):
            end.close()
        os.close(guard_ends)
        self._selector.close()
        self._pipe.close()
