"""The command `chatterbox-serve`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from chatterbox_engine.config import FILE_VARIABLE, ignored
from chatterbox_engine.errors import ChatterboxError
from chatterbox_engine.launcher import gateway
from chatterbox_engine.launcher.access import KEY_HEADER, PROTOCOLS
from chatterbox_engine.launcher.instances import VARIABLE
from chatterbox_engine.launcher.options import (
    REPOSITORY_VARIABLE,
    Addresses,
    ServerOptions,
    find_repository,
    print_news,
)
from chatterbox_engine.launcher.server import ServerFailed, TritonServer
from chatterbox_engine.launcher.settings import check, describe


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGINT or SIGTERM (returns 0) or until the server fails (1). Requests under way may finish, up to
    `--grace-seconds`; a second signal ends it at once."""
    options, address_file, show = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        repository, environment = find_repository(options), {**os.environ, **options.environment}
        for line in ignored(environment):
            print_news(line)
        if show:
            _print(describe(repository, environment))
            return 0
        check(repository, environment)
        if options.gateway_port is None:
            print_news("no gateway: Triton's own ports alone")
    except ChatterboxError as error:
        print_news(str(error))
        return 1
    # Both stop the server the way Ctrl-C does: by unwinding the `with` below.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with TritonServer(options) as server, _published(server.addresses, address_file):
            server.wait()
    except KeyboardInterrupt:
        return 0
    except ServerFailed:  # the server's watch has said why
        return 1
    except ChatterboxError as error:
        print_news(str(error))
        return 1
    return 0


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever reads has had enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatterbox-serve",
        description="Runs a Triton Inference Server with the Chatterbox models until it is interrupted.",
        epilog="Everything after -- is handed to tritonserver.",
    )
    parser.add_argument("--checkpoint", help="folder, hub id, demo or tiny (default: CHATTERBOX_CHECKPOINT)")
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"YAML file of settings (default: {FILE_VARIABLE})")
    parser.add_argument(
        "--print-config", action="store_true", help="show all settings and where they come from, and end"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: this machine's own; 0.0.0.0: all interfaces)",
    )
    parser.add_argument("--http-port", type=int, default=8000, metavar="PORT", help="default: 8000; 0: a free one")
    parser.add_argument("--grpc-port", type=int, default=8001, metavar="PORT", help="default: 8001; 0: a free one")
    parser.add_argument("--metrics-port", type=int, default=8002, metavar="PORT", help="default: 8002; 0: a free one")
    parser.add_argument("--gateway-port", type=int, default=8080, metavar="PORT", help="default: 8080; 0: a free one")
    parser.add_argument("--free-ports", action="store_true", help="choose all ports")
    parser.add_argument(
        "--no-gateway",
        action="store_true",
        help="run Triton alone; the gateway's own options are read from variables, CHATTERBOX_GATEWAY_...",
    )
    parser.add_argument(
        "--instances",
        metavar="WHERE",
        help=f"engines of each model: auto (one for each GPU), gpu, gpu:0,2 or cpu:2 (default: {VARIABLE}, or auto)",
    )
    parser.add_argument("--model-repository", type=Path, metavar="FOLDER", help=f"default: {REPOSITORY_VARIABLE}")
    parser.add_argument(
        "--open",
        action="append",
        default=[],
        choices=PROTOCOLS,
        dest="opened",
        help="let clients use one of Triton's protocols that are closed to all; again for more",
    )
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help=f"holds a key without which nobody may use the models; HTTP callers send it as the header {KEY_HEADER}",
    )
    parser.add_argument("--address-file", type=Path, metavar="FILE", help="holds the addresses as JSON while ready")
    parser.add_argument("--startup-timeout", type=float, default=3600.0, metavar="SECONDS", help="default: 3600")
    parser.add_argument(
        "--grace-seconds",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="that requests under way have to finish after SIGTERM or SIGINT (default: 30)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="let tritonserver log every request")
    return parser


def parse(arguments: Sequence[str]) -> tuple[ServerOptions, Path | None, bool]:
    """The options of the server, the file for its addresses, and whether settings are only shown.

    Ends the program when an argument is wrong.
    """
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = _parser().parse_args(arguments[:split])
    settings = {
        "CHATTERBOX_CHECKPOINT": options.checkpoint,
        FILE_VARIABLE: options.config and options.config.absolute(),
    }
    ports = [options.http_port, options.grpc_port, options.metrics_port, options.gateway_port]
    if options.free_ports:
        ports = [0] * len(ports)
    server = ServerOptions(
        model_repository=options.model_repository,
        instances=options.instances,
        host=options.host,
        http_port=ports[0],
        grpc_port=ports[1],
        metrics_port=ports[2],
        gateway_port=None if options.no_gateway or not gateway.is_installed() else ports[3],
        environment={name: str(value) for name, value in settings.items() if value},
        opened=options.opened,
        key_file=options.key_file,
        arguments=[*(["--log-verbose=1"] if options.verbose else []), *arguments[split + 1 :]],
        startup_timeout=options.startup_timeout,
        grace_seconds=options.grace_seconds,
    )
    return server, options.address_file, options.print_config


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 86400")
    return seconds


@contextlib.contextmanager
def _published(addresses: Addresses, file: Path | None) -> Iterator[None]:
    """Keeps the addresses in `file` as long as they are good, and prints them. The file appears whole."""
    fields = {name: address for name, address in dataclasses.asdict(addresses).items() if address is not None}
    with contextlib.ExitStack() as cleanup:
        if file:
            draft = file.with_name(f"{file.name}.{os.getpid()}")
            draft.write_text(json.dumps(fields) + "\n", encoding="utf-8")
            draft.replace(file)
            cleanup.callback(file.unlink, missing_ok=True)
        for name, address in fields.items():
            print(f"{name:8}{address}", flush=True)
        yield


if __name__ == "__main__":
    sys.exit(main())
