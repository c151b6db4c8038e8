"""What `linear` and the kernels it chooses from share: activations, and the sizes that decide which kernel fits."""

from __future__ import annotations

from typing import Literal

import torch

Activation = Literal["none", "gelu", "swiglu"]
"""What follows a product: GELU in its tanh form, or SwiGLU (arXiv 2002.05202), SiLU of the first half of the outputs
times the second half."""

CPU_GRAIN = {torch.float32: 16, torch.bfloat16: 16, torch.float16: 32}
"""Inputs of a matrix must be a multiple of this for the CPU kernel: the largest vector it uses."""

ATTENTION_GRAIN = 32
"""The same for the numbers of a head in an attention in float16."""

FEW_ROWS = 16
"""Maximum number of rows for the fused kernels on a GPU, whose weights have two bytes: the smallest tile of its matrix
instructions."""

SHIFT_ROWS = 1
"""Rows of that tile that hold the LayerNorm shift."""
