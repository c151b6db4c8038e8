"""Finds a Triton to run: the container's, or the one inside the `nvidia-pytriton` package.

The package holds a server, the Python backend and one stub per Python version, but not side by side as the server
wants them, and nothing that tells the dynamic loader where their libraries are. Both are put right here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chatterbox_engine.errors import ConfigError

HOME_VARIABLE = "CHATTERBOX_TRITON_HOME"
CONTAINER_HOME = Path("/opt/tritonserver")
STUB = "triton_python_backend_stub"
OLDEST_GLIBC = (2, 35)
"""What the server of nvidia-pytriton 0.7.0 was linked against."""


@dataclass(frozen=True)
class Interpreter:
    """The Python that the models are to run in."""

    executable: Path
    version: str
    """Major and minor, `3.11`."""
    library_folders: tuple[Path, ...]
    """Where its shared library may be, best first."""

    @classmethod
    def running(cls) -> Interpreter:
        """The interpreter of this process."""
        variables = sysconfig.get_config_vars()
        folders = [Path(sys.base_prefix, "lib"), Path(variables.get("LIBDIR") or "/usr/lib"), *_system_folders()]
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return cls(Path(sys.executable), version, tuple(dict.fromkeys(folders)))

    @property
    def library(self) -> str:
        """File name of the shared library that every stub of this version is linked to."""
        return f"libpython{self.version}.so.1.0"


@dataclass(frozen=True)
class Triton:
    """A server that can be started."""

    executable: Path
    backends: Path
    """For `--backend-directory`."""
    environment: Mapping[str, str]
    """What must be set for the server and its stubs."""


def find_triton(
    folder: Path,
    environment: Mapping[str, str] | None = None,
    python: Interpreter | None = None,
    package: Path | None = None,
) -> Triton:
    """Finds Triton and makes it ready for `python` (default: the running one).

    `folder` is an empty directory that must live as long as the server: the Python backend is assembled there.
    `environment` is what the server would inherit (default: this process's), `package` the folder of pytriton (default:
    the installed one). Raises ConfigError, naming the remedy, when there is no Triton or it cannot run here.
    """
    environment = os.environ if environment is None else environment
    python = python or Interpreter.running()
    home = _container_home(environment)
    if home:
        return _from_home(home, environment, python)
    package = package or _installed_package()
    if not package:
        raise ConfigError(
            "no Triton Inference Server found: install the package nvidia-pytriton (make setup), "
            f"or set {HOME_VARIABLE} to a folder that holds bin/tritonserver"
        )
    return _from_package(package, folder, environment, python)


def check_glibc(found: str | None) -> None:
    """Raises ConfigError unless `found`, as `glibc 2.36`, is new enough for the server in nvidia-pytriton."""
    match = re.fullmatch(r"glibc (\d+)\.(\d+).*", found or "")
    if not match or (int(match[1]), int(match[2])) < OLDEST_GLIBC:
        oldest = ".".join(map(str, OLDEST_GLIBC))
        raise ConfigError(
            f"Triton from nvidia-pytriton needs glibc {oldest} or newer and this system has {found or 'none'}: "
            "use Debian 12, Ubuntu 22.04 or newer, or NVIDIA's container"
        )


def _container_home(environment: Mapping[str, str]) -> Path | None:
    given = environment.get(HOME_VARIABLE)
    home = Path(given) if given else CONTAINER_HOME
    if (home / "bin" / "tritonserver").exists():
        return home
    if given:
        raise ConfigError(f"{HOME_VARIABLE}={given} holds no bin/tritonserver")
    return None


def _installed_package() -> Path | None:
    # Importing pytriton would drag in its own server; finding its folder does not import it.
    spec = importlib.util.find_spec("pytriton")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return Path(folders[0]) if folders else None


def _from_home(home: Path, environment: Mapping[str, str], python: Interpreter) -> Triton:
    stub = home / "backends" / "python" / STUB
    if not stub.exists():
        raise ConfigError(f"{home} has no Python backend: {stub} is missing")
    built_for = re.search(rb"libpython(3\.\d+)", stub.read_bytes())
    if built_for and built_for[1].decode() != python.version:
        raise ConfigError(
            f"the Python backend in {home} is built for Python {built_for[1].decode()} and this is {python.version}: "
            "start the launcher with that version"
        )
    return Triton(home / "bin" / "tritonserver", home / "backends", _loader_environment(python, [], environment))


def _from_package(package: Path, folder: Path, environment: Mapping[str, str], python: Interpreter) -> Triton:
    check_glibc(_glibc())
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / python.version / STUB
    if not stub.exists():
        raise ConfigError(f"nvidia-pytriton has no Python backend for Python {python.version}: use 3.10, 3.11 or 3.12")
    backend = folder / "python"
    backend.mkdir()
    for part in [*(root / "backends" / "python").iterdir(), stub]:
        (backend / part.name).symlink_to(part)
    libraries = package.parent / "nvidia_pytriton.libs"
    return Triton(root / "bin" / "tritonserver", folder, _loader_environment(python, [libraries], environment))


def _loader_environment(python: Interpreter, libraries: list[Path], environment: Mapping[str, str]) -> dict[str, str]:
    """`PATH` and `LD_LIBRARY_PATH` under which a stub runs as this interpreter.

    A stub embeds Python and takes its prefix, and with it the virtual environment and its .pth files, from the first
    `python3` on PATH. PYTHONPATH is no way: the stubs of 3.11 and later ignore it (an isolated configuration).
    """
    programs = python.executable.parent
    if not (programs / "python3").exists():
        raise ConfigError(f"no python3 beside {python.executable}: start the launcher from a virtual environment")
    shared = _library_folder(python)
    if shared not in _system_folders():
        # The loader finds the system's folders anyway; put first, they would hide a container's CUDA compatibility.
        libraries = [*libraries, shared]
    found = {"PATH": _joined([programs], environment.get("PATH"))}
    if libraries:
        found["LD_LIBRARY_PATH"] = _joined(libraries, environment.get("LD_LIBRARY_PATH"))
    return found


def _library_folder(python: Interpreter) -> Path:
    for folder in python.library_folders:
        if (folder / python.library).exists():
            return folder
    raise ConfigError(
        f"Triton's Python backend needs {python.library}, which is in none of "
        f"{', '.join(map(str, python.library_folders))}: install the package libpython{python.version}, "
        "or use a Python that was built with --enable-shared"
    )


def _system_folders() -> list[Path]:
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
    return [Path("/usr/lib", multiarch), Path("/lib", multiarch), Path("/usr/lib64"), Path("/usr/lib"), Path("/lib")]


def _joined(folders: list[Path], inherited: str | None) -> str:
    return ":".join([*map(str, folders), *([inherited] if inherited else [])])


def _glibc() -> str | None:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):  # not glibc at all
        return None
