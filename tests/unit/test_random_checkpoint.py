"""Random checkpoints: the same seed gives the same files, and what is in them is usable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.families import FLASH
from chatterbox_engine.checkpoint.random_checkpoint import write_random_checkpoint
from chatterbox_engine.types import SamplingParams
from tests.fidelity.t3_loop import Request, Served


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_seed_writes_the_same_bytes_in_another_process(tiny_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chatterbox_engine.checkpoint.random_checkpoint", str(tmp_path), "--size", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert contents(tmp_path) == contents(tiny_path)
    assert "t3_cfg.safetensors" in done.stdout


def test_another_seed_writes_other_weights(tiny: Checkpoint, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, "tiny", seed=1)
    ours, others = tiny.t3_state(), Checkpoint.open(tmp_path).t3_state()
    assert not torch.equal(ours["text_emb.weight"], others["text_emb.weight"])


def test_an_utterance_ends_by_itself_unless_it_is_not_to(tiny: Checkpoint, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, "tiny", stops=False)
    lengths = []
    for checkpoint in (tiny, Checkpoint.open(tmp_path)):
        request = Request(text_length=20, sampling=SamplingParams(), seed=1, max_tokens=300)
        Served.of(checkpoint).loop(cache_len=512).run([request])
        lengths.append(len(request.tokens))
    assert lengths[0] < lengths[1] == 300


def test_all_weights_are_finite_and_no_norm_or_bias_is_trivial(tiny: Checkpoint) -> None:
    for state in (tiny.t3_state(), tiny.s3gen_state(), tiny.voice_encoder_state()):
        for name, tensor in state.items():
            assert torch.isfinite(tensor).all(), name
            trivial = tensor.numel() > 1 and (tensor == tensor.reshape(-1)[0]).all()
            assert not trivial, name


def test_the_tokenizer_has_the_whole_vocabulary_and_upstreams_special_tokens(tiny: Checkpoint) -> None:
    tokenizer = Tokenizer.from_file(str(tiny.tokenizer_path))
    assert tokenizer.get_vocab_size() == tiny.dims.t3.text_vocab == 704
    assert sorted(tokenizer.get_vocab().values()) == list(range(704))
    assert tokenizer.token_to_id("[START]") == 255
    assert tokenizer.token_to_id("[STOP]") == 0
    printable = [chr(code) for code in range(33, 127)]
    assert all(tokenizer.token_to_id(char) is not None for char in printable)


def test_merges_shorten_common_words(tiny: Checkpoint) -> None:
    tokenizer = Tokenizer.from_file(str(tiny.tokenizer_path))
    assert len(tokenizer.encode("there").ids) < 5
    assert tokenizer.token_to_id("[UNK]") not in tokenizer.encode("there").ids


def test_the_built_in_voice_has_the_shapes_that_the_dimensions_say(tiny: Checkpoint) -> None:
    voice = tiny.conditionals()
    assert voice is not None
    assert voice.t3.speaker.norm() == torch.tensor(1.0)
    assert voice.t3.prompt_tokens.shape == (tiny.dims.t3.prompt_tokens,)
    assert voice.s3gen.prompt_mel.shape == (2 * len(voice.s3gen.prompt_tokens), 80)
    assert voice.s3gen.embedding.shape == (192,)
    assert voice.exaggeration == 0.5


def test_a_family_without_a_built_in_voice_has_none_unless_asked_for(tmp_path: Path) -> None:
    for voiced in (None, True):
        write_random_checkpoint(tmp_path / str(voiced), family=FLASH, voiced=voiced)
        assert (Checkpoint.open(tmp_path / str(voiced)).conditionals() is None) == (voiced is None)
