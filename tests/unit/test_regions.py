"""The shared-memory regions of servers: whose they are, how large, and which are removed."""

from __future__ import annotations

import os
from pathlib import Path

from chatterbox_engine.launcher.regions import (
    hide_regions,
    new_prefix,
    region_bytes,
    remove_regions,
    remove_stale_regions,
)
from tests.unit.test_launcher import NO_PID, write


def test_regions_are_removed_by_prefix(tmp_path: Path) -> None:
    prefix, other = new_prefix(), new_prefix()
    write(tmp_path / f"{prefix}a", "12345")
    write(tmp_path / f"{other}b", "1")
    with (tmp_path / f"{prefix}a").open() as _, (tmp_path / f"{other}b").open() as _:
        assert region_bytes(prefix, os.getpid(), tmp_path) == 5
        remove_regions(prefix, tmp_path)
        assert region_bytes(prefix, os.getpid(), tmp_path) == 5, "no name, and all of its memory"
    assert region_bytes(prefix, os.getpid(), tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"{other}b"]


def test_a_region_keeps_its_name_until_a_model_has_it_open(tmp_path: Path) -> None:
    prefix, other = new_prefix(), new_prefix()
    ready, loading, foreign = (tmp_path / name for name in (f"{prefix}ready", f"{prefix}loading", f"{other}ready"))
    for path in (ready, loading, foreign):
        write(path, "12345")
    with ready.open() as _, foreign.open() as _:
        hide_regions(prefix, [NO_PID, os.getpid()], tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {loading.name, foreign.name}
        assert region_bytes(prefix, os.getpid(), tmp_path) == 5


def test_only_regions_whose_owner_ended_are_stale(tmp_path: Path) -> None:
    _, namespace, pid, start, _, _ = new_prefix().split("_")
    live = f"chatterbox_{namespace}_{pid}_{start}_0_x"
    other_container = f"chatterbox_{int(namespace) + 1}_{NO_PID}_1_0_x"
    dead = f"chatterbox_{namespace}_{NO_PID}_1_0_x"
    reused_pid = f"chatterbox_{namespace}_{pid}_{int(start) + 1}_0_x"
    for name in (live, other_container, dead, reused_pid, "chatterbox_unrelated", "other"):
        write(tmp_path / name)
    assert set(remove_stale_regions(tmp_path)) == {dead, reused_pid}
    assert {path.name for path in tmp_path.iterdir()} == {live, other_container, "chatterbox_unrelated", "other"}
