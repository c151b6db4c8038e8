"""What a recogniser makes of the checkpoint on the held-out sentences, stage by stage.

    python -m tools.demo_voice.evaluate FOLDER CHECKPOINT [--count 50] [--stages flite,mel,tokens,text]

`flite`: the source itself. `mel`: its mel through the vocoder. `tokens`: its tokens through S3Gen. `text`: all of it.
"""

from __future__ import annotations

import argparse
import json
import queue
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from chatterbox_engine import assemble
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.config import Config
from chatterbox_engine.s3gen import S3Gen
from chatterbox_engine.s3gen.model import VocoderJob
from chatterbox_engine.s3gen.noise import source_noise
from chatterbox_engine.synthesis.windows import synthesise
from chatterbox_engine.types import SAMPLE_RATE, SynthesisRequest, SynthesisResult
from chatterbox_engine.voices.reference import s3_tokenizer
from tools.demo_voice import data
from tools.demo_voice.export import DEFAULT
from tools.demo_voice.recogniser import Recogniser, error_rate

STAGES = ("flite", "mel", "tokens", "text")


class Speech:
    """The held-out sentences at every stage, 24 kHz."""

    def __init__(self, texts: list[str], checkpoint: Path) -> None:
        self._texts = texts
        self._spoken = [data.speak(text, DEFAULT) for text in texts]
        self._path = checkpoint
        opened = Checkpoint.open(checkpoint)
        self._s3gen = S3Gen.from_state_dict(opened.s3gen_state(), opened.dims.s3gen, device=torch.device("cpu"))
        self._tokenizer = s3_tokenizer(opened.dims.reference)
        self._tokenizer.load_state_dict(opened.s3gen_state("tokenizer."), strict=False)
        self._tokenizer.eval()
        conditionals = opened.conditionals()
        assert conditionals is not None
        self._voice = self._s3gen.prepare(conditionals.s3gen)

    def flite(self) -> Iterator[np.ndarray]:
        for wave in self._spoken:
            yield data.widen(wave)

    def mel(self) -> Iterator[np.ndarray]:
        from chatterbox.models.s3gen.utils.mel import mel_spectrogram

        for wave in self._spoken:
            mel = mel_spectrogram(torch.from_numpy(data.widen(wave))).transpose(1, 2)
            source = source_noise([1], [0], mel.shape[1], mel.device)
            yield self._s3gen.vocode(mel, [mel.shape[1]], source)[0].numpy()

    def tokens(self) -> Iterator[np.ndarray]:
        for wave in self._spoken:
            tokens, _ = self._tokenizer([wave])
            yield synthesise(self._s3gen, [VocoderJob(tokens[0], self._voice, seed=1)])[0].numpy()

    def text(self) -> Iterator[np.ndarray]:
        config = Config(checkpoint=str(self._path), watermark=False, dtype="float32")
        engine = assemble.build(config, report=lambda _line: None)
        engine.start()
        for text in self._texts:
            answers: queue.SimpleQueue[object] = queue.SimpleQueue()
            request = SynthesisRequest(text=text, seed=1, sampling=engine.family.sampling, max_seconds=12.0)
            engine.submit(request, answers.put)
            result = answers.get(timeout=300)
            assert isinstance(result, SynthesisResult), result
            yield result.samples
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--stages", default=",".join(STAGES))
    arguments = parser.parse_args()
    texts = (arguments.folder / "data" / "held_out.txt").read_text().splitlines()[: arguments.count]
    speech, recogniser, rates = Speech(texts, arguments.checkpoint), Recogniser(), {}
    for stage in arguments.stages.split(","):
        heard: list[list[str]] = []
        for index, (text, wave) in enumerate(zip(texts, getattr(speech, stage)(), strict=True)):
            heard.append(recogniser.words(wave, SAMPLE_RATE))
            if index < 6:
                print(f"  {stage} {len(wave) / SAMPLE_RATE:.2f} s: {text} | {' '.join(heard[-1])}", flush=True)
                soundfile.write(arguments.folder / f"{stage}-{index}.wav", wave, SAMPLE_RATE)
        rates[stage] = error_rate(texts, heard)
        print(f"{stage}: word error rate {rates[stage]:.3f} on {len(texts)} sentences", flush=True)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
