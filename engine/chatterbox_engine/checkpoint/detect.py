"""Which family a checkpoint is of, and which of its files are used. Imports no torch.

What T3's tensors say decides: backbone, text vocabulary, the MASK row of Flash. Names decide where the tensors cannot
be read yet, in a repository that is not downloaded, and between members that differ in their weights alone.

The Single Language Pack (six fine-tunes of Multilingual V3, `PACKS`) holds a T3, its own S3Gen and a tokenizer; the
rest comes from the main repository, `PACK_BASE`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from chatterbox_engine.checkpoint.families import FAMILIES, MULTILINGUAL_V2, MULTILINGUAL_V3, Family
from chatterbox_engine.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
Peek = Callable[[str], tuple[str, ...]]
"""The name of a T3 file to the names of the families whose T3 it can be."""

PACKS = (
    "ResembleAI/Chatterbox-Multilingual-zh-cmn",
    "ResembleAI/Chatterbox-Multilingual-es-mx-latam",
    "ResembleAI/Chatterbox-Multilingual-pt-br",
    "ResembleAI/Chatterbox-Multilingual-es-es",
    "ResembleAI/Chatterbox-Multilingual-pt-pt",
    "ResembleAI/Chatterbox-Multilingual-hi",
)
PACK_BASE = "ResembleAI/chatterbox"

_SUFFIXES = (".safetensors", ".pt")
_PACK_NAME = re.compile(r"t3_([a-z]{2}(?:_[a-z]{2,3})?(?:_[a-z]+)?)\.safetensors")
_ENGLISH_VOCABULARY, _MULTILINGUAL_VOCABULARY = 704, 2454
_NANO_WIDTH, _TURBO_WIDTH = 768, 1024


def families_of(shapes: Shapes) -> tuple[str, ...]:
    """The families whose T3 a file with these tensors can be, by name; none when it is no T3."""
    rows = {name: shape[0] for name, shape in shapes.items() if name.endswith(("_emb.weight", "_head.weight"))}
    if any(name.startswith("tfmr.h.") for name in shapes):
        width = shapes.get("text_emb.weight", (0, 0))[-1]
        return {_NANO_WIDTH: ("nano",), _TURBO_WIDTH: ("turbo",)}.get(width, ("turbo", "nano"))
    if not any(name.startswith("tfmr.layers.") for name in shapes):
        return ()
    if rows.get("speech_emb.weight", 0) == rows.get("speech_head.weight", 0) + 1:
        return ("flash",)
    multilingual = (MULTILINGUAL_V3.name, MULTILINGUAL_V2.name)
    known = {_ENGLISH_VOCABULARY: ("english",), _MULTILINGUAL_VOCABULARY: multilingual}
    return known.get(rows.get("text_emb.weight", 0), ("english", *multilingual))


def families_by_name(name: str) -> tuple[str, ...]:
    """The families whose T3 a file of this name can be."""
    official = tuple(family.name for family in FAMILIES if family.files.t3 == name)
    if official:
        return official
    if name.startswith("t3_flash"):
        return ("flash",)
    return (MULTILINGUAL_V3.name,) if _variant(name) else tuple(family.name for family in FAMILIES)


def detect(
    own: Collection[str],
    base: Collection[str] = (),
    among: Collection[Family] = FAMILIES,
    *,
    peek: Peek = families_by_name,
    s3gen: str | None = "",
) -> Family:
    """The family of a folder with the files `own`, with the names of the files that are used; `base` may supply
    missing ones, and `s3gen` names S3Gen's file: empty is the family's, None is one elsewhere.

    An official name goes before others, then the family with the fewest missing files, then the order of `among`.
    `missing` tells whether the folder is complete. Raises CheckpointError when T3 is of no served family, and when
    several files could be.
    """
    present = t3_files(own) or t3_files(base)
    if not present:
        return min((_named(family, family.files.t3, own, base, s3gen) for family in among), key=_lacking(own, base))
    fitting = [(family, name) for name in present for family in among if family.name in peek(name)]
    if not fitting:
        raise CheckpointError(_refusal(present, among, peek))

    def rank(choice: tuple[Family, str]) -> tuple[bool, bool, int, int]:
        family, name = choice
        lacking = len(missing(_named(family, name, own, base, s3gen), own, base))
        official = family.files.t3
        return name != official, official not in base, lacking, list(among).index(family)

    family, name = min(fitting, key=rank)
    rivals = sorted({other for kind, other in fitting if kind is family and other != family.files.t3})
    if name != family.files.t3 and len(rivals) > 1:
        raise CheckpointError(
            f"{', '.join(rivals)} are each a T3 of {family.title}: keep one, or give each a folder of its own, "
            "with CHATTERBOX_BASE for the other files"
        )
    return _named(family, name, own, base, s3gen)


def missing(family: Family, own: Collection[str], base: Collection[str] = ()) -> list[str]:
    """The required files that neither folder has."""
    return [name for name in family.files.required if name not in own and name not in base]


def other_choices(
    family: Family, own: Collection[str], among: Collection[Family] = FAMILIES, *, peek: Peek = families_by_name
) -> list[str]:
    """What else a folder holds that could have been taken, and the settings that take it, line by line."""
    lines = []
    for other in among:
        name = other.files.t3
        if name in own and name != family.files.t3 and other.name in peek(name):
            lines.append(f"{family.files.t3} is served; CHATTERBOX_FAMILY={other.name} takes {name}")
    official = {other.files.t3 for other in FAMILIES}
    for name in t3_files(own):
        if name != family.files.t3 and name not in official and peek(name):
            alone = "needs a folder of its own, with CHATTERBOX_BASE for the other files"
            lines.append(f"{family.files.t3} is served; {name} {alone}")
    used = family.files.s3gen
    others = [name for name in _s3gen_names(family) if name in own and _stem(name) != _stem(used)]
    if used in own and others:
        lines.append(f"{used} is S3Gen; CHATTERBOX_VOCODER={others[0]} takes that")
    return lines


def s3gen_file(names: Collection[str]) -> str | None:
    """S3Gen's file among the names of any member; a MeanFlow one first, which is what it is chosen for."""
    stems = ("s3gen_meanflow", "s3gen", "s3gen_v3")
    return next((stem + suffix for stem in stems for suffix in _SUFFIXES if stem + suffix in names), None)


def is_meanflow(shapes: Shapes) -> bool:
    """Whether S3Gen's tensors are those of MeanFlow: two Euler steps without guidance instead of ten with it."""
    return "flow.decoder.estimator.time_embed_mixer.weight" in shapes


def t3_files(names: Collection[str]) -> list[str]:
    """The names of T3's files."""
    return sorted(name for name in names if name.startswith("t3") and name.endswith(".safetensors"))


def _named(family: Family, t3: str, own: Collection[str], base: Collection[str], s3gen: str | None) -> Family:
    """A family with the names of the files that are used."""
    variant = _variant(t3) if family.name == MULTILINGUAL_V3.name else ""
    files = replace(
        family.files,
        t3=t3,
        s3gen=_first(_s3gen_names(family, pack=bool(variant)), own, base) if s3gen == "" else s3gen or "",
        voice_encoder=_first(_alike(family.files.voice_encoder), own, base),
    )
    if not variant:
        return replace(family, files=files)
    return replace(family, files=files, title=f"{family.title} ({variant})", language=variant[:2])


def _variant(t3: str) -> str:
    """The language variant in the name of a pack's T3, `pt_br` or `hi`; empty when it names none."""
    found = _PACK_NAME.fullmatch(t3)
    return found[1] if found and found[1][:2] in MULTILINGUAL_V3.languages else ""


def _s3gen_names(family: Family, *, pack: bool = False) -> list[str]:
    """The names of S3Gen's file that a family accepts; a pack was trained with the newer one."""
    official = _alike(family.files.s3gen)
    newer = [name for name in _alike("s3gen_v3.pt") if _stem(family.files.s3gen) == "s3gen"]
    return newer + official if pack else official + newer


def _alike(name: str) -> list[str]:
    """A weight file's name, and the same with the other suffix."""
    return [name, *(_stem(name) + suffix for suffix in _SUFFIXES if not name.endswith(suffix))]


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _first(names: list[str], own: Collection[str], base: Collection[str]) -> str:
    return next((name for place in (own, base) for name in names if name in place), names[0])


def _lacking(own: Collection[str], base: Collection[str]) -> Callable[[Family], int]:
    return lambda family: len(missing(family, own, base))


def _refusal(present: list[str], among: Collection[Family], peek: Peek) -> str:
    """Why none of the T3 files can be served."""
    titles = {family.name: family.title for family in FAMILIES}
    told = []
    for name in present:
        kinds = peek(name)
        told.append(f"{name} is {'no T3' if not kinds else 'a T3 of ' + ' or '.join(titles[kind] for kind in kinds)}")
    served = ", ".join(family.name for family in among)
    return f"{'; '.join(told)}; CHATTERBOX_FAMILY and this version allow {served}"
