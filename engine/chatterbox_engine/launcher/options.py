"""Options of a server, and the tritonserver command line made from them."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chatterbox_engine.errors import ConfigError
from chatterbox_engine.launcher.access import Keys, access_arguments
from chatterbox_engine.launcher.triton import HOME_VARIABLE, Triton

REPOSITORY_VARIABLE = "CHATTERBOX_MODEL_REPOSITORY"
_CHECKOUT_REPOSITORY = Path(__file__).parents[3] / "model_repository"


# On a CPU, oneDNN caches the primitives that it compiles for each tensor shape: 1,024 by default, 0.25 MB each. S3Gen
# needs about 45 for each length of audio; compiling them takes 70 ms, synthesis takes seconds. Lengths seldom recur,
# and cached primitives fragment malloc's heap, so caching more than one length saves no time.
_DEFAULTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}

# How long libgomp's threads busy-wait at a barrier before they yield. With the default of 300,000 iterations, one other
# busy process makes S3Gen on two cores 20 times slower: every barrier waits for a thread that is not running. This
# lower count costs nothing on an idle machine (docs/log/host.md).
_SPIN = {"GOMP_SPINCOUNT": "3000"}
_WAIT_POLICY = "OMP_WAIT_POLICY"
"""OpenMP's standard setting for busy-waiting, which GOMP_SPINCOUNT would override."""


STOP_SECONDS = 10
"""Seconds that Triton has to stop after the engines are drained, for requests about voices. Triton counts an idle
keep-alive connection as a request, so one idle client makes it wait this long."""


def print_log(line: str) -> None:
    """Prints a line of the server's log on stderr; one that is JSON stays so."""
    print(line if line.startswith("{") else f"triton | {line}", file=sys.stderr, flush=True)


def print_news(line: str) -> None:
    """Prints a message of the launcher on stderr."""
    print(f"launcher: {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How to run one server.

    A port 0 is replaced by a free one. The two callables run on the thread that watches the server; an exception in one
    stops the server.
    """

    model_repository: Path | None = None
    """Default: `CHATTERBOX_MODEL_REPOSITORY`, or `model_repository/` of the checkout that this file lies in."""
    instances: str | None = None
    """Engines of each model: see `instances.arranged`. Default: `CHATTERBOX_INSTANCES`, or `auto`."""
    models: Sequence[str] = ()
    """The models to load; all of the repository when empty."""
    host: str = "127.0.0.1"
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    gateway_port: int | None = None
    """Port of the gateway; None runs none."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's environment for the models, `CHATTERBOX_CHECKPOINT` for one."""
    opened: Sequence[str] = ()
    """Which of `access.PROTOCOLS` clients may use; all are closed by default."""
    key_file: Path | None = None
    """Holds a key that callers of the models must send, as the header `access.KEY_HEADER`."""
    arguments: Sequence[str] = ()
    """Further arguments of tritonserver, after ours."""
    startup_timeout: float = 600.0
    """Seconds until all models must be ready."""
    grace_seconds: float = 30.0
    """Seconds that running requests have to finish after the server is told to stop. Meanwhile it is not ready and
    refuses new requests; then the remaining ones are answered with an error that says so."""
    log: Callable[[str], None] | Path = print_log
    """Called with every line that the server prints, or the file to write them to."""
    say: Callable[[str], None] = print_news
    """Called with the launcher's own lines: progress while starting, and why a server ended."""


_ALL = ("0.0.0.0", "::")


def describe_reach(host: str) -> str:
    """Describes who can reach a server that listens on `host`."""
    if host in _ALL:
        return f"listening on every interface ({host}): whoever reaches this machine's ports can use the server"
    if host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback):
        return f"listening on {host}, for this machine alone (--host 0.0.0.0: for others too)"
    return f"listening on {host}: whoever reaches that address can use the server"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Addresses:
    """Where a server answers, each as `host:port` as the clients of `tritonclient` want it."""

    http: str
    grpc: str
    metrics: str
    gateway: str | None = None
    """None when none runs."""

    @classmethod
    def of(cls, host: str, ports: Sequence[int]) -> Addresses:
        """`ports` are those of HTTP, gRPC, metrics and, where there is one, the gateway. A host that means all
        interfaces is reached as this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        if ":" in host:
            host = f"[{host}]"
        return cls(*(f"{host}:{port}" for port in ports))


def find_repository(options: ServerOptions, environment: Mapping[str, str] | None = None) -> Path:
    """The model repository to serve. Raises ConfigError when it is not there."""
    environment = os.environ if environment is None else environment
    given = options.model_repository or environment.get(REPOSITORY_VARIABLE)
    repository = Path(given) if given else _CHECKOUT_REPOSITORY
    if not repository.is_dir():
        raise ConfigError(
            f"no model repository at {repository}: name one with --model-repository or {REPOSITORY_VARIABLE}"
        )
    return repository


def model_environment(
    options: ServerOptions, triton: Triton, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The complete environment of the server, without the launcher's own settings."""
    environment = os.environ if environment is None else environment
    inherited = {name: value for name, value in environment.items() if name not in (HOME_VARIABLE, REPOSITORY_VARIABLE)}
    given = {**inherited, **triton.environment, **options.environment}
    return {**_DEFAULTS, **({} if _WAIT_POLICY in given else _SPIN), **given}


def tritonserver_command(
    options: ServerOptions,
    triton: Triton,
    repositories: Sequence[Path],
    ports: Sequence[int],
    prefix: str,
    keys: Keys,
) -> list[str]:
    """The command line; the first of `repositories` is the user's, `ports` are those of HTTP, gRPC and metrics, and
    `prefix` is for shared-memory regions."""
    http, grpc, metrics = ports
    command = [
        str(triton.executable),
        *(f"--model-repository={repository}" for repository in repositories),
        f"--backend-directory={triton.backends}",
        f"--http-address={options.host}",
        f"--grpc-address={options.host}",
        f"--metrics-address={options.host}",
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        f"--metrics-port={metrics}",
        # One loader thread for each model: a streaming front waits for its engine to listen, and with the default of
        # four threads, four fronts would block the loading of their engines.
        f"--model-load-thread-count={max(4, sum(1 for _ in repositories[0].iterdir()))}",
        # A prefix that distinguishes this server's regions from other servers', so that they can be removed.
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        # Auto-completion runs every model.py once more in a separate process; these configurations are complete.
        "--disable-auto-complete-config",
        # Ready only when every model is, which load balancers and the launcher rely on.
        "--strict-readiness=true",
        # A model that fails to load ends the server at once.
        "--exit-on-error=true",
        f"--exit-timeout-secs={STOP_SECONDS}",
        # Time stamps with a year and a zone.
        "--log-format=ISO8601",
        # Our models exchange tensors in pageable memory, so Triton's 256 MiB of pinned memory would be unused.
        "--pinned-memory-pool-byte-size=0",
        # By default Triton keeps the buffers of eight answered requests, each as large as the largest: 100 MB.
        "--grpc-infer-allocation-pool-size=0",
        f"--allow-gpu-metrics={_boolean(_has_gpu())}",
    ]
    if not any(argument.startswith("--model-control-mode") for argument in options.arguments):
        # Explicit even when all models are loaded: only then can a draining server report that it is not ready.
        models = options.models or ["*"]
        command += ["--model-control-mode=explicit", *(f"--load-model={model}" for model in models)]
    return [*command, *options.arguments, *access_arguments(options.opened, keys, options.arguments)]


def _has_gpu() -> bool:
    # Without a driver, enabled GPU metrics print misleading errors.
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def _boolean(value: bool) -> str:
    return "true" if value else "false"
