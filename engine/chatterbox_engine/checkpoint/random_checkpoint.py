"""Checkpoints of seeded random weights, in the official layout: for tests, benchmarks and `make demo`.

    python -m chatterbox_engine.checkpoint.random_checkpoint FOLDER --size full --family nano

They produce noise of the right shape. Three properties make a whole request behave as with trained weights: activations
stay in a sane range, the stop token is the only token drawn outside the speech vocabulary, and it is drawn after some
seconds, at a position that varies with the seed. Norm weights and biases differ from one and zero so that a test
notices when one is left out.

Each tensor has its own generator, seeded by its name: it does not depend on the others or on their order.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torchaudio
from safetensors.torch import save_file

from chatterbox_engine.checkpoint import layout, random_text
from chatterbox_engine.checkpoint.dims import (
    Dims,
    FlashDims,
    GPT2Dims,
    LlamaDims,
    ReferenceDims,
    S3GenDims,
    T3Dims,
)
from chatterbox_engine.checkpoint.families import ENGLISH, FAMILIES, FLASH, MULTILINGUAL_V3, NANO, TURBO, Family

Size = Literal["tiny", "full"]

FORMAT = 3
"""Format version: raised whenever the same arguments give other files, so that cached files are regenerated."""

MARK = "random_weights"
"""Metadata entry of the weight files that marks random weights."""

TINY = {
    "tiny": ENGLISH,
    "tiny-multilingual": MULTILINGUAL_V3,
    "tiny-turbo": TURBO,
    "tiny-nano": NANO,
    "tiny-flash": FLASH,
}
"""Names of checkpoints that are generated at the start, and their families."""

_TINY_LLAMA = {"hidden": 64, "layers": 2, "heads": 2, "head_dim": 32, "intermediate": 128}
_TINY_T3: dict[str, T3Dims] = {
    "english": LlamaDims(**_TINY_LLAMA),
    "multilingual-v2": LlamaDims(**_TINY_LLAMA, text_vocab=2454),
    "multilingual-v3": LlamaDims(**_TINY_LLAMA, text_vocab=2454),
    "flash": FlashDims(**_TINY_LLAMA),
    "turbo": GPT2Dims(**_TINY_LLAMA, text_vocab=1024, positions=8196),
    "nano": GPT2Dims(**{**_TINY_LLAMA, "heads": 4, "head_dim": 16}, text_vocab=1024, positions=8196),
}
_TINY_S3GEN = S3GenDims(
    encoder=64,
    encoder_heads=2,
    encoder_units=128,
    encoder_blocks=2,
    encoder_up_blocks=1,
    decoder=64,
    decoder_heads=2,
    decoder_head_dim=32,
    decoder_blocks=1,
    decoder_mid_blocks=2,
    hift=64,
    f0=64,
)
_TINY_REFERENCE = ReferenceDims(tokenizer_state=128, tokenizer_heads=2, tokenizer_layers=1)
_TINY_HEADS = ((0, 1), (1, 0))
"""No better than the others: what they attend to is random."""


def tiny_dims(family: Family) -> Dims:
    """The sizes of a family's tiny checkpoint."""
    s3gen = replace(_TINY_S3GEN, meanflow=family.dims.s3gen.meanflow)
    return Dims(_TINY_T3[family.name], s3gen, _TINY_REFERENCE, _TINY_HEADS)


_SPEECH_TOKENS = 6561  # ids of sound; the ids above are start, stop and unused
_PROMPT_TOKENS: dict[Size, int] = {"tiny": 25, "full": 250}

_RAMP_ZERO = 20.0  # speech position from which on the stop logit rises
_TEXT_LENGTH = 70  # text tokens for which the ramp begins at that position of speech with GPT-2
_RAMP_LENGTH = 160.0  # positions over which the ramp rises by one unit of the residual stream
_RAMP_READ = 16.0  # logit per unit, before the final norm's division by about 1.2
_BLOCK_STOP = 5.5  # stop logit of a model whose positions start again with every block, before that division
_UNUSED = 64.0  # logit by which unused tokens are held down, before that division
_LOUDNESS = 0.7  # added to the vocoder's log magnitudes

_FIXED = (  # (pattern, mean, standard deviation): first match wins; what matches nothing is scaled by its fan-in
    (r"num_batches_tracked$", 0.0, 0.0),
    (r"similarity_weight$", 10.0, 0.0),
    (r"similarity_bias$", -5.0, 0.0),
    (r"running_mean$", 0.0, 0.1),
    (r"running_var$", 1.0, 0.05),
    (r"alpha$", 1.0, 0.1),
    (r"original0$", 1.0, 0.05),  # times the gain of the convolution that it belongs to
    (r"original1$", 0.0, 1.0),  # weight norm keeps only its direction
    (r"classifier\.bias$", 50.0, 0.0),  # F0 in Hz: mostly voiced, now and then below the 10 Hz that count as voiced
    (r"(pos_emb\.emb|wpe)\.weight$", 0.0, 0.3),
    (r"(text_emb|wte|speech_emb|input_embedding|embed_tokens)\.weight$", 0.0, 1.0),
    (r"pre_attention_query$", 0.0, 0.5),
    (r"pos_bias_[uv]$", 0.0, 0.1),
    (r"bias$|bias_[ih]h_l\d$", 0.0, 0.05),
)

_GAINS = (  # (pattern, gain over a unit-variance linear map): first match wins, the default is 1
    (r"spkr_enc\.weight$", 16.0),  # speaker embeddings have unit length: entries near 1/16
    (r"speech_head\.weight$", 2.0),  # spread of the logits
    (r"(linear_out|w_2|to_out\.0|ff\.net\.2|attn\.out|mlp\.2|res_conv)\.weight$", 0.5),
    (r"speaker_encoder\..*(conv|linear)", 1.4),  # each follows a ReLU
    (r"project_down\.weight$", 0.6),
    (r"lstm\.weight_ih_l0$", 5.0),
    (r"mel2wav\.ups\.", 1.5),
    (r"resblocks\..*convs", 0.4),
    (r"conv_post\.", 0.3),
    (r"classifier\.weight$", 60.0),
)


def write_random_checkpoint(
    folder: Path,
    size: Size = "tiny",
    seed: int = 0,
    report: Callable[[str], None] | None = None,
    *,
    family: Family = ENGLISH,
    stops: bool = True,
    voiced: bool | None = None,
) -> None:
    """Writes a complete checkpoint of random weights into `folder`, which is created if absent.

    `full` has the official sizes (English: 3.2 GB) and loads into upstream's own classes with `from_local`; `tiny`
    (English: 48 MB) states its sizes in `config.json`. `report` is called with a line per file. stops: whether
    utterances end with a stop token, or only at the request's limit; voiced: whether there is a built-in voice, by
    default where the family's release has one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dims = tiny_dims(family) if size == "tiny" else family.dims
    tell = report or (lambda _line: None)
    files = family.files
    weights: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        files.voice_encoder: lambda: _states(layout.voice_encoder_layout(dims.t3), seed),
        files.t3: lambda: _t3_states(dims.t3, seed, stops=stops),
        # upstream loads all but the English one strictly
        files.s3gen: lambda: _s3gen_states(dims, seed) | ({} if family == ENGLISH else _constants()),
    }
    for name, make in weights.items():
        tell(f"random weights: {name}")
        if name.endswith(".pt"):
            torch.save(make(), folder / name)
        else:
            save_file(make(), folder / name, metadata={MARK: f"size={size} seed={seed}"})
    tell(f"random weights: {', '.join(files.text)}")
    random_text.write(family, dims.t3, folder)
    if family.voiced if voiced is None else voiced:
        tell(f"random weights: {files.conditionals}")
        torch.save(_conditionals(dims, _PROMPT_TOKENS[size], seed), folder / files.conditionals)
    if size == "tiny":
        dims.save(folder)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _states(shapes: layout.Layout, seed: int) -> dict[str, torch.Tensor]:
    return {name: _draw(name, shape, seed) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    gain = next((gain for pattern, gain in _GAINS if re.search(pattern, name)), 1.0)
    tensor = torch.randn(shape, generator=_generator(seed, name))
    for pattern, mean, deviation in _FIXED:
        if re.search(pattern, name):
            tensor = tensor.mul_(deviation).add_(mean)
            return tensor.mul_(gain) if name.endswith("original0") else tensor
    if len(shape) == 1:  # a norm's weight
        return tensor.mul_(0.1).add_(1.0)
    return tensor.mul_(gain / math.prod(shape[1:]) ** 0.5)


def _t3_states(dims: T3Dims, seed: int, *, stops: bool) -> dict[str, torch.Tensor]:
    states = _states(layout.t3_layout(dims), seed)
    for name, tensor in states.items():
        # so that the residual stream does not grow with depth
        if re.search(r"(o_proj|down_proj|c_proj)\.weight$", name):
            tensor.mul_((2 * dims.layers) ** -0.5)
    if isinstance(dims, GPT2Dims):
        _arrange_stop(states, dims, "tfmr.wpe.weight", "tfmr.ln_f.weight", dims.prefix + _TEXT_LENGTH, stops=stops)
    else:
        _arrange_stop(states, dims, "speech_pos_emb.emb.weight", "tfmr.norm.weight", 0, stops=stops)
    return states


def _arrange_stop(
    states: dict[str, torch.Tensor], dims: T3Dims, positions: str, norm: str, first: int, *, stops: bool
) -> None:
    """Makes utterances end with a stop token, if requested, and suppresses all other tokens outside the speech
    vocabulary.

    Two coordinates of the residual stream are written by the positions alone and read by the head alone: one rises
    along the positions and adds to the stop token's logit alone, the other is constant and holds down the logits of the
    unused tokens. The stop logit also varies with the context, as all logits do, and rises slowly, so its position
    depends on seed, text and voice. `first` is the position of the first speech token; with GPT-2 it depends on the
    text, and longer ones end sooner.
    """
    ramp, constant = 0, 1
    reserved = [ramp, constant]
    for name, tensor in states.items():
        if re.search(r"(o_proj|down_proj)\.weight$|(c_attn|c_fc)\.weight$|(c_proj|ln_f)\.bias$", name):
            tensor[reserved] = 0.0
        elif re.search(r"([qkv]|gate|up|c)_proj\.weight$|(speech_emb|pos_emb\.emb|speech_head)\.weight$", name):
            tensor[:, reserved] = 0.0
    table = states[positions]
    table[:, ramp] = ((torch.arange(len(table)) - first - _RAMP_ZERO) / _RAMP_LENGTH).clamp(-0.5, 2.0)
    table[:, constant] = 1.0
    states[norm][reserved] = 1.0
    head = states["speech_head.weight"]
    head[_SPEECH_TOKENS:, constant] = -_UNUSED
    if stops:
        head[dims.stop_speech, constant] = _BLOCK_STOP if isinstance(dims, FlashDims) else 0.0
        head[dims.stop_speech, ramp] = _RAMP_READ


def _s3gen_states(dims: Dims, seed: int) -> dict[str, torch.Tensor]:
    states = _states(layout.s3gen_layout(dims), seed)
    magnitudes = states["mel2wav.conv_post.bias"].shape[0] // 2
    states["mel2wav.conv_post.bias"][:magnitudes] += _LOUDNESS  # audible and not clipped
    return states


def _constants() -> dict[str, torch.Tensor]:
    """The S3 tokenizer's buffers, `layout.RECOMPUTED`: mel filters (as librosa's to 2e-7) and window."""
    filters = torchaudio.functional.melscale_fbanks(201, 0.0, 8000.0, 128, 16_000, norm="slaney", mel_scale="slaney")
    return {"tokenizer._mel_filters": filters.T.contiguous(), "tokenizer.window": torch.hann_window(400)}


def _conditionals(dims: Dims, prompt: int, seed: int) -> dict[str, dict[str, object]]:
    """A built-in voice in the format of upstream's `Conditionals.save`."""
    generator = _generator(seed, "conds.pt")
    speaker = torch.randn(1, dims.t3.speaker_embed, generator=generator).relu()  # as the voice encoder's last layer
    t3_tokens = torch.randint(_SPEECH_TOKENS, (1, dims.t3.prompt_tokens), generator=generator)
    tokens = torch.randint(dims.s3gen.vocab, (1, prompt), generator=generator)
    mel = torch.randn(1, 2 * prompt, dims.s3gen.mel, generator=generator)
    return {
        "t3": {
            "speaker_emb": speaker / speaker.norm(),
            "clap_emb": None,
            "cond_prompt_speech_tokens": t3_tokens,
            "cond_prompt_speech_emb": None,
            "emotion_adv": torch.full((1, 1, 1), 0.5),
        },
        "gen": {
            "prompt_token": tokens,
            "prompt_token_len": torch.tensor([prompt]),
            "prompt_feat": mel.mul_(2.0).sub_(5.0),
            "prompt_feat_len": None,
            "embedding": torch.randn(1, dims.s3gen.speaker_embed, generator=generator),
        },
    }


def _main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint of random weights: its speech is noise.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    families = {family.name: family for family in FAMILIES}
    parser.add_argument("--family", choices=families, default=ENGLISH.name)
    args = parser.parse_args()
    write_random_checkpoint(args.folder, args.size, args.seed, report=print, family=families[args.family])


if __name__ == "__main__":
    _main()
