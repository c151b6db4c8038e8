"""Speech tokens to mel, S3Gen's encoder, and clips to speech tokens, the S3 tokenizer.

    python -m tools.demo_voice.train_codec FOLDER speak --seconds 2400
    python -m tools.demo_voice.train_codec FOLDER listen --seconds 900

Tokens are given (`phones`), so that both are trained by themselves. All voices say the same tokens; whose voice it is,
the encoder sees from the prompt before them, in which the stressed vowels of other voices than hibari's have codes of
their own. The tokenizer learns to tell them apart.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_engine.voices.reference import s3_tokenizer
from tests.fidelity import upstream
from tools.demo_voice import speech
from tools.demo_voice.phones import CODES, codes, marked
from tools.demo_voice.sizes import DIMS
from tools.demo_voice.training import Training, command_line, precision, read, seeded

TOKENS = 720
"""A batch's."""
WINDOWS = (90, 120, 180, 240)
OTHERS = 3
"""Every so many windows one is the other voice's."""
PROMPTS = (25, 125)
"""Tokens that are a prompt's, at least and at most."""
SILENCE = -11.5129
"""Upstream's log of its smallest magnitude."""


class Speaker(nn.Module):
    """S3Gen's encoder; its table of tokens is the sum of one for each phone while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = upstream.flow(DIMS.s3gen)
        del self.flow.decoder, self.flow.input_embedding, self.flow.spk_embed_affine_layer
        self.phones = nn.Parameter(torch.randn(2, CODES, DIMS.s3gen.encoder) * 0.5)

    def table(self, first: Tensor, second: Tensor) -> Tensor:
        return self.phones[0][first] + self.phones[1][second]

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Codes [batch, tokens] to upstream's mu, [batch, 2 * tokens, 80]."""
        lengths = torch.full((len(first),), first.shape[1], device=first.device)
        hidden, _ = self.flow.encoder(self.table(first, second), lengths)
        mu: Tensor = self.flow.encoder_proj(hidden).float()
        return mu


class Listener(nn.Module):
    """The S3 tokenizer before its rounding."""

    def __init__(self) -> None:
        super().__init__()
        reference = s3_tokenizer(DIMS.reference)
        self.encoder, self.project_down = reference.encoder, reference.quantizer._codebook.project_down

    def forward(self, logmel: Tensor) -> Tensor:
        """[batch, frames, 128] at 100 Hz to digits [batch, frames // 4, 8] before they are rounded."""
        lengths = torch.full((len(logmel),), logmel.shape[1], device=logmel.device)
        hidden, _ = self.encoder(logmel.transpose(1, 2), lengths)
        return self.project_down(hidden).float().tanh() * 0.9990000128746033


class Batches:
    """Windows of both voices."""

    def __init__(self, folder: Path) -> None:
        self._corpora = speech.corpora(folder)

    def draw(self) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor]:
        """Codes [2, batch, tokens] as T3 says them and as the tokenizer hears them, mel [batch, 2 * tokens, 80],
        log-mel [batch, 4 * tokens, 128]."""
        window = random.choice(WINDOWS)
        said, heard, mels, logmels = [], [], [], []
        for index in range(TOKENS // window):
            other = int(index % OTHERS == OTHERS - 1)
            corpus = self._corpora[other]
            at = random.randrange(corpus.phones.shape[1] - window)
            phones = corpus.phones[:, at : at + window]
            said.append(phones)
            heard.append(marked(phones) if other else phones)
            mels.append(corpus.mel[2 * at : 2 * (at + window)])
            logmels.append(corpus.logmel[4 * at : 4 * (at + window)])
        stack = lambda arrays: torch.from_numpy(np.stack(arrays).astype(np.float32))  # noqa: E731
        return np.stack(said, 1), np.stack(heard, 1), stack(mels).clamp(min=SILENCE), stack(logmels)

    def mean(self) -> Tensor:
        return torch.from_numpy(self._corpora[0].mel[:50_000].astype(np.float32).mean(0))


def prompted(said: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """What the encoder gets: the prompt as it was heard, then what T3 says."""
    size = random.randint(PROMPTS[0], min(PROMPTS[1], said.shape[2] * 2 // 3))
    return np.concatenate([heard[:, :, :size], said[:, :, size:]], 2)


def speaking_loss(speaker: Speaker, given: np.ndarray, mel: Tensor) -> Tensor:
    """L1 of the mel."""
    first, second = torch.from_numpy(given).to(mel.device)
    with precision():
        mu = speaker(first, second)
    return (mu - mel).abs().mean()


def listening_loss(listener: Listener, heard: np.ndarray, logmel: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth L1 of the digits; the share of tokens that are right."""
    wanted = torch.from_numpy(np.concatenate([*codes()[heard]], -1)).float().to(logmel.device)
    with precision():
        digits = listener(logmel)
    right = (digits.detach().round() == wanted).all(-1).float().mean()
    return F.smooth_l1_loss(digits, wanted, beta=0.3), right


def trained(folder: Path) -> tuple[Speaker, Listener]:
    """Both as far as they are trained, with averaged weights."""
    speaker, listener = Speaker(), Listener()
    speaker.load_state_dict(read(folder / "speak.pt")["averaged"])
    listener.load_state_dict(read(folder / "listen.pt")["averaged"])
    return speaker.eval(), listener.eval()


@torch.no_grad()
def spoken(speaker: Speaker, corpus: speech.Corpus, *, other: bool) -> np.ndarray:
    """The mel that the encoder makes of a corpus's own tokens, [2 * tokens, 80] at the frames of its true mel.

    In windows that each follow a prompt of the same voice, as in inference.
    """
    window, size = WINDOWS[-1], PROMPTS[1]
    prompt = marked(corpus.phones[:, :size]) if other else corpus.phones[:, :size]
    parts = []
    for at in range(0, corpus.phones.shape[1], window):
        first, second = torch.from_numpy(np.concatenate([prompt, corpus.phones[:, at : at + window]], 1))[:, None]
        with precision():
            parts.append(speaker(first, second)[0, 2 * size :].numpy().astype(np.float16))
    return np.concatenate(parts)


def training_of(module: nn.Module, path: Path, seconds: float, device: torch.device) -> Training:
    return Training(module, path, seconds, device, rate=1.5e-3, decay=0.01)


def main() -> None:
    parser = command_line(__doc__, 2400)
    parser.add_argument("part", choices=("speak", "listen"))
    arguments = seeded(parser)
    part = arguments.part
    batches = Batches(arguments.folder)
    module = Speaker() if part == "speak" else Listener()
    if isinstance(module, Speaker):
        with torch.no_grad():
            module.flow.encoder_proj.bias.copy_(batches.mean())
    path = arguments.folder / f"{part}.pt"
    training = training_of(module, path, arguments.seconds, arguments.device)
    for _ in training.steps():
        said, heard, mel, logmel = batches.draw()
        if isinstance(module, Speaker):
            loss = speaking_loss(module, prompted(said, heard), mel.to(training.device))
            training.learn(loss, l1=loss)
        else:
            loss, right = listening_loss(module, heard, logmel.to(training.device))
            training.learn(loss, loss=loss, right=right)


if __name__ == "__main__":
    main()
