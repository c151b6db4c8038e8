"""The vocoder, mel to waveform: upstream's HiFT at small width, trained on spectral losses.

    python -m tools.demo_voice.train_hift FOLDER --seconds 4000
    python -m tools.demo_voice.train_hift FOLDER --seconds 6000 --spoken

The second run goes on from the first one with S3Gen's encoder before it: every other piece has the encoder's mel of the
true tokens instead of the true mel, at the same frames and with the same F0 and waveform as targets. The encoder's mel
is blurred, and the vocoder and its F0 predictor learn from what they get in inference.

Losses: log magnitude and spectral convergence at three resolutions (Yamamoto et al., Parallel WaveGAN, 2020), L1 of
upstream's mel, and L1 of F0. The source gets the measured F0 here and the predicted one when it speaks.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.fidelity import upstream
from tools.demo_voice import speech, train_codec
from tools.demo_voice.sizes import DIMS
from tools.demo_voice.training import Training, command_line, seeded

BATCH, FRAMES = 6, 24
RESOLUTIONS = ((480, 120), (1024, 256), (2048, 512))


def spectral(ours: Tensor, true: Tensor) -> Tensor:
    """Multi-resolution STFT loss of [batch, samples]."""
    total = ours.new_zeros(())
    for size, hop in RESOLUTIONS:
        window = torch.hann_window(size, device=ours.device)
        both = torch.stft(torch.cat([ours, true]), size, hop, window=window, return_complex=True)
        a, b = (both.real.square() + both.imag.square() + 1e-7).sqrt().chunk(2)
        total = (
            total + (a - b).norm() / b.norm().clamp(min=1e-3) + (torch.log(a + 1e-4) - torch.log(b + 1e-4)).abs().mean()
        )
    return total / len(RESOLUTIONS)


class Batches:
    """Random pieces of all speakers: mel [batch, 80, frames], F0 [batch, frames], samples [batch, frames * 480].

    spoken: half of the mels are the encoder's, so that `mels` has two for each speaker.
    """

    def __init__(self, folder: Path, *, spoken: bool) -> None:
        self._corpora = speech.corpora(folder)
        self.mels = [[corpus.mel] for corpus in self._corpora]
        if spoken:
            speaker, _ = train_codec.trained(folder)
            for other, (mels, corpus) in enumerate(zip(self.mels, self._corpora, strict=True)):
                mels.append(train_codec.spoken(speaker, corpus, other=bool(other)))

    def draw(self, frames: int = FRAMES) -> tuple[Tensor, Tensor, Tensor]:
        mels: list[np.ndarray] = []
        pitches: list[np.ndarray] = []
        waves: list[np.ndarray] = []
        while len(mels) < BATCH:
            voice = len(mels) % len(self._corpora)
            corpus, mel = self._corpora[voice], random.choice(self.mels[voice])
            at = random.randrange(len(corpus.f0) - frames)
            mels.append(mel[at : at + frames].T)
            pitches.append(corpus.f0[at : at + frames])
            waves.append(corpus.wav[at * speech.HOP : (at + frames) * speech.HOP])
        return (
            torch.from_numpy(np.stack(mels).astype(np.float32)),
            torch.from_numpy(np.stack(pitches)),
            torch.from_numpy(np.stack(waves).astype(np.float32) / 32767),
        )


def losses(vocoder: Any, mel: Tensor, f0: Tensor, wave: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the spectra, of upstream's mel and of the pitch; of what `Batches.draw` returns."""
    from chatterbox.models.s3gen.utils.mel import mel_spectrogram

    predicted = vocoder.f0_predictor(mel)
    source, _, _ = vocoder.m_source(vocoder.f0_upsamp(f0[:, None]).transpose(1, 2))
    ours = vocoder.decode(x=mel, s=source.transpose(1, 2))[:, : wave.shape[1]]
    stft = spectral(ours, wave)
    mels = (mel_spectrogram(ours) - mel_spectrogram(wave)).abs().mean()
    return stft, mels, (predicted - f0).abs().mean() / 100


def training_of(vocoder: nn.Module, folder: Path, seconds: float, device: torch.device) -> Training:
    return Training(vocoder, folder / "hift.pt", seconds, device, rate=1e-3, betas=(0.8, 0.98), clip=5.0)


def main() -> None:
    parser = command_line(__doc__, 2400)
    parser.add_argument("--spoken", action="store_true", help="learn from the encoder's mel, too")
    arguments = seeded(parser)
    vocoder = upstream.mel2wav(DIMS.s3gen)
    vocoder.train()
    with torch.no_grad():
        vocoder.conv_post.bias[:9] = -4.0  # near the level of speech, not at exp(0)
    batches = Batches(arguments.folder, spoken=arguments.spoken)
    training = training_of(vocoder, arguments.folder, arguments.seconds, arguments.device)
    for _ in training.steps(report=50):
        stft, mel, pitch = losses(vocoder, *(part.to(training.device) for part in batches.draw()))
        training.learn(stft + mel + pitch, stft=stft, mel=mel, pitch=pitch)


if __name__ == "__main__":
    main()
