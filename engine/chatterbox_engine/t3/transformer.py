"""T3's interface to the rest of the engine: what both backbones do, and how their weights are loaded."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from chatterbox_engine.checkpoint.dims import T3Dims
from chatterbox_engine.errors import CheckpointError
from chatterbox_engine.kernels.linear import Projection
from chatterbox_engine.kernels.pages import in_large_pages
from chatterbox_engine.t3.attention import Context
from chatterbox_engine.t3.extents import round_up
from chatterbox_engine.t3.kv_cache import KVCache
from chatterbox_engine.types import Head, T3Conditionals

T = TypeVar("T", bound="Transformer")


class Queries(NamedTuple):
    """Named heads, and where a decode step keeps their queries: [rows, heads, head_dim], without RoPE."""

    heads: tuple[Head, ...]
    kept: Tensor

    def keep(self, layer: int, qkv: Tensor) -> None:
        """Copies those of a layer. qkv: [rows, 3, heads, head_dim]."""
        for number, (own, head) in enumerate(self.heads):
            if own == layer:
                self.kept[:, number] = qkv[:, 0, head]


class Block(nn.Module, abc.ABC):
    """A decoder block: its weights, and the four products that they are used in."""

    attention_in: Projection
    """Norm, then query, key and value."""
    attention_out: Projection
    mlp_in: Projection
    """Norm, first matrix, activation."""
    mlp_out: Projection

    @abc.abstractmethod
    def prepare(self) -> None:
        """Makes the products of the weights; again after these were replaced."""

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Everything after the attention.

        x: the block's input, [..., hidden], overwritten in a decode step; mixed: the heads' results, [..., heads *
        head_dim]. Returns the block's output, [..., hidden].
        """
        x = self.attention_out(mixed, x)
        return self.mlp_out(self.mlp_in(x), x)


class Transformer(nn.Module, abc.ABC):
    """Text to the logits of speech tokens: weights and mathematics, no state of any request.

    Build with `from_state_dict`. Keys and values go to the pool of `kv_cache`; here they are only addressed.
    """

    dims: T3Dims
    blocks: nn.ModuleList
    head: nn.Parameter  # [speech_vocab, hidden]
    logits: Projection
    """Norm, then the head."""

    rotation: Tensor | None
    """[dims.longest, 2, head_dim / 2], cosines and sines of RoPE, where the model has it."""

    matrices: ClassVar[tuple[str, ...]]
    """Names of the blocks' matrices."""

    float32: ClassVar[tuple[str, ...]]
    """Prefixes of our names of the conditioning's weights, which stay float32: it runs once per voice and its error
    would reach every token. All others get the requested dtype."""

    @classmethod
    def from_state_dict(
        cls: type[T], state: Mapping[str, Tensor], dims: T3Dims, *, device: torch.device, dtype: torch.dtype
    ) -> T:
        """Loads the names of an official T3 file strictly.

        Raises CheckpointError naming missing, surplus or misshapen entries.
        """
        with torch.device("meta"):
            model = cls(dims)
        ours = model.renamed(state)
        _check(ours, model)
        for name, tensor in ours.items():
            own = torch.float32 if name.startswith(cls.float32) else dtype
            ours[name] = in_large_pages(tensor, own) if device.type == "cpu" else tensor.to(device, own)
        model.load_state_dict(ours, assign=True)
        model.requires_grad_(False)
        model.prepare()
        return model.eval()

    @abc.abstractmethod
    def __init__(self, dims: T3Dims) -> None:
        super().__init__()

    @abc.abstractmethod
    def renamed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An official state dict with our names and layout."""

    def prepare(self) -> None:
        """Makes what is computed from the weights alone, once they are there."""
        for block in self.layers:
            block.prepare()

    @property
    def layers(self) -> Iterator[Block]:
        """The blocks in their order."""
        return (block for block in self.blocks if isinstance(block, Block))

    def qkv(self, block: Block, x: Tensor) -> Tensor:
        """Query, key and value of a block's input, without RoPE: [..., 3, heads, head_dim]."""
        return block.attention_in(x).view(*x.shape[:-1], 3, self.dims.heads, self.dims.head_dim)

    @property
    def device(self) -> torch.device:
        return self.head.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.dtype

    @property
    def stream_dtype(self) -> torch.dtype:
        """Type of the residual sums, which a block's input and output are: float32 beside float16 weights, since
        trained networks of this kind have single activations beyond float16's 65,504."""
        return torch.float32 if self.dtype == torch.float16 else self.dtype

    @torch.inference_mode()
    def prefix(self, voice: T3Conditionals, exaggeration: float) -> Tensor:
        """Keys and values of the positions before the text, which depend on voice and exaggeration alone, for every
        row: [layers, 2, n, heads, head_dim], n at most dims.prefix. Computed by itself, so that they have the same bits
        for every request."""
        x = self.conditioning(voice, exaggeration)
        length = len(x)
        cache = KVCache(self.dims, round_up(length), device=self.device, dtype=self.dtype)
        start = torch.zeros(1, dtype=torch.int64, device=self.device)
        context = Context.of(cache, start, start, start + (length - 1), length=length, reach=length)
        self.prefill(x[None], context, cache)
        return cache.data[:, :, :length].clone()

    def prefix_of_row(self, prefix: Tensor, row: int) -> Tensor:  # noqa: ARG002
        """A row's part of `prefix`: the unconditional row (1) has the same."""
        return prefix

    @abc.abstractmethod
    def conditioning(self, voice: T3Conditionals, exaggeration: float) -> Tensor:
        """Embeds what depends on voice and exaggeration alone: [at most dims.prefix, hidden], `stream_dtype`."""

    @abc.abstractmethod
    def prompt(self, text: Tensor) -> Tensor:
        """Embeds text and BOS: [rows, n + dims.bos, hidden], the conditional row first, then an unconditional one if
        the model is guided, in `stream_dtype`. text: [n] int64 as `dims.frame` gives it."""

    @abc.abstractmethod
    def prefill(self, x: Tensor, context: Context, cache: KVCache) -> Tensor:
        """Runs inputs that follow what their rows hold already and stores their keys and values; logits of each row's
        last input.

        x: [rows, length, hidden], rows shorter than `length` padded at the right. Returns [rows, speech_vocab] in the
        compute dtype.
        """

    @abc.abstractmethod
    def decode(
        self,
        token: Tensor,
        speech_position: Tensor,
        start: Tensor,
        position: Tensor,
        cache: KVCache,
        queries: Queries | None = None,
    ) -> Tensor:
        """One step for every row; all arguments [rows] int64. Returns logits [rows, speech_vocab].

        `speech_position` counts the row's speech tokens, `position` the whole sequence, `start` is the row's extent in
        the pool; `queries` takes those of its heads.
        """


def rename(
    state: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]], unused: frozenset[str]
) -> dict[str, Tensor]:
    """Official tensors with our names; several of one name are concatenated along their first dimension.

    unused: official names that may be there and are left out. Raises CheckpointError for missing and surplus ones.
    """
    known = {official for officials in names.values() for official in officials}
    missing = sorted(known - set(state))
    surplus = sorted(set(state) - known - unused)
    if missing or surplus:
        raise CheckpointError(f"T3 weights: missing {_some(missing)}; not expected {_some(surplus)}")
    return {
        name: torch.cat([state[official] for official in officials]) if len(officials) > 1 else state[officials[0]]
        for name, officials in names.items()
    }


def _check(ours: Mapping[str, Tensor], model: nn.Module) -> None:
    wrong = [
        f"{name} is {list(ours[name].shape)}, not {list(parameter.shape)}"
        for name, parameter in model.named_parameters()
        if ours[name].shape != parameter.shape
    ]
    if wrong:
        raise CheckpointError(f"T3 weights: {_some(wrong)}")


def _some(names: list[str]) -> str:
    """The first few of a list, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
