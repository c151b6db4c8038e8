"""Who may use which of Triton's protocols: the part of tritonserver's command line that says so."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatterbox_engine.config import read_key
from chatterbox_engine.errors import ConfigError
from chatterbox_engine.origins import FORWARD_PATTERN

PROTOCOLS = ("shared-memory", "trace", "logging", "model-repository")
"""Closed unless they are opened: no user of the models needs them. Through them a client maps the server's memory, has
it write files, or takes its models away."""

KEY_HEADER = "chatterbox-key"
"""Where HTTP callers send the key of `--key-file`; gRPC callers send it as `triton-grpc-protocol-chatterbox-key`."""

LAUNCHER_HEADER = "chatterbox-launcher"
"""Where the launcher itself sends its token, to say over the closed model-repository API that the server stops."""

_KEYED = ("inference", "metadata", "model-config", "statistics")
"""What such a key is for, beside the protocols that are opened. Health needs none."""

_NOBODY = "nothing (closed; chatterbox-serve --open opens it)"
"""The header that Triton names when it refuses a closed protocol. No header has such a name."""

_HTTP = "--http-restricted-api"
_RESTRICTIONS = (_HTTP, "--grpc-restricted-protocol")
_FORWARD = "--http-header-forward-pattern"
_KEY = re.compile(rb"[A-Za-z0-9._~+/=-]+")
_PROC = Path("/proc")


def read_key_file(path: Path) -> str:
    """The key in a file. Raises ConfigError for one that cannot be a header's value on Triton's command line."""
    key = read_key("--key-file", path)
    if not _KEY.fullmatch(key):
        raise ConfigError(f"--key-file: {path} must hold one line of letters, digits and ._~+/=-")
    return key.decode()


@dataclass(frozen=True)
class Keys:
    """What callers must send to a server."""

    user: str | None
    """For everything but health, from `--key-file`; None when everybody may use the models."""
    launcher: str
    """For the model-repository API over HTTP while it is closed to everybody else."""

    @classmethod
    def of(cls, file: Path | None) -> Keys:
        """The user's from a file, if there is one, and a new token of the launcher. Raises ConfigError."""
        return cls(read_key_file(file) if file else None, secrets.token_hex(16))

    @property
    def headers(self) -> dict[str, str]:
        """As the launcher sends them."""
        user = {} if self.user is None else {KEY_HEADER: self.user}
        return {**user, LAUNCHER_HEADER: self.launcher}


def access_arguments(opened: Sequence[str], keys: Keys, given: Sequence[str]) -> list[str]:
    """tritonserver's arguments, to stand after the user's own, which are `given`: what those restrict is left to them.

    opened: of PROTOCOLS.
    """
    arguments = []
    for option in _RESTRICTIONS:
        theirs = {name for value in _values(option, given) for name in value.partition(":")[0].split(",")}
        closed = [name for name in PROTOCOLS if name not in (*opened, *theirs)]
        keyed = [name for name in (*_KEYED, *opened) if keys.user and name not in theirs]
        if option == _HTTP and "model-repository" in closed:
            closed.remove("model-repository")
            arguments.append(f"{option}=model-repository:{LAUNCHER_HEADER}={keys.launcher}")
        if closed:
            # A closed protocol is one that asks for a value which nobody knows and no header can carry.
            arguments.append(f"{option}={','.join(closed)}:{_NOBODY}={secrets.token_hex(16)}\n")
        if keyed:
            arguments.append(f"{option}={','.join(keyed)}:{KEY_HEADER}={keys.user}")
    patterns = [f"^{FORWARD_PATTERN}$", *_values(_FORWARD, given)[-1:]]  # the last one counts
    return [*arguments, f"{_FORWARD}={'|'.join(f'(?:{pattern})' for pattern in patterns)}"]


def _values(option: str, arguments: Sequence[str]) -> list[str]:
    """What an option is given, as `--option=value` or in two arguments."""
    values = []
    for position, argument in enumerate(arguments):
        name, joined, value = argument.partition("=")
        if name == option:
            values.append(value if joined else "".join(arguments[position + 1 : position + 2]))
    return values


def hide_keys(pid: int, keys: Keys) -> bool:
    """Overwrites the keys in the command line of a process, which every user of the machine can read.

    Triton takes keys from its command line alone. It copies them before it prints its first line. Returns False where
    the kernel does not allow it.
    """
    with contextlib.suppress(OSError):
        start, end = map(int, (_PROC / str(pid) / "stat").read_text().rpartition(") ")[2].split()[45:47])
        with (_PROC / str(pid) / "mem").open("r+b", buffering=0) as memory:
            arguments = os.pread(memory.fileno(), end - start, start)
            for header, key in keys.headers.items():
                for match in re.finditer(re.escape(f"{header}={key}".encode()), arguments):
                    os.pwrite(memory.fileno(), b"x" * len(key), start + match.end() - len(key))
            return True
    return False
