"""The image's start command as an arbitrary user with a read-only root, as `docker run --user 1000:0 --read-only
--tmpfs /tmp` starts it: in a mount namespace of its own, with the variables and the volume of Dockerfile.triton."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from chatterbox_client import Client
from tests.clips import encoded, tone
from tests.server.test_image import DOCKERFILE, ROOT, environment, triton_home

__all__ = ["environment"]

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(900)]

VOLUME = re.findall(r"^VOLUME (\S+)$", DOCKERFILE, flags=re.MULTILINE)[0]

KEY = "to change voices"

NAMESPACE = """
set -e
base=$1 python=$2 volume=$3 user=$4 group=$5
shift 5
mount --make-rprivate /
# what lies in folders that are hidden or closed to the user below is shown again under its own path
mount -t tmpfs tmpfs /mnt
mkdir /mnt/base /mnt/python
mount --bind "$base" /mnt/base
mount --bind "$python" /mnt/python
mount -t tmpfs tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /root
mkdir -p "$base" "$python"
mount --bind /mnt/base "$base"
mount --bind /mnt/python "$python"
mount -t tmpfs -o mode=755 tmpfs /var/cache
@MAKE_VOLUME@
for folder in "$base" "$python" /mnt /mnt/base /mnt/python /root /var/cache /; do
    mount -o remount,bind,ro "$folder"
done
cd "$volume"
exec setpriv --reuid "$user" --regid "$group" --clear-groups "$@"
"""
"""Everything is read-only but /tmp, /dev/shm and the volume, which the Dockerfile's own command makes."""


def namespaces_allowed() -> bool:
    command = ["unshare", "--mount", "sh", "-c", "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt"]
    return os.getuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not namespaces_allowed(), reason="needs root, and mount namespaces of its own")


def as_user(folder: Path, user: int, group: int, command: list[str], variables: Mapping[str, str]) -> list[str]:
    """The command line that runs a command in such a namespace, where `folder` is shown."""
    make_volume = re.findall(r"(install -d -o 10001 -g 0 -m \d+ \S+)$", DOCKERFILE, flags=re.MULTILINE)
    assert len(make_volume) == 1
    script = NAMESPACE.replace("@MAKE_VOLUME@", f"{make_volume[0]}\nmount --bind {VOLUME} {VOLUME}")
    settings = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
    own = [str(folder), str(Path(sys.base_prefix)), VOLUME, str(user), str(group)]
    return ["unshare", "--mount", "sh", "-c", script, "sh", *own, *settings, *command]


def variables_of(environment: Path, home: Path, libraries: Path) -> dict[str, str]:
    """The Dockerfile's own, with the places of this machine's environment and Triton."""
    block = re.findall(r"^ENV CHATTERBOX_TRITON_HOME((?:.*\\\n)*.*)", DOCKERFILE, flags=re.MULTILINE)[0]
    found = dict(re.findall(r"(\w+)=(\S+)", "CHATTERBOX_TRITON_HOME" + block))
    return found | {
        "PATH": f"{environment}/bin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(libraries),
        "CHATTERBOX_TRITON_HOME": str(home),
        "CHATTERBOX_MODEL_REPOSITORY": str(ROOT / "model_repository"),
        "CHATTERBOX_CHECKPOINT": "tiny",  # which is made in the volume
        "CHATTERBOX_DTYPE": "float32",
        "CHATTERBOX_VOICE_KEY": KEY,
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def image(environment: Path) -> tuple[Path, dict[str, str], str]:
    """The folder of the environment, the image's variables and the entry point's program."""
    folder = environment.parent
    folder.chmod(0o755)  # pytest makes it for its own user alone
    home, libraries = triton_home(folder)
    entry = json.loads(re.findall(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, flags=re.MULTILINE)[0])
    return folder, variables_of(environment, home, libraries), str(environment / "bin" / entry[0])


@contextmanager
def started(image: tuple[Path, dict[str, str], str], user: int, log: Path) -> Iterator[dict[str, str]]:
    """The addresses of a server that runs as a user of group 0."""
    folder, variables, program = image
    command = as_user(folder, user, 0, [program, "--free-ports", "--host", "127.0.0.1"], variables)
    with log.open("w") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert server.stdout is not None
    with server:  # which closes its pipe
        try:
            lines = [server.stdout.readline().split() for _ in range(3)]
            assert [line[0] for line in lines if line] == ["http", "grpc", "metrics"], log.read_text()
            yield dict(lines)
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(90)
    assert code == 0, log.read_text()


@needs_namespaces
def test_any_user_of_group_0_serves_from_a_read_only_root(
    image: tuple[Path, dict[str, str], str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with started(image, 1000, log) as addresses, Client(addresses["grpc"], "grpc", voice_key=KEY) as client:
        client.voices.add("anna", encoded(tone(1.0)))
        assert client.speak("Hello from the image.", voice="anna", seed=1, max_seconds=1.0).duration > 0
        assert list(client.stream("Hello from the image.", seed=1, max_seconds=1.0))[-1].is_last
    assert "ermission denied" not in log.read_text()
    assert "Read-only file system" not in log.read_text()


@needs_namespaces
def test_a_volume_that_the_user_may_not_write_to_is_said_in_one_line(image: tuple[Path, dict[str, str], str]) -> None:
    folder, variables, program = image
    command = as_user(folder, 1000, 1000, [program], variables)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"launcher: CHATTERBOX_CACHE={VOLUME} cannot be written to by user 1000 of group 1000")
