"""The troubleshooting page names settings, metrics and messages that exist."""

from __future__ import annotations

import re
from pathlib import Path

from chatterbox_engine.config import Config
from chatterbox_engine.metrics import COUNTERS, ERROR_KINDS, ERRORS, GAUGES, HISTOGRAMS, INFO, MEMORY, VOICES
from loadtest.scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
LAUNCHER = {"CHATTERBOX_TRITON_HOME"}


def test_its_settings_exist_and_take_the_values_it_gives() -> None:
    named = set(re.findall(r"CHATTERBOX_[A-Z_]+[A-Z]", PAGE)) - LAUNCHER
    assert len(named) >= 8
    assert {name.removeprefix("CHATTERBOX_").lower() for name in named} <= set(Config.__dataclass_fields__)
    for name, value in re.findall(r"`(CHATTERBOX_[A-Z_]+)=([\w/]+)`", PAGE):
        Config.load(environment={name: value})


def test_its_metrics_exist() -> None:
    families = {
        *COUNTERS,
        *HISTOGRAMS,
        *(name for name, _ in GAUGES.values()),
        ERRORS[0],
        VOICES[0],
        MEMORY[0],
        INFO[0],
    }
    named = set(re.findall(r"`(chatterbox_[a-z0-9_]+)(?:\{[^`]*\})?`", PAGE))
    assert len(named) >= 4
    assert named <= families
    kinds = set(re.findall(r"\| `([A-Z]\w+)` \|", PAGE))
    assert len(kinds) >= 5
    assert kinds <= set(ERROR_KINDS)


def test_its_messages_are_those_of_the_code() -> None:
    code = "\n".join(file.read_text() for file in (ROOT / "engine").rglob("*.py"))
    for part in (
        "unknown setting ",
        "needs glibc ",
        "is built for Python ",
        "cannot use port ",
        "has no bfloat16: using float32, which is slower",
        "requests are under way",
        "no answer within",
        "KV cache: ",
        "quantization is float8, which needs a GPU of compute capability 8.9 or more and bfloat16",
    ):
        assert part in PAGE
        assert part in code, part


def test_its_load_test_scenarios_exist() -> None:
    assert set(re.findall(r"SCENARIO=(\w+)", PAGE)) <= set(SCENARIOS)
    assert set(re.findall(r"SCENARIO=([a-z]+)", (ROOT / "loadtest" / "README.md").read_text())) <= set(SCENARIOS)
