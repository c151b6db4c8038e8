"""Runs a Triton Inference Server on this machine and leaves nothing behind. Needs no torch.

with TritonServer(ServerOptions(environment={"CHATTERBOX_CHECKPOINT": "tiny"})) as server:
    print(server.http_url)
"""

from chatterbox_engine.launcher.options import ServerOptions
from chatterbox_engine.launcher.server import ServerFailed, TritonServer

__all__ = ["ServerFailed", "ServerOptions", "TritonServer"]
