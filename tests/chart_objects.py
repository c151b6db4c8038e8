"""The objects that the Helm chart makes, for its tests."""

from __future__ import annotations

from typing import Any

import yaml

from deploy.helm import chart
from deploy.helm.chart import HELM, NAMESPACE, RELEASE, Object

NAME = f"{RELEASE}-chatterbox-triton"
SETS = chart.value_sets()


def one(made: list[Object], kind: str, component: str = "server") -> Object:
    """The object of a kind that belongs to a component."""
    (found,) = (it for it in made if it["kind"] == kind and it["metadata"]["name"].endswith(f"-{component}"))
    return found


def container(made: list[Object], kind: str = "StatefulSet", component: str = "server") -> Object:
    """The only container of a workload."""
    (found,) = one(made, kind, component)["spec"]["template"]["spec"]["containers"]
    return dict(found)


def envoy_config(made: list[Object]) -> str:
    """Envoy's configuration."""
    (found,) = (it["data"]["envoy.yaml"] for it in made if "envoy.yaml" in it.get("data", {}))
    return str(found)


def keda_queries(**autoscaling: Any) -> dict[str, str]:
    """The scaling queries by the names of KEDA's triggers."""
    scaled = one(chart.objects({"autoscaling": {"kind": "keda", **autoscaling}}), "ScaledObject")
    return {trigger["name"]: trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]}


def adapter_queries(pods: str) -> dict[str, str]:
    """prometheus-adapter's queries for pods of the chart's namespace, by the names of their metrics."""
    rules = yaml.safe_load((HELM / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    found = {rule["name"]["as"]: rule["metricsQuery"] for rule in rules}
    filled = {"<<.LabelMatchers>>": f'namespace="{NAMESPACE}",pod=~"{pods}"', "<<.GroupBy>>": "pod"}
    for part, text in filled.items():
        found = {name: query.replace(part, text) for name, query in found.items()}
    return found
