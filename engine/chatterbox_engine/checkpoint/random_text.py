"""Tokenizers of random checkpoints, in the official formats: for English, the 23 languages, and GPT-2.

Their merges are learned from the text below, so common English words take few tokens, as with the official ones.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from chatterbox_engine.checkpoint.dims import LlamaDims, T3Dims
from chatterbox_engine.checkpoint.families import CANGJIE, Family

_SPECIAL_TOKENS = ("[STOP]", "[START]", "[UNK]", "[SPACE]", "[PAD]", "[SEP]", "[CLS]", "[MASK]")
_ALPHABET = string.ascii_letters + string.digits + string.punctuation
_TRAINING_TEXT = """
The harbour was quiet before dawn. A few boats knocked against the pier, and the lamps along the water threw long
yellow lines across it. Nobody was there to see them except the woman who sold bread, and she was thinking about flour.
"Twelve sacks," she said aloud, "and the miller has promised me nine! What shall I do with nine?" Her brother, who had
come down the hill behind her, laughed. "Bake smaller loaves, and call them something foreign." They walked together
past the warehouses, where the doors stood open and the smell of coffee, rope and tar came out to meet them. It is hard
to say when the morning really begins: with the first bird, the first bell, or the first argument about money. Later
the children would run to school, shouting and splashing through every puddle, and the teacher would pretend not to
have noticed. She had taught their parents; she knew that rain cannot be explained, only enjoyed. In the afternoon the
ships returned with mackerel, herring and news from the islands. Someone had married, someone had quarrelled with the
priest, a lighthouse keeper had written a very long letter and addressed it to the wrong king. Everyone listened,
because stories were the cheapest thing for sale in the market and the only thing that nobody ever weighed. When the
evening came, with its usual wind, the shutters closed one after another, until a single window was left burning above
the square. There an old man was repairing a clock. He had been working on it for seventeen years, and he thought that
tomorrow, or perhaps on Thursday, it might finally strike. Could you speak a little more slowly, please? I would like
to hear how the system pronounces different numbers, names and questions. Thank you for calling; your appointment is
confirmed for Monday the twenty-third at half past eight. Please remember to bring your passport, a photograph and
something to read. Testing, testing, one two three: the quick brown fox jumps over the lazy dog, again and again.
Engineers measured the bridge every Wednesday in winter, whenever frost made its iron shrink; February was the worst.
Nevertheless, vegetables arrived punctually: cabbages, onions, radishes, parsnips, even oranges and lemons in December.
"""

_SCRIPTS = (  # ranges of code points of the languages' letters and marks, as compatibility decomposition leaves them
    (0x00A1, 0x0180),  # Latin
    (0x0300, 0x0370),  # combining marks
    (0x0370, 0x0400),  # Greek
    (0x0400, 0x0460),  # Cyrillic
    (0x05B0, 0x05F5),  # Hebrew
    (0x0600, 0x0660),  # Arabic
    (0x0900, 0x0970),  # Devanagari
    (0x1100, 0x1200),  # Hangul, decomposed
    (0x2010, 0x2040),  # punctuation
    (0x3000, 0x3020),
    (0x3041, 0x3100),  # kana
    (0xFF01, 0xFF20),
)
_CANGJIE = (*string.ascii_lowercase, *string.digits, ".")
_CHARACTERS = {"人": "o", "口": "r", "日": "a", "月": "b", "中": "l", "好": "vnd", "你": "onf", "我": "hqi"}
_TAGS = ("laugh", "chuckle", "sigh", "cough", "gasp", "sniff", "groan", "shush", "clear throat")


def write(family: Family, dims: T3Dims, folder: Path) -> None:
    """Writes the files of a family's tokenizer."""
    if family.text == "gpt2":
        _write_gpt2(dims, folder)
        return
    assert isinstance(dims, LlamaDims), "graphemes have start and stop tokens"
    special = list(_SPECIAL_TOKENS)
    alphabet = list(_ALPHABET)
    if family.text == "multilingual":
        special += [f"[{language}]" for language in family.languages]
        special += [f"[cj_{code}]" for code in _CANGJIE]
        alphabet += [chr(code) for low, high in _SCRIPTS for code in range(low, high)]
        entries = [f"{character}\t{code}" for character, code in _CHARACTERS.items()]
        (folder / CANGJIE).write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    _graphemes(dims, special, alphabet).save(str(folder / family.files.text[0]))


def _graphemes(dims: LlamaDims, special_tokens: list[str], alphabet: list[str]) -> Tokenizer:
    """A byte-pair tokenizer of the vocabulary's size."""
    special = {"[STOP]": dims.stop_text, "[START]": dims.start_text}
    others = (index for index in range(1, dims.text_vocab) if index != dims.start_text)
    special |= dict(zip(special_tokens[2:], others, strict=False))
    free = (index for index in range(dims.text_vocab) if index not in special.values())
    split = pre_tokenizers.Whitespace()
    vocabulary, merges = learn_merges(dims.text_vocab - len(special), alphabet, split, [_TRAINING_TEXT])
    vocabulary += [f"[unused {index}]" for index in range(dims.text_vocab - len(special) - len(vocabulary))]
    numbered = special | dict(zip(vocabulary, free, strict=True))
    tokenizer = Tokenizer(models.BPE(numbered, merges, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special_tokens)
    return tokenizer


def _write_gpt2(dims: T3Dims, folder: Path) -> None:
    """A byte-level tokenizer in the files of transformers' `GPT2Tokenizer`, the tags added after its vocabulary."""
    size = dims.text_vocab - len(_TAGS) - 1
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary, merges = learn_merges(size, alphabet, split, [_TRAINING_TEXT])
    vocabulary += [f"<|unused {index}|>" for index in range(size - len(vocabulary))]
    end = "<|endoftext|>"
    added = {f"[{tag}]": size + 1 + index for index, tag in enumerate(_TAGS)}
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), end)
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024, "add_prefix_space": False, **roles}
    for name, content in {
        "vocab.json": {token: index for index, token in enumerate([*vocabulary, end])},
        "added_tokens.json": added,
        "special_tokens_map.json": roles,
        "tokenizer_config.json": config,
    }.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def learn_merges(
    size: int, alphabet: Iterable[str], split: pre_tokenizers.PreTokenizer, texts: Iterable[str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """At most `size` tokens in their order, and the merges that make the longer ones of them."""
    learner = Tokenizer(models.BPE(unk_token="[UNK]"))
    learner.pre_tokenizer = split
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(alphabet), show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    ordered = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    return ordered, [(left, right) for left, right in learned["merges"]]
