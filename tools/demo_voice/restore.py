"""All trainings, to go on from a checkpoint when their folder is lost.

    python -m tools.demo_voice.restore FOLDER CHECKPOINT

Needs what `timings` wrote, with the checkpoint's own tokenizer: it is copied to FOLDER before. Writes t3.pt, speak.pt,
listen.pt and hift.pt with the checkpoint's weights, fresh optimisers and a fresh budget of time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from tests.fidelity import upstream
from tools.demo_voice import train_codec, train_hift, train_t3
from tools.demo_voice.phones import CODES, token_ids
from tools.demo_voice.sizes import DIMS
from tools.demo_voice.t3_model import Model

_CPU = torch.device("cpu")


def t3(checkpoint: Checkpoint, folder: Path) -> Model:
    sentences = np.load(folder / "t3.npz")
    model = Model(sentences["live"], int(sentences["labels"]))
    model.load_official(checkpoint.t3_state())
    return model


@torch.no_grad()
def speaker(checkpoint: Checkpoint) -> train_codec.Speaker:
    """Its table of each phone is the one whose sums are nearest to the rows of the tokens in use."""
    found = train_codec.Speaker()
    state = checkpoint.s3gen_state("flow.")
    own = found.flow.state_dict()
    found.flow.load_state_dict({name: state[name].float() for name in own})
    table = state["input_embedding.weight"].float()
    first, second = torch.meshgrid(torch.arange(CODES), torch.arange(CODES), indexing="ij")
    rows = table[torch.from_numpy(token_ids(first.flatten().numpy(), second.flatten().numpy()))]
    used = rows.any(1)
    choice = torch.cat([_one_hot(first.flatten()[used]), _one_hot(second.flatten()[used])], 1)
    found.phones.copy_(torch.linalg.lstsq(choice, rows[used], driver="gelsd").solution.unflatten(0, (2, CODES)))
    return found


def _one_hot(numbers: Tensor) -> Tensor:
    return nn.functional.one_hot(numbers, CODES).float()


def listener(checkpoint: Checkpoint) -> train_codec.Listener:
    found = train_codec.Listener()
    found.encoder.load_state_dict(_float(checkpoint.s3gen_state("tokenizer.encoder.")))
    found.project_down.load_state_dict(_float(checkpoint.s3gen_state("tokenizer.quantizer._codebook.project_down.")))
    return found


def vocoder(checkpoint: Checkpoint) -> nn.Module:
    found: nn.Module = upstream.mel2wav(DIMS.s3gen)
    found.load_state_dict(_float(checkpoint.s3gen_state("mel2wav.")), strict=False)
    return found


def _float(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoint", type=Path)
    arguments = parser.parse_args()
    folder, checkpoint = arguments.folder, Checkpoint.open(arguments.checkpoint)
    train_t3.training_of(t3(checkpoint, folder), folder, 1.0, _CPU).save()
    for part, module in (("speak", speaker(checkpoint)), ("listen", listener(checkpoint))):
        train_codec.training_of(module, folder / f"{part}.pt", 1.0, _CPU).save()
    train_hift.training_of(vocoder(checkpoint), folder, 1.0, _CPU).save()


if __name__ == "__main__":
    main()
