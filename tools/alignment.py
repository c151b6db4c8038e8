"""Finds the attention heads of a checkpoint's T3 that follow the text, and keeps them for the engines that serve it.

    python -m tools.alignment CHECKPOINT [--base BASE] [--family FAMILY] [--show]

Speaks a few sentences with the built-in voice and scores every head: the share of its attention that lies on the best
path through the text which never goes back, from the text's begin to its end. The heads that follow it best are taken
together while that makes the path clearer, and kept by the checkpoint's identity in the cache of this project.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from chatterbox_engine.assemble import TEXTS, load_cpu_kernels, load_t3, open_checkpoint
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.checkpoint.heads import TextHeads, keep
from chatterbox_engine.config import Config
from chatterbox_engine.errors import CheckpointError
from chatterbox_engine.hardware import choose_device
from chatterbox_engine.kernels.graphs import Graphs
from chatterbox_engine.t3.attention import rotate
from chatterbox_engine.t3.extents import Extent, round_up
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.t3.prompts import Prompt
from chatterbox_engine.t3.runner import Runner
from chatterbox_engine.t3.transformer import Transformer
from chatterbox_engine.text.english import TextPreparation
from chatterbox_engine.text.passages import Text
from chatterbox_engine.types import Head

SENTENCES = (
    "It was a cold day in the middle of winter, and nobody was on the road.",
    "She opened the letter, read it twice, and put it back on the table.",
    "The train to the coast leaves at nine in the morning from the other side.",
    "When the rain had stopped they went out to look for their old friend.",
)
STEPS = 250
"""Speech tokens of a sentence at most."""
FORWARD = 3
"""Places that a path may go on in one step."""
LONG = 4.0
MOST = 4
"""Heads that are taken at most."""

Matrix = npt.NDArray[np.float32]


class Speaker:
    """Speaks sentences with T3 alone, and keeps what every head attended to."""

    def __init__(self, model: Transformer, checkpoint: Checkpoint, text: TextPreparation) -> None:
        voice = checkpoint.conditionals()
        if voice is None:
            raise CheckpointError(f"{checkpoint.path}: has no built-in voice to speak with")
        dims = model.dims
        self._model, self._text, self._family = model, text, checkpoint.family
        self._heads = [(layer, head) for layer in range(dims.layers) for head in range(dims.heads)]
        self._room = round_up(dims.prefix + 400 + STEPS)
        self._cache = KVCache(dims, 2 * self._room, device=model.device, dtype=model.dtype)
        graphs = Graphs(model.device, enabled=False)
        self._runner = Runner(model, self._cache, 1, family=self._family, graphs=graphs, heads=self._heads)
        self._prefix = model.prefix(voice.t3, self._family.sampling.exaggeration)

    @torch.inference_mode()
    def attention(self, sentence: str, seed: int) -> dict[Head, Matrix]:
        """[steps, text] of each head."""
        ids = self._text.encode(Text.of(sentence), self._family.language).ids
        framed = torch.tensor(self._model.dims.frame(ids))
        rows = tuple(Extent(self._room * row, self._room) for row in range(self._family.rows))
        uniforms = torch.rand(STEPS + 1, generator=torch.Generator().manual_seed(seed))
        prompt = Prompt(0, rows, framed, self._family.sampling, uniforms, aligned=True)
        ((token,),) = self._runner.prefill([prompt], [self._prefix]).read()
        queries: list[torch.Tensor] = []
        assert self._runner.alignment is not None
        while token != self._model.dims.stop_speech and len(queries) < STEPS:
            ((token,),) = self._runner.decode([prompt]).read()
            queries.append(self._runner.alignment.queries(1).kept[0].clone())
        return self._attention(torch.stack(queries, dim=1).float(), len(framed))

    def _attention(self, queries: torch.Tensor, size: int) -> dict[Head, Matrix]:
        """queries: [heads, steps, head_dim]; size: tokens of the text."""
        steps, past = queries.shape[1], self._prefix.shape[2]
        first = past + size + self._model.dims.bos  # the position of the first step
        positions = torch.arange(first, first + steps, device=queries.device)
        if self._model.rotation is not None:
            queries = rotate(queries, self._model.rotation[positions].float())
        hidden = torch.arange(first + steps, device=queries.device) > positions[:, None]
        found: dict[Head, Matrix] = {}
        for (layer, head), query in zip(self._heads, queries, strict=True):
            keys = self._cache.data[layer, 0, : first + steps, head].float()
            scores = (query @ keys.T / query.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
            found[layer, head] = scores.softmax(dim=-1)[:, past : past + size].cpu().numpy()
        return found


def clearness(attention: Matrix) -> float:
    """The share of the attention [steps, text] on the best path that never goes back, from the first places of the text
    to its last. A place counts no longer than LONG times the average."""
    steps, size = attention.shape
    path = _path(attention)
    held = np.bincount(path, attention[np.arange(steps), path], minlength=size)
    return float(np.minimum(held, LONG * steps / size).sum()) / steps


def _path(attention: Matrix) -> npt.NDArray[np.int64]:
    """[steps] The place of the best path in each step."""
    steps, size = attention.shape
    forward = max(FORWARD, -(-size * 2 // steps))
    total = np.where(np.arange(size) < FORWARD, attention[0], -np.inf)
    choices = np.zeros((steps, size), np.int64)
    for step in range(1, steps):
        padded = np.concatenate([np.full(forward, -np.inf), total])
        reached = np.stack([padded[forward - by : forward - by + size] for by in range(forward + 1)])
        choices[step] = reached.argmax(axis=0)
        total = attention[step] + reached.max(axis=0)
    path = np.zeros(steps, np.int64)
    path[-1] = size - FORWARD - 1 + total[-FORWARD - 1 :].argmax()
    for step in range(steps - 1, 0, -1):
        path[step - 1] = path[step] - choices[step, path[step]]
    return path


def best_heads(spoken: Sequence[dict[Head, Matrix]], most: int = MOST) -> tuple[list[tuple[Head, float]], TextHeads]:
    """All heads with their clearness, the clearest first, and those that are clearest together.

    spoken: of each sentence, [steps, text] of each head.
    """
    scores = {head: float(np.mean([clearness(each[head]) for each in spoken])) for head in spoken[0]}
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    taken, reached = [ranked[0][0]], ranked[0][1]
    for head, _ in ranked[1:most]:
        together = _together(spoken, [*taken, head])
        if together > reached:
            taken, reached = [*taken, head], together
    means = [np.mean([each[head] for head in taken], axis=0) for each in spoken]
    peak = float(np.mean([mean.max(axis=1).mean() for mean in means]))
    return ranked, TextHeads(tuple(taken), round(peak, 3))


def _together(spoken: Sequence[dict[Head, Matrix]], heads: Sequence[Head]) -> float:
    return float(np.mean([clearness(np.mean([each[head] for head in heads], axis=0)) for each in spoken]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="as CHATTERBOX_CHECKPOINT")
    parser.add_argument("--base", default="", help="as CHATTERBOX_BASE")
    parser.add_argument("--family", default="auto", help="as CHATTERBOX_FAMILY")
    parser.add_argument("--seeds", type=int, default=1, help="how often each sentence is spoken")
    parser.add_argument("--text", action="append", help="a sentence of the model's language; repeatable")
    parser.add_argument("--show", action="store_true", help="keep nothing")
    arguments = parser.parse_args()
    config = Config(checkpoint=arguments.checkpoint, base=arguments.base, family=arguments.family)
    checkpoint, device = open_checkpoint(config), choose_device(config.device)
    load_cpu_kernels(device, torch.float32, torch.float32, print)
    model = load_t3(config, checkpoint, device, torch.float32, print)
    speaker = Speaker(model, checkpoint, TEXTS[checkpoint.family.text](checkpoint, config))
    sentences = arguments.text or SENTENCES
    spoken = [speaker.attention(text, seed) for seed in range(arguments.seeds) for text in sentences]
    ranked, found = best_heads(spoken)
    for (layer, head), score in ranked[:10]:
        print(f"layer {layer}, head {head}: {score:.3f}")
    print(f"together: {','.join(f'{layer}:{head}' for layer, head in found.heads)}, highest attention {found.peak:.3f}")
    if not arguments.show:
        print(f"kept in {keep(found, checkpoint)}")


if __name__ == "__main__":
    main()
