"""What the servers' metrics pages tell: what is served, what is under way, GPU memory."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT = 0.5


@dataclass(frozen=True)
class Reading:
    """The pages' numbers, summed over the servers, and one server's labels. Empty where no page can be read."""

    about: dict[str, str] = field(default_factory=dict)
    """`checkpoint`, `family`, `device` and `optimizations`, a list separated by commas."""
    contract: dict[str, str] = field(default_factory=dict)
    """`parameters`, `presets` and `languages` as JSON, and `max_characters`."""
    numbers: dict[str, float] = field(default_factory=dict)
    """By the metric's name."""

    @property
    def optimizations(self) -> list[str]:
        """The active ones."""
        return [name for name in self.about.get("optimizations", "").split(",") if name]

    def number(self, name: str) -> float | None:
        """A metric's value; None if the pages do not have it."""
        return self.numbers.get(name)


class ServerStatus:
    """Reads the metrics pages. urls: `host:port` of each."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls

    async def read(self, model: str) -> Reading:
        """What the pages that can be read within half a second tell of a model."""
        pages = await asyncio.gather(*(asyncio.to_thread(_fetch, url) for url in self._urls))
        labels: dict[str, dict[str, str]] = {}
        numbers: dict[str, float] = {}
        for page in pages:
            for family in text_string_to_metric_families(page):
                for sample in family.samples:
                    if sample.labels.get("model", model) != model:
                        continue
                    if sample.name in ("chatterbox_info", "chatterbox_contract"):
                        labels.setdefault(sample.name, sample.labels)  # the engines of a model differ in their device
                    elif sample.name.startswith("chatterbox_") or sample.name.startswith("nv_gpu_memory_"):
                        name = sample.name + (f"_{sample.labels['kind']}" if "kind" in sample.labels else "")
                        numbers[name] = numbers.get(name, 0.0) + sample.value
        return Reading(labels.get("chatterbox_info", {}), labels.get("chatterbox_contract", {}), numbers)


def _fetch(url: str) -> str:
    address = url if "://" in url else f"http://{url}"
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/metrics", timeout=_TIMEOUT) as answer:
            return str(answer.read().decode("utf-8", "replace"))
    except OSError:  # the status says null then
        return ""
