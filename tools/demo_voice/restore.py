"""T3's training, to go on from a checkpoint when its folder is lost.

    python -m tools.demo_voice.restore FOLDER CHECKPOINT

Needs `data` alone. Writes what `train_t3` reads, as if codec and T3 had been trained there: the tokenizer of text, all
sentences as the checkpoint's own speech tokenizer hears them, and T3's weights with a fresh optimiser and a fresh
budget of time.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from tools.demo_voice import speakers
from tools.demo_voice.train_codec import Codec, write_tokens
from tools.demo_voice.train_t3 import Model, training_of


def codec(checkpoint: Checkpoint) -> Codec:
    """One that listens as the checkpoint does, and cannot speak."""
    found = Codec()
    found.encoder.load_state_dict(checkpoint.s3gen_state("tokenizer.encoder."))
    found.project_down.load_state_dict(checkpoint.s3gen_state("tokenizer.quantizer._codebook.project_down."))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoint", type=Path)
    arguments = parser.parse_args()
    folder, checkpoint = arguments.folder, Checkpoint.open(arguments.checkpoint)
    shutil.copy(arguments.checkpoint / "tokenizer.json", folder)
    model = Model()
    model.load_official(checkpoint.t3_state())
    training_of(model, folder, 0.0, torch.device("cpu")).save()
    write_tokens(codec(checkpoint), folder)
    speakers.write(folder)


if __name__ == "__main__":
    main()
