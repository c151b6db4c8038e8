"""The demo voice's trainings: what is kept between runs, and one step of each on another device than the host.

That device is a GPU where there is one, and everywhere one of shapes without values. Mixing its tensors with the
host's raises.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.elsewhere import Elsewhere
from tests.fidelity import upstream
from tools.demo_voice import speech, train_codec, train_hift, train_t3
from tools.demo_voice.phones import PHONES, token_ids
from tools.demo_voice.sizes import DIMS
from tools.demo_voice.source import SPEAKERS
from tools.demo_voice.t3_model import SILENCED, T3, Model
from tools.demo_voice.training import Training

HOST = torch.device("cpu")
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)


def small(path: Path, device: torch.device) -> Training:
    torch.manual_seed(0)
    return Training(nn.Linear(3, 2), path, 1.0, device, rate=0.1)


def learn(training: Training) -> None:
    training.learn(training.module(torch.ones(4, 3, device=training.device)).square().mean())


def weights(training: Training) -> list[Tensor]:
    return [*training.module.state_dict().values(), *training.averaged.values()]


def test_a_training_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    one = small(tmp_path / "small.pt", HOST)
    learn(one)
    one.save()
    other = small(tmp_path / "small.pt", HOST)
    assert other.step == 1
    for training in (one, other):
        learn(training)  # from the same moments, or the weights differ
    torch.testing.assert_close(weights(other), weights(one), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*is a no-op:UserWarning")  # weights without values
@pytest.mark.parametrize("where", ["meta", CUDA])
def test_what_was_saved_on_the_host_goes_on_elsewhere(tmp_path: Path, where: str) -> None:
    first = small(tmp_path / "small.pt", HOST)
    learn(first)
    first.save()
    second = small(tmp_path / "small.pt", torch.device(where))
    learn(second)
    assert {tensor.device.type for tensor in weights(second)} == {where}
    moments = second._optimisers[0].state.values()
    assert {(moment["exp_avg"].device.type, moment["step"].device.type) for moment in moments} == {(where, "cpu")}


def test_what_was_saved_on_a_gpu_goes_on_on_the_host(tmp_path: Path) -> None:
    first = small(tmp_path / "first.pt", HOST)
    learn(first)
    first.save()
    with zipfile.ZipFile(first.path) as saved, zipfile.ZipFile(tmp_path / "second.pt", "w") as second:
        for name in saved.namelist():
            second.writestr(name, saved.read(name).replace(b"\3\0\0\0cpu", b"\6\0\0\0cuda:0"))
        assert b"cuda:0" in second.read("first/data.pkl")
    read = small(tmp_path / "second.pt", HOST)
    learn(read)
    learn(first)
    torch.testing.assert_close(weights(read), weights(first), rtol=0, atol=0)


ELSEWHERE = torch.device("lazy")
"""A device that torch needs no driver for, not even for backward."""


@pytest.fixture(params=["elsewhere", CUDA])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    with Elsewhere(ELSEWHERE):
        yield ELSEWHERE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `speech` and `timings` write, of noise."""
    folder, random = tmp_path_factory.mktemp("training"), np.random.default_rng(0)
    tokens = np.full(60, 10)
    total, text = int(tokens.sum()), np.array([f"sentence {number}" for number in range(len(tokens))])
    for speaker in SPEAKERS:
        np.savez(
            folder / f"speech-{speaker}-00000.npz",
            text=text,
            n=tokens,
            p=random.integers(0, len(PHONES), total),
            q=random.integers(0, len(PHONES), total),
            wav=random.integers(-9999, 9999, 2 * total * speech.HOP).astype(np.int16),
            mel=random.normal(-6, 2, (2 * total, 80)).astype(np.float16),
            logmel=random.normal(0, 1, (4 * total, 128)).astype(np.float16),
            f0=random.uniform(80, 300, 2 * total).astype(np.float32),
        )
    letters = np.full(60, 8)
    np.savez(
        folder / "t3.npz",
        t=random.integers(3, 200, letters.sum()),
        s=random.integers(0, 40, total),
        a=random.integers(0, 8, total),
        b=random.integers(0, 8, total),
        o=random.integers(-1, 5, letters.sum()),
        nt=letters,
        ns=tokens,
        chars=letters,
        live=np.arange(40),
        labels=5,
        space=2,
    )
    return folder


def windows(folder: Path) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor]:
    torch.manual_seed(0)
    return train_codec.Batches(folder).draw()


def speak_step(folder: Path, device: torch.device) -> tuple[Training, Tensor]:
    speaker = train_codec.Speaker()
    training = train_codec.training_of(speaker, folder / "new.pt", 1.0, device)
    said, heard, mel, _ = windows(folder)
    return training, train_codec.speaking_loss(speaker, train_codec.prompted(said, heard), mel.to(device))


def listen_step(folder: Path, device: torch.device) -> tuple[Training, Tensor]:
    listener = train_codec.Listener()
    training = train_codec.training_of(listener, folder / "new.pt", 1.0, device)
    _, heard, _, logmel = windows(folder)
    return training, train_codec.listening_loss(listener, heard, logmel.to(device))[0]


def hift_step(folder: Path, device: torch.device) -> tuple[Training, Tensor]:
    vocoder = upstream.mel2wav(DIMS.s3gen)
    training = Training(vocoder, folder / "new.pt", 1.0, device, rate=1e-3)
    batch = train_hift.Batches(folder, spoken=False).draw()
    return training, sum(train_hift.losses(vocoder, *(part.to(device) for part in batch)), torch.zeros(()))


def t3_step(folder: Path, device: torch.device) -> tuple[Training, Tensor]:
    sentences = train_t3.Sentences(folder)
    model = Model(sentences.live, sentences.labels)
    training = train_t3.training_of(model, folder, 1.0, device)
    rows = train_t3.Batches(sentences, list(range(60))).draw()
    with torch.no_grad():
        train_t3.losses(model, rows, sentences.prompt(), False)
    return training, train_t3.total(train_t3.losses(model, rows, sentences.prompt(), True))


@pytest.mark.full
@pytest.mark.parametrize("step", [speak_step, listen_step, hift_step, t3_step])
def test_a_step_mixes_no_tensors_of_the_host_with_the_networks(
    step: Callable[[Path, torch.device], tuple[Training, Tensor]], folder: Path, device: torch.device
) -> None:
    training, loss = step(folder, device)
    training.learn(loss, loss=loss)
    assert {tensor.device.type for tensor in (loss, *weights(training))} == {device.type}


@pytest.mark.full
def test_the_encoders_mel_is_beside_the_true_one_in_what_the_vocoder_learns(folder: Path) -> None:
    for name, module in (("speak", train_codec.Speaker()), ("listen", train_codec.Listener())):
        train_codec.training_of(module, folder / f"{name}.pt", 1.0, torch.device("cpu")).save()
    batches = train_hift.Batches(folder, spoken=True)
    for (true, spoken), corpus in zip(batches.mels, speech.corpora(folder), strict=True):
        assert true.shape == spoken.shape == corpus.mel.shape
        assert np.array_equal(true, corpus.mel)
        assert not np.array_equal(true, spoken)
    mel, f0, wave = batches.draw()
    assert mel.shape[2] == f0.shape[1] == wave.shape[1] // speech.HOP


def test_sentences_that_are_joined_keep_their_letters_with_and_without_full_stops(folder: Path) -> None:
    sentences = train_t3.Sentences(folder)
    rows = [sentences.rows[number] for number in (0, 1)]
    spoken = [int((row.speech != sentences.pause[0]).sum()) for row in rows]
    for run_on, length in ((0.0, 17), (1.0, 16)):
        joined = sentences.joined([0, 1], run_on)
        assert len(joined.text) == len(joined.said) == length  # eight letters each, and the blank
        assert (joined.text == sentences.space).sum() == 1
        assert len(joined.speech) == len(joined.letters)
        assert int((joined.speech != sentences.pause[0]).sum()) == sum(spoken)
        assert np.array_equal(joined.letters[-1], rows[1].letters[-1] + length - 8)


@pytest.mark.full
def test_mixing_them_raises() -> None:
    with Elsewhere(ELSEWHERE), pytest.raises(RuntimeError, match="two different devices"):
        torch.zeros(3) + torch.zeros(3, device=ELSEWHERE)


def test_speech_tokens_that_are_not_in_use_are_never_drawn() -> None:
    pairs = np.arange(3) * len(PHONES)
    model, state = Model(pairs, 2), torch.randn(T3.hidden)
    logits = model.official(state)["speech_head.weight"] @ state
    used = [*token_ids(np.arange(3), np.zeros(3, int)), T3.stop_speech]
    unused = torch.ones(len(logits), dtype=torch.bool).index_fill(0, torch.tensor(used), False)
    torch.testing.assert_close(logits[unused], torch.full((len(logits) - 4,), SILENCED))
    assert logits[~unused].abs().max() < 20
