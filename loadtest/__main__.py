"""`make loadtest`: starts a server unless one is given, runs headless Locust, and writes a report to out/loadtest/."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chatterbox_client import ChatterboxClientError, Client
from chatterbox_client.voices import KEY_VARIABLE
from chatterbox_engine.errors import ChatterboxError
from chatterbox_engine.launcher import ServerOptions, TritonServer
from chatterbox_engine.launcher.options import Addresses
from loadtest import report, summary
from loadtest.pages import Pages
from loadtest.processes import Usage, Watcher
from loadtest.records import Record
from loadtest.scenarios import SCENARIOS, Scenario
from loadtest.voices import provided

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
STOP_SECONDS = 240
"""Seconds that requests in flight have after the last stage."""
END_SECONDS = 60
"""Additional seconds for Locust to start and to end."""
PUBLISH_SECONDS = 2.5
"""The server publishes its own metrics once a second."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when every request was answered with good audio, else 1."""
    options = parse(arguments)
    try:
        with _server(options) as (addresses, server), _voices(options, addresses) as voices:
            return run(options, addresses, voices, server)
    except (ChatterboxError, ChatterboxClientError, OSError) as error:
        _say(str(error))
        return 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Ends the program when an argument is wrong."""
    names = "\n".join(f"  {name:9} {scenario.about}, {scenario.seconds:g} s" for name, scenario in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=__doc__,
        epilog=f"scenarios:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="", help="a running server's name; left out, one is started")
    parser.add_argument("--http-port", type=int, default=8000, help="of the running server")
    parser.add_argument("--grpc-port", type=int, default=8001, help="of the running server")
    parser.add_argument("--metrics-port", type=int, default=8002, help="of the running server")
    parser.add_argument(
        "--checkpoint", default="tiny", help="for the server that is started: folder, hub id, demo or tiny"
    )
    parser.add_argument("--scenario", default="mixed", choices=SCENARIOS, metavar="NAME", help="see below")
    parser.add_argument("--users", type=int, default=32, help="the largest number of users at once")
    parser.add_argument("--duration", type=float, default=0.0, help="seconds, instead of the scenario's own")
    parser.add_argument(
        "--voices",
        default="",
        help="voices to speak with, commas between them; left out, the built-in one and some added for the test",
    )
    parser.add_argument("--workers", type=int, default=0, help="Locust processes that make the load; 0: one for all")
    parser.add_argument("--master-port", type=int, default=5557, help="where workers reach the master")
    parser.add_argument("--remote-workers", action="store_true", help="wait for --workers of other machines")
    parser.add_argument("--out", type=Path, default=Path("out/loadtest"))
    options = parser.parse_args(arguments)
    if options.users < 1 or options.duration < 0 or options.workers < 0:
        parser.error("--users must be at least 1, --duration and --workers at least 0")
    return options


def run(options: argparse.Namespace, addresses: Addresses, voices: Sequence[str], server: TritonServer | None) -> int:
    """Drives one server, `server` where it is ours, and writes the report."""
    scenario = SCENARIOS[options.scenario]
    scenario = scenario.lasting(options.duration) if options.duration else scenario
    spread = f"{options.users} users with {len(voices)} voices"
    _say(f"scenario {options.scenario} ({scenario.about}), {spread}, {scenario.seconds:g} s")
    before = _read(addresses)
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder, _watched(server) as usages:
        file = Path(folder, "records.json")
        code = drive(options, addresses, voices, file)
        collected = json.loads(file.read_text()) if file.exists() else {"records": [], "timeline": []}
    records = [Record(**record) for record in collected["records"]]
    began = collected["timeline"][0][0] if collected["timeline"] else 0.0
    after = _read_again(addresses, before)
    figures = summary.summarise(scenario, options.users, records, began, before, after)
    problems = find_problems(code, figures, usages, scenario, alone=server is not None)
    if after is before:
        problems.append("the server no longer answers")
    about = _about(options, scenario, voices, problems)
    page = report.write(options.out / options.scenario, about, figures, records, collected["timeline"], usages)
    counts = f"{figures['requests']} requests, {figures['cancelled']} cancelled, {figures['failed']} failed"
    _say(f"{counts}, {figures['audio_seconds']:.1f} s of audio")
    for problem in problems:
        _say(problem)
    _say(f"{about['verdict']}; report: {page}")
    return 1 if problems else 0


def find_problems(
    code: int, figures: dict[str, Any], usages: Sequence[Usage], scenario: Scenario, *, alone: bool
) -> list[str]:
    """The reasons why this test failed. Counts are compared only if the server had no other clients (`alone`) and no
    request was cancelled: a client that cancels may not have read its answer."""
    problems = []
    if figures["failed"]:
        problems.append(f"{figures['failed']} of {figures['requests']} requests failed: {figures['errors']}")
    elif code:
        problems.append(f"Locust ended with exit code {code}")
    if figures["requests"] == figures["failed"] + figures["cancelled"]:
        problems.append("no request was answered")
    if alone and not scenario.cancelled:
        problems += summary.disagreements(figures)
    if scenario.soak:
        problems += summary.leaks(usages, figures["settled"], scenario.soak.growth)
    return problems


def drive(options: argparse.Namespace, addresses: Addresses, voices: Sequence[str], records: Path) -> int:
    """Runs Locust, with its workers when there are to be any, and returns its exit code."""
    base = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE)]
    command = [*base, "--headless", "--only-summary", "--stop-timeout", str(STOP_SECONDS)]
    command += ["--http-address", addresses.http, "--grpc-address", addresses.grpc, "--records", str(records)]
    command += ["--scenario", options.scenario, "--peak-users", str(options.users)]
    command += ["--duration", str(options.duration), "--voices", ",".join(voices), "--loglevel", "WARNING"]
    workers: list[subprocess.Popen[bytes]] = []
    if options.workers:
        port = str(options.master_port)
        command += ["--master", "--expect-workers", str(options.workers), "--master-bind-port", port]
        if not options.remote_workers:
            worker = [*base, "--worker", "--master-port", port, "--loglevel", "WARNING"]
            workers = [subprocess.Popen(worker) for _ in range(options.workers)]
    scenario = SCENARIOS[options.scenario]
    seconds = (options.duration or scenario.seconds) + STOP_SECONDS + END_SECONDS
    try:
        return call(command, None if options.remote_workers else seconds)  # external workers may connect at any time
    finally:
        for process in workers:
            process.kill()
            process.wait()


def call(command: Sequence[str], limit: float | None) -> int:
    """The exit code of a program, -9 when it had to be killed after `limit` seconds. A Locust that hangs at its end,
    when every request is answered or cancelled, has written its records."""
    try:
        return subprocess.run(command, check=False, stdin=subprocess.DEVNULL, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        _say(f"Locust has not ended after {limit:g} s and was killed")
        return -signal.SIGKILL


@contextlib.contextmanager
def _server(options: argparse.Namespace) -> Iterator[tuple[Addresses, TritonServer | None]]:
    """The addresses of the server under load, and the server itself if we started it."""
    if options.host:
        yield Addresses.of(options.host, [options.http_port, options.grpc_port, options.metrics_port]), None
        return
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "server.log"
    _say(f"starting a Triton server with the checkpoint {options.checkpoint!r}; its log is {log}")
    environment = {"CHATTERBOX_CHECKPOINT": options.checkpoint, **_key_settings()}
    with TritonServer(ServerOptions(environment=environment, log=log)) as server:
        yield server.addresses, server


def _key_settings() -> dict[str, str]:
    """Settings that allow changes of our own server's voices; the client reads the same variable."""
    key = os.environ[KEY_VARIABLE] = os.environ.get(KEY_VARIABLE) or secrets.token_hex(16)
    return {KEY_VARIABLE: key, f"{KEY_VARIABLE}_FILE": ""}


@contextlib.contextmanager
def _voices(options: argparse.Namespace, addresses: Addresses) -> Iterator[Sequence[str]]:
    """Names of the voices to use."""
    if options.voices:
        yield options.voices.split(",")
        return
    with Client(addresses.http) as client, provided(client, _say) as names:
        yield names


def _read(addresses: Addresses) -> Pages:
    """The pages once they count all that has been answered."""
    time.sleep(PUBLISH_SECONDS)
    return Pages.read(addresses.http, addresses.metrics)


def _read_again(addresses: Addresses, before: Pages) -> Pages:
    """The pages after the load; `before` itself when the server has ended, so that a report is still written."""
    try:
        return _read(addresses)
    except OSError as error:
        _say(str(error))
        return before


@contextlib.contextmanager
def _watched(server: TritonServer | None) -> Iterator[list[Usage]]:
    if server is None:
        yield []
        return
    with Watcher(server) as watcher:
        yield watcher.usages


def _about(
    options: argparse.Namespace, scenario: Scenario, voices: Sequence[str], problems: Sequence[str]
) -> dict[str, Any]:
    return {
        "scenario": options.scenario,
        "verdict": "failed" if problems else "passed",
        "problems": list(problems),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "server": options.host or f"its own, checkpoint {options.checkpoint}",
        "users": options.users,
        "speaking with": ", ".join(voices),
        "seconds": scenario.seconds,
        "workers": options.workers,
    }


def _say(line: str) -> None:
    print(f"loadtest: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
