"""Presets: the parameters that they set, their precedence, and their validation."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from chatterbox_engine import presets
from chatterbox_engine.checkpoint.families import ENGLISH, FAMILIES, TURBO, Family
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.serving import contract
from chatterbox_engine.types import SamplingParams
from tests.documents import page, rows, section


def parse(family: Family = ENGLISH, preset: str = "upstream", **inputs: Any) -> SamplingParams:
    tensors = {"text": np.array([[b"Hi."]], dtype=np.object_)}
    tensors |= {name: np.array([[value]]) for name, value in inputs.items()}
    terms = contract.Terms(max_text_chars=100, max_seconds=10.0, family=family, preset=preset)
    return contract.parse(tensors, terms).request.sampling


def test_a_preset_sets_what_it_names_and_a_parameter_of_the_request_wins() -> None:
    assert parse(preset="fast") == SamplingParams(exaggeration=0.35, cfg_weight=0.3, temperature=0.7)
    chosen = parse(preset="fast", exaggeration=1.5)
    assert (chosen.exaggeration, chosen.cfg_weight) == (1.5, 0.3)


def test_a_requests_preset_wins_over_the_servers() -> None:
    assert parse(preset="fast", language=b"en") != SamplingParams()
    tensors = {name: np.array([[text]], dtype=np.object_) for name, text in (("text", b"Hi."), ("preset", b"upstream"))}
    call = contract.parse(tensors, contract.Terms(max_text_chars=100, max_seconds=10.0, preset="fast"))
    assert call.request.sampling == SamplingParams()


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_value_of_a_preset_is_one_that_a_request_may_have(name: str) -> None:
    for parameter, value in presets.PRESETS[name].items():
        assert contract.SAMPLING[parameter].check(parameter, value) == value


def test_what_a_family_does_not_heed_is_refused_and_upstreams_defaults_suit_all() -> None:
    with pytest.raises(InvalidRequest, match="sets exaggeration, cfg_weight, which Chatterbox Turbo does not support"):
        presets.sampling(TURBO, "happy")
    assert all(presets.sampling(family, "upstream") == family.sampling for family in FAMILIES)


def test_an_unknown_preset_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(InvalidRequest, match="preset is 'grim'; it must be one of upstream, fast, neutral"):
        presets.sampling(ENGLISH, "grim")


def test_the_api_page_lists_every_preset() -> None:
    table = rows(section(page("docs/api.md"), "Presets"))
    listed = {row[0].split("`")[1]: [float(value) for value in row[1:]] for row in table}
    used = {name: presets.sampling(ENGLISH, name) for name in presets.PRESETS}
    assert listed == {name: [each.exaggeration, each.cfg_weight, each.temperature] for name, each in used.items()}


def test_what_requests_may_choose_is_described_for_each_family() -> None:
    english = contract.describe(contract.Terms(max_text_chars=100, max_seconds=10.0, preset="fast"))
    turbo = contract.describe(contract.Terms(max_text_chars=100, max_seconds=10.0, family=TURBO))
    parameters = json.loads(english["parameters"])
    assert parameters["temperature"] == {"default": 0.7, "minimum": 0.0, "maximum": 5.0, "integer": False}
    assert list(parameters) == list(ENGLISH.inputs)
    assert json.loads(english["presets"]) == presets.PRESETS
    assert (json.loads(english["languages"]), english["language"], english["max_characters"]) == (["en"], "en", "100")
    assert json.loads(turbo["parameters"])["top_k"] == {
        "default": 1000,
        "minimum": 0,
        "maximum": 1_000_000,
        "integer": True,
    }
    assert json.loads(turbo["presets"]) == {"upstream": {}}
