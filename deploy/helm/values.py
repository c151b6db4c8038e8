"""The table of the chart's values, in its README: python -m deploy.helm.values [--check]

The descriptions are those of `values.schema.json`, the defaults those of `values.yaml`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from deploy.helm.chart import CHART

README = CHART / "README.md"
_BEGIN, _END = "<!-- begin: written by python -m deploy.helm.values -->\n", "<!-- end -->\n"


def leaves(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """The names of all values, with dots, and their descriptions."""
    for name, part in schema["properties"].items():
        if "properties" in part:
            yield from leaves(part, f"{path}{name}.")
        else:
            yield f"{path}{name}", part["description"]


def schema() -> dict[str, Any]:
    """The values' schema, without Helm's own `global`."""
    read: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    del read["properties"]["global"]
    return read


def default(path: str) -> Any:
    """The value that a name has in `values.yaml`. Raises KeyError where there is none."""
    value = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    for name in path.split("."):
        value = value[name]
    return value


def table() -> str:
    """All values in Markdown."""
    rows = [f"| `{name}` | `{_text(default(name))}` | {text} |" for name, text in leaves(schema())]
    return "\n".join(["| value | default | meaning |", "| --- | --- | --- |", *rows, ""])


def text() -> str:
    """The README, with the table as it should be."""
    head, _, rest = README.read_text(encoding="utf-8").partition(_BEGIN)
    return f"{head}{_BEGIN}\n{table()}\n{_END}{rest.partition(_END)[2]}"


def main() -> int:
    """Writes the README. With --check: 1 when it differs, else 0."""
    if sys.argv[1:] == ["--check"]:
        same = README.read_text(encoding="utf-8") == text()
        if not same:
            print("values: README.md of the chart is out of date: run python -m deploy.helm.values", file=sys.stderr)
        return 0 if same else 1
    README.write_text(text(), encoding="utf-8")
    return 0


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list | bool) or value == "" else str(value)


if __name__ == "__main__":
    sys.exit(main())
