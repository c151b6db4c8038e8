"""Which heads of a checkpoint follow the text: its own, those found and kept, and those that a setting names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.families import ENGLISH, MULTILINGUAL_V3, TURBO
from chatterbox_engine.checkpoint.heads import TextHeads, alignment_heads, keep, kept_path
from chatterbox_engine.errors import CheckpointError, ConfigError


def test_the_official_llama_models_have_upstreams_heads() -> None:
    from chatterbox.models.t3.inference.alignment_stream_analyzer import LLAMA_ALIGNED_HEADS

    for family in (ENGLISH, MULTILINGUAL_V3):
        assert list(family.dims.alignment_heads) == LLAMA_ALIGNED_HEADS
    assert not TURBO.dims.alignment_heads


def test_a_checkpoint_has_its_own_heads_unless_others_are_kept_or_named(tiny: Checkpoint, tmp_path: Path) -> None:
    assert alignment_heads("auto", tiny, tmp_path) == TextHeads(((0, 1), (1, 0)))
    path = keep(TextHeads(((1, 1),), 0.25), tiny, tmp_path)
    assert path == kept_path(tiny.identity, tmp_path)
    assert alignment_heads("auto", tiny, tmp_path) == TextHeads(((1, 1),), 0.25)
    assert alignment_heads("0:0, 1:1", tiny, tmp_path) == TextHeads(((0, 0), (1, 1)))
    assert alignment_heads("none", tiny, tmp_path) == TextHeads()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("first", "must be auto, none, or a list"),
        ("1:0,2", "must be auto, none, or a list"),
        ("1:0,2:0", "there is no head 0 of layer 2: T3 has 2 of 2"),
        ("1:2", "there is no head 2 of layer 1"),
    ],
)
def test_a_setting_that_names_no_heads_is_refused(tiny: Checkpoint, setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        alignment_heads(setting, tiny)


@pytest.mark.parametrize(
    "content", ["", "{}", "[[9, 9]]", '{"heads": [[9, 9]], "peak": 0.5}', '{"heads": [[0, 0]], "peak": "high"}']
)
def test_a_kept_file_that_names_no_heads_is_refused(tiny: Checkpoint, tmp_path: Path, content: str) -> None:
    keep(TextHeads(((0, 0),)), tiny, tmp_path).write_text(content)
    with pytest.raises(CheckpointError, match="not a list of heads"):
        alignment_heads("auto", tiny, tmp_path)


@pytest.mark.parametrize(("heads", "expected"), [([[1, 1]], ((1, 1),)), (None, ())])
def test_config_json_states_the_heads_or_they_are_unknown(
    tiny_path: Path, tmp_path: Path, heads: list[list[int]] | None, expected: object
) -> None:
    folder = Path(shutil.copytree(tiny_path, tmp_path / "copy"))
    stated = json.loads((folder / "config.json").read_text())
    del stated["alignment_heads"]
    (folder / "config.json").write_text(json.dumps(stated if heads is None else stated | {"alignment_heads": heads}))
    assert Checkpoint.open(folder).dims.alignment_heads == expected


@pytest.mark.parametrize("heads", [[[9, 0]], [[0]], "0:1", [[0, 1.0]]])
def test_a_head_that_there_is_not_is_refused(tiny_path: Path, tmp_path: Path, heads: object) -> None:
    folder = Path(shutil.copytree(tiny_path, tmp_path / "copy"))
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | {"alignment_heads": heads}))
    with pytest.raises(CheckpointError, match="alignment_heads"):
        Checkpoint.open(folder)
