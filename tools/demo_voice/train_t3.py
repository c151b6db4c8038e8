"""Text to speech tokens: upstream's T3 at small width.

    python -m tools.demo_voice.train_t3 FOLDER --seconds 4500

The sequence is the one of inference: conditioning, text, BOS twice, speech. Sentences are joined, as the server's
segments hold several. All voices say the same tokens, so that the conditioning is noise here, which T3 learns to pass
over: one for each batch, whose rows attend to the same keys and values. Some rows lose their text, for classifier-free
guidance.

Losses: cross-entropy, in some steps after upstream's repetition penalty, so that sampling with it stays calibrated;
-log of the attention of one head of two layers to the letter that is said, which the source's timings tell; and, from
the text's positions in the middle of the layers, the phones of the letter some places back (a head that is not
exported).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tools.demo_voice.phones import PHONES, SILENCE
from tools.demo_voice.t3_model import T3, Model
from tools.demo_voice.training import Training, command_line, precision, seeded

POSITIONS = 3600
"""A batch's."""
SEGMENT = 300
"""Characters of the longest text, as the server splits it."""
JOINED = ((1, 2, 3, 4, 6), (40, 25, 15, 12, 8))
"""How many sentences a row has, and how often."""
RUN_ON = 0.4
"""How often the next one follows without a full stop."""
PAUSE = 4
"""Tokens of silence between sentences, beside those at their ends."""
MISHEARD = 0.03
"""Of the tokens that are fed, so that it recovers from its own mistakes."""
DROPPED = 0.1
"""Of the rows, their text."""
LOOKAHEAD = 4
PENALTY, PENALISED = 1.2, 0.6
"""Upstream's repetition penalty, and the share of the steps that learn with it."""
KEPT_ASIDE = 400


@dataclass
class Row:
    text: np.ndarray
    """Ids without start and stop."""
    speech: np.ndarray
    """Compact tokens."""
    letters: np.ndarray
    """[speech, 2]: the places in `text` of what is said at both halves of a token."""
    said: np.ndarray
    """Of each id in `text`: the number of the phones that it is for, -1 for none."""


class Sentences:
    """What `tokens` wrote."""

    def __init__(self, folder: Path) -> None:
        file = np.load(folder / "t3.npz")
        text, speech = np.cumsum([0, *file["nt"]]), np.cumsum([0, *file["ns"]])
        t, s, o = (file[name].astype(np.int64) for name in ("t", "s", "o"))
        at = np.stack([file["a"], file["b"]], 1).astype(np.int64)
        self.rows = [
            Row(t[b:e], s[c:f], at[c:f], o[b:e])
            for b, e, c, f in zip(text[:-1], text[1:], speech[:-1], speech[1:], strict=True)
        ]
        self.characters = file["chars"]
        self.live, self.labels, self.space = file["live"], int(file["labels"]), int(file["space"])
        pair = SILENCE * len(PHONES) + SILENCE
        self.pause = np.full(PAUSE, int(np.flatnonzero(self.live == pair)[0]))

    def prompt(self) -> np.ndarray:
        """Speech of a voice: compact tokens."""
        return np.concatenate([row.speech for row in random.choices(self.rows, k=2)])

    def joined(self, rows: list[int], run_on: float = RUN_ON) -> Row:
        """Sentences one after the other; the silence between them is the blank's.

        Some run on: without the full stop and the silence, so that what could be the end of a sentence need not be.
        """
        parts: list[Row] = []
        for number in rows:
            row = self.rows[number]
            if parts and random.random() < run_on:
                parts[-1], row = self._without_end(parts[-1]), self._without_start(row)
                parts.append(Row(np.array([self.space]), row.speech[:0], row.letters[:0], np.array([-1])))
            elif parts:
                parts.append(Row(np.array([self.space]), self.pause, np.zeros((PAUSE, 2), int), np.array([-1])))
            parts.append(row)
        offsets = np.cumsum([0, *(len(part.text) for part in parts)])
        placed = [
            Row(part.text, part.speech, part.letters + offset, part.said)
            for part, offset in zip(parts, offsets[:-1], strict=True)
        ]
        return Row(*(np.concatenate([getattr(part, name) for part in placed]) for name in ROW))

    def _without_end(self, row: Row) -> Row:
        spoken = int(np.flatnonzero(row.speech != self.pause[0])[-1]) + 1
        letters = np.minimum(row.letters[:spoken], len(row.text) - 2)
        return Row(row.text[:-1], row.speech[:spoken], letters, row.said[:-1])

    def _without_start(self, row: Row) -> Row:
        silent = int(np.flatnonzero(row.speech != self.pause[0])[0])
        return Row(row.text, row.speech[silent:], row.letters[silent:], row.said)


ROW = ("text", "speech", "letters", "said")


class Batches:
    """Batches of about `POSITIONS` positions, of rows of like length."""

    def __init__(self, sentences: Sentences, order: list[int]) -> None:
        self._sentences, self._order = sentences, order
        self._queue: list[list[list[int]]] = []

    def _epoch(self) -> None:
        order = random.sample(self._order, len(self._order))
        characters, rows = self._sentences.characters, []
        while order:
            row = [order.pop() for _ in range(min(random.choices(*JOINED)[0], len(order)))]
            while sum(characters[number] + 1 for number in row) > SEGMENT:
                order.append(row.pop())
            rows.append((sum(self._length(number) for number in row), row))
        rows.sort(key=lambda row: row[0] + random.random() * 4)
        batch: list[list[int]] = []
        for length, row in rows:
            if batch and (length + 4) * (len(batch) + 1) > POSITIONS:
                self._queue.append(batch)
                batch = []
            batch.append(row)
        self._queue.append(batch)
        random.shuffle(self._queue)

    def _length(self, number: int) -> int:
        row = self._sentences.rows[number]
        return len(row.text) + len(row.speech) + 1 + PAUSE

    def draw(self) -> list[Row]:
        """The next batch."""
        if not self._queue:
            self._epoch()
        return [self._sentences.joined(row) for row in self._queue.pop()]


@dataclass
class Batch:
    """Rows as tensors, padded on the right."""

    ids: Tensor
    """[rows, length] into the tables of text and speech, one after the other: text, BOS, BOS, speech."""
    places: Tensor
    """[rows, length] into the tables of positions of text and speech."""
    is_text: Tensor
    at: Tensor
    """[said]: where something is said, in rows * length."""
    wanted: Tensor
    """[said]: what: compact tokens and `stop`."""
    fed: Tensor
    """[said]: what was heard before it, for the repetition penalty."""
    letters: Tensor
    """[said, 2]: places in the row of what is said."""
    dropped: Tensor
    """[said]: whether the row has lost its text."""
    spelt: Tensor
    """[rows, length]: the phones of the letter `LOOKAHEAD` places back, -100 for none."""

    @classmethod
    def of(cls, rows: list[Row], live: int, training: bool) -> Batch:
        vocab, first = T3.text_vocab, len(rows) and max(len(row.text) + len(row.speech) for row in rows) + 4
        length = -(-first // 8) * 8
        shape = (len(rows), length)
        ids, places = np.full(shape, vocab + live), np.full(shape, T3.text_positions)
        is_text, spelt = np.zeros(shape, bool), np.full(shape, -100)
        lost = np.random.default_rng(random.getrandbits(32)).random(len(rows)) < (DROPPED if training else 0.0)
        at, wanted, fed, letters, dropped = [], [], [], [], []
        for i, row in enumerate(rows):
            text = T3.frame(row.text.tolist())
            t, s = len(text), len(row.speech)
            heard = row.speech.copy()
            if training:
                wrong = np.flatnonzero(np.random.random(s) < MISHEARD)
                heard[wrong] = np.random.randint(0, live, len(wrong))
            ids[i, :t], ids[i, t + 2 : t + 2 + s] = text, vocab + heard
            places[i, :t], places[i, t + 2 : t + 2 + s] = np.arange(t), T3.text_positions + np.arange(1, s + 1)
            is_text[i, :t] = not lost[i]
            if not lost[i]:
                spelt[i, 1 + LOOKAHEAD : t - 1] = np.where(row.said < 0, -100, row.said)[: t - 2 - LOOKAHEAD]
            at.append(i * length + t + 1 + np.arange(s + 1))
            wanted.append(np.append(row.speech, live))
            fed.append(np.concatenate([[live], heard]))
            letters.append(np.concatenate([row.letters + 1, [[t - 1, t - 1]]]))
            dropped.append(np.full(s + 1, lost[i]))
        join = lambda parts: torch.from_numpy(np.concatenate(parts))  # noqa: E731
        return cls(
            ids=torch.from_numpy(ids),
            places=torch.from_numpy(places),
            is_text=torch.from_numpy(is_text),
            at=join(at),
            wanted=join(wanted),
            fed=join(fed),
            letters=join(letters),
            dropped=join(dropped),
            spelt=torch.from_numpy(spelt),
        )

    def to(self, device: torch.device) -> Batch:
        return Batch(*(value.to(device) for value in vars(self).values()))


def noise(model: Model, table: Tensor, prompt: np.ndarray, training: bool) -> Tensor:
    """A prefix of a random speaker, tokens of which some are none of T3's, and a random emotion.

    The tokens are the speech `prompt`, as in inference, or in half of the steps random ones.
    """
    size = random.randint(20, T3.prompt_tokens) if training else T3.prompt_tokens
    device = table.device
    speaker = F.normalize(torch.randn(1, 256).abs(), dim=1).to(device)
    tokens = torch.randint(0, model.live, (1, size))
    if random.random() < 0.5 or not training:
        tokens = torch.from_numpy(prompt[None, :size])
    tokens = tokens.to(device)
    known = (torch.rand(*tokens.shape, 1) > random.choice((0.0, 0.3))).to(device)
    emotion = torch.full((1,), random.uniform(0.2, 1.0) if training else 0.5, device=device)
    return model.conditioning(speaker, table[tokens] * known, emotion)


@dataclass
class Losses:
    plain: Tensor
    penalised: Tensor | None
    guide: Tensor
    spelling: Tensor
    accuracy: Tensor


@dataclass
class States:
    """What T3 computes of a batch."""

    last: Tensor
    """[said, width]: hidden states from which something is said."""
    attention: list[Tensor]
    """[rows, length, length] of each guided head."""
    middle: Tensor
    """[rows, length, width]."""


def states(model: Model, batch: Batch, prompt: np.ndarray, training: bool) -> States:
    """prompt: compact tokens before the conditioning's perceiver."""
    table, _ = model.tables()
    emb = torch.cat([model.t3.text_emb.weight, table])
    lost = (batch.ids < T3.text_vocab) & ~batch.is_text
    positions = torch.cat([model.t3.text_pos_emb.emb.weight, model.t3.speech_pos_emb.emb.weight])
    x = F.embedding(batch.ids, emb) * ~lost[..., None] + F.embedding(batch.places, positions)
    kind = torch.bfloat16 if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") else x.dtype
    hidden, seen, middle = model(noise(model, table, prompt, training).to(kind), x.to(kind))
    return States(hidden.flatten(0, 1)[batch.at], seen, middle)


@torch.no_grad()
def typical(model: Model, rows: list[Row], prompt: np.ndarray) -> Tensor:
    """The mean hidden state from which some sentences are said, [width]."""
    batch = Batch.of(rows, model.live, False).to(model.head.device)
    return states(model, batch, prompt, False).last.mean(0)


def losses(model: Model, rows: list[Row], prompt: np.ndarray, training: bool) -> Losses:
    batch = Batch.of(rows, model.live, training).to(model.head.device)
    with precision():
        found = states(model, batch, prompt, training)
        logits = F.linear(found.last, model.tables()[1]).float()
        spelling = F.cross_entropy(model.auxiliary(found.middle).float().flatten(0, 1), batch.spelt.flatten())
    penalised = None
    if not training or random.random() < PENALISED:
        penalised = F.cross_entropy(after_penalty(logits, batch), batch.wanted)
    plain = F.cross_entropy(logits, batch.wanted)
    guide = logits.new_zeros(())
    keep = ~batch.dropped
    where, letters = batch.at[keep], batch.letters[keep]
    for weights in found.attention:
        looked = weights.flatten(0, 1)[where[:, None], letters].float()
        mass = looked.sum(1) * torch.where(letters[:, 0] == letters[:, 1], 0.5, 1.0)
        guide = guide - torch.log(mass + 1e-4).mean()
    accuracy = (logits.argmax(-1) == batch.wanted).float().mean()
    return Losses(plain, penalised, guide, spelling, accuracy)


def after_penalty(logits: Tensor, batch: Batch) -> Tensor:
    """What upstream samples from: tokens that were heard before are less likely."""
    live = logits.shape[1] - 1
    begins = torch.cumsum(batch.fed == live, 0)  # a row's first is BOS
    past = torch.zeros_like(logits, dtype=torch.int16)
    past.scatter_(1, batch.fed[:, None], 1)
    past[:, live] = 0
    counted = past.cumsum(0, dtype=torch.int16)
    first = torch.searchsorted(begins, begins)  # of each one's row
    past = (counted - counted[first]) > 0
    return logits * torch.where(past, torch.where(logits > 0, 1 / PENALTY, PENALTY), 1.0)


def total(found: Losses) -> Tensor:
    main = found.plain if found.penalised is None else found.penalised
    return main + 0.3 * found.guide + 0.15 * found.spelling


def training_of(model: Model, folder: Path, seconds: float, device: torch.device) -> Training:
    path = folder / "t3.pt"
    return Training(model, path, seconds, device, rate=2e-3, decay=0.02, muon=model.hidden())


def main() -> None:
    arguments = seeded(command_line(__doc__, 4500))
    sentences = Sentences(arguments.folder)
    model = Model(sentences.live, sentences.labels)
    training = training_of(model, arguments.folder, arguments.seconds, arguments.device)
    batches = Batches(sentences, list(range(KEPT_ASIDE, len(sentences.rows))))
    aside = [[sentences.joined([n]) for n in range(first, first + 25)] for first in range(0, 200, 25)]
    for step in training.steps():
        found = losses(model, batches.draw(), sentences.prompt(), True)
        more = {} if found.penalised is None else {"penalised": found.penalised}
        training.learn(
            total(found),
            ce=found.plain,
            guide=found.guide,
            spelling=found.spelling,
            accuracy=found.accuracy,
            **more,
        )
        if step % 200 == 199:
            report(model, training, aside, sentences.rows[-1].speech)


@torch.no_grad()
def report(model: Model, training: Training, aside: list[list[Row]], prompt: np.ndarray) -> None:
    """Of the averaged weights, on sentences kept aside."""
    now = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(training.averaged)
    found = [losses(model, rows, prompt, False) for rows in aside]
    mean = lambda name: float(torch.stack([getattr(each, name) for each in found]).mean())  # noqa: E731
    names = ("plain", "penalised", "guide", "spelling", "accuracy")
    print("t3: kept aside: " + ", ".join(f"{name} {mean(name):.3f}" for name in names), flush=True)
    model.load_state_dict(now)


if __name__ == "__main__":
    main()
