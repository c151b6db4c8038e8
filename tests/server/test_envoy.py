"""Three servers behind a real Envoy with the configuration that is deployed, on loopback addresses that a name server
names: balance, scaling queries, a rolling update, and servers that die, hang and are added, under 32 clients."""

from __future__ import annotations

import math
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from chatterbox_client import Client
from deploy.helm import chart
from deploy.helm.chart import NAMESPACE
from tests.chart_objects import NAME, adapter_queries, envoy_config, keda_queries
from tests.server.cancelled import LONG
from tests.server.envoy import Envoy, wait_for
from tests.server.fleet import Fleet, Load, Server, fleet_of
from tests.server.name_server import NameServer
from tests.server.prometheus import Prometheus

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(1800)]

CLIENTS = 32
UNEVEN = 0.25
"""How far from even the servers' loads may be."""

SECONDS_TO_SHARE = 15.0
"""In which a server that is added must have requests: DNS is asked every two, and this machine is busy."""


class Stack:
    """Envoy, the name server that it asks, and the servers."""

    def __init__(self, envoy: Envoy, names: NameServer, fleet: Fleet) -> None:
        self.envoy, self.names, self.fleet = envoy, names, fleet

    def serve(self, *servers: Server) -> None:
        """Names these servers and no others, and waits until Envoy has followed."""
        wanted = {server.address for server in servers}
        self.names.addresses = sorted(wanted)
        wait_for(lambda: self.envoy.hosts("grpc").keys() == self.envoy.hosts("http").keys() == wanted, "names followed")
        wait_for(lambda: self.envoy.healthy() == wanted, "healthy servers")

    def load(self, seconds: float = 0.4) -> Load:
        return Load(self.envoy.http, self.envoy.grpc, CLIENTS, seconds)

    def shares(self, load: Load, count: int, *servers: Server) -> dict[str, float]:
        """What each server gets of so many more requests, as a multiple of an even share."""
        before = self.envoy.requests()
        load.more(count)
        after = self.envoy.requests()
        grown = {server.address: after[server.address] - before.get(server.address, 0) for server in servers}
        return {address: number * len(grown) / sum(grown.values()) for address, number in grown.items()}


def assert_even(shares: dict[str, float]) -> None:
    assert all(abs(share - 1) <= UNEVEN for share in shares.values()), shares


@pytest.fixture(scope="module")
def stack(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """With three servers; the chart's own configuration of Envoy."""
    with fleet_of(tiny_path, tmp_path_factory.mktemp("fleet"), 3) as fleet, NameServer() as names:
        names.addresses = [server.address for server in fleet.servers]
        with Envoy(
            envoy_config(chart.objects({})), tmp_path_factory.mktemp("envoy"), names.port, fleet.ports[:2]
        ) as envoy:
            yield Stack(envoy, names, fleet)


def test_load_is_even_and_prometheus_answers_the_scaling_queries(stack: Stack, tmp_path: Path) -> None:
    servers = stack.fleet.servers[:3]
    stack.serve(*servers)
    labels = {"namespace": NAMESPACE, "service": f"{NAME}-server"}
    targets = [
        {"targets": [server.metrics], "labels": {**labels, "pod": pod}}
        for server, pod in zip(servers, ("a", "b", "c"), strict=True)
    ]
    queries = keda_queries()
    with Prometheus(tmp_path, targets) as prometheus:

        def value(query: str) -> float:
            return next(iter(prometheus.ask(query)), math.nan)

        wait_for(lambda: value("sum(up)") == 3, "Prometheus reads all servers")
        assert value(queries["queue"]) == 0  # no request has come yet
        with stack.load(seconds=2.0) as load:
            assert_even(stack.shares(load, 150, *servers))
            wait_for(lambda: value(queries["waiting"]) > 0, "utterances wait: 32 clients have three slots")
            wait_for(lambda: value(queries["busy"]) > 0.5, "slots are busy")
            wait_for(lambda: value(queries["queue"]) > 0, "requests have waited")
            for query in adapter_queries("a|b|c").values():
                wait_for(lambda query=query: len(prometheus.ask(query)) == 3, query)
            assert_even(stack.shares(load, 150, *servers))
        assert load.failures() == []
        assert set(load.kinds()) == set(Load.KINDS)
        wait_for(lambda: value(queries["waiting"]) == value(queries["busy"]) == 0, "nothing is under way any more")
    page = httpx.get(f"http://{stack.envoy.status}/stats/prometheus").text
    assert 'envoy_cluster_membership_healthy{envoy_cluster_name="grpc"} 3' in page
    assert 'envoy_cluster_membership_total{envoy_cluster_name="grpc"} 3' in page
    assert httpx.get(f"http://{stack.envoy.status}/config_dump").status_code == 404


def test_a_rolling_update_of_all_servers_loses_no_request_and_no_stream(stack: Stack) -> None:
    old = stack.fleet.servers[:3]
    stack.serve(*old)
    with stack.load(seconds=1.0) as load:
        load.more(2 * CLIENTS)
        for server in old:
            stack.serve(*(each for each in stack.fleet.servers if each is not server))
            assert server.stop() == 0
            stack.fleet.servers.remove(server)
            stack.fleet.start(1)
            stack.serve(*stack.fleet.servers)
            load.more(CLIENTS)
    assert [outcome.error for outcome in load.failures()] == []
    assert min(load.kinds()[kind] for kind in Load.KINDS) > CLIENTS / len(Load.KINDS)


def test_only_requests_on_a_killed_server_are_lost_and_one_that_is_added_gets_its_share(stack: Stack) -> None:
    killed, hung, well = stack.fleet.servers[:3]
    (added,) = stack.fleet.start(1)
    stack.serve(killed, hung, well)
    with stack.load() as load:
        load.more(4 * CLIENTS)
        killed.kill()
        dead = time.monotonic()
        stack.fleet.servers.remove(killed)
        wait_for(lambda: killed.address not in stack.envoy.healthy(), "Envoy notices the dead server")
        load.more(4 * CLIENTS)

        hung.send(signal.SIGSTOP)
        wait_for(lambda: hung.address not in stack.envoy.healthy(), "Envoy notices the server that hangs")
        before = stack.envoy.requests()[hung.address]
        load.more(CLIENTS)
        assert stack.envoy.requests()[hung.address] == before, "a server that hangs gets requests"

        stack.names.addresses = sorted({server.address for server in (hung, well, added)})
        wait_for(lambda: stack.envoy.requests().get(added.address, 0) > 0, "its first request", SECONDS_TO_SHARE)
        assert_even(stack.shares(load, 200, well, added))

        hung.send(signal.SIGCONT)
        wait_for(lambda: hung.address in stack.envoy.healthy(), "Envoy notices that it goes on")
        load.more(2 * CLIENTS)
        assert_even(stack.shares(load, 200, hung, well, added))
    lost = load.failures()
    assert [outcome for outcome in lost if outcome.begun > dead] == []
    assert len(lost) <= CLIENTS * (1 + UNEVEN) / 3, lost


def test_envoy_asks_clients_to_leave_and_waits_for_streams_before_it_ends(stack: Stack) -> None:
    stack.serve(stack.fleet.servers[0])
    script = (chart.CHART / "files" / "drain.sh").read_text().replace("9901", str(stack.envoy.admin_port))
    ready = f"http://{stack.envoy.http}/v2/health/ready"
    with Client(stack.envoy.grpc, "grpc", timeout=240) as client:
        stream = client.stream(LONG, seed=1, max_seconds=40.0)
        first = next(stream)
        assert "connection" not in httpx.get(ready).headers
        drain = subprocess.Popen(["bash", "-c", script, "drain", "240"], stdout=subprocess.DEVNULL)
        wait_for(lambda: httpx.get(ready).headers.get("connection") == "close", "clients are asked to leave", 30)
        assert drain.poll() is None
        chunks = [first, *stream]
        assert chunks[-1].is_last
        assert drain.wait(60) == 0
