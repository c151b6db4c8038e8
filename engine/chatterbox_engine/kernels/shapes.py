"""What `linear` and the kernels it chooses from share: activations, and the sizes that decide which kernel fits."""

from __future__ import annotations

from typing import Literal

Activation = Literal["none", "gelu", "swiglu"]
"""What follows a product: GELU in its tanh form, or SwiGLU (arXiv 2002.05202), SiLU of the first half of the outputs
times the second half."""

CPU_GRAIN = 16
"""Inputs of a matrix must be a multiple of this for the CPU kernel: the largest vector it uses."""

FEW_ROWS = 16
"""Maximum number of rows for the fused kernels on a GPU, whose weights have two bytes: the smallest tile of its matrix
instructions."""

SHIFT_ROWS = 1
"""Rows of that tile that hold the LayerNorm shift."""
