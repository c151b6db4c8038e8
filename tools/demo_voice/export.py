"""The checkpoint, in the official layout, from what is trained so far.

    python -m tools.demo_voice.export FOLDER CHECKPOINT

Weights are bfloat16; tensors of zeros are float8, and pack to nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from safetensors.torch import save_file
from torch import Tensor

from chatterbox_engine.checkpoint import layout
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.families import ENGLISH
from chatterbox_engine.types import Conditionals
from chatterbox_engine.voices.reference import ReferenceEncoder
from tests.fidelity import upstream
from tools.demo_voice import estimator, speakers, speech, train_codec, train_t3
from tools.demo_voice.phones import PHONES, marked, token_ids
from tools.demo_voice.sizes import DIMS
from tools.demo_voice.source import RATE
from tools.demo_voice.t3_model import Model
from tools.demo_voice.training import read

DEFAULT, OTHER = "heart", "bass"
PROMPT_SECONDS, CLIP_SECONDS = 5.0, 8.0
"""Of the built-in voice, whose prompt every request pays for, and of the other one's clip."""
FILES = ENGLISH.files


def averaged(folder: Path, name: str) -> dict[str, Tensor]:
    state = read(folder / f"{name}.pt")
    print(f"export: {name}: {state['step']} steps, {state['used']:.0f} s")
    return dict(state["averaged"])


def s3gen_state(folder: Path) -> dict[str, Tensor]:
    speaker, listener = train_codec.trained(folder)
    flow = upstream.flow(DIMS.s3gen)
    flow.load_state_dict(speaker.flow.state_dict(), strict=False)
    with torch.no_grad():
        first, second = said_pairs(folder)
        flow.input_embedding.weight.zero_()
        flow.input_embedding.weight[token_ids(first, second)] = speaker.table(
            torch.from_numpy(first), torch.from_numpy(second)
        )
        flow.spk_embed_affine_layer.weight.zero_()
        flow.spk_embed_affine_layer.bias.zero_()
    parts = {
        "tokenizer.encoder.": listener.encoder.state_dict(),
        "tokenizer.quantizer._codebook.project_down.": listener.project_down.state_dict(),
        "flow.": {key: value for key, value in flow.state_dict().items() if not key.startswith("decoder.")},
        "flow.decoder.estimator.": estimator.fresh().state_dict(),
        "mel2wav.": averaged(folder, "hift"),
    }
    state = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
    state |= speakers.x_vector()
    return {name: state[name] for name in layout.s3gen_layout(DIMS)}


def said_pairs(folder: Path) -> np.ndarray:
    """[2, tokens]: the phones of all tokens that T3 says, and of the same in the prompt of another voice."""
    live = np.load(folder / "t3.npz")["live"]
    own = np.stack([live // len(PHONES), live % len(PHONES)])
    return np.unique(np.concatenate([own, marked(own)], 1), axis=1)


def packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    def pack(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone()
        return tensor.to(torch.bfloat16 if tensor.any() else torch.float8_e4m3fn).contiguous()

    return {name: pack(tensor.detach()) for name, tensor in state.items()}


def clip(corpus: speech.Corpus, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """About that much of a speaker: samples at 16 kHz and phones [2, tokens], whole sentences."""
    end = int(corpus.begin[np.searchsorted(corpus.begin, seconds * 25)])
    wave = corpus.wav[: end * 2 * speech.HOP].astype(np.float32) / 32767
    return soxr.resample(wave, RATE, 16_000), corpus.phones[:, :end]


def default_voice(folder: Path, target: Path) -> Conditionals:
    """hibari's own, whose tokens are known."""
    wave, phones = clip(speech.load(folder, DEFAULT), PROMPT_SECONDS)
    encoder = ReferenceEncoder(Checkpoint.open(target))
    (voice,) = encoder.encode([encoder.prepare(wave, 16_000)])
    tokens = torch.from_numpy(token_ids(*phones))
    return dataclasses.replace(
        voice,
        t3=dataclasses.replace(voice.t3, prompt_tokens=tokens[: len(voice.t3.prompt_tokens)]),
        s3gen=dataclasses.replace(voice.s3gen, prompt_tokens=tokens[: len(voice.s3gen.prompt_tokens)]),
    )


def upstream_form(voice: Conditionals) -> dict[str, dict[str, object]]:
    """As upstream's `Conditionals.save` writes it."""
    return {
        "t3": {
            "speaker_emb": voice.t3.speaker[None],
            "clap_emb": None,
            "cond_prompt_speech_tokens": voice.t3.prompt_tokens[None],
            "cond_prompt_speech_emb": None,
            "emotion_adv": torch.full((1, 1, 1), voice.exaggeration),
        },
        "gen": {
            "prompt_token": voice.s3gen.prompt_tokens[None],
            "prompt_token_len": torch.tensor([len(voice.s3gen.prompt_tokens)]),
            "prompt_feat": voice.s3gen.prompt_mel[None].contiguous(),
            "prompt_feat_len": None,
            "embedding": voice.s3gen.embedding[None],
        },
    }


def export_others(folder: Path, target: Path) -> None:
    """All but T3."""
    torch.manual_seed(0)  # of the estimator's branches that are off
    save_file(packed(speakers.voice_encoder()), target / FILES.voice_encoder)
    save_file(packed(s3gen_state(folder)), target / FILES.s3gen)
    shutil.copy(folder / "tokenizer.json", target)
    DIMS.save(target)
    torch.save(upstream_form(default_voice(folder, target)), target / FILES.conditionals)
    soundfile.write(target / f"{OTHER}.flac", clip(speech.load(folder, OTHER), CLIP_SECONDS)[0], 16_000)


def typical_state(model: Model, folder: Path) -> Tensor:
    """The mean hidden state of T3 over sentences that were kept aside in training, [width]."""
    sentences = train_t3.Sentences(folder)
    rows = [sentences.joined([number]) for number in range(100)]
    return train_t3.typical(model, rows, sentences.rows[-1].speech)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--only-t3", action="store_true", help="leave the checkpoint's other files as they are")
    arguments = parser.parse_args()
    folder, target = arguments.folder, arguments.checkpoint
    target.mkdir(parents=True, exist_ok=True)
    sentences = np.load(folder / "t3.npz")
    model = Model(sentences["live"], int(sentences["labels"]))
    model.load_state_dict(averaged(folder, "t3"))
    save_file(packed(model.official(typical_state(model, folder))), target / FILES.t3)
    if not arguments.only_t3:
        export_others(folder, target)
    for path in sorted(target.iterdir()):
        print(f"export: {path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
