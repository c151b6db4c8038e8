"""The model `chatterbox_voices` without Triton."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chatterbox_engine.config import Config
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.voice_admin import VoiceAdmin
from tests.clips import encoded, tone

CODE = "import sys, chatterbox_engine.voice_admin; print(sorted({'torch', 'librosa'} & set(sys.modules)))"


def test_it_needs_neither_torch_nor_the_encoders() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", [".", "..", "....", "", "a b", "x" * 65, "default"])
def test_a_name_that_no_voice_may_have_is_refused(tmp_path: Path, name: str) -> None:
    admin = VoiceAdmin.of(Config(voice_store=str(tmp_path / "voices.sqlite")))
    inputs = {"action": b"add", "voice": name.encode(), "audio": encoded(tone(1.0))}
    tensors = {key: np.array([[value]], dtype=np.object_) for key, value in inputs.items()}
    with pytest.raises(InvalidRequest, match="voice is"):
        admin.handle(tensors)
    admin.close()
