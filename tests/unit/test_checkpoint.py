"""Finding and opening checkpoints: what is refused, and with what words."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatterbox_engine.checkpoint.checkpoint import Checkpoint, conditionals_from_upstream, locate
from chatterbox_engine.checkpoint.families import ENGLISH, MULTILINGUAL_V2
from chatterbox_engine.checkpoint.random_checkpoint import TINY, tiny_dims
from chatterbox_engine.errors import CheckpointError
from tests.conftest import CheckpointOf

T3_FILE = "t3_cfg.safetensors"
S3GEN_FILE = "s3gen.safetensors"


@pytest.fixture
def copy(tiny_path: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may spoil."""
    return Path(shutil.copytree(tiny_path, tmp_path / "copy"))


def edit(path: Path, **changes: torch.Tensor | None) -> None:
    """Replaces, adds or (None) removes tensors of a weight file; `__` in a name stands for a full stop."""
    state = load_file(path)
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor
    path.unlink()  # `load_file` maps the old file into memory
    save_file(state, path)


def test_a_small_checkpoint_states_its_sizes(tiny: Checkpoint) -> None:
    assert tiny.dims == tiny_dims(ENGLISH)
    assert tiny.random


def test_all_missing_files_are_named_at_once(copy: Path) -> None:
    (copy / T3_FILE).unlink()
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"missing t3_cfg\.safetensors, tokenizer\.json$"):
        Checkpoint.open(copy)


def test_a_missing_a_surplus_and_a_misshapen_tensor_are_named_at_once(copy: Path) -> None:
    edit(copy / T3_FILE, text_emb__weight=None, extra=torch.zeros(1), speech_emb__weight=torch.zeros(5, 64))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(copy)
    message = str(caught.value)
    assert "missing text_emb.weight" in message
    assert "unexpected extra" in message
    assert "speech_emb.weight is [5, 64], not [8194, 64]" in message


def test_weights_of_other_sizes_than_stated_are_refused(copy: Path) -> None:
    (copy / "config.json").unlink()  # so the official sizes are expected
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        Checkpoint.open(copy)


def test_an_unknown_size_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps({"t3": {"widht": 64}}))
    with pytest.raises(CheckpointError, match="widht"):
        Checkpoint.open(copy)


def test_a_file_that_is_no_safetensors_file_is_refused(copy: Path) -> None:
    (copy / "ve.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        Checkpoint.open(copy)


def test_the_tokenizers_constants_are_accepted_and_left_out(copy: Path) -> None:
    edit(copy / S3GEN_FILE, tokenizer___mel_filters=torch.zeros(128, 201), tokenizer__window=torch.zeros(400))
    state = Checkpoint.open(copy).s3gen_state()
    assert "tokenizer.window" not in state
    assert "tokenizer._mel_filters" not in state


def test_half_precision_weights_are_read_as_float32(copy: Path) -> None:
    state = {name: tensor.half() for name, tensor in load_file(copy / T3_FILE).items()}
    (copy / T3_FILE).unlink()
    save_file(state, copy / T3_FILE)
    assert {tensor.dtype for tensor in Checkpoint.open(copy).t3_state().values()} == {torch.float32}


def test_a_prefix_reads_one_part_without_it(tiny: Checkpoint) -> None:
    whole, part = tiny.s3gen_state(), tiny.s3gen_state("flow.")
    assert set(part) == {name[5:] for name in whole if name.startswith("flow.")}
    assert torch.equal(part["input_embedding.weight"], whole["flow.input_embedding.weight"])


def test_the_identity_depends_on_the_contents_alone(tiny: Checkpoint, copy: Path) -> None:
    assert Checkpoint.open(copy).identity == tiny.identity
    weight = load_file(copy / T3_FILE)["text_emb.weight"].clone()
    weight[3, 3] += 1
    edit(copy / T3_FILE, text_emb__weight=weight)
    assert Checkpoint.open(copy).identity != tiny.identity


def test_a_checkpoint_edited_by_hand_does_not_claim_to_be_random(copy: Path) -> None:
    edit(copy / T3_FILE)  # the mark is in the metadata, which `save_file` does not keep
    assert not Checkpoint.open(copy).random


def test_without_a_built_in_voice_there_are_no_conditionals(copy: Path) -> None:
    (copy / "conds.pt").unlink()
    assert Checkpoint.open(copy).conditionals() is None


@pytest.mark.parametrize("content", [b"nonsense", None])
def test_a_broken_built_in_voice_is_an_error(content: bytes | None, copy: Path) -> None:
    if content is None:
        torch.save({"t3": {}, "gen": {}}, copy / "conds.pt")
    else:
        (copy / "conds.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a built-in voice"):
        Checkpoint.open(copy).conditionals()


@pytest.mark.parametrize(
    ("name", "more", "refused"), [("tiny-turbo", 0, False), ("tiny-turbo", 1, True), ("tiny", 9, False)]
)
def test_a_built_in_voice_with_too_long_a_prompt_is_refused(
    name: str, more: int, refused: bool, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint_of(name).path, tmp_path / "copy"))
    raw = torch.load(folder / "conds.pt", weights_only=True)
    tokens = Checkpoint.open(folder).dims.t3.prompt_tokens + more
    raw["t3"]["cond_prompt_speech_tokens"] = torch.zeros(1, tokens, dtype=torch.int64)
    torch.save(raw, folder / "conds.pt")
    if refused:
        with pytest.raises(
            CheckpointError, match=f"its T3 prompt has {tokens} tokens, the model takes {tokens - more}"
        ):
            Checkpoint.open(folder).conditionals()
    else:
        assert Checkpoint.open(folder).conditionals() is not None


def test_an_odd_mel_frame_of_the_prompt_is_dropped() -> None:
    raw = {
        "t3": {
            "speaker_emb": torch.zeros(1, 256),
            "cond_prompt_speech_tokens": torch.zeros(1, 150, dtype=torch.int64),
            "emotion_adv": 0.7,
        },
        "gen": {
            "prompt_token": torch.zeros(1, 9, dtype=torch.int32),
            "prompt_token_len": torch.tensor([8]),
            "prompt_feat": torch.zeros(1, 17, 80),
            "embedding": torch.zeros(1, 192),
        },
    }
    voice = conditionals_from_upstream(raw)
    assert voice.s3gen.prompt_tokens.shape == (8,)
    assert voice.s3gen.prompt_mel.shape == (16, 80)
    assert voice.exaggeration == pytest.approx(0.7)


def test_every_tiny_checkpoint_opens_as_its_family(checkpoint_of: CheckpointOf) -> None:
    for name, family in TINY.items():
        checkpoint = checkpoint_of(name)
        assert (checkpoint.family, checkpoint.dims, checkpoint.random) == (family, tiny_dims(family), True)
        assert checkpoint.conditionals() is not None


def test_a_folder_with_only_a_t3_takes_the_rest_from_a_base(copy: Path, checkpoint_of: CheckpointOf) -> None:
    base = checkpoint_of("tiny-multilingual").path
    tuned = copy.parent / "tuned"
    tuned.mkdir()
    state = load_file(base / "t3_mtl23ls_v3.safetensors")
    state["speech_head.weight"] = state["speech_head.weight"] + 1
    save_file(state, tuned / "t3_mtl23ls_v2.safetensors")
    with pytest.raises(CheckpointError, match=r"Multilingual V2 it is missing s3gen\.pt, ve\.pt, grapheme"):
        Checkpoint.open(tuned)
    checkpoint = Checkpoint.open(tuned, base)
    assert checkpoint.family == MULTILINGUAL_V2
    assert torch.equal(checkpoint.t3_state()["speech_head.weight"], state["speech_head.weight"])
    assert checkpoint.tokenizer_path.parent == base
    assert checkpoint.identity != Checkpoint.open(base).identity


def test_a_pickled_file_that_holds_more_than_tensors_is_refused(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint_of("tiny-multilingual").path, tmp_path / "copy"))
    torch.save({"lstm.weight_ih_l0": "nothing"}, copy / "ve.pt")
    with pytest.raises(CheckpointError, match=r"ve\.pt: not a state dict"):
        Checkpoint.open(copy)
    (copy / "ve.pt").write_bytes(pickle.dumps(Path))
    with pytest.raises(CheckpointError, match=r"ve\.pt: not a state dict"):
        Checkpoint.open(copy)


def test_the_demo_voice_comes_with_the_package_and_has_a_voice() -> None:
    demo = Checkpoint.open(locate("demo"))
    voice = demo.conditionals()
    assert not demo.random
    assert voice is not None
    assert len(voice.t3.prompt_tokens) == demo.dims.t3.prompt_tokens
