"""Computed conditionals to bytes (safetensors) for the store, and back."""

from __future__ import annotations

import safetensors.torch
import torch

from chatterbox_engine.types import Conditionals, S3GenConditionals, T3Conditionals


def to_bytes(voice: Conditionals) -> bytes:
    """As safetensors, named as the fields are."""
    tensors = {
        "t3.speaker": voice.t3.speaker,
        "t3.prompt_tokens": voice.t3.prompt_tokens,
        "s3gen.prompt_tokens": voice.s3gen.prompt_tokens,
        "s3gen.prompt_mel": voice.s3gen.prompt_mel,
        "s3gen.embedding": voice.s3gen.embedding,
        "exaggeration": torch.tensor(voice.exaggeration),
    }
    data: bytes = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return data


def from_bytes(data: bytes) -> Conditionals:
    """What `to_bytes` wrote. Raises SafetensorError or KeyError for anything else."""
    tensors = safetensors.torch.load(data)
    return Conditionals(
        t3=T3Conditionals(tensors["t3.speaker"], tensors["t3.prompt_tokens"]),
        s3gen=S3GenConditionals(
            tensors["s3gen.prompt_tokens"], tensors["s3gen.prompt_mel"], tensors["s3gen.embedding"]
        ),
        exaggeration=float(tensors["exaggeration"]),
    )


def size_of(voice: Conditionals) -> int:
    """Bytes of all tensors."""
    parts = (voice.t3.speaker, voice.t3.prompt_tokens, voice.s3gen.prompt_tokens, voice.s3gen.prompt_mel)
    return sum(tensor.nbytes for tensor in (*parts, voice.s3gen.embedding))
