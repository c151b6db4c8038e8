"""The model `chatterbox_voices` without Triton."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatterbox_engine.config import Config
from chatterbox_engine.errors import Forbidden, InvalidRequest, NotFound, RequestError
from chatterbox_engine.serving.voice_admin import VoiceAdmin
from tests.clips import encoded, tone

CODE = "import sys, chatterbox_engine.serving.voice_admin; print(sorted({'torch', 'librosa'} & set(sys.modules)))"


def test_it_needs_neither_torch_nor_the_encoders() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_it_lists_the_lexicons_of_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "lexicon.yaml").write_text("words: {Nguyen: win}\nvoices: {anna: {York: yoark}}\n")
    config = Config(voice_store=str(tmp_path / "voices.sqlite"), lexicon_file=str(tmp_path / "lexicon.yaml"))
    admin = VoiceAdmin.of(config)
    listed = json.loads(admin.handle(tensors(action=b"lexicons"))["result"].item())
    admin.close()
    assert listed == {"words": {"Nguyen": "win"}, "voices": {"anna": {"York": "yoark"}}, "error": None}


def tensors(**values: bytes) -> dict[str, Any]:
    return {name: np.array([[value]], dtype=np.object_) for name, value in values.items()}


@pytest.fixture(params=["none", "setting", "file"])
def admin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VoiceAdmin]:
    """With an empty store, and the key "secret" from each place where it may stand."""
    (tmp_path / "key").write_text("secret\n")
    key = {"none": {}, "setting": {"voice_key": "secret"}, "file": {"voice_key_file": str(tmp_path / "key")}}
    admin = VoiceAdmin.of(Config(voice_store=str(tmp_path / "voices.sqlite"), **key[request.param]))
    yield admin
    admin.close()


CHANGES = [{"action": b"add", "voice": b"anna", "audio": encoded(tone(1.0))}, {"action": b"delete", "voice": b"anna"}]


@pytest.mark.parametrize("admin", ["none"], indirect=True)
def test_without_a_key_in_the_settings_nobody_changes_voices(admin: VoiceAdmin) -> None:
    assert admin.handle(tensors(action=b"list"))["result"].item() == b"[]"
    for change in CHANGES:
        for key in ({}, {"key": b""}, {"key": b"secret"}):
            with pytest.raises(Forbidden, match="CHATTERBOX_VOICE_KEY is not set"):
                admin.handle(tensors(**change, **key))
    assert admin.handle(tensors(action=b"list"))["result"].item() == b"[]"


@pytest.mark.parametrize("admin", ["setting", "file"], indirect=True)
def test_changes_need_the_key_and_looking_does_not(admin: VoiceAdmin) -> None:
    for change in CHANGES:
        with pytest.raises(Forbidden, match="as the input 'key'"):
            admin.handle(tensors(**change))
        for wrong in (b"", b"secre", b"secret ", b"\xff"):
            with pytest.raises(Forbidden, match="the key is wrong"):
                admin.handle(tensors(**change, key=wrong))
        admin.handle(tensors(**change, key=b"secret"))
    with pytest.raises(NotFound):
        admin.handle(tensors(action=b"get", voice=b"anna"))
    with pytest.raises(RequestError, match="must hold one value"):
        admin.handle(tensors(**CHANGES[1]) | {"key": np.array([[b"secret", b"secret"]], dtype=np.object_)})


@pytest.mark.parametrize("name", [".", "..", "....", "", "a b", "x" * 65, "default"])
def test_a_name_that_no_voice_may_have_is_refused(tmp_path: Path, name: str) -> None:
    admin = VoiceAdmin.of(Config(voice_store=str(tmp_path / "voices.sqlite"), voice_key="secret"))
    with pytest.raises(InvalidRequest, match="voice is"):
        admin.handle(tensors(action=b"add", voice=name.encode(), audio=encoded(tone(1.0)), key=b"secret"))
    admin.close()
