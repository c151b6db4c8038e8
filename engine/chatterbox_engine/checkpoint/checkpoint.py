"""Finding a checkpoint and reading it, strictly.

A checkpoint is a folder in the layout of an official release; `families` has the names of its files, `detect` chooses
among them. Besides it may have `conds.pt` (the built-in voice) and our `config.json` with other sizes than the official
ones. What a folder with a fine-tuned T3 lacks comes from a base checkpoint, and S3Gen may be another checkpoint's.
Opening one compares the names and shapes in the weight files' headers with `layout` and reads no weights.

`tokenizer._mel_filters` and `tokenizer.window` of S3Gen's file are constants that upstream computes itself
(`S3Token2Wav.ignore_state_dict_missing`) and loads with `strict=False`, as some releases lack them. They are ignored
here; everything else must be there, and nothing more.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import DryRunError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tqdm import tqdm

from chatterbox_engine.checkpoint import layout, random_checkpoint, weight_files
from chatterbox_engine.checkpoint.detect import (
    Peek,
    detect,
    families_by_name,
    families_of,
    is_meanflow,
    missing,
    other_choices,
    s3gen_file,
)
from chatterbox_engine.checkpoint.dims import Dims
from chatterbox_engine.checkpoint.families import Family, candidates
from chatterbox_engine.environment import cache_folder
from chatterbox_engine.errors import CheckpointError
from chatterbox_engine.types import Conditionals, S3GenConditionals, T3Conditionals

DEMO = "demo"
"""Name of the checkpoint in this package: a small voice for trying things, `demo_voice/README.md`."""

_DEMO_FOLDER = Path(__file__).parents[1] / "demo_voice"
_log = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0
"""Interval between the progress lines of a download."""


def locate(
    name: str,
    *,
    revision: str | None = None,
    family: str = "auto",
    s3gen: str | None = "",
    beside: Collection[str] = (),
    cache_dir: Path | None = None,
    report: Callable[[str], None] = _log.info,
    every: float = PROGRESS_SECONDS,
) -> Path:
    """The folder of the checkpoint called `name`, downloaded or made when needed.

    `name` is `DEMO`, one of `random_checkpoint.TINY` (random weights that are made on the spot), a folder, or a Hugging
    Face repository `owner/name`. Of a repository the files of one family are fetched, chosen by their names; the files
    `beside` come from elsewhere, and `s3gen` is as in `detect`. An interrupted download goes on where it stopped, and
    without the hub (`HF_HUB_OFFLINE`) the contents of `HF_HOME` are used. `cache_dir` is where random checkpoints are
    kept: `$CHATTERBOX_CACHE` or `~/.cache/chatterbox-triton` by default. `report` receives lines: what is fetched, and
    every `every` seconds how far it is. Raises CheckpointError, before it downloads when the repository lacks a file,
    and ConfigError for a family that does not exist.
    """
    if folder := _local(name, cache_dir):
        return folder
    names = file_names(name, revision=revision)
    chosen = _complete(name, names, beside, family, families_by_name, s3gen)
    for line in other_choices(chosen, names):
        report(f"{name}: {line}")
    wanted = [file for file in chosen.files.all if file in names]
    return fetch(name, wanted, revision=revision, report=report, every=every)


def fetch(
    name: str,
    wanted: Collection[str],
    *,
    revision: str | None = None,
    report: Callable[[str], None] = _log.info,
    every: float = PROGRESS_SECONDS,
) -> Path:
    """The folder of what `locate` takes, with those of the files that it has. Raises CheckpointError."""
    if folder := _local(name):
        return folder
    report(f"{name}: fetching what is not here yet of {', '.join(wanted)}")
    with _hub_errors(name):
        bar = _bar(partial(_report_bytes, report, name), every)
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(wanted), tqdm_class=bar))


def locate_vocoder(name: str, *, report: Callable[[str], None] = _log.info) -> Path:
    """The file of S3Gen in a folder, a repository or among the checkpoints of `locate`, or a file itself.

    Raises CheckpointError.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    source, _, file = name.rpartition("/")
    if source.count("/") != 1 or not file.endswith((".safetensors", ".pt")) or source.startswith("/"):
        source, file = name, ""
    names = file_names(source)
    found = s3gen_file(names) if not file else file if file in names else None
    if found is None:
        raise CheckpointError(f"{source}: has no {file or 's3gen.safetensors, nor S3Gen under another official name'}")
    return fetch(source, [found], report=report) / found


def file_names(name: str, *, revision: str | None = None) -> list[str]:
    """The names in what `locate` takes; of a repository, without the hub, those that were downloaded.

    Raises CheckpointError.
    """
    if folder := _local(name):
        return _names(folder)
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise CheckpointError(f"{name}: no such folder, and not of the form owner/name of a Hugging Face repository")
    with _hub_errors(name):
        try:
            return sorted(file.filename for file in snapshot_download(name, revision=revision, dry_run=True))
        except DryRunError:  # the hub cannot be reached
            return _names(Path(snapshot_download(name, revision=revision, allow_patterns=[], local_files_only=True)))


def _bar(report: Callable[[float, float], None], every: float) -> type[tqdm]:
    """A progress bar for `snapshot_download` that reports instead of drawing, as a server's log is no terminal:
    `report(bytes, bytes in all)` at most once in `every` seconds."""
    last = time.monotonic()

    class Bar(tqdm):
        def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # noqa: ARG002
            nonlocal last
            # files are counted by another bar
            if self.unit == "B" and self.n and time.monotonic() - last >= every:
                last = time.monotonic()
                report(self.n, self.total)
            return True

    return Bar


def _report_bytes(report: Callable[[str], None], name: str, done: float, total: float) -> None:
    report(f"{name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB are here")


def _local(name: str, cache_dir: Path | None = None) -> Path | None:
    """The folder of a checkpoint that needs no hub, made when it is a random one."""
    if name == DEMO:
        return _DEMO_FOLDER
    if name in random_checkpoint.TINY:
        return _make_tiny(name, cache_dir or cache_folder())
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None


def _complete(
    name: Path | str, own: Collection[str], others: Collection[str], family: str, peek: Peek, s3gen: str | None
) -> Family:
    """The family of these files. Raises CheckpointError with what it lacks."""
    try:
        chosen = detect(own, others, candidates(family), peek=peek, s3gen=s3gen)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    if lacking := missing(chosen, own, others):
        if s3gen in lacking:
            raise CheckpointError(f"{name}: has no {s3gen}, which CHATTERBOX_VOCODER names")
        hint = "; CHATTERBOX_BASE names the folder or repository that has them" if chosen.files.t3 in own else ""
        raise CheckpointError(f"{name}: as {chosen.title} it is missing {', '.join(lacking)}{hint}")
    return chosen


def choose(path: Path, others: Collection[str] = (), *, family: str = "auto", s3gen: str | None = "") -> Family:
    """The family of a folder, by its T3's tensors, and the files that are used of it and of `others`. s3gen: as in
    `detect`.

    Raises CheckpointError, also with what neither has, and ConfigError for a family that does not exist.
    """
    return _complete(path, _names(path), others, family, partial(_peek, path), s3gen)


def choices_of(path: Path, chosen: Family) -> list[str]:
    """What else a folder holds that could have been taken, line by line (`other_choices`), by T3's tensors."""
    return other_choices(chosen, _names(path), peek=partial(_peek, path))


def _peek(folder: Path, name: str) -> tuple[str, ...]:
    """The families whose T3 a file can be: by its tensors, then by its name; by the name alone where it is not here, or
    cannot be read, which is told when it is chosen."""
    hinted = families_by_name(name)
    try:
        fitting = families_of(weight_files.shapes(folder / name)[0])
    except CheckpointError:
        return hinted
    return tuple(kind for kind in fitting if kind in hinted) or fitting


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise CheckpointError(f"{name}: not downloaded yet, and the Hugging Face hub cannot be reached") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"{name}: cannot be downloaded: {error}") from error


def _make_tiny(name: str, cache: Path) -> Path:
    folder = cache / f"{name}-{random_checkpoint.FORMAT}"
    if folder.is_dir():
        return folder
    partial = cache / f"{folder.name}.{uuid.uuid4().hex}"
    try:
        random_checkpoint.write_random_checkpoint(partial, "tiny", family=random_checkpoint.TINY[name])
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
    base: Path | None
    """Folder of the files that `path` lacks."""
    family: Family
    dims: Dims
    random: bool
    """Random weights: its speech is noise."""
    vocoder: Path | None = None
    """S3Gen's file when it is another checkpoint's."""

    @classmethod
    def open(
        cls,
        path: Path,
        base: Path | None = None,
        *,
        family: str = "auto",
        s3gen: str | None = "",
        vocoder: Path | None = None,
    ) -> Checkpoint:
        """Opens the checkpoint in a folder, or in two, and checks the names and shapes in its files.

        `family` chooses in a folder that holds several; `s3gen` names S3Gen's file there, and is None where `vocoder`
        is one elsewhere.
        Raises CheckpointError, with all that is missing, surplus or of another shape, and ConfigError for a family that
        does not exist.
        """
        chosen = choose(path, _names(base) if base else (), family=family, s3gen=s3gen)
        files = chosen.files
        stated = path if (path / files.config).is_file() or base is None else base
        dims = chosen.dims.load(stated)
        if vocoder is not None:
            dims = dims.with_s3gen(vocoder.parent)
        checkpoint = cls(path, base, chosen, dims, False, vocoder)
        found, _ = weight_files.shapes(checkpoint.s3gen_file)
        dims = replace(dims, s3gen=replace(dims.s3gen, meanflow=is_meanflow(found)))
        mark = _check(checkpoint.file(files.t3), layout.t3_layout(dims.t3))
        _check(checkpoint.s3gen_file, layout.s3gen_layout(dims))
        _check(checkpoint.file(files.voice_encoder), layout.voice_encoder_layout(dims.t3))
        return replace(checkpoint, dims=dims, random=random_checkpoint.MARK in mark)

    @property
    def s3gen_file(self) -> Path:
        """S3Gen's weights."""
        return self.vocoder or self.file(self.family.files.s3gen)

    def file(self, name: str) -> Path:
        """Where a file of this name is, or would be."""
        own = self.path / name
        return own if self.base is None or own.is_file() else self.base / name

    @functools.cached_property
    def identity(self) -> str:
        """A SHA-256 over the contents of all files, 64 hexadecimal digits: two seconds for the official 3 GB."""
        total = hashlib.sha256()
        paths = {name: self.file(name) for name in self.family.files.all}
        paths[self.family.files.s3gen] = self.s3gen_file
        for name, path in paths.items():
            if path.is_file():
                total.update(name.encode() + _file_digest(path))
        return total.hexdigest()

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's own file; its other files are beside it."""
        return self.file(self.family.files.text[0])

    def t3_state(self) -> dict[str, torch.Tensor]:
        """Weights of T3 with upstream's names, on the CPU, float32."""
        return self._read(self.file(self.family.files.t3))

    def s3gen_state(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Weights of S3Gen with upstream's names, on the CPU, float32, without `layout.RECOMPUTED`.

        With a `prefix` (`flow.`, `mel2wav.`, `tokenizer.`, `speaker_encoder.`) only what is under it, without it.
        """
        return self._read(self.s3gen_file, prefix)

    def voice_encoder_state(self) -> dict[str, torch.Tensor]:
        """Weights of the voice encoder with upstream's names, on the CPU, float32."""
        return self._read(self.file(self.family.files.voice_encoder))

    def _read(self, path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
        state = weight_files.read(path, lambda name: name.startswith(prefix) and name not in layout.RECOMPUTED)
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}

    def conditionals(self) -> Conditionals | None:
        """The built-in voice, or None when the checkpoint has none. Raises CheckpointError."""
        path = self.file(self.family.files.conditionals)
        if not path.is_file():
            return None
        try:
            voice = conditionals_from_upstream(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load and the lookups raise many kinds, all of them for a bad file
            raise CheckpointError(f"{path}: not a built-in voice: {error}") from error
        tokens, dims = len(voice.t3.prompt_tokens), self.dims.t3
        if dims.prefix_of(tokens) > dims.prefix:
            raise CheckpointError(f"{path}: its T3 prompt has {tokens} tokens, the model takes {dims.prompt_tokens}")
        return voice


def conditionals_from_upstream(raw: dict[str, dict[str, Any]]) -> Conditionals:
    """Converts the contents of a `conds.pt` (upstream `Conditionals.save`), dropping batch dimensions.

    Upstream keeps an odd last mel frame of the prompt, and then makes one frame too few of every utterance. Here a
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


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def _check(path: Path, expected: layout.Layout) -> dict[str, str]:
    """Compares a weight file's header with its layout and returns the header's metadata."""
    found, metadata = weight_files.shapes(path)
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


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.digest()
