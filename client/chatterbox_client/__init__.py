"""Client of a chatterbox-triton server.

from chatterbox_client import Client

with Client("localhost:8000") as client:
    client.speak("Hello there.").save("hello.wav")
"""

from chatterbox_client.audio import Audio, Chunk, Word, concatenate
from chatterbox_client.client import AsyncClient, Client
from chatterbox_client.errors import (
    ChatterboxClientError,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    ServerError,
    Timeout,
    Unavailable,
)
from chatterbox_client.transports import AsyncTransport, Transport
from chatterbox_client.voices import Lexicons, VoiceInfo

__all__ = [
    "AsyncClient",
    "AsyncTransport",
    "Audio",
    "ChatterboxClientError",
    "Chunk",
    "Client",
    "ConnectionFailed",
    "InvalidRequest",
    "Lexicons",
    "NotFound",
    "ServerError",
    "Timeout",
    "Transport",
    "Unavailable",
    "VoiceInfo",
    "Word",
    "concatenate",
]
