"""How many users there are at which time, and what they speak through. Imports no Locust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

PROTOCOLS = ("http", "grpc", "stream")


@dataclass(frozen=True)
class Stage:
    """A time in which the number of users stays the same."""

    seconds: float
    share: float
    """Of the largest number of users."""

    def users(self, peak: int) -> int:
        """Users of this stage: at least one."""
        return max(1, round(self.share * peak))


@dataclass(frozen=True)
class Soak:
    """How long a server may take to settle, and by how much a resource may grow after that: relative, then absolute."""

    settling_seconds: float
    growth: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Scenario:
    """Stages one after the other."""

    about: str
    stages: tuple[Stage, ...]
    protocols: tuple[str, ...] = PROTOCOLS
    cancelled: float = 0.0
    """Share of the requests whose client leaves at a random moment."""
    soak: Soak | None = None
    """Looks for leaks."""

    @property
    def seconds(self) -> float:
        """From the first request to the end of the last stage."""
        return sum(stage.seconds for stage in self.stages)

    def lasting(self, seconds: float) -> Scenario:
        """The same arrivals, stretched or compressed to this length."""
        factor = seconds / self.seconds
        stages = tuple(Stage(stage.seconds * factor, stage.share) for stage in self.stages)
        return replace(self, stages=stages)

    def stage_at(self, seconds: float) -> int | None:
        """Index of the stage that this time, counted from the start, belongs to; None after the last."""
        for index, stage in enumerate(self.stages):
            if seconds < stage.seconds:
                return index
            seconds -= stage.seconds
        return None


SCENARIOS = {
    "mixed": Scenario(
        "all protocols, the number of users doubling three times",
        (Stage(15, 1 / 8), Stage(15, 1 / 4), Stage(15, 1 / 2), Stage(20, 1)),
    ),
    "constant": Scenario("all protocols, all users from the start", (Stage(60, 1),)),
    "ramp": Scenario("all protocols, users coming in ten even steps", tuple(Stage(6, n / 10) for n in range(1, 11))),
    "spike": Scenario(
        "all protocols, a rush between two quiet times", (Stage(20, 1 / 8), Stage(20, 1), Stage(20, 1 / 8))
    ),
    "soak": Scenario(
        "all protocols, ten minutes at full load, looking for leaks",
        (Stage(600, 1),),
        soak=Soak(
            60, {"rss": (0.03, 32 << 20), "threads": (0.0, 1), "files": (0.0, 8), "shared_memory": (0.0, 8 << 20)}
        ),
    ),
    "leaving": Scenario(
        "all protocols, half an hour, a fifth of the clients leave at random moments, looking for leaks",
        (Stage(1800, 1),),
        cancelled=0.2,
        soak=Soak(300, {"rss": (0.02, 0), "threads": (0.02, 1), "files": (0.02, 8), "shared_memory": (0.02, 0)}),
    ),
    **{name: Scenario(f"only {name}, all users from the start", (Stage(45, 1),), (name,)) for name in PROTOCOLS},
}
