"""The troubleshooting page names settings, metrics, messages and options that exist."""

from __future__ import annotations

import re

import pytest

from chatterbox_engine.config import Config
from chatterbox_engine.launcher import options
from chatterbox_engine.metrics import COUNTERS, ERROR_KINDS, ERRORS, GAUGES, HISTOGRAMS, INFO, MEMORY, VOICES
from loadtest.scenarios import SCENARIOS
from tests.documents import ROOT, page, rows, section

PAGE = page("docs/troubleshooting.md")
LAUNCHER = {"CHATTERBOX_TRITON_HOME", "CHATTERBOX_CACHE"}
FAMILIES = {*COUNTERS, *HISTOGRAMS, *(name for name, _ in GAUGES.values()), ERRORS[0], VOICES[0], MEMORY[0], INFO[0]}

CODE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "engine").rglob("*.py"))
ELSEWHERE = {
    "Failed to find C compiler": "OpenAI's Triton",
    "Python.h: No such file": "the C compiler",
    "restricted": "Triton Inference Server",
    "Failed to increase the shared memory pool": "Triton Inference Server",
    "HandleCancellation called even when the context was not cancelled": "Triton Inference Server",
}
"""Messages on the page that are not of this project, and whose they are."""


def given_values() -> list[tuple[str, str]]:
    """The settings with a value that the page tells to try."""
    return re.findall(r"`(CHATTERBOX_[A-Z_]+)=([\w/]+)`", PAGE)


def messages() -> list[str]:
    """What the page quotes of the log and of answers: the first column of the first table, and the second column of the
    table of refusals."""
    started = [
        cell for row in rows(section(PAGE, "The server does not start")) for cell in re.findall("`([^`]+)`", row[0])
    ]
    refused = [cell for row in rows(section(PAGE, "Requests are refused")) for cell in re.findall("`([^`]+)`", row[0])]
    return started + refused + re.findall(r"`(has no bfloat16[^`]*)`", PAGE) + re.findall(r"`(KV cache: [^`]*)`", PAGE)


def parts(message: str) -> list[str]:
    """The fixed parts of a message, between figures, names and dots, which the code has as they stand."""
    pieces = re.split(r"\.\.\.|CHATTERBOX_|2\.35|libpython3\.X\S*|3\.X|8000|\b64\b|\b2\b|\b1200\b|cuda:0", message)
    return [part.strip(" .,;:=") for part in pieces if len(part.strip(" .,;:=")) > 3]


def test_its_settings_exist() -> None:
    named = set(re.findall(r"CHATTERBOX_[A-Z_]+[A-Z]", PAGE)) - LAUNCHER
    assert len(named) >= 12
    assert {name.removeprefix("CHATTERBOX_").lower() for name in named} <= set(Config.__dataclass_fields__)


def test_its_settings_take_the_values_that_it_gives() -> None:
    values = given_values()
    assert len(values) >= 12
    for name, value in values:
        assert name.removeprefix("CHATTERBOX_").lower() in Config.__dataclass_fields__
        Config.load(environment={name: value})


def test_its_metrics_exist() -> None:
    named = set(re.findall(r"`(chatterbox_[a-z0-9_]+)(?:\{[^`]*\})?`", PAGE))
    assert len(named) >= 6
    assert named <= FAMILIES


def test_what_it_looks_for_on_the_metrics_page_is_there() -> None:
    patterns = re.findall(r"metrics \| grep (?:-\w+ )*'?\^?(chatterbox_[\w()|]+)", PAGE)
    assert len(patterns) >= 4
    series = FAMILIES | {f"{name}_{part}" for name in HISTOGRAMS for part in ("sum", "count")}
    for pattern in patterns:
        assert any(re.match(pattern, name) for name in series), pattern


def test_it_tells_every_kind_of_error_that_callers_get() -> None:
    kinds = {row[1].strip("`") for row in rows(section(PAGE, "Requests are refused")) if row[1]}
    assert kinds == set(ERROR_KINDS) - {"RequestError", "Cancelled"}


@pytest.mark.parametrize("message", messages())
def test_a_message_is_the_codes(message: str) -> None:
    if not any(message.startswith(other) for other in ELSEWHERE):
        assert parts(message)
        assert [part for part in parts(message) if part not in CODE] == []


def test_messages_are_found_on_the_page() -> None:
    assert len(messages()) >= 12
    assert all(other in PAGE for other in ELSEWHERE)
    assert [part for part in parts("unknown option SPEAKERBOX_...") if part not in CODE] == parts(
        "unknown option SPEAKERBOX_"
    )


def test_the_index_names_every_section_once() -> None:
    links = [row[1] for row in rows(PAGE.partition("\n## ")[0])]
    named = re.findall(r"\[([^\]]+)\]\(#", "\n".join(links))
    sections = re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE)
    assert sorted(named) == sorted(sections)


def test_the_launchers_variables_have_the_values_that_it_gives() -> None:
    assert f"GOMP_SPINCOUNT={options._SPIN['GOMP_SPINCOUNT']}`" in PAGE
    assert f"keep {options._DEFAULTS['ONEDNN_PRIMITIVE_CACHE_CAPACITY']} of them" in PAGE


@pytest.mark.parametrize("name", ["docs/troubleshooting.md", "loadtest/README.md"])
def test_load_test_scenarios_exist(name: str) -> None:
    named = set(re.findall(r"SCENARIO=([a-z]+)", page(name)))
    assert named
    assert named <= set(SCENARIOS)
