"""The launcher's parts, without a Triton."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from chatterbox_engine.errors import ConfigError
from chatterbox_engine.launcher.access import Keys
from chatterbox_engine.launcher.cli import parse
from chatterbox_engine.launcher.log import LogReader
from chatterbox_engine.launcher.options import (
    Addresses,
    ServerOptions,
    find_repository,
    model_environment,
    tritonserver_command,
)
from chatterbox_engine.launcher.ports import ReservedPorts
from chatterbox_engine.launcher.processes import describe_exit, ending, read_process
from chatterbox_engine.launcher.regions import new_prefix
from chatterbox_engine.launcher.triton import STUB, Interpreter, Triton, check_glibc, find_triton

KEYS = Keys(None, "token")
NO_PID = 2**22 + 1
"""Above the largest pid that Linux gives."""


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def python(tmp_path: Path) -> Interpreter:
    """A Python 3.11 in a virtual environment, with its shared library."""
    library = write(tmp_path / "python/lib/libpython3.11.so.1.0")
    return Interpreter(write(tmp_path / "venv/bin/python3"), "3.11", (tmp_path / "nowhere", library.parent))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Site-packages with pytriton's files."""
    root = tmp_path / "site/pytriton/tritonserver"
    write(root / "bin/tritonserver")
    write(root / "backends/python/libtriton_python.so")
    write(root / "backends/python/triton_python_backend_utils.py")
    write(root / "python_backend_stubs/3.11" / STUB, "stub 3.11")
    write(root / "python_backend_stubs/3.12" / STUB, "stub 3.12")
    return tmp_path / "site/pytriton"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A container's folder with a backend for Python 3.11."""
    write(tmp_path / "home/bin/tritonserver")
    write(tmp_path / "home/backends/python" / STUB, "ELF libpython3.11.so.1.0")
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_the_package_s_backend_is_assembled_with_the_stub_of_this_python(
    package: Path, folder: Path, python: Interpreter
) -> None:
    found = find_triton(folder, {"PATH": "/bin", "LD_LIBRARY_PATH": "/cuda"}, python, package)
    assert found.executable == package / "tritonserver/bin/tritonserver"
    assert {path.name for path in (found.backends / "python").iterdir()} == {
        "libtriton_python.so",
        "triton_python_backend_utils.py",
        STUB,
    }
    assert (found.backends / "python" / STUB).read_text() == "stub 3.11"
    assert found.environment == {
        "PATH": f"{python.executable.parent}:/bin",
        "LD_LIBRARY_PATH": f"{package.parent}/nvidia_pytriton.libs:{python.library_folders[1]}:/cuda",
    }


def test_a_container_s_triton_is_used_as_it_is(home: Path, folder: Path, python: Interpreter) -> None:
    found = find_triton(folder, {"CHATTERBOX_TRITON_HOME": str(home)}, python)
    assert (found.executable, found.backends) == (home / "bin/tritonserver", home / "backends")
    assert list(folder.iterdir()) == []


def test_a_container_for_another_python_is_refused(home: Path, folder: Path, python: Interpreter) -> None:
    write(home / "backends/python" / STUB, "ELF libpython3.12.so.1.0")
    with pytest.raises(ConfigError, match=r"built for Python 3\.12 and this is 3\.11"):
        find_triton(folder, {"CHATTERBOX_TRITON_HOME": str(home)}, python)


def test_a_home_without_a_server_is_refused(folder: Path, python: Interpreter, package: Path) -> None:
    with pytest.raises(ConfigError, match=r"CHATTERBOX_TRITON_HOME=.* holds no bin/tritonserver"):
        find_triton(folder, {"CHATTERBOX_TRITON_HOME": str(folder)}, python, package)


def test_a_python_without_a_stub_is_refused(folder: Path, python: Interpreter, package: Path) -> None:
    old = Interpreter(python.executable, "3.9", python.library_folders)
    with pytest.raises(ConfigError, match=r"no Python backend for Python 3\.9"):
        find_triton(folder, {}, old, package)


def test_a_missing_shared_libpython_is_named_with_its_remedy(
    folder: Path, python: Interpreter, package: Path, tmp_path: Path
) -> None:
    static = Interpreter(python.executable, "3.11", (tmp_path / "nowhere",))
    with pytest.raises(ConfigError, match=r"needs libpython3\.11\.so\.1\.0.*install the package libpython3\.11"):
        find_triton(folder, {}, static, package)


def test_an_interpreter_without_python3_beside_it_is_refused(
    folder: Path, python: Interpreter, package: Path, tmp_path: Path
) -> None:
    odd = Interpreter(tmp_path / "odd/python3.11", "3.11", python.library_folders)
    with pytest.raises(ConfigError, match="no python3 beside"):
        find_triton(folder, {}, odd, package)


@pytest.mark.parametrize("found", ["glibc 2.35", "glibc 2.41.9000", "glibc 3.0"])
def test_a_new_glibc_is_accepted(found: str) -> None:
    check_glibc(found)


@pytest.mark.parametrize("found", ["glibc 2.31", "glibc 2.4", "musl 1.2", None])
def test_an_old_glibc_is_named_with_its_remedy(found: str | None) -> None:
    with pytest.raises(ConfigError, match=r"needs glibc 2\.35 or newer.*Debian 12"):
        check_glibc(found)


def test_finding_triton_does_not_import_pytriton() -> None:
    program = (
        "import pathlib, sys, tempfile\n"
        "from chatterbox_engine.launcher.triton import find_triton\n"
        "with tempfile.TemporaryDirectory() as folder: find_triton(pathlib.Path(folder))\n"
        "assert not {'pytriton', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_reserved_ports_are_different_and_taken_until_released() -> None:
    reserved = ReservedPorts("127.0.0.1", [0, 0, 0])
    assert len(set(reserved.numbers)) == 3
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", reserved.numbers[0]))
    reserved.release()
    with socket.socket() as other:
        other.bind(("127.0.0.1", reserved.numbers[0]))


def test_a_server_may_listen_on_a_reserved_port() -> None:
    reserved = ReservedPorts("127.0.0.1", [0])
    with socket.create_server(("127.0.0.1", reserved.numbers[0])):  # sets SO_REUSEADDR, as tritonserver does
        reserved.release()


def test_a_taken_port_is_refused_and_the_others_are_given_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
        free.close()
        taken = listening.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot use port {taken}"):
            ReservedPorts("127.0.0.1", [number, taken])
        with socket.socket() as again:
            again.bind(("127.0.0.1", number))


def test_the_models_environment_is_ours_with_defaults_that_everything_else_wins_over() -> None:
    triton = Triton(Path("tritonserver"), Path("backends"), {"LD_LIBRARY_PATH": "/triton"})
    cache = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    plain = model_environment(ServerOptions(), triton, {"HOME": "/home", "CHATTERBOX_TRITON_HOME": "/triton"})
    assert plain == {"HOME": "/home", "LD_LIBRARY_PATH": "/triton", cache: "64", "GOMP_SPINCOUNT": "3000"}
    assert "GOMP_SPINCOUNT" not in model_environment(ServerOptions(), triton, {"OMP_WAIT_POLICY": "active"})
    assert model_environment(ServerOptions(), triton, {cache: "16"})[cache] == "16"
    assert model_environment(ServerOptions(environment={cache: "32"}), triton, {cache: "16"})[cache] == "32"


def test_lines_are_put_together_from_pieces() -> None:
    read, write_end = os.pipe()
    reader = LogReader(read)
    try:
        os.write(write_end, b"one\ntw")
        assert reader.read() == ["one"]
        assert reader.read() is None
        os.write(write_end, b"o\n\nthree")
        assert reader.read() == ["two", ""]
        assert (reader.last_line, reader.at_end) == ("two", False)
        os.close(write_end)
        assert reader.read() == ["three"]
        assert reader.at_end
    finally:
        os.close(read)


def failed_to_load(model: str, error: str) -> bytes:
    """A line of Triton's log."""
    return f"E m.cc:6] \"failed to load '{model}' version 1: Internal: {error}\\n\\nAt:\\n  f(1): g\\n\"\n".encode()


def test_the_failure_is_the_model_s_own_error_or_else_the_last_lines() -> None:
    read, write_end = os.pipe()
    reader = LogReader(read)
    try:
        os.write(write_end, b"usage\nno such option\n")
        reader.read()
        assert reader.failure() == "usage\nno such option"
        os.write(
            write_end,
            b'E m.cc:6] "failed to load \'m\' version 1: Internal: no \\"x\\"\\n\\nAt:\\n  f(1): g\\n"\nbye\n',
        )
        reader.read()
        assert reader.failure() == "failed to load 'm' version 1: Internal: no \"x\"\n\nAt:\n  f(1): g"
        os.write(write_end, failed_to_load("a_stream", "EngineFailed: it ended"))
        os.write(write_end, failed_to_load("a", "ConfigError: no such\\nfile"))
        reader.read()
        assert reader.failure().endswith("load 'a' version 1: Internal: ConfigError: no such\nfile")
        assert "EngineFailed" not in reader.failure()
    finally:
        os.close(write_end)
        os.close(read)


def test_a_process_is_told_from_another_with_its_pid() -> None:
    own = read_process(os.getpid())
    assert own is not None
    assert own.parent == os.getppid()
    assert read_process(NO_PID) is None
    assert ending(NO_PID) == "gone"
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(3) == "exit code 3"


def test_how_a_process_ended_is_known_until_it_is_reaped() -> None:
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(5)"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert ending(process.pid) == "exit code 5"


@pytest.mark.parametrize(
    ("host", "http"), [("0.0.0.0", "127.0.0.1:1"), ("10.0.0.7", "10.0.0.7:1"), ("::", "[::1]:1"), ("node", "node:1")]
)
def test_addresses_are_ones_that_clients_can_connect_to(host: str, http: str) -> None:
    assert Addresses.of(host, [1, 2, 3]).http == http


def test_the_model_repository_is_the_checkout_s_unless_another_is_given(tmp_path: Path) -> None:
    checkout = Path(__file__).parents[2] / "model_repository"
    environment = {"CHATTERBOX_MODEL_REPOSITORY": str(tmp_path)}
    assert find_repository(ServerOptions(), {}) == checkout
    assert find_repository(ServerOptions(), environment) == tmp_path
    assert find_repository(ServerOptions(model_repository=checkout), environment) == checkout
    with pytest.raises(ConfigError, match="no model repository at"):
        find_repository(ServerOptions(model_repository=tmp_path / "none"), {})


def test_further_arguments_come_last_and_a_subset_of_models_is_explicit(tmp_path: Path) -> None:
    options = ServerOptions(models=["a", "b"], arguments=["--log-verbose=1"])
    triton = Triton(tmp_path / "tritonserver", tmp_path, {})
    command = tritonserver_command(options, triton, [tmp_path], [1, 2, 3], "prefix_", KEYS)
    ours = ["--model-control-mode=explicit", "--load-model=a", "--load-model=b", "--log-verbose=1"]
    first = command.index(ours[0])
    assert command[first : first + 4] == ours
    assert {argument.partition("=")[0] for argument in command[first + 4 :]} == {
        "--http-restricted-api",
        "--grpc-restricted-protocol",
        "--http-header-forward-pattern",
    }
    assert {"--http-port=1", "--grpc-port=2", "--metrics-port=3"} < set(command)


def test_all_models_load_at_once_so_that_no_front_waits_for_an_engine_behind_it(tmp_path: Path) -> None:
    triton = Triton(tmp_path / "tritonserver", tmp_path, {})
    repository = tmp_path / "models"
    repository.mkdir()
    for models, threads in ((3, 4), (9, 9)):
        for number in range(models):
            (repository / f"model{number}").mkdir(exist_ok=True)
        command = tritonserver_command(ServerOptions(), triton, [repository, tmp_path], [1, 2, 3], "prefix_", KEYS)
        assert f"--model-load-thread-count={threads}" in command
        assert [part for part in command if part.startswith("--model-repository")] == [
            f"--model-repository={repository}",
            f"--model-repository={tmp_path}",
        ]


def test_models_are_controlled_as_the_user_says_and_otherwise_by_the_launcher(tmp_path: Path) -> None:
    triton = Triton(tmp_path / "tritonserver", tmp_path, {})

    def control(*arguments: str) -> list[str]:
        command = tritonserver_command(
            ServerOptions(arguments=arguments), triton, [tmp_path], [1, 2, 3], "prefix_", KEYS
        )
        return [part for part in command if part.startswith(("--model-control", "--load-model"))]

    assert control() == ["--model-control-mode=explicit", "--load-model=*"]
    assert control("--model-control-mode=none") == ["--model-control-mode=none"]
    assert control("--model-control-mode=explicit", "--load-model=a") == [
        "--model-control-mode=explicit",
        "--load-model=a",
    ]


def test_the_command_takes_tritonserver_s_arguments_after_two_dashes() -> None:
    options, address_file, show = parse(
        [
            "--checkpoint=tiny",
            "--free-ports",
            "--http-port=5",
            "--address-file=a",
            "-v",
            "--",
            "--metrics-interval-ms=9",
        ]
    )
    assert (options.http_port, options.grpc_port, options.metrics_port) == (0, 0, 0)
    assert options.environment == {"CHATTERBOX_CHECKPOINT": "tiny"}
    assert options.arguments == ["--log-verbose=1", "--metrics-interval-ms=9"]
    assert (address_file, show, options.grace_seconds) == (Path("a"), False, 30.0)
    options, address_file, _ = parse([])
    assert (options.http_port, options.grpc_port, options.metrics_port) == (8000, 8001, 8002)
    assert (options.environment, options.arguments, address_file) == ({}, [], None)
    for wrong in ("stray", "--grace-seconds=-1", "--grace-seconds=nan"):
        with pytest.raises(SystemExit):
            parse([wrong])
    assert parse(["--grace-seconds=2.5"])[0].grace_seconds == 2.5


def guard(tmp_path: Path, owner: int, script: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script under the guard; returns when every process that holds its output has ended."""
    (tmp_path / "run").mkdir()
    options = [
        "--owner",
        str(owner),
        "--prefix",
        new_prefix(),
        "--folder",
        str(tmp_path / "run"),
        "--stop-seconds",
        "9",
    ]
    command = [sys.executable, "-m", "chatterbox_engine.launcher.guard", *options, "--", "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_guard_hands_on_the_exit_code_and_removes_the_folder(tmp_path: Path) -> None:
    assert guard(tmp_path, os.getpid(), "exit 7").returncode == 7
    assert not (tmp_path / "run").exists()


def test_the_guard_reports_a_signal_as_a_shell_does(tmp_path: Path) -> None:
    assert guard(tmp_path, os.getpid(), "kill -KILL $$").returncode == 137


def test_the_guard_kills_what_the_server_leaves_running(tmp_path: Path) -> None:
    ended = guard(tmp_path, os.getpid(), "setsid sh -c 'sleep 600 & wait' & echo $!")
    assert ended.returncode == 0
    assert not psutil.pid_exists(int(ended.stdout))


def test_the_guard_of_an_owner_that_is_gone_starts_nothing(tmp_path: Path) -> None:
    ended = guard(tmp_path, NO_PID, "echo started")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert not (tmp_path / "run").exists()
