"""Text to speech tokens: upstream's T3 at small width.

    python -m tools.demo_voice.train_t3 FOLDER --seconds 4500

The sequence is the one of inference: conditioning, text, BOS twice, speech. Sentences of one speaker are joined, as the
server's segments hold several. Three losses: cross-entropy; the same after upstream's repetition penalty, so that
sampling with it stays calibrated; and, weaker in the second half of the training, -log of the attention near the
diagonal on one head of two layers (guided attention, Tachibana et al., 2017, in a form whose gradient does not vanish
when the head looks elsewhere). Some rows lose their text, for classifier-free guidance.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from chatterbox_engine.checkpoint.dims import LlamaDims
from chatterbox_engine.checkpoint.random_text import learn_merges
from chatterbox_engine.t3.attention import rotate
from chatterbox_engine.t3.llama import rotations
from tests.fidelity import upstream
from tools.demo_voice import data
from tools.demo_voice.sentences import FIXED
from tools.demo_voice.sizes import DIMS, LIVE_DIGITS
from tools.demo_voice.train_codec import all_digits
from tools.demo_voice.training import Training, command_line, precision

assert isinstance(DIMS.t3, LlamaDims)
T3 = DIMS.t3
LIVE = 3**LIVE_DIGITS
FIRST = LIVE
"""The first live token: the eighth digit, always 1, is worth 3**7."""
BOS, STOP, DEAD = LIVE, LIVE, LIVE + 1
"""Rows after the live ones: of the embedding BOS; of the head the stop token and all tokens that are not in use."""
POSITIONS = 3600
"""A batch's."""
SEGMENT = 300
"""Characters of the longest text, as the server splits it."""
SHARES = {"rms": 1.0, "slt": 0.2}
"""Of each speaker's sentences in an epoch."""
MISHEARD = 0.03
"""Of the tokens that are fed, so that it recovers from its own mistakes."""
GUIDED_LAYERS, GUIDED_HEAD = (1, 2), 1
PENALTY = 1.2


def write_tokenizer(texts: list[str], path: Path, merges: int = 350) -> None:
    """A `tokenizer.json` like upstream's: byte-pair merges learnt from `texts`, its special tokens at its ids."""
    letters = [chr(code) for code in range(33, 127) if chr(code) not in "[]"]
    pieces, pairs = learn_merges(len(letters) + merges, letters, pre_tokenizers.Whitespace(), texts)
    special = {"[STOP]": 0, "[UNK]": 1, "[SPACE]": 2, "[START]": 255}
    free = (number for number in range(T3.text_vocab) if number not in special.values())
    vocab = special | {piece: next(free) for piece in pieces}
    vocab |= {f"[unused{number}]": number for number in free}
    tokenizer = Tokenizer(models.BPE(vocab, pairs, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(path))


class Model(nn.Module):
    """Upstream's T3 with compact tables of speech tokens, and a forward of its own."""

    digits: Tensor
    rotation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.t3 = upstream.t3(T3, None).train()
        width = T3.hidden
        self.embedding = nn.Parameter(torch.randn(LIVE + 1, width) * 0.05)
        self.head = nn.Parameter(torch.randn(LIVE + 2, width) * 0.02)
        self.embedding_digits = nn.Parameter(torch.randn(LIVE_DIGITS, width) * 0.05)
        self.head_digits = nn.Parameter(torch.randn(LIVE_DIGITS, width) * 0.02)
        self.register_buffer("digits", all_digits()[:, :LIVE_DIGITS], persistent=False)
        nn.init.normal_(self.t3.text_emb.weight, std=0.05)
        for unused in (self.t3.speech_emb, self.t3.speech_head, self.t3.text_head, self.t3.tfmr.embed_tokens):
            unused.weight.requires_grad_(False)
        self.register_buffer("rotation", rotations(T3, 2048)[:, None], persistent=False)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Speech embedding [LIVE + 1, width] and head [LIVE + 2, width]."""
        pad = lambda rows, more: F.pad(rows, (0, 0, 0, more))  # noqa: E731
        return (
            self.embedding + pad(self.digits @ self.embedding_digits, 1),
            self.head + pad(self.digits @ self.head_digits, 2),
        )

    def conditioning(self, speaker: Tensor, prompt: Tensor, emotion: Tensor, table: Tensor) -> Tensor:
        """[rows, 256], live tokens [rows, n], [rows] to [rows, prefix, width]."""
        encoder = self.t3.cond_enc
        embedded = table[prompt] + self.t3.speech_pos_emb.emb.weight[: prompt.shape[1]]
        return torch.cat(
            [
                encoder.spkr_enc(speaker)[:, None],
                encoder.perceiver(embedded),
                encoder.emotion_adv_fc(emotion[:, None, None]),
            ],
            1,
        )

    def forward(self, prefix: Tensor, x: Tensor, text: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        """Embedded sequences after the prefix, [rows, length, width], to last hidden states, and the attention of the
        guided heads [rows, length, keys] to `text`, a span of keys in the whole sequence."""
        skip, seen = prefix.shape[1], []
        x = torch.cat([prefix, x], 1)
        length = x.shape[1]
        rotation = self.rotation[:length]
        later = torch.full((length, length), -torch.inf, device=x.device).triu(1)
        for index, layer in enumerate(self.t3.tfmr.layers):
            attention, mlp = layer.self_attn, layer.mlp
            h = layer.input_layernorm(x)
            heads = lambda y: y.unflatten(-1, (T3.heads, -1))  # noqa: E731
            q = rotate(heads(attention.q_proj(h)), rotation).transpose(1, 2)
            k = rotate(heads(attention.k_proj(h)), rotation).transpose(1, 2)
            v = heads(attention.v_proj(h)).transpose(1, 2)
            # flash attention's backward takes five times as long on a CPU
            scores = (q.to(v.dtype) @ k.to(v.dtype).transpose(2, 3)).float() * T3.head_dim**-0.5
            weights = (scores + later).softmax(-1)
            mixed = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)
            if index in GUIDED_LAYERS:
                seen.append(weights[:, GUIDED_HEAD, skip:, text[0] : text[1]])
            x = x + attention.o_proj(mixed)
            h = layer.post_attention_layernorm(x)
            x = x + mlp.down_proj(F.silu(mlp.gate_proj(h)) * mlp.up_proj(h))
        return self.t3.tfmr.norm(x[:, skip:]), seen

    def official(self) -> dict[str, Tensor]:
        """The state as upstream names it."""
        embedding, head = self.tables()
        state = {name: value.detach().clone() for name, value in self.t3.state_dict().items()}
        for name in ("speech_emb.weight", "text_head.weight", "tfmr.embed_tokens.weight"):
            state[name].zero_()
        live = slice(FIRST, FIRST + LIVE)
        state["speech_emb.weight"][live] = embedding[:LIVE].detach()
        state["speech_emb.weight"][T3.start_speech] = embedding[BOS].detach()
        state["speech_head.weight"][:] = head[DEAD].detach()
        state["speech_head.weight"][live] = head[:LIVE].detach()
        state["speech_head.weight"][T3.stop_speech] = head[STOP].detach()
        return state

    @torch.no_grad()
    def load_official(self, state: dict[str, Tensor]) -> None:
        """The inverse of `official`; what the digits gave to the tables is in their rows then."""
        self.t3.load_state_dict(state)
        live = slice(FIRST, FIRST + LIVE)
        embedding, head = state["speech_emb.weight"], state["speech_head.weight"]
        self.embedding.copy_(torch.cat([embedding[live], embedding[T3.start_speech, None]]))
        self.head.copy_(torch.cat([head[live], head[[T3.stop_speech, 0]]]))
        self.embedding_digits.zero_()
        self.head_digits.zero_()


class Speaker:
    """What one of flite's voices says: text and live speech tokens of every sentence, embeddings of some clips."""

    def __init__(self, folder: Path, name: str, encode: Callable[[str], list[int]]) -> None:
        file = np.load(folder / f"tokens-{name}.npz")
        tokens, begin = file["tokens"].astype(np.int64) - FIRST, file["begin"]
        self.speech = [tokens[a:b] for a, b in itertools.pairwise(begin)]
        self.text = [str(text) for text in file["text"]]
        self.ids = [encode(text) for text in self.text]
        self.embedding = torch.from_numpy(np.load(folder / f"speakers-{name}.npy"))
        often = [index for index, text in enumerate(self.text) if text in FIXED]
        self.share = SHARES[name]
        self.order = [*range(len(self.text)), *often * 8]


Rows = list[tuple[Speaker, list[int], np.ndarray]]
"""(speaker, text with start and stop, live tokens) of each row."""


class Batches:
    """Batches of about `POSITIONS` positions, of rows of like length."""

    def __init__(self, speakers: list[Speaker], space: int) -> None:
        self._speakers, self._space = speakers, space
        self._queue: list[list[tuple[Speaker, list[int]]]] = []

    def _epoch(self) -> None:
        rows = []
        for speaker in self._speakers:
            order = random.sample(speaker.order, int(speaker.share * len(speaker.order)))
            while order:
                many = random.choices((1, 2, 3, 4, 6), (60, 20, 10, 6, 4))[0]
                row = [order.pop() for _ in range(min(many, len(order)))]
                while sum(len(speaker.text[i]) + 1 for i in row) > SEGMENT:
                    order.append(row.pop())
                rows.append((speaker, row))
        rows.sort(key=lambda row: sum(len(row[0].speech[i]) for i in row[1]) + random.random() * 6)
        batch: list[tuple[Speaker, list[int]]] = []
        for speaker, row in rows:
            length = T3.prefix + sum(len(speaker.speech[i]) + len(speaker.ids[i]) + 1 for i in row)
            if batch and length * (len(batch) + 1) > POSITIONS:
                self._queue.append(batch)
                batch = []
            batch.append((speaker, row))
        self._queue.append(batch)
        random.shuffle(self._queue)

    def draw(self) -> Rows:
        """The next batch."""
        if not self._queue:
            self._epoch()
        rows: Rows = []
        for speaker, row in self._queue.pop():
            text: list[int] = []
            for i in row:
                text += [self._space, *speaker.ids[i]] if text else speaker.ids[i]
            rows.append((speaker, T3.frame(text), np.concatenate([speaker.speech[i] for i in row])))
        return rows


@dataclass
class Batch:
    """Rows as tensors, padded on the right."""

    ids: Tensor
    """[rows, length] into the tables of text and speech, one after the other: text, BOS, BOS, speech."""
    positions: Tensor
    is_text: Tensor
    fed: Tensor
    """[rows, longest]: the live tokens that the model hears before each one that it says, BOS first."""
    wanted: Tensor
    """[rows, longest]: what it should say, then `STOP`, then -100."""
    at: Tensor
    """[rows, longest]: where in the sequence it says it."""
    written: Tensor
    spoken: Tensor
    """[rows]: tokens of text and speech."""

    @classmethod
    def of(cls, rows: Rows, noise: float) -> Batch:
        """`noise`: the share of tokens that are heard wrongly."""
        count, vocab = len(rows), T3.text_vocab
        written = torch.tensor([len(text) for _, text, _ in rows])
        spoken = torch.tensor([len(speech) for _, _, speech in rows])
        length, longest = int((written + spoken).max()) + 2, int(spoken.max()) + 1
        shape = (count, length)
        batch = cls(
            torch.full(shape, vocab + BOS),
            torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape, dtype=torch.bool),
            torch.full((count, longest), BOS),
            torch.full((count, longest), -100),
            torch.zeros((count, longest), dtype=torch.long),
            written,
            spoken,
        )
        for i, (_, text, tokens) in enumerate(rows):
            t, s = len(text), len(tokens)
            speech = torch.from_numpy(tokens)
            heard = torch.where(torch.rand(s) < noise, torch.randint(0, LIVE, (s,)), speech)
            batch.wanted[i, :s], batch.wanted[i, s] = speech, STOP
            batch.fed[i, 1 : s + 1] = heard
            batch.at[i, : s + 1] = t + 1 + torch.arange(s + 1)
            batch.ids[i, :t], batch.ids[i, t + 2 : t + 2 + s] = torch.tensor(text), vocab + heard
            batch.positions[i, :t], batch.positions[i, t + 2 : t + 2 + s] = torch.arange(t), torch.arange(1, s + 1)
            batch.is_text[i, :t] = True
        return batch

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


def voices(rows: Rows, size: int) -> tuple[Tensor, Tensor]:
    """A speaker embedding and a prompt of `size` live tokens for each row, from other sentences of its speaker."""
    prompts = []
    for speaker, _, _ in rows:
        other = random.choice(speaker.speech)
        while len(other) < size:
            other = np.concatenate([other, random.choice(speaker.speech)])
        prompts.append(other[:size])
    speakers = [speaker.embedding[random.randrange(len(speaker.embedding))] for speaker, _, _ in rows]
    return torch.stack(speakers), torch.from_numpy(np.stack(prompts))


def losses(model: Model, rows: Rows, training: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy, the same after the repetition penalty, guided attention, accuracy."""
    batch = Batch.of(rows, MISHEARD if training else 0.0)
    count, width, device = len(rows), int(batch.written.max()), model.head.device
    batch = batch.to(device)
    table, head = model.tables()
    text_position, speech_position = model.t3.text_pos_emb.emb.weight, model.t3.speech_pos_emb.emb.weight
    dropped = torch.rand(count, device=device) < (0.12 if training else 0.0)
    x = torch.cat([model.t3.text_emb.weight, table])[batch.ids] * ~(batch.is_text & dropped[:, None])[..., None]
    written = batch.positions.clamp(max=len(text_position) - 1)  # of speech too, which has more of them
    places = torch.where(batch.is_text[..., None], text_position[written], speech_position[batch.positions])
    longest_prompt = T3.prompt_tokens
    speakers, prompts = voices(rows, random.randint(25, longest_prompt) if training else longest_prompt)
    emotion = torch.rand(count, device=device) * 0.8 + 0.2
    with precision():
        prefix = model.conditioning(speakers.to(device), prompts.to(device), emotion, table)
        start = prefix.shape[1]
        hidden, seen = model(prefix, x + places, (start, start + width))
        hidden = hidden.gather(1, batch.at[..., None].expand(-1, -1, hidden.shape[2]))
        logits = F.linear(hidden, head).float()
    # the tokens that are not in use share a row of the head, and count as many
    logits = logits + F.pad(logits.new_zeros(LIVE + 1), (0, 1), value=float(np.log(T3.speech_vocab - LIVE - 1)))
    real = batch.wanted >= 0
    wanted = batch.wanted[real]
    plain = F.cross_entropy(logits[real], wanted)
    with torch.no_grad():
        past = logits.new_zeros(*batch.fed.shape, LIVE + 2).scatter_(2, batch.fed[..., None], 1.0).cumsum_(1) > 0
        past[..., LIVE:] = False  # BOS, whose place here is the stop token's
        factor = 1 + past * ((logits > 0) * (1 / PENALTY - PENALTY) + PENALTY - 1)
    after = F.cross_entropy((logits * factor)[real], wanted)
    accuracy = (logits.argmax(-1)[real] == wanted).float().mean()
    guide = logits.new_zeros(())
    keep = real & ~dropped[:, None]
    for weights in seen if keep.any() else []:
        mass = (weights.gather(1, batch.at[..., None].expand(-1, -1, width)) * near_diagonal(batch, width)).sum(-1)
        guide = guide - torch.log(mass + 1e-4)[keep].mean()
    return plain, after, guide, accuracy


def near_diagonal(batch: Batch, width: int) -> Tensor:
    """[rows, longest, width]: how near each text token is to where the speech is, from 0 to 1."""
    device = batch.wanted.device
    time = (torch.arange(batch.wanted.shape[1], device=device)[None, :, None] + 0.5) / batch.spoken[:, None, None]
    place = (torch.arange(width, device=device)[None, None] + 0.5) / batch.written[:, None, None]
    return torch.exp(-((place - time) ** 2) / (2 * 0.1**2)) * (place < 1)


def main() -> None:
    parser = command_line(__doc__, 4500)
    parser.add_argument("--workers", type=int, default=1, help="on a CPU: processes that train together, a core each")
    arguments = parser.parse_args()
    if arguments.workers > 1 and arguments.device.type != "cpu":
        parser.error("--workers is for a CPU: leave it out, or add --device cpu")
    path = arguments.folder / "tokenizer.json"
    if not path.exists():
        write_tokenizer((arguments.folder / "data" / "train.txt").read_text().splitlines(), path)
    if arguments.workers == 1:
        train(0, arguments)
        return
    with tempfile.TemporaryDirectory() as meeting:
        arguments.meeting = f"file://{meeting}/processes"
        start_processes(train, (arguments,), arguments.workers)


def training_of(model: Model, folder: Path, seconds: float, device: torch.device) -> Training:
    return Training(model, folder / "t3.pt", seconds, device, rate=1.5e-3, decay=0.02)


def train(rank: int, arguments: argparse.Namespace) -> None:
    """One of the processes."""
    from chatterbox.models.tokenizers import EnTokenizer

    torch.manual_seed(0)
    folder = arguments.folder
    tokenizer = EnTokenizer(str(folder / "tokenizer.json"))
    speakers = [Speaker(folder, name, tokenizer.encode) for name in data.SPEAKERS]
    held: list[Rows] = []
    for speaker in speakers:  # 40 sentences of each are kept aside
        speaker.order = [index for index in speaker.order if index >= 40 or speaker.text[index] in FIXED]
        held.append([(speaker, T3.frame(speaker.ids[i]), speaker.speech[i]) for i in range(20)])
    model = Model()
    if arguments.workers > 1:
        dist.init_process_group("gloo", init_method=arguments.meeting, rank=rank, world_size=arguments.workers)
        torch.manual_seed(rank)
    training = training_of(model, folder, arguments.seconds, arguments.device)
    random.seed(f"{rank} {training.step}")
    batches = Batches(speakers, tokenizer.encode(" ")[0])
    for step in training.steps():
        weight = 0.15 * min(1.0, max(0.2, (0.5 - training.share) / 0.2))
        plain, after, guide, accuracy = losses(model, batches.draw(), True)
        loss = 0.6 * plain + 0.4 * after + weight * guide
        training.learn(loss, ce=plain, penalised=after, guide=guide, accuracy=accuracy)
        if step % 250 == 249 and rank == 0:
            with torch.no_grad():
                figures = [losses(model, rows, False) for rows in held]
            for name, (plain, after, guide, accuracy) in zip(data.SPEAKERS, figures, strict=True):
                found = f"ce {plain:.3f} penalised {after:.3f} guide {guide:.3f} accuracy {accuracy:.3f}"
                print(f"t3: kept aside, {name}: {found}", flush=True)


if __name__ == "__main__":
    main()
