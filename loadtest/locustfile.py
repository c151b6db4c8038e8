"""What Locust runs: the users, the arrivals and our options. Also good by itself, with Locust's web page:

locust -f loadtest/locustfile.py --http-address localhost:8000 --grpc-address localhost:8001
"""

from __future__ import annotations

import gc
from typing import Any

from grpc.experimental.gevent import init_gevent
from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.scenarios import SCENARIOS, Scenario
from loadtest.users import SPEAKERS, GrpcSpeaker, HttpSpeaker, StreamSpeaker

__all__ = ["Arrivals", "GrpcSpeaker", "HttpSpeaker", "StreamSpeaker"]

SPAWN_RATE = 100.0
"""New users a second."""


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("chatterbox")
    group.add_argument("--http-address", default="localhost:8000", help="host:port")
    group.add_argument("--grpc-address", default="localhost:8001", help="host:port")
    group.add_argument("--scenario", default="mixed", choices=sorted(SCENARIOS))
    group.add_argument("--peak-users", type=int, default=32)
    group.add_argument("--duration", type=float, default=0.0, help="seconds; 0: as long as the scenario is by itself")
    group.add_argument("--voices", default="default", help="names, with commas between them")
    group.add_argument("--records", default="", help="file for every request, JSON")


@events.init.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    init_gevent()  # else a waiting gRPC call would hold up every other user
    events.quit.add_listener(_collect)  # behind the recorder's, which writes the records
    assert environment.parsed_options is not None
    protocols = SCENARIOS[environment.parsed_options.scenario].protocols
    environment.user_classes = [SPEAKERS[protocol] for protocol in protocols]


def _collect(**_: Any) -> None:
    """A channel of gRPC that is in a cycle of references would be collected at the end of the process, when gevent's
    hub is gone; it can wait for ever then."""
    gc.collect()


def scenario_of(options: Any) -> Scenario:
    """The scenario that the options ask for, in its length."""
    scenario = SCENARIOS[options.scenario]
    return scenario.lasting(options.duration) if options.duration else scenario


class Arrivals(LoadTestShape):
    """The scenario's number of users at every time; the test ends after its last stage."""

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        assert options is not None
        scenario = scenario_of(options)
        stage = scenario.stage_at(self.get_run_time())
        if stage is None:
            self.runner.stop()  # waits for the requests under way; a master that just ends does not
            return None
        return scenario.stages[stage].users(options.peak_users), SPAWN_RATE
