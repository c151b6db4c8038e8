"""Finding a checkpoint and reading it, strictly.

A checkpoint is a folder in the layout of the official English release: `ve.safetensors`, `t3_cfg.safetensors`,
`s3gen.safetensors`, `tokenizer.json`, optionally `conds.pt` (the built-in voice), and optionally our `config.json`
with other sizes than the official ones. Opening one compares the names and shapes in the weight files' headers with
`layout` and reads no weights.

`tokenizer._mel_filters` and `tokenizer.window` of `s3gen.safetensors` are constants that upstream computes itself
(`S3Token2Wav.ignore_state_dict_missing`) and loads with `strict=False`, as some releases lack them. They are ignored
here; everything else must be there, and nothing more.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from chatterbox_engine import layout, random_checkpoint
from chatterbox_engine.config import cache_folder
from chatterbox_engine.dims import Dims
from chatterbox_engine.errors import CheckpointError
from chatterbox_engine.types import Conditionals, S3GenConditionals, T3Conditionals

TINY = "tiny"
"""The name of the checkpoint of random weights that is made on the spot."""

_VOICE_ENCODER = "ve.safetensors"
_T3 = "t3_cfg.safetensors"
_S3GEN = "s3gen.safetensors"
_TOKENIZER = "tokenizer.json"
_CONDITIONALS = "conds.pt"
_CONFIG = "config.json"
_REQUIRED = (_VOICE_ENCODER, _T3, _S3GEN, _TOKENIZER)
_FILES = (*_REQUIRED, _CONDITIONALS, _CONFIG)

_log = logging.getLogger(__name__)


def locate(name: str, *, revision: str | None = None, cache_dir: Path | None = None) -> Path:
    """The folder of the checkpoint called `name`, downloaded or made when needed.

    `name` is `tiny`, a folder, or a Hugging Face repository `owner/name`, of which only the needed files are fetched
    (`HF_HOME` and `HF_HUB_OFFLINE` are honoured). `cache_dir` is where `tiny` is kept: `$CHATTERBOX_CACHE` or
    `~/.cache/chatterbox-triton` by default. Raises CheckpointError.
    """
    if name == TINY:
        return _make_tiny(cache_dir or cache_folder())
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise CheckpointError(f"{name}: no such folder, and not of the form owner/name of a Hugging Face repository")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(f"{name}: not downloaded yet, and the Hugging Face hub cannot be reached") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"{name}: cannot be downloaded: {error}") from error


def _make_tiny(cache: Path) -> Path:
    folder = cache / f"tiny-{random_checkpoint.FORMAT}"
    if folder.is_dir():
        return folder
    partial = cache / f"{folder.name}.{uuid.uuid4().hex}"
    try:
        random_checkpoint.write_random_checkpoint(partial, "tiny")
        partial.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was faster, and its folder is the same
            raise CheckpointError(f"{folder}: cannot be made: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _log.info("made the random checkpoint %s: it speaks noise", folder)
    return folder


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Weights are read from disk by each call that returns them; keep none twice."""

    path: Path
    dims: Dims
    random: bool
    """Random weights: what it says is noise."""

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Opens the checkpoint in a folder and checks the names and shapes in its files.

        Raises CheckpointError, with all that is missing, surplus or of another shape.
        """
        missing = [name for name in _REQUIRED if not (path / name).is_file()]
        if missing:
            raise CheckpointError(f"{path}: missing {', '.join(missing)}")
        dims = Dims.load(path)
        mark = _check(path / _T3, layout.t3_layout(dims.t3))
        _check(path / _S3GEN, layout.s3gen_layout(dims))
        _check(path / _VOICE_ENCODER, layout.voice_encoder_layout(dims.t3))
        return cls(path, dims, random_checkpoint.MARK in mark)

    @functools.cached_property
    def identity(self) -> str:
        """A SHA-256 over the contents of all files, 64 hexadecimal digits: two seconds for the official 3 GB."""
        total = hashlib.sha256()
        for name in _FILES:
            if (self.path / name).is_file():
                total.update(name.encode() + _file_digest(self.path / name))
        return total.hexdigest()

    @property
    def tokenizer_path(self) -> Path:
        """The BPE tokenizer's `tokenizer.json`."""
        return self.path / _TOKENIZER

    def t3_state(self) -> dict[str, torch.Tensor]:
        """Weights of T3 by upstream's names, on the CPU, float32."""
        return _read(self.path / _T3, "")

    def s3gen_state(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Weights of S3Gen by upstream's names, on the CPU, float32, without `layout.RECOMPUTED`.

        With a `prefix` (`flow.`, `mel2wav.`, `tokenizer.`, `speaker_encoder.`) only what is under it, without it.
        """
        return _read(self.path / _S3GEN, prefix)

    def voice_encoder_state(self) -> dict[str, torch.Tensor]:
        """Weights of the voice encoder by upstream's names, on the CPU, float32."""
        return _read(self.path / _VOICE_ENCODER, "")

    def conditionals(self) -> Conditionals | None:
        """The built-in voice, or None when the checkpoint has none. Raises CheckpointError."""
        path = self.path / _CONDITIONALS
        if not path.is_file():
            return None
        try:
            return conditionals_from_upstream(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load and the lookups raise many kinds, all of them for a bad file
            raise CheckpointError(f"{path}: not a built-in voice: {error}") from error


def conditionals_from_upstream(raw: dict[str, dict[str, Any]]) -> Conditionals:
    """Converts the contents of a `conds.pt` (upstream `Conditionals.save`), dropping batch dimensions.

    Upstream keeps an odd last mel frame of the prompt, and then makes one frame too few of everything it speaks. Here a
    token is always two frames, so that frame is dropped.
    """
    t3, gen = raw["t3"], raw["gen"]
    tokens = gen["prompt_token"][0, : int(gen["prompt_token_len"][0])]
    return Conditionals(
        t3=T3Conditionals(
            speaker=t3["speaker_emb"].reshape(-1).float(),
            prompt_tokens=t3["cond_prompt_speech_tokens"].reshape(-1).long(),
        ),
        s3gen=S3GenConditionals(
            prompt_tokens=tokens.long(),
            prompt_mel=gen["prompt_feat"][0, : 2 * len(tokens)].float(),
            embedding=gen["embedding"].reshape(-1).float(),
        ),
        exaggeration=float(torch.as_tensor(t3["emotion_adv"]).reshape(-1)[0]),
    )


def _check(path: Path, expected: layout.Layout) -> dict[str, str]:
    """Compares a weight file's header with its layout and returns the header's metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
    for name in layout.RECOMPUTED:
        found.pop(name, None)
    faults = [f"missing {name}" for name in expected if name not in found]
    faults += [f"unexpected {name}" for name in found if name not in expected]
    faults += [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if faults:
        shown = "; ".join(faults[:10]) + (f"; and {len(faults) - 10} more" if len(faults) > 10 else "")
        raise CheckpointError(f"{path}: {shown}")
    return metadata


def _read(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix) and name not in layout.RECOMPUTED]  # noqa: SIM118
        return {name.removeprefix(prefix): _float32(file.get_tensor(name)) for name in names}


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.digest()
