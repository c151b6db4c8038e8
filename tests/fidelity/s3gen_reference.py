"""Upstream's own flow and vocoder at any size, with seeded random weights that exercise every part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.uniform import Uniform

from chatterbox_engine.checkpoint.dims import S3GenDims
from chatterbox_engine.checkpoint.families import ENGLISH
from chatterbox_engine.checkpoint.random_checkpoint import tiny_dims
from chatterbox_engine.s3gen import SourceNoise
from chatterbox_engine.s3gen.noise import HARMONICS, SAMPLES_PER_FRAME
from chatterbox_engine.types import S3GenConditionals
from tests.fidelity import upstream

TINY = tiny_dims(ENGLISH).s3gen


@dataclass(frozen=True)
class Upstream:
    """Upstream's modules, in evaluation mode."""

    flow: Any
    mel2wav: Any

    def state_dict(self) -> dict[str, Tensor]:
        """Under the names of the official checkpoint."""
        return nn.ModuleDict({"flow": self.flow, "mel2wav": self.mel2wav}).state_dict()


def build_upstream(dims: S3GenDims, seed: int = 0) -> Upstream:
    """Builds upstream's flow and vocoder of these sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules = Upstream(upstream.flow(dims).eval(), upstream.mel2wav(dims).eval())
        with torch.no_grad():
            _randomise(modules)
    return modules


def random_conditionals(dims: S3GenDims, tokens: int, seed: int = 0) -> S3GenConditionals:
    """A voice whose prompt has that many tokens."""
    generator = torch.Generator().manual_seed(seed)
    return S3GenConditionals(
        prompt_tokens=torch.randint(0, dims.vocab, (tokens,), generator=generator),
        prompt_mel=torch.randn(2 * tokens, dims.mel, generator=generator) - 3.0,
        embedding=torch.randn(dims.speaker_embed, generator=generator),
    )


def random_tokens(dims: S3GenDims, count: int, seed: int = 0) -> Tensor:
    """Speech tokens."""
    return torch.randint(0, dims.vocab, (count,), generator=torch.Generator().manual_seed(1000 + seed))


def _randomise(modules: Upstream) -> None:
    """Moves what upstream initialises to constants, and brings the pitch to where frames are voiced and unvoiced."""
    for module in (modules.flow, modules.mel2wav):
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name.endswith("alpha") or (parameter.ndim == 1 and name.endswith("weight")):
                parameter.mul_(torch.exp(0.2 * torch.randn_like(parameter)))
            elif "time_embed_mixer" in name:
                parameter.add_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    predictor = modules.mel2wav.f0_predictor
    values = predictor.classifier(predictor.condnet(torch.randn(1, predictor.condnet[0].in_channels, 200)).mT)
    scale = 20.0 / values.std()
    predictor.classifier.weight.mul_(scale)
    predictor.classifier.bias.sub_(values.mean()).mul_(scale).add_(25.0)


def upstream_mel(modules: Upstream, tokens: Tensor, voice: S3GenConditionals, steps: int, seed: int) -> Tensor:
    """Upstream's mel of the utterance, [frames, mel], from the noise that `start_drawn` gives for the seed."""
    torch.manual_seed(seed)
    mel, _ = modules.flow.inference(
        token=tokens[None],
        token_len=torch.tensor([tokens.shape[0]]),
        prompt_token=voice.prompt_tokens[None],
        prompt_token_len=torch.tensor([voice.prompt_tokens.shape[0]]),
        prompt_feat=voice.prompt_mel[None],
        prompt_feat_len=None,
        embedding=voice.embedding[None],
        finalize=True,
        n_timesteps=steps,
        meanflow=modules.flow.decoder.estimator.meanflow,
    )
    return mel[0].T


def start_drawn(seed: int, frames: int, mel: int) -> Tensor:
    """The noise that upstream's flow draws first after that seed: [frames, mel]."""
    torch.manual_seed(seed)
    return torch.randn(1, mel, frames)[0].T.contiguous()


def upstream_wave(modules: Upstream, mel: Tensor, seed: int) -> Tensor:
    """Upstream's waveform, [480 frames], from the phases and noise that `source_drawn` gives. mel: [frames, mel]."""
    torch.manual_seed(seed)
    with torch.inference_mode():
        wave, _ = modules.mel2wav.inference(mel.T[None])
    return wave[0]


def source_drawn(modules: Upstream, seed: int, frames: int) -> SourceNoise:
    """What upstream's vocoder draws after that seed; its nine noises summed with the weights that it sums them with."""
    torch.manual_seed(seed)
    phases = Uniform(low=-math.pi, high=math.pi).sample((1, HARMONICS, 1))[0, :, 0]
    phases[0] = 0.0
    noise = torch.randn(1, HARMONICS, SAMPLES_PER_FRAME * frames)[0]
    mix = modules.mel2wav.m_source.l_linear.weight.detach()
    return SourceNoise(phases[None], (mix @ noise) / mix.norm())
