"""A real Prometheus for the tests, with the rules that are deployed, scraping every second."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from chatterbox_engine.launcher.ports import ReservedPorts
from deploy.check import prometheus_program

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"


class Prometheus:
    """Runs between `__enter__` and `__exit__`; what it says is in `prometheus.log`."""

    def __init__(self, folder: Path, target: str | Sequence[Mapping[str, Any]]) -> None:
        """target: `host:port` of a metrics page, or static configurations, as Prometheus has them, of several."""
        self._folder = folder
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(MONITORING / file) for file in config["rule_files"]]
        targets = [{"targets": [target]}] if isinstance(target, str) else list(target)
        config["scrape_configs"] = [{"job_name": config["scrape_configs"][0]["job_name"], "static_configs": targets}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        ports = ReservedPorts("127.0.0.1", [0])
        ports.release()
        self._address = f"127.0.0.1:{ports.numbers[0]}"

    def __enter__(self) -> Prometheus:
        options = [f"--config.file={self._folder}/prometheus.yml", f"--storage.tsdb.path={self._folder}/data"]
        with (self._folder / "prometheus.log").open("w") as log:
            self._process = subprocess.Popen(
                [prometheus_program("prometheus"), *options, f"--web.listen-address={self._address}"],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    def ask(self, expression: str) -> list[float]:
        """The values of a query now; none while Prometheus is starting."""
        result = self.get("query", query=expression)
        return [float(series["value"][1]) for series in result["result"]] if result else []

    def get(self, path: str, **parameters: str) -> Any:
        """Data of its API. None while it is starting; raises HTTPError for a query that it refuses."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            error.close()
            return None  # it listens, but has not read its storage
        except urllib.error.URLError:
            assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
            return None
