"""Upstream reads our random checkpoints as its own, and speaks noise that ends by itself with them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from chatterbox_engine.checkpoint import layout
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.dims import FlashDims
from chatterbox_engine.checkpoint.families import FAMILIES, Family
from chatterbox_engine.text.gpt2 import GPT2Text
from chatterbox_engine.text.passages import Text
from chatterbox_engine.types import TOKENS_PER_SECOND
from tests.conftest import CheckpointOf
from tests.fidelity import upstream

TEXT = "Hello there, how are you today?"


@pytest.fixture(scope="module")
def tiny_tts(tiny: Checkpoint) -> Any:
    """Upstream's whole pipeline at tiny size, with the built-in voice."""
    from chatterbox.tts import Conditionals

    tts = upstream.tts(tiny)
    tts.conds = Conditionals.load(tiny.path / "conds.pt")
    return tts


def draw(tts: Any, text: str, seed: int, **parameters: float) -> torch.Tensor:
    """Speech tokens as `ChatterboxTTS.generate` draws them."""
    defaults = {"temperature": 0.8, "cfg_weight": 0.5, "repetition_penalty": 1.2, "min_p": 0.05, "top_p": 1.0}
    ids = torch.nn.functional.pad(tts.tokenizer.text_to_tokens(text), (1, 0), value=255)
    ids = torch.nn.functional.pad(ids, (0, 1), value=0)
    torch.manual_seed(seed)
    tokens = tts.t3.inference(
        t3_cond=tts.conds.t3, text_tokens=ids.repeat(2, 1), max_new_tokens=1000, **(defaults | parameters)
    )
    return tokens[0]


def test_the_stop_token_comes_by_itself_at_a_place_that_depends_on_the_seed(tiny_tts: Any) -> None:
    spoken = [draw(tiny_tts, TEXT, seed) for seed in range(10)]
    assert all(tokens[-1] == 6562 for tokens in spoken)
    assert all(tokens[:-1].max() < 6561 for tokens in spoken)
    seconds = [len(tokens) / TOKENS_PER_SECOND for tokens in spoken]
    assert min(seconds) > 1.2
    assert max(seconds) < 6
    assert len(set(seconds)) >= 5


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 0.05},
        {"temperature": 1.5},
        {"cfg_weight": 2.0},
        {"repetition_penalty": 2.0},
        {"min_p": 0.0, "top_p": 0.5},
        {"min_p": 0.0},
    ],
    ids=str,
)
def test_the_stop_token_comes_at_other_parameters_too(parameters: dict[str, float], tiny_tts: Any) -> None:
    tokens = draw(tiny_tts, TEXT, 0, **parameters)
    assert tokens[-1] == 6562
    assert 1 < len(tokens) / TOKENS_PER_SECOND < 8


def test_upstream_speaks_audible_unclipped_audio_of_the_right_length(tiny_tts: Any) -> None:
    tokens = draw(tiny_tts, TEXT, 0)[:-1]
    audio, _ = tiny_tts.s3gen.inference(speech_tokens=tokens, ref_dict=tiny_tts.conds.gen)
    assert audio.shape == (1, 960 * len(tokens))
    assert 0.01 < audio.square().mean().sqrt() < 0.3
    assert audio.abs().max() < 0.98


def test_the_built_in_voice_is_the_one_that_upstream_reads(tiny: Checkpoint, tiny_tts: Any) -> None:
    ours, theirs = tiny.conditionals(), tiny_tts.conds
    assert ours is not None
    assert torch.equal(ours.t3.speaker[None], theirs.t3.speaker_emb)
    assert torch.equal(ours.s3gen.prompt_tokens[None], theirs.gen["prompt_token"])
    assert torch.equal(ours.s3gen.prompt_mel[None], theirs.gen["prompt_feat"])
    assert torch.equal(ours.s3gen.embedding[None], theirs.gen["embedding"])
    assert ours.exaggeration == theirs.t3.emotion_adv.item()


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@cache
def s3gen_shapes(meanflow: bool) -> dict[str, tuple[int, ...]]:
    """Upstream's S3Gen cannot be built without its weights, which takes seconds; there are two."""
    from chatterbox.models.s3gen import S3Gen

    return shapes(S3Gen(meanflow=meanflow))


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_the_table_of_names_and_shapes_is_that_of_upstreams_official_modules(family: Family) -> None:
    from chatterbox.models.voice_encoder import VoiceEncoder

    dims = family.dims
    with torch.device("meta"):
        t3 = upstream.flash_t3(dims.t3, None) if isinstance(dims.t3, FlashDims) else upstream.t3(dims.t3, None)
        assert shapes(t3) == layout.t3_layout(dims.t3)
        assert shapes(VoiceEncoder()) == layout.voice_encoder_layout(dims.t3)
    of_tokenizer = {"tokenizer._mel_filters": (128, 201), "tokenizer.window": (400,)}
    assert s3gen_shapes(dims.s3gen.meanflow) == layout.s3gen_layout(dims) | of_tokenizer


@pytest.mark.parametrize("name", ["tiny-turbo", "tiny-nano"])
def test_turbos_stop_token_comes_by_itself_too(name: str, checkpoint_of: CheckpointOf) -> None:
    from chatterbox.tts_turbo import Conditionals

    checkpoint = checkpoint_of(name)
    t3 = upstream.t3(checkpoint.dims.t3, checkpoint.t3_state())
    text = torch.tensor([GPT2Text(checkpoint.tokenizer_path).encode(Text.of(TEXT), "en").ids])
    lengths = set()
    for seed in range(6):
        torch.manual_seed(seed)
        condition = Conditionals.load(checkpoint.path / "conds.pt").t3
        tokens = t3.inference_turbo(t3_cond=condition, text_tokens=text)[0]
        assert len(tokens) < 1000
        assert tokens.max() < 6561
        lengths.add(len(tokens) / TOKENS_PER_SECOND)
    assert 1.2 < min(lengths) < max(lengths) < 8
    assert len(lengths) >= 3


@pytest.mark.full
@pytest.mark.timeout(900)
def test_upstream_loads_the_full_size_turbo_unchanged_and_stops_by_itself(checkpoint_of: CheckpointOf) -> None:
    from chatterbox.tts_turbo import ChatterboxTurboTTS

    checkpoint = checkpoint_of("full-turbo")
    tts = ChatterboxTurboTTS.from_local(checkpoint.path, "cpu")
    torch.manual_seed(0)
    audio = tts.generate(TEXT)
    assert audio.shape[1] % 960 == 0
    assert 1.2 < audio.shape[1] / 24_000 < 8


@pytest.mark.full
@pytest.mark.timeout(900)
def test_upstream_loads_the_full_size_flash_unchanged(checkpoint_of: CheckpointOf) -> None:
    from chatterbox_flash import ChatterboxFlashTTS

    checkpoint = checkpoint_of("full-flash")
    tts = ChatterboxFlashTTS.from_local(checkpoint.path, "cpu", dtype=torch.float32)
    for module, state in ((tts.s3gen, checkpoint.s3gen_state()), (tts.t3, checkpoint.t3_state())):
        loaded = module.state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.full
@pytest.mark.timeout(900)
def test_upstream_loads_the_full_size_multilingual_unchanged(
    checkpoint_of: CheckpointOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chatterbox.models.tokenizers import tokenizer
    from chatterbox.mtl_tts import ChatterboxMultilingualTTS

    monkeypatch.setattr(tokenizer, "ChineseCangjieConverter", lambda _folder: None)  # it downloads a model
    checkpoint = checkpoint_of("full-multilingual")
    for path in checkpoint.path.iterdir():  # 0.1.7 knows V2's name alone
        (tmp_path / path.name.replace("v3", "v2")).symlink_to(path)
    tts = ChatterboxMultilingualTTS.from_local(tmp_path, "cpu")
    loaded = tts.s3gen.state_dict()
    for name, tensor in checkpoint.s3gen_state().items():
        assert torch.equal(loaded[name], tensor), name
    for name, tensor in checkpoint.t3_state().items():
        assert torch.equal(tts.t3.state_dict()[name], tensor), name


@pytest.mark.full
@pytest.mark.timeout(900)
def test_upstream_loads_the_full_size_checkpoint_unchanged_and_stops_by_itself(full_path: Path) -> None:
    from chatterbox.tts import ChatterboxTTS

    tts = ChatterboxTTS.from_local(full_path, "cpu")
    loaded = tts.s3gen.state_dict()  # upstream loads this one without being strict
    for name, tensor in Checkpoint.open(full_path).s3gen_state().items():
        assert torch.equal(loaded[name], tensor), name
    tokens = draw(tts, TEXT, 0)
    assert tokens[-1] == 6562
    assert 1.2 < len(tokens) / TOKENS_PER_SECOND < 6
