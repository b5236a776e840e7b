"""Small image networks that differ in how the tokens of a map meet, and in nothing else."""

from __future__ import annotations

import math

from torch import Tensor, nn

from paperworks.swin.backbone import SwinStage
from paperworks.swin.blocks import PatchEmbed, PatchMerging
from paperworks.swin.gated_swinrmt.blocks import RMTBlock, SwinRMTBlock
from paperworks.swin.swin_se_fer import SqueezeExcite

WIDTH, HEADS, DEPTH, WINDOW, MLP = 24, 2, 2, 4, 2
"""Channels and heads of the first stage (double in the second), blocks a stage, side of a window, MLP over width."""
MIXERS = ("window", "window, not shifted", "global", "depthwise", "none", "retention", "swat", "manhattan")


class DepthwiseBlock(nn.Module):
    """A block without attention: 7 x 7 depthwise convolution, norm and MLP, added to the input (ConvNeXt's)."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, MLP * dim), nn.GELU(), nn.Linear(MLP * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the same shape."""
        return x + self.mlp(self.norm(self.mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))


def _stage(mixer: str, dim: int, heads: int, side: int) -> nn.Module:
    if mixer == "window":
        return SwinStage(dim, DEPTH, heads, (WINDOW, WINDOW), mlp_ratio=MLP)
    if mixer == "window, not shifted":
        return nn.Sequential(*(SwinStage(dim, 1, heads, (WINDOW, WINDOW), mlp_ratio=MLP) for _ in range(DEPTH)))
    if mixer == "global":
        return SwinStage(dim, DEPTH, heads, (side, side), mlp_ratio=MLP)
    if mixer in ("depthwise", "none"):
        return nn.Sequential(*(DepthwiseBlock(dim, 7 if mixer == "depthwise" else 1) for _ in range(DEPTH)))
    if mixer == "manhattan":
        return nn.Sequential(*(RMTBlock(dim, heads, mlp_ratio=MLP) for _ in range(DEPTH)))
    variant = "swat" if mixer == "swat" else "retention"
    return nn.Sequential(
        *(SwinRMTBlock(dim, heads, WINDOW, bool(i % 2), variant, mlp_ratio=MLP) for i in range(DEPTH))  # type: ignore[arg-type]
    )


class MapClassifier(nn.Module):
    """Patches, two stages of `DEPTH` blocks with a merging between, norm, mean over the map, linear.

    Args:
        num_classes, in_channels, image_size: of the images, squares; an eighth of the side is a patch's side.
        mixer: one of `MIXERS`.
        excite: squeeze-and-excitation of the last map, as Swin-FER has it.

    Raises ValueError for a mixer that is not known.
    """

    def __init__(
        self, num_classes: int, in_channels: int, image_size: int, *, mixer: str = "window", excite: bool = False
    ) -> None:
        super().__init__()
        if mixer not in MIXERS:
            raise ValueError(f"mixer: got {mixer!r}, wanted one of {', '.join(MIXERS)}")
        patch = max(1, image_size // 8)
        side = -(-image_size // patch)
        self.embed = PatchEmbed(2, patch, in_channels, WIDTH, norm=True)
        self.first = _stage(mixer, WIDTH, HEADS, side)
        self.merge = PatchMerging(2, WIDTH, order="swin2d")
        self.second = _stage(mixer, 2 * WIDTH, 2 * HEADS, -(-side // 2))
        self.norm = nn.LayerNorm(2 * WIDTH)
        self.excite = SqueezeExcite(2 * WIDTH, channels_last=True) if excite else nn.Identity()
        self.head = nn.Linear(2 * WIDTH, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):  # 0.02 is meant for a thousand channels: at 24 the branches would vanish
                nn.init.trunc_normal_(module.weight, std=0.64 / math.sqrt(module.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels of [0, 1] as (B, C, H, W) -> (B, classes)."""
        x = self.second(self.merge(self.first(self.embed(2 * x - 1))))
        return self.head(self.excite(self.norm(x)).mean((1, 2)))
