"""Checkpoints of seeded random weights, in the official layout: for tests, benchmarks and `make demo`.

    python -m chatterbox_engine.random_checkpoint FOLDER --size full

What they say is noise of the right shape. Three things are arranged so that a whole request behaves as with trained
weights: activations stay in a sane range, no token beyond the speech vocabulary but the stop token is drawn, and the
stop token comes by itself after some seconds, at a place that varies with the seed. Norm weights and biases differ
from one and zero so that a test notices when one is left out.

Each tensor has its own generator, seeded by its name: it does not depend on the others or on their order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from chatterbox_engine import layout
from chatterbox_engine.dims import Dims, ReferenceDims, S3GenDims, T3Dims

Size = Literal["tiny", "full"]

FORMAT = 2
"""Raised whenever the same arguments give other files, so that cached ones are made anew."""

MARK = "random_weights"
"""Metadata entry of the weight files that says so."""

TINY = Dims(
    t3=T3Dims(hidden=64, layers=2, heads=2, head_dim=32, intermediate=128),
    s3gen=S3GenDims(
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
    ),
    reference=ReferenceDims(tokenizer_state=128, tokenizer_heads=2, tokenizer_layers=1),
)

_SPEECH_TOKENS = 6561  # ids of sound; the ids above are start, stop and unused
_PROMPT_TOKENS: dict[Size, int] = {"tiny": 25, "full": 250}

_RAMP_ZERO = 20.0  # speech position from which on the stop logit rises
_RAMP_LENGTH = 160.0  # positions over which the ramp rises by one unit of the residual stream
_RAMP_READ = 16.0  # logit per unit, before the final norm's division by about 1.2
_UNUSED = 64.0  # logit by which unused tokens are held down, before that division
_LOUDNESS = 0.7  # added to the vocoder's log magnitudes

_SPECIAL_TOKENS = ("[STOP]", "[START]", "[UNK]", "[SPACE]", "[PAD]", "[SEP]", "[CLS]", "[MASK]")
_ALPHABET = string.ascii_letters + string.digits + string.punctuation
_TRAINING_TEXT = """
The harbour was quiet before dawn. A few boats knocked against the pier, and the lamps along the water threw long
yellow lines across it. Nobody was there to see them except the woman who sold bread, and she was thinking about flour.
"Twelve sacks," she said aloud, "and the miller has promised me nine! What shall I do with nine?" Her brother, who had
come down the hill behind her, laughed. "Bake smaller loaves, and call them something foreign." They walked together
past the warehouses, where the doors stood open and the smell of coffee, rope and tar came out to meet them. It is hard
to say when the morning really begins: with the first bird, the first bell, or the first argument about money. Later
the children would run to school, shouting and splashing through every puddle, and the teacher would pretend not to
have noticed. She had taught their parents; she knew that rain cannot be explained, only enjoyed. In the afternoon the
ships returned with mackerel, herring and news from the islands. Someone had married, someone had quarrelled with the
priest, a lighthouse keeper had written a very long letter and addressed it to the wrong king. Everyone listened,
because stories were the cheapest thing for sale in the market and the only thing that nobody ever weighed. When the
evening came, with its usual wind, the shutters closed one after another, until a single window was left burning above
the square. There an old man was repairing a clock. He had been working on it for seventeen years, and he thought that
tomorrow, or perhaps on Thursday, it might finally strike. Could you speak a little more slowly, please? I would like
to hear how the system pronounces different numbers, names and questions. Thank you for calling; your appointment is
confirmed for Monday the twenty-third at half past eight. Please remember to bring your passport, a photograph and
something to read. Testing, testing, one two three: the quick brown fox jumps over the lazy dog, again and again.
Engineers measured the bridge every Wednesday in winter, whenever frost made its iron shrink; February was the worst.
Nevertheless, vegetables arrived punctually: cabbages, onions, radishes, parsnips, even oranges and lemons in December.
"""

_FIXED = (  # (pattern, mean, standard deviation): first match wins; what matches nothing is scaled by its fan-in
    (r"num_batches_tracked$", 0.0, 0.0),
    (r"similarity_weight$", 10.0, 0.0),
    (r"similarity_bias$", -5.0, 0.0),
    (r"running_mean$", 0.0, 0.1),
    (r"running_var$", 1.0, 0.05),
    (r"alpha$", 1.0, 0.1),
    (r"original0$", 1.0, 0.05),  # times the gain of the convolution that it belongs to
    (r"original1$", 0.0, 1.0),  # weight norm leaves only its direction
    (r"classifier\.bias$", 50.0, 0.0),  # F0 in Hz: mostly voiced, now and then below the 10 Hz that count as voiced
    (r"pos_emb\.emb\.weight$", 0.0, 0.3),
    (r"(text_emb|speech_emb|input_embedding|embed_tokens)\.weight$", 0.0, 1.0),
    (r"pre_attention_query$", 0.0, 0.5),
    (r"pos_bias_[uv]$", 0.0, 0.1),
    (r"bias$|bias_[ih]h_l\d$", 0.0, 0.05),
)

_GAINS = (  # (pattern, gain over a unit-variance linear map): first match wins, the default is 1
    (r"spkr_enc\.weight$", 16.0),  # speaker embeddings have unit length: entries near 1/16
    (r"speech_head\.weight$", 2.0),  # spread of the logits
    (r"(linear_out|w_2|to_out\.0|ff\.net\.2|attn\.out|mlp\.2|res_conv)\.weight$", 0.5),
    (r"speaker_encoder\..*(conv|linear)", 1.4),  # each is behind a ReLU
    (r"project_down\.weight$", 0.6),
    (r"lstm\.weight_ih_l0$", 5.0),
    (r"mel2wav\.ups\.", 1.5),
    (r"resblocks\..*convs", 0.4),
    (r"conv_post\.", 0.3),
    (r"classifier\.weight$", 60.0),
)


def write_random_checkpoint(
    folder: Path, size: Size = "tiny", seed: int = 0, report: Callable[[str], None] | None = None
) -> None:
    """Writes a whole checkpoint of random weights into `folder`, which is made if absent.

    `full` has the official sizes (3.2 GB) and loads into upstream's own `ChatterboxTTS.from_local`; `tiny` (48 MB)
    states its sizes in `config.json`. `report` is called with a line per file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dims = TINY if size == "tiny" else Dims()
    tell = report or (lambda _line: None)
    weights: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        "ve.safetensors": lambda: _states(layout.voice_encoder_layout(dims.t3), seed),
        "t3_cfg.safetensors": lambda: _t3_states(dims.t3, seed),
        "s3gen.safetensors": lambda: _s3gen_states(dims, seed),
    }
    for name, make in weights.items():
        tell(f"random weights: {name}")
        save_file(make(), folder / name, metadata={MARK: f"size={size} seed={seed}"})
    tell("random weights: tokenizer.json, conds.pt")
    _tokenizer(dims.t3).save(str(folder / "tokenizer.json"))
    torch.save(_conditionals(dims, _PROMPT_TOKENS[size], seed), folder / "conds.pt")
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


def _t3_states(dims: T3Dims, seed: int) -> dict[str, torch.Tensor]:
    states = _states(layout.t3_layout(dims), seed)
    for index in range(dims.layers):
        for name in ("self_attn.o_proj", "mlp.down_proj"):  # so that the residual stream does not grow with depth
            states[f"tfmr.layers.{index}.{name}.weight"].mul_((2 * dims.layers) ** -0.5)
    _arrange_stop(states, dims)
    return states


def _arrange_stop(states: dict[str, torch.Tensor], dims: T3Dims) -> None:
    """Makes the stop token come by itself, and no other token beyond the speech vocabulary.

    Two coordinates of the residual stream are written by the speech positions alone and read by the head alone: one
    rises along the positions and adds to the stop token's logit alone, the other is constant and holds down the logits
    of the unused tokens. The stop logit also varies with the context as all others do, and it rises slowly: so where it
    wins depends on seed, text and voice.
    """
    ramp, constant = 0, 1
    reserved = [ramp, constant]
    for name, tensor in states.items():
        if re.search(r"(o_proj|down_proj)\.weight$", name):
            tensor[reserved] = 0.0
        elif re.search(r"([qkv]|gate|up)_proj\.weight$|(speech_emb|pos_emb\.emb|speech_head)\.weight$", name):
            tensor[:, reserved] = 0.0
    positions = torch.arange(dims.speech_positions)
    states["speech_pos_emb.emb.weight"][:, ramp] = ((positions - _RAMP_ZERO) / _RAMP_LENGTH).clamp(-0.5, 2.0)
    states["speech_pos_emb.emb.weight"][:, constant] = 1.0
    states["tfmr.norm.weight"][reserved] = 1.0
    head = states["speech_head.weight"]
    head[_SPEECH_TOKENS:, constant] = -_UNUSED
    head[dims.stop_speech, constant] = 0.0
    head[dims.stop_speech, ramp] = _RAMP_READ


def _s3gen_states(dims: Dims, seed: int) -> dict[str, torch.Tensor]:
    states = _states(layout.s3gen_layout(dims), seed)
    magnitudes = states["mel2wav.conv_post.bias"].shape[0] // 2
    states["mel2wav.conv_post.bias"][:magnitudes] += _LOUDNESS  # audible and not clipped
    return states


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


def _tokenizer(dims: T3Dims) -> Tokenizer:
    """A byte-pair tokenizer of the vocabulary's size, trained on the text below."""
    learner = Tokenizer(models.BPE(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    size = dims.text_vocab - len(_SPECIAL_TOKENS)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(_ALPHABET), show_progress=False)
    learner.train_from_iterator([_TRAINING_TEXT], trainer)
    learned = json.loads(learner.to_str())["model"]
    special = {"[STOP]": dims.stop_text, "[START]": dims.start_text}
    special |= {token: index for index, token in enumerate(_SPECIAL_TOKENS[2:], start=1)}
    free = (index for index in range(dims.text_vocab) if index not in special.values())
    ordered = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    vocabulary = special | dict(zip(ordered, free, strict=True))
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge) for merge in learned["merges"]], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    return tokenizer


def _main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint of random weights: what it says is noise.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_random_checkpoint(args.folder, args.size, args.seed, report=print)


if __name__ == "__main__":
    _main()
