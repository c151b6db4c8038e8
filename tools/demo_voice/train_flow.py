"""S3Gen's flow: an estimator that starts as the mean flow to the encoder's mel, and learns from there.

    python -m tools.demo_voice.train_flow FOLDER --seconds 2400

The start is analytic: all residual branches off, and along the linear path 4 (mu / 1.7 - y), so that with upstream's
guidance of 0.7, (1.7 conditional - 0.7 unconditional), the velocity is 4 (mu - y) and ten Euler steps end near mu. The
training is upstream's conditional flow matching (Lipman et al., 2022; Matcha-TTS; chatterbox-tts `flow_matching.py`):
cosine times, a fifth of the rows without conditions, a random beginning of the mel as the prompt.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fidelity import upstream
from tools.demo_voice import data
from tools.demo_voice.sizes import DIMS
from tools.demo_voice.train_codec import SILENCE, trained
from tools.demo_voice.training import Training, begin, precision

FRAMES = 1600
"""A batch's."""
WINDOWS = (100, 150, 200, 300)
SMALLEST = 1e-6
"""Upstream's sigma_min."""
_GUIDANCE, _PULL = 0.7, 4.0
_ANCHOR, _OFFSET = 200.0, 6.0


@torch.no_grad()
def analytic(estimator: Any) -> None:
    """Sets an estimator to `_PULL` (mu / (1 + guidance) - y).

    The last layer norm and Mish are made linear: constant channels of plus and minus `_ANCHOR` fix the norm's scale,
    others cancel its mean, and an offset keeps Mish where it is the identity.
    """
    mel, width = DIMS.s3gen.mel, DIMS.s3gen.decoder
    spare = width - mel

    def turn_off(layer: Any) -> None:
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()

    def copy(convolution: Any) -> None:
        turn_off(convolution)
        for channel in range(width):
            convolution.weight[channel, channel, -1] = 1.0

    stages = [*estimator.down_blocks, *estimator.mid_blocks, *estimator.up_blocks]
    for stage in stages:
        turn_off(stage[0].block2.block[2])
        copy(stage[0].res_conv)
        for block in stage[1]:
            turn_off(block.attn1.to_out[0])
            turn_off(block.ff.net[2])
        if len(stage) == 3:
            copy(stage[2])
    first = estimator.down_blocks[0][0].res_conv
    turn_off(first)
    for channel in range(mel):
        first.weight[channel, channel] = -_PULL
        first.weight[channel, mel + channel] = _PULL / (1 + _GUIDANCE)
    convolution, norm = estimator.final_block.block[0], estimator.final_block.block[2]
    copy(convolution)
    convolution.weight[mel:] = 0.0
    convolution.weight[mel:, :mel, -1] = -1.0 / spare
    convolution.bias[mel:] = _ANCHOR
    convolution.bias[mel : mel + spare // 2] = -_ANCHOR
    norm.weight.fill_(1.0)
    norm.bias.fill_(_OFFSET)
    scale = _ANCHOR * (spare / width) ** 0.5
    turn_off(estimator.final_proj)
    for channel in range(mel):
        estimator.final_proj.weight[channel, channel] = scale
    estimator.final_proj.bias.fill_(-_OFFSET * scale)


def fresh() -> nn.Module:
    """The estimator as it starts."""
    estimator: nn.Module = upstream.flow(DIMS.s3gen).decoder.estimator
    analytic(estimator)
    return estimator


def draw(corpora: list[data.Corpus]) -> tuple[Tensor, Tensor]:
    """Windows of all corpora: mel [batch, 80, frames], log-mel [batch, 2 * frames, 128]."""
    window = random.choice(WINDOWS)
    wanted, heard = [], []
    for index in range(FRAMES // window):
        corpus = corpora[index % len(corpora)]
        at = 2 * random.randrange((len(corpus.mel) - window) // 2)
        wanted.append(corpus.mel[at : at + window].T)
        heard.append(corpus.logmel[2 * at : 2 * (at + window)])
    stack = lambda arrays: torch.from_numpy(np.stack(arrays).astype(np.float32))  # noqa: E731
    return stack(wanted).clamp(min=SILENCE), stack(heard)


def prompts(wanted: Tensor) -> Tensor:
    """Beginnings of most rows of [batch, mel, frames], zeros behind them."""
    prompt = torch.zeros_like(wanted)
    for row in range(len(wanted)):
        if random.random() < 0.7:
            known = random.randrange(int(0.6 * wanted.shape[2]))
            prompt[row, :, :known] = wanted[row, :, :known]
    return prompt


def flow_loss(estimator: Any, wanted: Tensor, mu: Tensor, prompt: Tensor) -> Tensor:
    """Mean squared error of the velocity. All [batch, mel, frames]; the speaker is zero, as the x-vector network's."""
    count, device = len(wanted), wanted.device
    time = 1 - torch.cos(torch.rand(count, device=device) * 0.5 * torch.pi)
    noise = torch.randn_like(wanted)
    mixed = (1 - (1 - SMALLEST) * time)[:, None, None] * noise + time[:, None, None] * wanted
    kept = (torch.rand(count, device=device) > 0.2)[:, None, None]
    mask = torch.ones(count, 1, wanted.shape[2], device=device)
    found = estimator(mixed, mask, mu * kept, time, torch.zeros(count, DIMS.s3gen.mel, device=device), prompt * kept)
    return F.mse_loss(found.float(), wanted - (1 - SMALLEST) * noise)


def main() -> None:
    arguments = begin(__doc__, 2400)
    codec = trained(arguments.folder).to(arguments.device)
    corpora = [data.load(arguments.folder / "data", speaker) for speaker in data.SPEAKERS]
    estimator = fresh()
    path = arguments.folder / "flow.pt"
    training = Training(estimator, path, arguments.seconds, arguments.device, rate=4e-4, betas=(0.9, 0.98))
    for _ in training.steps():
        wanted, heard = (part.to(training.device) for part in draw(corpora))
        with torch.no_grad(), precision():
            mu = codec.speak(codec.listen(heard)).transpose(1, 2)
        loss = flow_loss(estimator, wanted, mu.contiguous(), prompts(wanted))
        training.learn(loss, loss=loss)


if __name__ == "__main__":
    main()
