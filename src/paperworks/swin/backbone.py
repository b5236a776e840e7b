"""Swin backbones: patches, stages of window blocks, and merging between them; and a classifier on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from paperworks.swin.blocks import PatchEmbed, PatchMerging, WindowBlock
from paperworks.swin.windows import sizes

__all__ = ["SwinBackbone", "SwinClassifier", "SwinStage"]


class SwinStage(nn.Module):
    """Blocks at one resolution; every second one shifts by half a window.

    Args:
        dim, depth, num_heads, window: channels, number of blocks, heads, window on each axis.
        drop_path: one probability a block.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
        block: further options of `WindowBlock`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        window: Sequence[int],
        drop_path: Sequence[float] | None = None,
        checkpointing: bool = False,
        **block: Any,
    ) -> None:
        super().__init__()
        rates = [0.0] * depth if drop_path is None else list(drop_path)
        if len(rates) != depth:
            raise ValueError(f"drop_path: got {len(rates)} numbers, wanted one for each of {depth} blocks")
        window = sizes("window", window)
        half, none = tuple(w // 2 for w in window), (0,) * len(window)
        self.checkpointing = checkpointing
        self.blocks = nn.ModuleList(
            WindowBlock(dim, num_heads, window, half if i % 2 else none, drop_path=rate, **block)
            for i, rate in enumerate(rates)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, *space, C) -> the same shape."""
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class SwinBackbone(nn.Module):
    """A pyramid of feature maps from stages of shifted-window blocks, on 1 to 4 spatial axes.

    Args:
        ndim, in_chans, patch: axes, channels and patch of the input.
        dim, depths, num_heads: channels of the first stage, doubled by each merging; blocks and heads of every stage.
        window: size, one number or one an axis.
        merge: patches merge ``"between"`` stages (Swin), or after ``"each"`` (MONAI's Swin UNETR).
        merge_order, merge_axes: of `PatchMerging`; by default ``"swin2d"`` on two axes, else ``"product"``.
        taps: the maps that are returned are those ``"before"`` a stage's merging or ``"after"`` it.
        out_norm: a layer norm of every returned map, with weights (``"affine"``), without (``"plain"``), or none.
        drop_path_rate: of the last block; the others' rise to it in equal steps.
        mlp_ratio, qkv_bias, bias, clamp, order, norm_eps, and `options` such as `clamped_bias` or `attn_drop`: of
            `WindowBlock`.
        patch_norm: a layer norm after the patches are embedded.
        checkpointing: see `SwinStage`.
    """

    def __init__(
        self,
        ndim: int = 2,
        in_chans: int = 3,
        patch: int | Sequence[int] = 4,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window: int | Sequence[int] = 7,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        bias: str | None = "relative",
        patch_norm: bool = True,
        merge: str = "between",
        merge_order: str | None = None,
        merge_axes: Sequence[int] | None = None,
        clamp: str = "axis",
        order: str = "pad-roll",
        taps: str = "before",
        out_norm: str | None = None,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-5,
        checkpointing: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("merge", merge, ("between", "each")),
            ("taps", taps, ("before", "after")),
            ("out_norm", out_norm, (None, "affine", "plain")),
        ):
            if value not in known:
                raise ValueError(f"{name}: got {value!r}, wanted one of {known}")
        if len(depths) != len(num_heads) or not depths:
            raise ValueError(f"num_heads: got {tuple(num_heads)}, wanted one number a stage, as in depths={depths}")
        self.ndim, self.taps, self.out_norm, self.norm_eps = ndim, taps, out_norm, norm_eps
        factory = {name: options[name] for name in ("device", "dtype") if name in options}
        window = sizes("window", (window,) * ndim if isinstance(window, int) else window, ndim)
        merge_order = merge_order or ("swin2d" if ndim == 2 else "product")
        self.patch_embed = PatchEmbed(ndim, patch, in_chans, dim, patch_norm, norm_eps=norm_eps, **factory)
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        block = {
            "mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias, "bias": bias, "clamp": clamp, "order": order,
            "norm_eps": norm_eps, **options,
        }  # fmt: skip
        self.stages, self.merges, channels = nn.ModuleList(), nn.ModuleList(), []
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            at = sum(depths[:i])
            self.stages.append(SwinStage(dim, depth, heads, window, rates[at : at + depth], checkpointing, **block))
            channels.append(dim)
            if merge == "each" or i + 1 < len(depths):
                self.merges.append(PatchMerging(ndim, dim, merge_axes, merge_order, norm_eps=norm_eps, **factory))
                dim *= 2
            if taps == "after":
                channels[-1] = dim
        self.channels = tuple(channels)
        self.norms = nn.ModuleList(nn.LayerNorm(c, norm_eps, **factory) for c in channels if out_norm == "affine")

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, *S) -> one channels-last map a stage, the finest first."""
        return self.pyramid(self.patch_embed(x))

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The maps from embedded patches (B, *s, dim)."""
        found = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            merged = self.merges[i](x) if i < len(self.merges) else x
            found.append(self._normed(i, x if self.taps == "before" else merged))
            x = merged
        return found

    def _normed(self, stage: int, x: Tensor) -> Tensor:
        if self.out_norm == "affine":
            return self.norms[stage](x)
        return F.layer_norm(x, x.shape[-1:], eps=self.norm_eps) if self.out_norm == "plain" else x


class SwinClassifier(nn.Module):
    """A backbone, a layer norm of its last map, the mean over tokens, and a linear head. By default Swin-T.

    Args:
        num_classes: 0 for no head: the pooled features are returned.
        backbone: options of `SwinBackbone`.
    """

    def __init__(self, num_classes: int = 1000, **backbone: Any) -> None:
        super().__init__()
        self.backbone = SwinBackbone(**backbone)
        factory = {name: backbone[name] for name in ("device", "dtype") if name in backbone}
        width = self.backbone.channels[-1]
        self.norm = nn.LayerNorm(width, self.backbone.norm_eps, **factory)
        self.head = nn.Linear(width, num_classes, **factory) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> the last map (B, *s, channels), normalised."""
        return self.norm(self.backbone(x)[-1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> logits (B, num_classes)."""
        return self.head(self.forward_features(x).flatten(1, -2).mean(1))
