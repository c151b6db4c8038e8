"""The documents agree with the code, and keep to their lengths."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from pathlib import Path

import pytest

from chatterbox_engine.checkpoint.detect import PACKS, detect
from chatterbox_engine.checkpoint.families import FAMILIES, MULTILINGUAL_V3
from chatterbox_engine.checkpoint.random_checkpoint import TINY
from chatterbox_engine.config import PREFIX, RANGES, Config
from chatterbox_engine.serving import contract
from tests.documents import PAGES, ROOT, blocks, page, rows, section
from tools.docs import links, settings, words

BASE_INPUTS = {"temperature"}
"""Of every family."""


@pytest.mark.parametrize(
    ("name", "most"), [("README.md", 1000), ("docs/architecture.md", 1500), ("docs/performance.md", 800)]
)
def test_a_page_keeps_to_its_length(name: str, most: int) -> None:
    assert 100 < len(page(name).split()) <= most


def test_every_setting_is_on_its_page_and_every_one_there_exists() -> None:
    listed = [row[0].strip("`") for row in rows(section(page("docs/settings.md"), "All settings"))]
    assert listed == [f"{PREFIX}{field.name.upper()}" for field in dataclasses.fields(Config)]


def test_the_table_of_settings_is_what_its_generator_writes() -> None:
    written = page("docs/settings.md")
    assert settings.updated(written) == written, "run make settings"
    stale = written.replace("| `CHATTERBOX_MAX_QUEUE` | `256` |", "| `CHATTERBOX_MAX_QUEUE` | `255` |")
    assert stale != written
    assert settings.updated(stale) == written


def test_every_number_among_the_settings_has_a_range() -> None:
    numbers = {field.name for field in dataclasses.fields(Config) if type(field.default) in (int, float)}
    assert set(RANGES) == numbers


def test_the_api_page_lists_every_tensor() -> None:
    inputs = [row[0].strip("`") for row in rows(section(page("docs/api.md"), "Inputs"))]
    assert sorted(inputs) == sorted(contract.INPUTS)
    outputs = [row[0].strip("`") for row in rows(section(page("docs/api.md"), "Outputs"))]
    assert outputs == list(contract.OUTPUTS)
    chunks = [row[0].strip("`") for row in rows(section(page("docs/streaming.md"), "Chunks"))]
    assert sorted(chunks) == sorted({*contract.CHUNKING, *contract.STREAM_OUTPUTS} - {*contract.OUTPUTS})


def test_the_api_page_gives_the_ranges_of_the_code() -> None:
    table = {row[0].strip("`"): row[3] for row in rows(section(page("docs/api.md"), "Inputs"))}
    for name, limits in contract.SAMPLING.items():
        if name != "top_k":  # whose upper bound nobody meets
            low = (
                f"above {limits.low:g}, up to {limits.high:g}"
                if limits.open_low
                else f"{limits.low:g} to {limits.high:g}"
            )
            assert table[name].startswith(low), name


def test_the_models_page_lists_every_family_with_its_inputs() -> None:
    table = rows(section(page("docs/models.md"), "Families"))
    files = [name for row in table for name in re.findall(r"`(t3_\w+\.safetensors)`", row[1])]
    assert sorted(files) == sorted(family.files.t3 for family in FAMILIES)
    for row in table:
        previous = table[table.index(row) - 1]
        inputs = set(re.findall(r"`(\w+)`", previous[3] if row[3] == "the same" else row[3]))
        for family in FAMILIES:
            if family.files.t3 in row[1]:
                assert set(family.inputs) == inputs | BASE_INPUTS


def test_settings_name_every_family_and_every_random_checkpoint() -> None:
    settings = {row[0].strip("`"): row[3] for row in rows(section(page("docs/settings.md"), "All settings"))}
    for family in FAMILIES:
        assert f"`{family.name}`" in settings["CHATTERBOX_FAMILY"]
    for name in TINY:
        assert f"`{name}`" in settings["CHATTERBOX_CHECKPOINT"]
    meanflow = [family.title.removeprefix("Chatterbox ") for family in FAMILIES if family.dims.s3gen.meanflow]
    assert f"({', '.join(meanflow)})" in settings["CHATTERBOX_CFM_STEPS"]


def test_the_models_page_lists_every_language_pack_with_its_language_and_t3() -> None:
    table = {row[0].strip("`"): row[1:] for row in rows(section(page("docs/models.md"), "Single Language Pack"))}
    assert sorted(table) == sorted(PACKS)
    for language, t3 in table.values():
        pack = detect([t3.strip("`")], MULTILINGUAL_V3.files.required)
        assert (pack.name, pack.language) == (MULTILINGUAL_V3.name, language.split("`")[1])


def test_the_models_page_lists_every_language() -> None:
    assert f"`{' '.join(MULTILINGUAL_V3.languages)}`" in section(page("docs/models.md"), "Languages")


def test_pages_have_examples_in_languages_that_are_run() -> None:
    languages = {block.language for path in PAGES for block in blocks(path.read_text(encoding="utf-8"))}
    assert languages == {"", "bash", "python"}  # without a language: diagrams


def test_the_version_is_the_same_everywhere() -> None:
    version = page("VERSION").strip()
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    for package in ("chatterbox-engine", "chatterbox-client", "chatterbox-gateway"):
        assert importlib.metadata.version(package) == version
    assert re.findall(r"^ARG VERSION=(.*)$", page("Dockerfile.triton"), flags=re.MULTILINE) == [version]
    assert f"## [{version}]" in page("CHANGELOG.md")


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "here.md").write_text("# It's `one`: two\n")
    text = "[a](../here.md) [b](gone.md) [c](#own) [d](#missing) `[e](gone.md)`\n## Own\n```\n[f](gone.md)\n```\n"
    (tmp_path / "docs" / "page.md").write_text(text)
    assert links.broken(tmp_path / "docs" / "page.md") == [
        "docs/page.md: ../here.md: outside of the site; name the file without a link",
        "docs/page.md: gone.md: no such file",
        "docs/page.md: #missing: no such heading",
    ]
    assert links.anchors(tmp_path / "here.md") == {"its-one-two"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1  # lays the matrix out\n# anew, 3 rows\n", [(2, "anew", "again")]),
        ("A row, in\n    any company.\n", [(1, "in any company", "regardless of the batch")]),
        ("gives the request up", [(1, "gives the request up", "cancel")]),
        ("What follows the prompt is used regardless of the batch.", []),
    ],
)
def test_a_phrase_is_found_with_its_line_also_where_it_is_split(text: str, found: list[tuple[int, str, str]]) -> None:
    assert words.findings(text) == found


def test_every_file_that_is_still_to_be_rewritten_exists() -> None:
    assert [path for path in words.TO_REWRITE if not (ROOT / path).exists()] == []
