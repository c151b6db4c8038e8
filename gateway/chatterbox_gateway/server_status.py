"""What the servers' metrics pages tell: what is served, what is under way, GPU memory."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT = 0.5


@dataclass(frozen=True)
class Reading:
    """The pages' numbers, summed over the servers, and one server's labels. Empty where no page can be read."""

    about: dict[str, str] = field(default_factory=dict)
    """`checkpoint`, `family`, `device` and `optimizations`, a list separated by commas."""
    contract: dict[str, str] = field(default_factory=dict)
    """`parameters`, `presets` and `languages` as JSON, `language` and `max_characters`."""
    numbers: dict[str, float] = field(default_factory=dict)
    """By the metric's name."""

    @property
    def optimizations(self) -> list[str]:
        """The active ones."""
        return [name for name in self.about.get("optimizations", "").split(",") if name]

    def number(self, name: str) -> float | None:
        """A metric's value; None if the pages do not have it."""
        return self.numbers.get(name)


def resolve(host: str) -> list[str]:
    """The IPv4 addresses of a host name. Raises OSError for one that has none."""
    return sorted({str(entry[4][0]) for entry in socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)})


class ServerStatus:
    """Reads the metrics pages. urls: `host:port` of each; a name with several IPv4 addresses is several servers."""

    def __init__(self, urls: Sequence[str], resolve: Callable[[str], list[str]] = resolve) -> None:
        self._urls = urls
        self._resolve = resolve

    async def read(self, model: str) -> Reading:
        """What the pages that can be read within half a second tell of a model."""
        found = await asyncio.gather(*(asyncio.to_thread(self._servers, url) for url in self._urls))
        urls = [url for servers in found for url in servers]
        pages = await asyncio.gather(*(asyncio.to_thread(_fetch, url) for url in urls))
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

    def _servers(self, url: str) -> list[str]:
        """The URL once for each server that its name means. A certificate is for the name, so TLS keeps it."""
        address = urlsplit(url if "://" in url else f"http://{url}")
        try:
            found = self._resolve(address.hostname or "") if address.scheme == "http" else []
        except OSError:  # an IPv6 host, or an unknown one, whose page cannot be read either
            found = []
        if len(found) < 2:
            return [address.geturl()]
        port = "" if address.port is None else f":{address.port}"
        return [address._replace(netloc=f"{host}{port}").geturl() for host in found]


def _fetch(url: str) -> str:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/metrics", timeout=_TIMEOUT) as answer:
            return str(answer.read().decode("utf-8", "replace"))
    except OSError:  # the status says null then
        return ""
