"""Booleans at one bit each: torch keeps a bool in a byte."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["pack_bits", "unpack_bits"]


def pack_bits(mask: Tensor) -> Tensor:
    """A bool tensor of any shape as uint8 of length ceil(n / 8).

    Element i in row-major order is bit i mod 8, the lowest first, of byte i div 8; spare bits are 0.

    Raises:
        TypeError: `mask` is not bool.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: got {mask.dtype}, want torch.bool")
    flat = mask.reshape(-1)
    flat = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8))
    # Each byte has one bit, so the sum of eight never carries.
    return (flat.view(-1, 8) << _shifts(mask.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The bool tensor of `shape` that `pack_bits` packed.

    Raises:
        TypeError: `packed` is not uint8.
        ValueError: its length is not ceil(n / 8) for the n elements of `shape`.
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed: got {packed.dtype}, want torch.uint8")
    n = math.prod(shape)
    if packed.dim() != 1 or packed.numel() != -(-n // 8):
        raise ValueError(f"packed: got shape {tuple(packed.shape)}, want ({-(-n // 8)},) for {n} bits")
    bits = (packed[:, None] >> _shifts(packed.device)) & 1
    return bits.reshape(-1)[:n].to(torch.bool).reshape(tuple(shape))


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
