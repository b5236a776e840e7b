"""Cross-attention between two views of one object (Swin-X2S, arXiv 2501.05961; as in the authors' code)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CrossViewAttention"]

EPS = 1e-6


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float, **factory: Any) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(dim, dim, **factory)
        self.key = nn.Linear(dim, dim, **factory)
        self.value = nn.Linear(dim, dim, **factory)
        self.out = nn.Linear(dim, dim, **factory)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """W_o softmax(q k'^T / sqrt(d)) v', queries of `x`, keys and values of `other`, both (B, N, dim)."""
        dropout = self.dropout if self.training else 0.0
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in (self.query(x), self.key(other), self.value(other))
        )
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return F.dropout(self.out(found.transpose(1, 2).flatten(2)), dropout)


class _CrossBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float, residual: bool, **factory: Any) -> None:
        super().__init__()
        self.residual = residual
        self.attention_norm = nn.LayerNorm(dim, EPS, **factory)
        self.attn = _Attention(dim, num_heads, dropout, **factory)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Both views at once, from the same inputs."""
        x, y = self.attention_norm(a), self.attention_norm(b)
        to_a, to_b = self.attn(x, y), self.attn(y, x)
        return (a + to_a, b + to_b) if self.residual else (to_a, to_b)


class CrossViewAttention(nn.Module):
    """Each view asks the other: a <- W_o softmax(q_a k_b^T / sqrt(d)) v_b and b likewise, weights shared.

    Tokens are the voxels of a volume, through a 1x1x1 convolution, with learned positions that begin at zero. A layer
    is a layer norm and the attention, without a residual and without an MLP: what leaves it for one view is made of
    the other's values alone. A layer norm ends it.

    Args:
        dim, num_heads: channels and heads.
        num_layers: 0 leaves each view to itself.
        num_tokens: voxels of the volume.
        residual: add a layer's input to its output; the authors' code does not.
        drop_rate, attn_drop_rate: dropout of the tokens, and of attention and projection.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_layers: int,
        num_tokens: int,
        residual: bool = False,
        *,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim: got {dim}, wanted a multiple of num_heads={num_heads}")
        if num_layers < 0:
            raise ValueError(f"num_layers: got {num_layers}, wanted 0 or more")
        if num_tokens < 1:
            raise ValueError(f"num_tokens: got {num_tokens}, wanted at least 1")
        for name, rate in (("drop_rate", drop_rate), ("attn_drop_rate", attn_drop_rate)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name}: got {rate}, wanted 0 <= {name} < 1")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.patch_embeddings = nn.Conv3d(dim, dim, 1, **factory)
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_tokens, dim, **factory))
        self.dropout = nn.Dropout(drop_rate)
        self.layer = nn.ModuleList(
            _CrossBlock(dim, num_heads, attn_drop_rate, residual, **factory) for _ in range(num_layers)
        )
        self.encoder_norm = nn.LayerNorm(dim, EPS, **factory)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Two volumes (B, dim, *S) with S of `num_tokens` voxels -> the same shapes."""
        _, tokens, dim = self.position_embeddings.shape
        if a.shape != b.shape or a.dim() != 5 or a.shape[1] != dim or math.prod(a.shape[2:]) != tokens:
            wanted = f"two of (B, {dim}, X, Y, Z) with {tokens} voxels"
            raise ValueError(f"a, b: got the shapes {tuple(a.shape)} and {tuple(b.shape)}, wanted {wanted}")
        x, y = self._tokens(a), self._tokens(b)
        for layer in self.layer:
            x, y = layer(x, y)
        x, y = (self.encoder_norm(t).transpose(1, 2).reshape(a.shape) for t in (x, y))
        return x, y

    def _tokens(self, volume: Tensor) -> Tensor:
        return self.dropout(self.patch_embeddings(volume).flatten(2).transpose(1, 2) + self.position_embeddings)
