"""Which family a folder is of, by T3's tensors and by names, and which of its files are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from chatterbox_engine.checkpoint import layout
from chatterbox_engine.checkpoint.detect import detect, families_of, is_meanflow, missing, other_choices, s3gen_file
from chatterbox_engine.checkpoint.dims import Dims, LlamaDims, S3GenDims
from chatterbox_engine.checkpoint.families import (
    ENGLISH,
    FAMILIES,
    FLASH,
    MULTILINGUAL_V2,
    MULTILINGUAL_V3,
    NANO,
    TURBO,
    Family,
    candidates,
)
from chatterbox_engine.errors import CheckpointError, ConfigError

PACK = "t3_pt_br.safetensors"
TOKENIZER = MULTILINGUAL_V3.files.text[0]
families = pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])


def kind(*names: str) -> Callable[[str], tuple[str, ...]]:
    """What every T3 file of a folder says that it is."""
    return lambda _name: names


@families
def test_a_family_is_known_by_its_files(family: Family) -> None:
    assert detect(family.files.required) == family
    assert missing(family, family.files.required) == []
    assert detect([family.files.t3]) == family  # so that the missing files are reported for the right family


def test_the_official_repository_of_three_is_english_unless_another_is_asked_for() -> None:
    three = {name for family in (ENGLISH, MULTILINGUAL_V2, MULTILINGUAL_V3) for name in family.files.all}
    assert detect(three) == ENGLISH
    assert detect(three, among=candidates("multilingual-v2")) == MULTILINGUAL_V2
    assert detect(three - {ENGLISH.files.t3}) == MULTILINGUAL_V3
    with pytest.raises(ConfigError, match="family is 'french'; it must be auto or one of english, multilingual-v3"):
        candidates("french")


def test_a_fine_tuned_t3_takes_the_rest_from_its_base() -> None:
    assert missing(TURBO, [TURBO.files.t3], TURBO.files.required) == []
    assert detect([TURBO.files.t3], TURBO.files.required) == TURBO
    assert detect([MULTILINGUAL_V3.files.t3], MULTILINGUAL_V2.files.required) == MULTILINGUAL_V3
    renamed = detect(["t3_mine.safetensors", "README.md"], NANO.files.required)
    assert (renamed.name, renamed.files.t3) == ("nano", "t3_mine.safetensors")
    assert missing(renamed, ["t3_mine.safetensors"], NANO.files.required) == []


@families
def test_a_t3_is_known_by_its_tensors(family: Family) -> None:
    kinds = families_of(layout.t3_layout(family.dims.t3))
    assert family.name in kinds
    alike = {"multilingual-v2", "multilingual-v3"}  # their weights alone differ
    assert set(kinds) == (alike if family.name in alike else {family.name})


def test_a_t3_with_a_mask_row_is_flash_and_never_english() -> None:
    shapes = layout.t3_layout(LlamaDims()) | {"speech_emb.weight": (8195, 1024)}
    assert families_of(shapes) == ("flash",)
    assert families_of({"lstm.weight_ih_l0": (4, 4)}) == ()


@pytest.mark.parametrize("name", [ENGLISH.files.t3, "t3_flash.safetensors", "t3_mine.safetensors"])
def test_flash_is_flash_whatever_its_file_is_called_and_what_is_no_t3_is_refused(name: str) -> None:
    others = [file for file in FLASH.files.required if file != FLASH.files.t3]
    assert detect([name, *others], peek=kind("flash")) == replace(FLASH, files=replace(FLASH.files, t3=name))
    with pytest.raises(CheckpointError, match=rf"{name} is a T3 of Chatterbox Flash; .* allow english"):
        detect([name, *others], among=[ENGLISH], peek=kind("flash"))
    with pytest.raises(CheckpointError, match=f"{name} is no T3"):
        detect([name], peek=kind())


def test_a_t3_of_another_family_than_the_chosen_one_is_refused_with_what_it_is() -> None:
    with pytest.raises(CheckpointError, match=r"t3_cfg\.safetensors is a T3 of Chatterbox; .* allow turbo"):
        detect(ENGLISH.files.required, among=candidates("turbo"))


def test_tensors_win_over_an_official_name() -> None:
    renamed = detect([ENGLISH.files.t3, *MULTILINGUAL_V3.files.required[1:]], peek=kind("multilingual-v3"))
    assert (renamed.name, renamed.files.t3) == ("multilingual-v3", ENGLISH.files.t3)


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("t3_zh_cmn", "zh"),
        ("t3_es_mx_latam", "es"),
        ("t3_pt_br", "pt"),
        ("t3_es_es", "es"),
        ("t3_pt_pt", "pt"),
        ("t3_hi", "hi"),
    ],
)
def test_a_pack_is_multilingual_and_names_its_default_language(name: str, language: str) -> None:
    pack = detect([f"{name}.safetensors", "s3gen_v3.pt", TOKENIZER], MULTILINGUAL_V3.files.required)
    assert (pack.name, pack.language) == ("multilingual-v3", language)
    assert pack.title == f"Chatterbox Multilingual V3 ({name.removeprefix('t3_')})"
    assert pack.languages == MULTILINGUAL_V3.languages


@pytest.mark.parametrize("name", ["t3_mine", "t3_xx_yy", "t3_pt_brasil2"])
def test_other_names_name_no_language(name: str) -> None:
    tuned = detect([f"{name}.safetensors"], MULTILINGUAL_V3.files.required, peek=kind("multilingual-v3"))
    assert tuned.language == "en"


@pytest.mark.parametrize(
    ("own", "base", "used"),
    [
        (["s3gen_v3.pt"], MULTILINGUAL_V3.files.required, "s3gen_v3.pt"),
        (["s3gen_v3.safetensors"], MULTILINGUAL_V3.files.required, "s3gen_v3.safetensors"),
        (["s3gen_v3.safetensors", "s3gen_v3.pt"], MULTILINGUAL_V3.files.required, "s3gen_v3.pt"),
        (["s3gen_v3.pt", "s3gen.pt"], [], "s3gen_v3.pt"),
        (["s3gen.safetensors"], [], "s3gen.safetensors"),
        ([], MULTILINGUAL_V3.files.required, "s3gen.pt"),
        ([], [*MULTILINGUAL_V3.files.required, "s3gen_v3.pt"], "s3gen_v3.pt"),
    ],
)
def test_a_pack_uses_its_own_s3gen_before_the_bases(own: list[str], base: list[str], used: str) -> None:
    assert detect([PACK, *own], base).files.s3gen == used


def test_the_voice_encoder_may_have_either_suffix() -> None:
    assert detect([PACK, "ve.safetensors"]).files.voice_encoder == "ve.safetensors"
    assert detect([ENGLISH.files.t3, "ve.pt"]).files.voice_encoder == "ve.pt"


def test_s3gen_v3_beside_s3gen_is_a_choice_and_the_default_is_upstreams() -> None:
    both = [*MULTILINGUAL_V3.files.required, "s3gen_v3.pt"]
    assert detect(both) == MULTILINGUAL_V3
    assert other_choices(MULTILINGUAL_V3, both) == ["s3gen.pt is S3Gen; CHATTERBOX_VOCODER=s3gen_v3.pt takes that"]
    chosen = detect(both, s3gen="s3gen_v3.pt")
    assert chosen.files == replace(MULTILINGUAL_V3.files, s3gen="s3gen_v3.pt")
    assert missing(detect(both, s3gen="s3gen_v9.pt"), both) == ["s3gen_v9.pt"]


def test_what_else_a_folder_holds_is_told_with_the_setting_that_takes_it() -> None:
    both = {*MULTILINGUAL_V3.files.required, *MULTILINGUAL_V2.files.required}
    chosen = detect(both)
    assert chosen == MULTILINGUAL_V3
    assert other_choices(chosen, both) == [
        "t3_mtl23ls_v3.safetensors is served; CHATTERBOX_FAMILY=multilingual-v2 takes t3_mtl23ls_v2.safetensors"
    ]
    assert other_choices(ENGLISH, ENGLISH.files.all) == []


def test_a_fine_tune_beside_an_official_t3_is_told_with_how_to_serve_it() -> None:
    both = [*MULTILINGUAL_V3.files.required, PACK]
    chosen = detect(both)
    assert chosen == MULTILINGUAL_V3
    assert other_choices(chosen, both) == [
        f"{chosen.files.t3} is served; {PACK} needs a folder of its own, with CHATTERBOX_BASE for the other files"
    ]
    assert other_choices(detect([PACK], MULTILINGUAL_V3.files.required), [PACK]) == []


def test_a_folder_with_two_packs_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"t3_es_es\.safetensors, t3_pt_br\.safetensors are each a T3 of .* V3"):
        detect([PACK, "t3_es_es.safetensors"], MULTILINGUAL_V3.files.required)


def test_the_file_of_s3gen_is_found_under_every_official_name_and_meanflow_first() -> None:
    assert s3gen_file(TURBO.files.all) == "s3gen_meanflow.safetensors"
    assert s3gen_file(["t3_flash.safetensors", "s3gen.safetensors"]) == "s3gen.safetensors"
    assert s3gen_file(["s3gen.pt", "s3gen_meanflow.safetensors"]) == "s3gen_meanflow.safetensors"
    assert s3gen_file(["s3gen_v3.pt"]) == "s3gen_v3.pt"
    assert s3gen_file(["README.md"]) is None


@pytest.mark.parametrize("meanflow", [True, False])
def test_meanflow_is_known_by_its_tensors(meanflow: bool) -> None:
    assert is_meanflow(layout.s3gen_layout(Dims(s3gen=S3GenDims(meanflow=meanflow)))) is meanflow
