"""Speech tokens: the S3 tokenizer and S3Gen's encoder, trained together as an auto-encoder of the mel.

    python -m tools.demo_voice.train_codec FOLDER --seconds 1500

The tokenizer's eight ternary digits are rounded with a straight-through gradient (finite scalar quantisation, Mentzer
et al., 2023, as CosyVoice 2 uses it). `LIVE_DIGITS` of them are in use. S3Gen's table of token embeddings is a small
network of the digits while it is trained. When the time is used, every sentence is written as tokens.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch import nn

from chatterbox_engine.voices.reference import s3_tokenizer
from tests.fidelity import upstream
from tools.demo_voice import data
from tools.demo_voice.sizes import DIMS, LIVE_DIGITS
from tools.demo_voice.training import Training, begin, precision, read

TOKENS = 1200
"""A batch's."""
WINDOWS = (50, 75, 100, 150)
SILENCE = -11.5129
"""Upstream's log of its smallest magnitude."""


def all_digits() -> torch.Tensor:
    """[live tokens, 8] in {-1, 0, 1}: the digits of every token in use, in the order of `token_ids`."""
    count = 3**LIVE_DIGITS
    digits = torch.stack([torch.arange(count) // 3**place % 3 for place in range(LIVE_DIGITS)], 1) - 1
    return nn.functional.pad(digits, (0, 8 - LIVE_DIGITS)).float()


def token_ids(digits: torch.Tensor) -> torch.Tensor:
    """S3 tokens of digits [..., 8]."""
    return ((digits + 1) * 3.0 ** torch.arange(8, device=digits.device)).sum(-1).long()


class Codec(nn.Module):
    """`listen`: log-mel to digits; `speak`: digits to mel."""

    def __init__(self) -> None:
        super().__init__()
        reference = s3_tokenizer(DIMS.reference)
        self.encoder, self.project_down = reference.encoder, reference.quantizer._codebook.project_down
        self.flow = upstream.flow(DIMS.s3gen)
        del self.flow.decoder
        width = DIMS.s3gen.encoder
        self.embedding = nn.Sequential(nn.Linear(8, 256), nn.SiLU(), nn.Linear(256, width))
        nn.init.normal_(self.project_down.weight, std=0.2)
        with torch.no_grad():
            self.project_down.weight[LIVE_DIGITS:] = 0.0
            self.project_down.bias.zero_()

    def listen(self, logmel: torch.Tensor) -> torch.Tensor:
        """[batch, frames, 128] at 100 Hz to digits [batch, frames // 4, 8]."""
        lengths = torch.full((len(logmel),), logmel.shape[1], device=logmel.device)
        hidden, _ = self.encoder(logmel.transpose(1, 2), lengths)
        soft = self.project_down(hidden).float().tanh() * 0.9990000128746033
        soft = torch.cat([soft[..., :LIVE_DIGITS], torch.zeros_like(soft[..., LIVE_DIGITS:])], -1)
        return soft + (soft.round() - soft).detach()

    def speak(self, digits: torch.Tensor) -> torch.Tensor:
        """To upstream's mu, [batch, 2 * tokens, 80]."""
        lengths = torch.full((len(digits),), digits.shape[1], device=digits.device)
        hidden, _ = self.flow.encoder(self.embedding(digits), lengths)
        return self.flow.encoder_proj(hidden).float()


class Batches:
    """Windows of both speakers: log-mel [batch, 4 * tokens, 128], mel [batch, 2 * tokens, 80]."""

    def __init__(self, folder: Path) -> None:
        self._corpora = [data.load(folder, speaker) for speaker in data.SPEAKERS]

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        window = random.choice(WINDOWS)
        heard, wanted = [], []
        for index in range(TOKENS // window):
            corpus = self._corpora[index % len(self._corpora)]
            at = random.randrange(len(corpus.mel) // 2 - window)
            heard.append(corpus.logmel[4 * at : 4 * (at + window)])
            wanted.append(corpus.mel[2 * at : 2 * (at + window)])
        stack = lambda arrays: torch.from_numpy(np.stack(arrays).astype(np.float32))  # noqa: E731
        return stack(heard), stack(wanted).clamp(min=SILENCE)

    def mean(self) -> torch.Tensor:
        return torch.from_numpy(self._corpora[0].mel[:100_000].astype(np.float32).mean(0))


def losses(codec: Codec, heard: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L1 of the mel, and the perplexity of the tokens; of what `Batches.draw` returns."""
    with precision():
        digits = codec.listen(heard)
        mu = codec.speak(digits)
    share = torch.bincount(token_ids(digits.detach()).flatten(), minlength=6561).float() / digits[..., 0].numel()
    return (mu - wanted).abs().mean(), torch.exp(-(share * (share + 1e-9).log()).sum())


def write_tokens(codec: Codec, folder: Path) -> None:
    """Writes `tokens-SPEAKER.npz`: the tokens of all sentences in a row and where each begins. Each sentence is heard
    whole, as the server hears a clip."""
    codec.eval()
    device = codec.project_down.weight.device
    for speaker in data.SPEAKERS:
        corpus = data.load(folder / "data", speaker)
        spoken = []
        with torch.no_grad():
            for begin, end in zip(2 * corpus.begin[:-1], 2 * corpus.begin[1:], strict=True):
                heard = torch.from_numpy(corpus.logmel[begin:end].astype(np.float32))[None].to(device)
                spoken.append(token_ids(codec.listen(heard))[0].cpu().numpy().astype(np.int16))
        tokens = np.concatenate(spoken)
        used = len(np.unique(tokens))
        print(f"codec: {speaker}: {len(spoken)} sentences, {len(tokens)} tokens, {used} different", flush=True)
        np.savez(folder / f"tokens-{speaker}.npz", tokens=tokens, begin=corpus.begin // 2, text=np.array(corpus.text))


def trained(folder: Path) -> Codec:
    """The codec as far as it is trained, with its averaged weights."""
    codec = Codec()
    codec.load_state_dict(read(folder / "codec.pt")["averaged"])
    return codec.eval()


def main() -> None:
    arguments = begin(__doc__, 1500)
    codec = Codec()
    batches = Batches(arguments.folder / "data")
    with torch.no_grad():
        codec.flow.encoder_proj.bias.copy_(batches.mean())
    path = arguments.folder / "codec.pt"
    training = Training(codec, path, arguments.seconds, arguments.device, rate=1e-3, decay=0.01)
    for _ in training.steps():
        loss, perplexity = losses(codec, *(part.to(training.device) for part in batches.draw()))
        training.learn(loss, l1=loss, perplexity=perplexity)
    write_tokens(trained(arguments.folder).to(training.device), arguments.folder)


if __name__ == "__main__":
    main()
