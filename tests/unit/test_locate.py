"""Where a checkpoint is: a folder, one made at the start, or a repository of the hub that is fetched or was before."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chatterbox_engine.assemble import open_checkpoint
from chatterbox_engine.checkpoint.checkpoint import Checkpoint, locate
from chatterbox_engine.checkpoint.dims import Dims
from chatterbox_engine.checkpoint.families import ENGLISH, FLASH, MULTILINGUAL_V2, MULTILINGUAL_V3, NANO, TURBO, Family
from chatterbox_engine.config import Config
from chatterbox_engine.errors import CheckpointError
from tests.conftest import CheckpointOf
from tests.hub import Hub

T3_FILE = "t3_cfg.safetensors"
S3GEN_FILE = "s3gen.safetensors"


def test_a_folder_is_its_own_location(tiny_path: Path) -> None:
    assert locate(str(tiny_path)) == tiny_path


def test_tiny_is_made_once_and_nothing_else_is_left_in_the_cache(tmp_path: Path) -> None:
    folder = locate("tiny", cache_dir=tmp_path)
    written = (folder / T3_FILE).stat().st_mtime_ns
    assert locate("tiny", cache_dir=tmp_path) == folder
    assert (folder / T3_FILE).stat().st_mtime_ns == written
    assert list(tmp_path.iterdir()) == [folder]
    assert Checkpoint.open(folder).dims != Dims()


def test_the_cache_folder_can_be_set_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATTERBOX_CACHE", str(tmp_path / "cache"))
    assert locate("tiny").parent == tmp_path / "cache"


def test_a_cache_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be made"):
        locate("tiny", cache_dir=tmp_path / "file")


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "./none", "a/b/c", "~/none"])
def test_a_name_that_is_neither_a_folder_nor_a_repository_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        locate(name)


LOCATE = """
import sys
from chatterbox_engine.checkpoint.checkpoint import locate
from chatterbox_engine.errors import CheckpointError
for name in sys.argv[1:]:
    try:
        print(locate(name))
    except CheckpointError as error:
        print(error)
"""


def locate_offline(home: Path, *names: str) -> list[str]:
    """Where repositories are, or why not, in a process of its own: the hub's library reads its settings when
    imported."""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    command = [sys.executable, "-c", LOCATE, *names]
    return subprocess.run(command, env=offline, capture_output=True, text=True, check=True).stdout.splitlines()


class FakeHub:
    """Stands for `snapshot_download`; keeps what it was asked for."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names = folder, names
        self.fetched: list[str] = []
        self.revisions: list[str | None] = []

    def __call__(
        self,
        _name: str,
        *,
        revision: str | None,
        dry_run: bool = False,
        allow_patterns: list[str] | None = None,
        tqdm_class: type | None = None,
    ) -> str | list[SimpleNamespace]:
        self.revisions.append(revision)
        if dry_run:
            return [SimpleNamespace(filename=name) for name in self.names]
        self.fetched = allow_patterns or []
        return str(self.folder)


OFFICIAL = {
    "chatterbox": sorted(
        {*ENGLISH.files.required, *MULTILINGUAL_V2.files.all, *MULTILINGUAL_V3.files.all, "README.md"}
    ),
    "chatterbox-turbo": [*TURBO.files.all, "README.md"],
    "chatterbox-nano": [*NANO.files.all, "README.md"],
    "chatterbox-flash": [*FLASH.files.required, "README.md"],
}


@pytest.mark.parametrize(
    ("repository", "family", "expected"),
    [
        ("chatterbox", "auto", ENGLISH),
        ("chatterbox", "multilingual-v3", MULTILINGUAL_V3),
        ("chatterbox", "multilingual-v2", MULTILINGUAL_V2),
        ("chatterbox-turbo", "auto", TURBO),
        ("chatterbox-nano", "auto", NANO),
        ("chatterbox-flash", "auto", FLASH),
    ],
)
def test_of_a_repository_the_files_of_one_family_are_fetched_at_the_pinned_revision(
    repository: str, family: str, expected: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path, OFFICIAL[repository])
    monkeypatch.setattr("chatterbox_engine.checkpoint.checkpoint.snapshot_download", hub)
    assert locate(f"ResembleAI/{repository}", revision="v1", family=family) == tmp_path
    assert set(hub.fetched) == set(expected.files.all) & set(OFFICIAL[repository])
    assert set(hub.revisions) == {"v1"}


def test_a_repository_that_lacks_files_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path, ["t3_turbo_v1.safetensors", "ve.safetensors", "vocab.json", "merges.txt"])
    monkeypatch.setattr("chatterbox_engine.checkpoint.checkpoint.snapshot_download", hub)
    with pytest.raises(
        CheckpointError,
        match=r"Turbo it is missing s3gen_meanflow\.safetensors, tokenizer_config\.json; CHATTERBOX_BASE names",
    ):
        locate("owner/name")
    assert hub.fetched == []
    assert locate("owner/name", beside=TURBO.files.required) == tmp_path
    assert sorted(hub.fetched) == sorted(hub.names)


def test_a_download_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(FakeHub):
        def __call__(self, _name: str, *, tqdm_class: Any = None, **options: Any) -> str | list[SimpleNamespace]:
            if tqdm_class is not None:
                files, sizes = tqdm_class(total=2, desc="Fetching"), tqdm_class(total=0, unit="B", unit_scale=True)
                sizes.total = 3_000_000_000
                for _ in range(2):
                    sizes.update(1_500_000_000)
                    sizes.refresh()
                    files.update()
            return super().__call__(_name, **options)

    lines: list[str] = []
    hub = Slow(tmp_path, list(TURBO.files.all))
    monkeypatch.setattr("chatterbox_engine.checkpoint.checkpoint.snapshot_download", hub)
    locate("owner/name", report=lines.append, every=0.0)
    assert lines[0].startswith("owner/name: fetching what is not here yet of t3_turbo_v1.safetensors, ")
    assert list(dict.fromkeys(lines[1:])) == [f"owner/name: {done} of 3000 MB are here" for done in (1500, 3000)]
    lines.clear()
    locate("owner/name", report=lines.append, every=60.0)
    assert len(lines) == 1


@pytest.mark.full
def test_an_interrupted_download_goes_on_where_it_stopped(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of("tiny-turbo")
    locating = "locate('owner/name', revision='v1', every=0)"
    program = f"from chatterbox_engine.checkpoint.checkpoint import locate; print({locating})"
    with Hub(source.path, broken={TURBO.files.s3gen}).running() as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert Checkpoint.open(Path(done.stdout.strip())).identity == source.identity
    assert hub.revisions == {"v1"}
    # in pieces of 10 MB
    start = int(hub.ranges[TURBO.files.s3gen].removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= source.file(TURBO.files.s3gen).stat().st_size // 2


def downloaded(hub: Path, name: str, files: Sequence[str]) -> Path:
    """A snapshot of `owner/name` in the hub's cache."""
    home = hub / f"models--owner--{name}"
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(snapshot.name)
    for file in files:
        (snapshot / file).touch()
    return snapshot


def test_offline_what_was_downloaded_is_used_and_what_was_not_is_an_error(tmp_path: Path) -> None:
    whole = downloaded(tmp_path / "hub", "whole", TURBO.files.required)
    downloaded(tmp_path / "hub", "partial", [name for name in TURBO.files.required if name != TURBO.files.t3])
    absent, partial, found = locate_offline(tmp_path, "owner/absent", "owner/partial", "owner/whole")
    assert absent.startswith("owner/absent: not downloaded yet")
    assert "as Chatterbox Turbo it is missing t3_turbo_v1.safetensors" in partial
    assert found == str(whole)


def test_a_base_of_the_hub_is_fetched_as_the_family_of_the_tuned_t3(
    checkpoint_of: CheckpointOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = checkpoint_of("tiny-multilingual").path
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    shutil.copy(base / MULTILINGUAL_V3.files.t3, tuned)
    hub = FakeHub(base, OFFICIAL["chatterbox"])
    monkeypatch.setattr("chatterbox_engine.checkpoint.checkpoint.snapshot_download", hub)
    config = Config(checkpoint=str(tuned), base="ResembleAI/chatterbox", base_revision="v1")
    assert open_checkpoint(config).family == MULTILINGUAL_V3
    assert "s3gen.pt" in hub.fetched
    assert "s3gen.safetensors" not in hub.fetched
    assert set(hub.revisions) == {"v1"}
