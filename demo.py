"""`make demo`: a real server, one sentence over HTTP and one over gRPC, two WAV files."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from chatterbox_client import Client
from chatterbox_engine.errors import ChatterboxError
from chatterbox_engine.launcher.server import ServerOptions, TritonServer

LINES = {
    "http": "Hello! This sentence came over HTTP, from a real Triton server.",
    "grpc": "And this one came over gRPC, while the server kept its batch open for more.",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="tiny", help="folder, Hugging Face id, or tiny")
    parser.add_argument("--out", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / "demo-server.log"
    options = ServerOptions(environment={"CHATTERBOX_CHECKPOINT": arguments.checkpoint}, log=log)
    print(f"demo: starting a Triton server with the checkpoint {arguments.checkpoint!r}; its log is {log}")
    try:
        with TritonServer(options) as server:
            urls = {"http": server.http_url, "grpc": server.grpc_url}
            for protocol, line in LINES.items():
                speak(protocol, urls[protocol], line, arguments.out / f"demo-{protocol}.wav")
    except ChatterboxError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print("demo: the server is stopped")
    if arguments.checkpoint == "tiny":
        print("demo: 'tiny' has random weights, so the files hold noise of the right shape, not speech.")
        print("demo: for speech: make demo CHECKPOINT=ResembleAI/chatterbox")
    return 0


def speak(protocol: str, url: str, line: str, path: Path) -> None:
    """Speaks a line over one protocol into a file and prints what it took."""
    with contextlib.closing(Client(url, protocol)) as client:
        audio = client.speak(line, seed=1)
    audio.save(path)
    print(
        f"demo: {protocol}: {audio.duration:.2f} s of audio in {audio.stats['total_ms'] / 1000:.2f} s, "
        f"RTF {audio.rtf:.3f} -> {path}"
    )


if __name__ == "__main__":
    sys.exit(main())
