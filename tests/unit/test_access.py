"""What the launcher tells tritonserver about who may use it, and how far regions may grow."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chatterbox_engine.errors import ConfigError
from chatterbox_engine.launcher.access import (
    KEY_HEADER,
    LAUNCHER_HEADER,
    PROTOCOLS,
    Keys,
    access_arguments,
    hide_keys,
    read_key_file,
)
from chatterbox_engine.launcher.cli import parse
from chatterbox_engine.launcher.options import describe_reach
from chatterbox_engine.limits import LARGEST_REGION, lift_file_limit, limit_regions

KEYS = Keys("secret", "token")
KEYLESS = Keys(None, "token")
OPTIONS = ("--http-restricted-api", "--grpc-restricted-protocol")


def restricted(arguments: list[str]) -> dict[str, dict[str, str]]:
    """By option and protocol, the header and the value that a caller needs."""
    found: dict[str, dict[str, str]] = {option: {} for option in OPTIONS}
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option in found:
            names, _, secret = value.partition(":")
            assert not found[option].keys() & set(names.split(",")), "Triton takes each protocol once"
            found[option] |= dict.fromkeys(names.split(","), secret)
    return found


def test_protocols_that_no_user_needs_are_closed_to_everybody() -> None:
    first, second = (restricted(access_arguments([], KEYLESS, [])) for _ in range(2))
    for option in OPTIONS:
        assert set(first[option]) == set(PROTOCOLS)
        closed = {name for name, secret in first[option].items() if secret.endswith("\n")}  # which no header can carry
        assert closed == set(PROTOCOLS) - ({"model-repository"} if option == OPTIONS[0] else set())
        assert not {first[option][name] for name in closed} & {second[option][name] for name in closed}


def test_only_the_launcher_reaches_the_model_repository_and_its_token_is_another_at_each_start(tmp_path: Path) -> None:
    found = restricted(access_arguments([], KEYLESS, []))
    assert found[OPTIONS[0]]["model-repository"] == f"{LAUNCHER_HEADER}=token"
    assert Keys.of(None).launcher != Keys.of(None).launcher
    (tmp_path / "key").write_text("mine\n")
    keys = Keys.of(tmp_path / "key")
    assert keys.headers == {KEY_HEADER: "mine", LAUNCHER_HEADER: keys.launcher}


def test_each_is_opened_by_its_name() -> None:
    for opened in PROTOCOLS:
        for names in restricted(access_arguments([opened], KEYLESS, [])).values():
            assert set(names) == set(PROTOCOLS) - {opened}
    assert access_arguments(PROTOCOLS, KEYLESS, []) == ["--http-header-forward-pattern=(?:^(?i:origin)$)"]


def test_a_key_is_for_everything_but_health_and_what_is_closed() -> None:
    found = restricted(access_arguments(["logging"], KEYS, []))
    assert set(found) == set(OPTIONS)
    for names in found.values():
        keyed = {name for name, secret in names.items() if secret == f"{KEY_HEADER}=secret"}
        assert keyed == {"inference", "metadata", "model-config", "statistics", "logging"}
        assert set(names) == keyed | {*PROTOCOLS}


@pytest.mark.parametrize("apart", [False, True])
def test_what_the_user_restricts_is_left_to_the_user(apart: bool) -> None:
    values = ("logging,inference:mine=1", "trace:other=2")
    given = [part for value in values for part in ([OPTIONS[0], value] if apart else [f"{OPTIONS[0]}={value}"])]
    found = restricted(access_arguments([], KEYS, given))
    assert not found[OPTIONS[0]].keys() & {"logging", "inference", "trace"}
    assert found[OPTIONS[1]].keys() >= {"logging", "inference", "trace"}


def test_headers_that_the_user_wants_are_handed_on_too() -> None:
    given = ["--http-header-forward-pattern=old", "--http-header-forward-pattern", "x-.*"]
    assert access_arguments(PROTOCOLS, KEYLESS, given) == ["--http-header-forward-pattern=(?:^(?i:origin)$)|(?:x-.*)"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("two words", "one line of letters"), ("one\ntwo", "one line of letters")],
)
def test_a_file_without_a_usable_key_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_key_file(tmp_path / "key")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key_file(tmp_path / "none")


def test_a_key_is_the_file_s_line(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a=b/c+d\n")
    assert read_key_file(tmp_path / "key") == "a=b/c+d"


def test_a_key_is_taken_off_a_command_line_and_the_rest_stays() -> None:
    command = [
        sys.executable,
        "-c",
        "print(flush=True); input()",
        f"--x=a:{KEY_HEADER}=secret",
        f"--y={LAUNCHER_HEADER}=token",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert hide_keys(process.pid, KEYS)
        line = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
        assert line[-3:] == [f"--x=a:{KEY_HEADER}=xxxxxx", f"--y={LAUNCHER_HEADER}=xxxxx", ""]
        process.kill()
    assert not hide_keys(process.pid, KEYS), "there is no such process"


def test_only_the_server_s_regions_are_bounded() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        _, highest = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        limit_regions(process.pid)
        bound, still = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        assert 0 < bound <= LARGEST_REGION
        assert still == highest, "so that a model's process can lift it"
        process.kill()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    lift_file_limit()
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == (before[1], before[1])


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("127.0.0.1", "for this machine alone"),
        ("localhost", "for this machine alone"),
        ("::1", "for this machine alone"),
        ("0.0.0.0", "every interface"),
        ("::", "every interface"),
        ("192.0.2.7", "whoever reaches that address"),
        ("server.example", "whoever reaches that address"),
    ],
)
def test_the_log_says_who_reaches_the_server(host: str, said: str) -> None:
    assert said in describe_reach(host)


def test_the_command_listens_on_this_machine_alone_unless_it_is_told_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options, _, _ = parse([])
    assert (options.host, list(options.opened), options.key_file) == ("127.0.0.1", [], None)
    options, _, _ = parse(["--host=::", "--open", "trace", "--open", "logging", "--key-file", "key"])
    assert (options.host, list(options.opened), options.key_file) == ("::", ["trace", "logging"], Path("key"))
    with pytest.raises(SystemExit):
        parse(["--open", "everything"])
    assert "shared-memory" in capsys.readouterr().err


def test_what_the_guard_starts_gets_an_error_instead_of_a_signal_for_a_file_that_is_too_large(tmp_path: Path) -> None:
    guard = [sys.executable, "-m", "chatterbox_engine.launcher.guard", "--owner", str(os.getpid())]
    guard += ["--prefix", "chatterbox_none_", "--folder", str(tmp_path / "none"), "--stop-seconds", "1", "--"]
    command = [*guard, "grep", "SigIgn", "/proc/self/status"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[1], 16) >> (signal.SIGXFSZ - 1) & 1
