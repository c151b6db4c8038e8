"""The model `chatterbox_voices` without Triton."""

from __future__ import annotations

import subprocess
import sys

CODE = "import sys, chatterbox_engine.serving.voice_admin; print(sorted({'torch', 'librosa'} & set(sys.modules)))"


def test_it_needs_neither_torch_nor_the_encoders() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
