"""The two speaker encoders, which are not trained, and the embeddings that T3 is conditioned on in training.

    python -m tools.demo_voice.speakers FOLDER

The voice encoder is a random LSTM of few live units: enough to tell two synthetic voices apart, and zeros pack
away. The x-vector network is all zeros, so that S3Gen's speaker is a constant: the voice is in tokens and prompt.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chatterbox_engine.checkpoint import layout
from chatterbox_engine.checkpoint.random_checkpoint import _states
from tools.demo_voice import data
from tools.demo_voice.sizes import DIMS

CLIPS = 120
LIVE_UNITS = 32
_HIDDEN = 256


def voice_encoder() -> dict[str, Tensor]:
    """Random weights, all but those among the first `LIVE_UNITS` of each layer zero."""
    states = _states(layout.voice_encoder_layout(DIMS.t3), seed=9)
    for name, tensor in states.items():
        if re.search("lstm", name):
            gates = tensor.unflatten(0, (4, _HIDDEN))
            gates[:, LIVE_UNITS:] = 0.0
            if tensor.ndim == 2 and tensor.shape[1] == _HIDDEN:
                tensor[:, LIVE_UNITS:] = 0.0
                tensor.mul_((_HIDDEN / LIVE_UNITS) ** 0.5)
        elif name == "proj.weight":
            tensor[:, LIVE_UNITS:] = 0.0
            tensor.mul_((_HIDDEN / LIVE_UNITS) ** 0.5)
    return states


def x_vector() -> dict[str, Tensor]:
    """Zeros, but for the norms' variances."""
    shapes = {name: shape for name, shape in layout.s3gen_layout(DIMS).items() if name.startswith("speaker_encoder.")}
    return {
        name: torch.zeros(shape, dtype=torch.int64 if name.endswith("tracked") else torch.float32)
        + (1 if name.endswith("running_var") else 0)
        for name, shape in shapes.items()
    }


def write(folder: Path) -> None:
    """Writes `speakers-SPEAKER.npy`, [CLIPS, 256]: what the voice encoder makes of some of each speaker's sentences."""
    from chatterbox.models.voice_encoder import VoiceEncoder

    encoder = VoiceEncoder()
    encoder.load_state_dict(voice_encoder())
    encoder.eval()
    found = {}
    for speaker in data.SPEAKERS:
        corpus = data.load(folder / "data", speaker, pitched=True, logmel=False)
        clips = []
        for begin, end in zip(corpus.begin[:CLIPS], corpus.begin[1 : CLIPS + 1], strict=True):
            clips.append(data.narrow(corpus.wav[begin * data.HOP : end * data.HOP]))
        with torch.no_grad():
            found[speaker] = np.stack([encoder.embeds_from_wavs([clip], sample_rate=16_000)[0] for clip in clips])
        np.save(folder / f"speakers-{speaker}.npy", found[speaker].astype(np.float32))
    means = {name: rows.mean(0) for name, rows in found.items()}
    within = max(float(np.linalg.norm(rows - means[name], axis=1).mean()) for name, rows in found.items())
    between = float(np.linalg.norm(np.subtract(*means.values())))
    print(f"speakers: distance between the voices {between:.3f}, within one {within:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
