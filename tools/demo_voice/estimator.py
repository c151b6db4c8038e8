"""The flow's estimator, which is not trained: it is set so that the flow ends at the encoder's mel.

All residual branches are off, and along the linear path is 4 (mu / 1.7 - y), so that with upstream's guidance of 0.7,
(1.7 conditional - 0.7 unconditional), the velocity is 4 (mu - y) and ten Euler steps end near mu.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.fidelity import upstream
from tools.demo_voice.sizes import DIMS

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
