"""Mock packs of every official file layout, opened as what they are or refused with the setting that helps, and S3Gen
of another checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from chatterbox_engine.assemble import describe_files, open_checkpoint
from chatterbox_engine.checkpoint.checkpoint import Checkpoint, locate_vocoder
from chatterbox_engine.checkpoint.detect import PACK_BASE, PACKS
from chatterbox_engine.checkpoint.families import MULTILINGUAL_V2, MULTILINGUAL_V3, TURBO
from chatterbox_engine.checkpoint.random_checkpoint import write_random_checkpoint
from chatterbox_engine.config import Config
from chatterbox_engine.errors import CheckpointError
from tests.conftest import CheckpointOf
from tests.unit.test_locate import FakeHub

T3 = "t3_pt_br.safetensors"
TOKENIZER = MULTILINGUAL_V3.files.text[0]
REST = ("ve.pt", "conds.pt", "config.json")
MakePack = Callable[..., Path]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tune: other random weights than the base's, and S3Gen with both suffixes."""
    folder = tmp_path_factory.mktemp("tuned")
    write_random_checkpoint(folder, "tiny", seed=1, family=MULTILINGUAL_V3)
    save_file(torch.load(folder / "s3gen.pt"), folder / "s3gen.safetensors")
    return folder


@pytest.fixture
def make_pack(tuned: Path, tmp_path: Path) -> MakePack:
    """A folder with the fine-tune's T3 and other files of it."""

    def make(*names: str, t3: str = T3) -> Path:
        folder = tmp_path / "pack"
        folder.mkdir()
        (folder / t3).symlink_to(tuned / MULTILINGUAL_V3.files.t3)
        for name in names:
            (folder / name).symlink_to(tuned / name.replace("_v3", ""))
        return folder

    return make


def weight(checkpoint: Checkpoint) -> torch.Tensor:
    return checkpoint.s3gen_state("flow.")["input_embedding.weight"]


@pytest.mark.parametrize("s3gen", [(), ("s3gen_v3.pt",), ("s3gen_v3.safetensors",)])
@pytest.mark.parametrize("tokenizer", [(), (TOKENIZER,)])
def test_a_pack_with_a_base_is_multilingual_with_its_own_files(
    s3gen: tuple[str, ...],
    tokenizer: tuple[str, ...],
    make_pack: MakePack,
    checkpoint_of: CheckpointOf,
    tuned: Path,
) -> None:
    base, pack = checkpoint_of("tiny-multilingual"), make_pack(*s3gen, *tokenizer)
    opened = open_checkpoint(Config(checkpoint=str(pack), base=str(base.path)))
    assert (opened.family.name, opened.family.language) == ("multilingual-v3", "pt")
    own = Checkpoint.open(tuned)
    assert torch.equal(opened.t3_state()["text_emb.weight"], own.t3_state()["text_emb.weight"])
    assert torch.equal(weight(opened), weight(own if s3gen else base))
    assert opened.tokenizer_path.parent == (pack if tokenizer else base.path)
    assert opened.conditionals() is not None
    assert describe_files(opened).startswith(f"{T3}, {(*s3gen, 's3gen.pt')[0]}, default language pt")


@pytest.mark.parametrize("s3gen", ["s3gen_v3.pt", "s3gen_v3.safetensors"])
def test_a_whole_pack_is_served_alone(s3gen: str, make_pack: MakePack) -> None:
    opened = Checkpoint.open(make_pack(s3gen, TOKENIZER, *REST))
    assert opened.family.title == "Chatterbox Multilingual V3 (pt_br)"
    assert opened.s3gen_file.name == s3gen


def test_a_pack_alone_is_refused_with_what_is_missing_and_the_setting_that_helps(make_pack: MakePack) -> None:
    folder = make_pack("s3gen_v3.pt", TOKENIZER)
    with pytest.raises(CheckpointError, match=r"V3 \(pt_br\) it is missing ve\.pt; CHATTERBOX_BASE names the folder"):
        Checkpoint.open(folder)
    (folder / "s3gen_v3.pt").unlink()
    with pytest.raises(CheckpointError, match=r"it is missing s3gen_v3\.pt, ve\.pt; CHATTERBOX_BASE"):
        Checkpoint.open(folder)


def test_an_unnamed_fine_tune_of_multilingual_is_not_taken_for_english(
    make_pack: MakePack, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    everything = tmp_path / "base"
    for name in ("tiny", "tiny-multilingual"):
        shutil.copytree(checkpoint_of(name).path, everything, dirs_exist_ok=True)
    opened = Checkpoint.open(make_pack(t3="t3_mine.safetensors"), everything)
    assert (opened.family.name, opened.family.language) == ("multilingual-v3", "en")
    assert opened.s3gen_file.name == "s3gen.pt"


@pytest.mark.parametrize("name", ["t3_cfg.safetensors", "t3_flash.safetensors"])
def test_flash_is_flash_whatever_its_file_is_called(name: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_of("tiny-flash").path, tmp_path / "flash"))
    (folder / "t3_flash.safetensors").rename(folder / name)
    lines: list[str] = []
    opened = open_checkpoint(Config(checkpoint=str(folder)), lines.append)
    assert not lines, "there is nothing else to choose"
    assert (opened.family.name, opened.family.files.t3) == ("flash", name)
    with pytest.raises(CheckpointError, match=rf"{name} is a T3 of Chatterbox Flash"):
        Checkpoint.open(folder, family="english")


def test_a_folder_with_v2_and_v3_says_which_is_served_and_how_to_choose(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint_of("tiny-multilingual").path, tmp_path / "both"))
    shutil.copy(folder / MULTILINGUAL_V3.files.t3, folder / MULTILINGUAL_V2.files.t3)
    shutil.copy(folder / "s3gen.pt", folder / "s3gen_v3.pt")
    lines: list[str] = []
    assert open_checkpoint(Config(checkpoint=str(folder)), lines.append).family == MULTILINGUAL_V3
    assert lines == [
        "t3_mtl23ls_v3.safetensors is served; CHATTERBOX_FAMILY=multilingual-v2 takes t3_mtl23ls_v2.safetensors",
        "s3gen.pt is S3Gen; CHATTERBOX_VOCODER=s3gen_v3.pt takes that",
    ]
    config = Config(checkpoint=str(folder), family="multilingual-v2", vocoder="s3gen_v3.pt")
    chosen = open_checkpoint(config)
    assert chosen.family.name == "multilingual-v2"
    assert chosen.s3gen_file == folder / "s3gen_v3.pt"
    with pytest.raises(CheckpointError, match=r"both: has no s3gen_v9\.pt, which CHATTERBOX_VOCODER names"):
        open_checkpoint(Config(checkpoint=str(folder), vocoder="s3gen_v9.pt"))


@pytest.mark.parametrize("repository", PACKS)
def test_what_the_repository_of_a_pack_lacks_comes_from_the_main_one(
    repository: str, make_pack: MakePack, checkpoint_of: CheckpointOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"s3gen_v3.pt", "s3gen_v3.safetensors", TOKENIZER}
    t3 = f"t3_{repository.removeprefix('ResembleAI/Chatterbox-Multilingual-').replace('-', '_')}.safetensors"
    base = checkpoint_of("tiny-multilingual").path
    hubs = {
        repository: FakeHub(make_pack("s3gen_v3.pt", TOKENIZER, t3=t3), [t3, *names]),
        PACK_BASE: FakeHub(base, [*(path.name for path in base.iterdir()), "t3_cfg.safetensors", "Cangjie5_TC.json"]),
    }
    monkeypatch.setattr(
        "chatterbox_engine.checkpoint.checkpoint.snapshot_download",
        lambda name, **options: hubs[name](name, **options),
    )
    opened = open_checkpoint(Config(checkpoint=repository))
    assert (opened.family.language, opened.base) == (repository.split("-")[2], base)
    assert set(hubs[repository].fetched) == {t3, "s3gen_v3.pt", TOKENIZER}
    assert set(hubs[PACK_BASE].fetched) == {"ve.pt", "conds.pt", "config.json", "Cangjie5_TC.json"}


def test_the_vocoder_of_another_checkpoint_replaces_all_of_s3gen(tiny: Checkpoint, checkpoint_of: CheckpointOf) -> None:
    turbo = checkpoint_of("tiny-turbo")
    mixed = open_checkpoint(Config(checkpoint=str(tiny.path), vocoder=str(turbo.path)))
    assert mixed.family == replace(tiny.family, files=replace(tiny.family.files, s3gen=""))
    assert (mixed.dims.t3, mixed.dims.s3gen.meanflow) == (tiny.dims.t3, True)
    assert torch.equal(weight(mixed), weight(turbo))
    assert describe_files(mixed) == f"t3_cfg.safetensors, {turbo.path / TURBO.files.s3gen} (MeanFlow)"
    assert mixed.identity not in (tiny.identity, turbo.identity)
    assert torch.equal(mixed.t3_state()["text_emb.weight"], tiny.t3_state()["text_emb.weight"])


def test_with_the_vocoder_of_another_checkpoint_none_of_its_own_is_needed(
    make_pack: MakePack, checkpoint_of: CheckpointOf
) -> None:
    turbo = checkpoint_of("tiny-turbo")
    pack = make_pack(TOKENIZER, *REST)
    lines: list[str] = []
    opened = open_checkpoint(Config(checkpoint=str(pack), vocoder=str(turbo.path)), lines.append)
    assert (opened.family.language, opened.s3gen_file) == ("pt", turbo.s3gen_file)
    (pack / "s3gen.pt").symlink_to(checkpoint_of("tiny-multilingual").s3gen_file)
    (pack / "s3gen_v3.pt").symlink_to(checkpoint_of("tiny-multilingual").s3gen_file)
    assert (
        open_checkpoint(Config(checkpoint=str(pack), vocoder=str(turbo.path)), lines.append).identity == opened.identity
    )
    assert not lines, "neither is used"


def test_of_a_repository_no_s3gen_is_fetched_beside_a_chosen_vocoder(
    make_pack: MakePack, checkpoint_of: CheckpointOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(make_pack(TOKENIZER, *REST), [T3, TOKENIZER, "s3gen_v3.pt", *REST])
    monkeypatch.setattr("chatterbox_engine.checkpoint.checkpoint.snapshot_download", hub)
    vocoder = checkpoint_of("tiny-turbo").s3gen_file
    opened = open_checkpoint(Config(checkpoint="owner/pack", vocoder=str(vocoder)))
    assert opened.s3gen_file == vocoder
    assert set(hub.fetched) == {T3, TOKENIZER, *REST}


def test_a_folder_whose_own_s3gen_is_meanflow_is_known_by_its_tensors(
    tiny: Checkpoint, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny.path, tmp_path / "mixed"))
    shutil.copy(checkpoint_of("tiny-turbo").file(TURBO.files.s3gen), folder / "s3gen.safetensors")
    assert Checkpoint.open(folder).dims.s3gen.meanflow


def test_a_vocoder_is_a_file_a_folder_or_a_repository(
    checkpoint_of: CheckpointOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turbo = checkpoint_of("tiny-turbo")
    file = turbo.path / TURBO.files.s3gen
    assert locate_vocoder(str(file)) == locate_vocoder(str(turbo.path)) == file
    hub = FakeHub(turbo.path, [*TURBO.files.all, "s3gen.pt"])
    monkeypatch.setattr("chatterbox_engine.checkpoint.checkpoint.snapshot_download", hub)
    assert locate_vocoder("ResembleAI/chatterbox-turbo") == file
    assert hub.fetched == [TURBO.files.s3gen]
    assert locate_vocoder("ResembleAI/chatterbox/s3gen.pt") == turbo.path / "s3gen.pt"
    assert hub.fetched == ["s3gen.pt"]
    with pytest.raises(CheckpointError, match=r"ResembleAI/chatterbox: has no s3gen_v9\.pt"):
        locate_vocoder("ResembleAI/chatterbox/s3gen_v9.pt")
    with pytest.raises(CheckpointError, match=r"has no s3gen\.safetensors, nor S3Gen under another official name"):
        locate_vocoder(str(tmp_path))
    with pytest.raises(CheckpointError, match="no such folder"):
        locate_vocoder("/no/such/folder/s3gen.pt")


def test_a_vocoder_of_other_sizes_than_stated_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    shutil.copy(tiny.s3gen_file, tmp_path / "s3gen.safetensors")  # without the config.json that states its sizes
    with pytest.raises(CheckpointError, match=r"s3gen\.safetensors: .*and \d+ more"):
        open_checkpoint(Config(checkpoint=str(tiny.path), vocoder=str(tmp_path)))
