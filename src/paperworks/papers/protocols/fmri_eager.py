"""SwiFT step by step, as its published code computes it: what the network here is compared with, in values and speed.

Channels first between stages, an additive mask that is computed anew in every stage of every forward pass, windows by
permuted copies, and a softmax of its own. Weights have the names of the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EagerSwiFT(nn.Module):
    """The backbone (B, C, H, W, D, T) -> (B, C', h, w, d, T) with the norm that it makes and never uses."""

    def __init__(
        self,
        img_size: Sequence[int] = (96, 96, 96, 20),
        embed_dim: int = 36,
        patch_size: Sequence[int] = (6, 6, 6, 1),
        window_size: Sequence[int] = (4, 4, 4, 4),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        last_layer_full_msa: bool = True,
    ) -> None:
        super().__init__()
        grid = [size // patch for size, patch in zip(img_size, patch_size, strict=True)]
        self.patch_embed = _Patches(patch_size, embed_dim)
        self.pos_embeds, self.layers = nn.ModuleList(), nn.ModuleList()
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            last = i + 1 == len(depths)
            whole = last and last_layer_full_msa
            window = (*grid[:3], window_size[3]) if whole else tuple(window_size)
            self.pos_embeds.append(_Positions(embed_dim, grid))
            self.layers.append(_Layer(embed_dim, depth, heads, window, shifted=not whole, merging=not last))
            if not last:
                embed_dim, grid = 2 * embed_dim, [*(size // 2 for size in grid[:3]), grid[3]]
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """The last stage's map."""
        x = self.patch_embed(x)
        for positions, layer in zip(self.pos_embeds, self.layers, strict=True):
            x = layer(positions(x))
        return x


class _Patches(nn.Module):
    def __init__(self, patch: Sequence[int], dim: int) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.fc = nn.Linear(prod(patch), dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *space = x.shape
        split = [part for size, p in zip(space, self.patch, strict=True) for part in (size // p, p)]
        x = x.view(batch, channels, *split).permute(0, 2, 4, 6, 8, 3, 5, 7, 9, 1).contiguous()
        return self.fc(x.flatten(5)).permute(0, 5, 1, 2, 3, 4)


class _Positions(nn.Module):
    def __init__(self, dim: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, dim, *grid[:3], 1))
        self.time_embed = nn.Parameter(torch.empty(1, dim, 1, 1, 1, grid[3]))
        for table in (self.pos_embed, self.time_embed):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pos_embed + self.time_embed[..., : x.shape[-1]]


class _Layer(nn.Module):
    def __init__(
        self, dim: int, depth: int, heads: int, window: Sequence[int], *, shifted: bool, merging: bool
    ) -> None:
        super().__init__()
        self.window = tuple(window)
        shift = tuple(w // 2 if shifted else 0 for w in window)
        self.blocks = nn.ModuleList(_Block(dim, heads, window, shift if i % 2 else (0, 0, 0, 0)) for i in range(depth))
        self.shift = shift
        self.downsample = _Merging(dim) if merging else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 4, 5, 1).contiguous()
        window, shift = _clamped(x.shape[1:5], self.window, self.shift)
        space = [-(-size // w) * w for size, w in zip(x.shape[1:5], window, strict=True)]
        mask = _mask(space, window, shift, x.device) if any(shift) else None
        for block in self.blocks:
            x = block(x, mask)
        if self.downsample is not None:
            x = self.downsample(x)
        return x.permute(0, 5, 1, 2, 3, 4).contiguous()


def _clamped(
    space: Sequence[int], window: Sequence[int], shift: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    fits = [size <= w for size, w in zip(space, window, strict=True)]
    return (
        tuple(size if fit else w for size, w, fit in zip(space, window, fits, strict=True)),
        tuple(0 if fit else s for s, fit in zip(shift, fits, strict=True)),
    )


def _mask(space: Sequence[int], window: Sequence[int], shift: Sequence[int], device: torch.device) -> Tensor:
    """0 inside a region and -100 between two, (windows, N, N)."""
    labels = torch.zeros(1, *space, 1, device=device)
    parts = [
        (slice(-w), slice(-w, -s), slice(-s, None)) if s else (slice(None),) for w, s in zip(window, shift, strict=True)
    ]
    for number, region in enumerate(product(*parts)):
        labels[(slice(None), *region)] = number
    windows = _partition(labels, window).squeeze(-1)
    different = windows.unsqueeze(1) - windows.unsqueeze(2)
    return different.masked_fill(different != 0, -100.0)


def _partition(x: Tensor, window: Sequence[int]) -> Tensor:
    split = [part for size, w in zip(x.shape[1:5], window, strict=True) for part in (size // w, w)]
    x = x.view(x.shape[0], *split, x.shape[-1])
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6, 8, 9).contiguous().view(-1, prod(window), x.shape[-1])


def _reverse(x: Tensor, window: Sequence[int], space: Sequence[int]) -> Tensor:
    counts = [size // w for size, w in zip(space, window, strict=True)]
    x = x.view(-1, *counts, *window, x.shape[-1])
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4, 8, 9).contiguous().view(-1, *space, x.shape[-1])


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, n, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores.view(-1, len(mask), self.heads, n, n) + mask.unsqueeze(1)
            scores = scores.view(-1, self.heads, n, n)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, n, dim))


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(x)))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: Sequence[int], shift: Sequence[int]) -> None:
        super().__init__()
        self.window, self.shift = tuple(window), tuple(shift)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = _Attention(dim, heads), _Mlp(dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self._attend(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        window, shift = _clamped(x.shape[1:5], self.window, self.shift)
        space = x.shape[1:5]
        more = [-size % w for size, w in zip(space, window, strict=True)]
        x = F.pad(x, (0, 0, *(n for m in reversed(more) for n in (0, m))))
        whole = x.shape[1:5]
        if any(shift):
            x = torch.roll(x, [-s for s in shift], (1, 2, 3, 4))
        x = _reverse(self.attn(_partition(x, window), mask if any(shift) else None), window, whole)
        if any(shift):
            x = torch.roll(x, shift, (1, 2, 3, 4))
        return x[:, : space[0], : space[1], : space[2], : space[3]].contiguous()


class _Merging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction, self.norm = nn.Linear(8 * dim, 2 * dim, bias=False), nn.LayerNorm(8 * dim)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2, k::2] for i, j, k in product(range(2), repeat=3)]
        return self.reduction(self.norm(torch.cat(parts, -1)))
