"""Swin-X2S: two X-rays to a labelled volume (arXiv 2501.05961, section 3; names and values of the authors' code).

View a (coronal, X x Z) and view b (sagittal, Y x Z) share all weights. A 2-D Swin encodes each image at 1/2 to 1/32; of
every map m, the image included, a volume is made by repeating it along the axis that the view does not see,

    V_d = w_d m + b_d,      d = 0 ... X / 2^i - 1,    w = 1 and b = 0 at first,

and goes through a residual block R of 3-D convolutions: e_0 ... e_4 and, at 1/32, d_4. There the views exchange what
they know by cross-attention, and each is decoded by up blocks U:

    z = U(d_4, e_4);  z = U(z, e_3);  z = U(z, e_2);  z = U(z, e_1);  z = U(z, e_0);  logits = W z + b.

The prediction is the argmax of both views' logits added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paperworks.swin.backbone import SwinBackbone, SwinStage
from paperworks.swin.swin_unetr.residual_cpu import FusedResidualBlock, FusedUpBlock
from paperworks.swin.swin_x2s.fusion import CrossViewAttention
from paperworks.swin.swin_x2s.names import from_official, to_official

__all__ = ["SIZES", "DimensionExpansion", "SwinX2S", "ViewEncoder", "swin_x2s"]

STAGES = 4
LEVELS = STAGES + 2
"""Maps of a view: the image, the embedded patches, and the end of each stage."""

Size = Literal["tiny", "small", "base", "large"]
SIZES: Mapping[str, dict[str, Any]] = {
    "tiny": {"feature_size": 32, "depths": (2, 2, 6, 2), "num_heads": (1, 2, 4, 8)},
    "small": {"feature_size": 64, "depths": (2, 2, 6, 2), "num_heads": (2, 4, 8, 16)},
    "base": {"feature_size": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "large": {"feature_size": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}


class DimensionExpansion(nn.Module):
    """A map becomes a volume: plane d is w_d m + b_d. At first w = 1 and b = 0: the map repeated.

    Args:
        depth: number of planes.
    """

    def __init__(
        self, depth: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth: got {depth}, wanted at least 1")
        self.depth = depth
        self.weight = nn.Parameter(torch.ones(depth, 1, 1, 1, 1, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(depth, device=device, dtype=dtype))

    def extra_repr(self) -> str:
        """Number of planes."""
        return f"depth={self.depth}"

    def forward(self, x: Tensor, axis: int) -> Tensor:
        """(B, C, h, w) -> (B, C, depth, h, w) for ``axis=0``, (B, C, h, depth, w) for ``axis=1``."""
        if x.dim() != 4:
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted (B, C, h, w)")
        if axis not in (0, 1):
            raise ValueError(f"axis: got {axis}, wanted 0 or 1")
        shape = (self.depth, *(1,) * (2 - axis))
        return x.unsqueeze(2 + axis) * self.weight.view(shape) + self.bias.view(shape)


class ViewEncoder(SwinBackbone):
    """The 2-D Swin of one view: patches of 2, merging after each stage, a layer norm of every map that leaves it.

    A stage whose map is no larger than the window on one axis has the whole map for a window, on both axes, without a
    shift; that is settled by `grid`, the size of the first stage's map, and decides how many position biases it has.
    """

    def __init__(
        self,
        in_channels: int,
        feature_size: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: Sequence[int],
        grid: Sequence[int],
        drop_path_rate: float,
        **options: Any,
    ) -> None:
        super().__init__(
            2, in_channels, 2, feature_size, depths, num_heads, tuple(window_size), merge="each", taps="after",
            out_norm="affine", clamp="joint", drop_path_rate=drop_path_rate, **options,
        )  # fmt: skip
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            size, at = tuple(n // 2**i for n in grid), sum(depths[:i])
            if min(size) <= min(window_size):
                width, own = feature_size * 2**i, rates[at : at + depth]
                self.stages[i] = SwinStage(width, depth, heads, size, own, clamp="joint", **options)
        factory = {name: options[name] for name in ("device", "dtype") if name in options}
        self.norm = nn.LayerNorm(feature_size, self.norm_eps, **factory)
        self.pos_drop = nn.Dropout(options.get("drop", 0.0))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, h, w) -> five maps at 1/2 to 1/32 with f to 16 f channels, channels last."""
        x = self.pos_drop(self.patch_embed(x))
        return [self.norm(x), *self.pyramid(x)]


class _Layer(nn.Module):
    """One residual block, under the name `layer`."""

    def __init__(self, in_channels: int, out_channels: int, **factory: Any) -> None:
        super().__init__()
        self.layer = FusedResidualBlock(3, in_channels, out_channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """R(x)."""
        return self.layer(x)


class SwinX2S(nn.Module):
    """Two X-rays to a labelled volume.

    Args:
        img_size: (X, Y, Z) of the volume, X = Y, each a multiple of 32, not all 32: the networks sees X x Z and Y x Z.
        in_channels: of each image.
        out_channels: classes K, background included.
        feature_size: f, channels of the first stage.
        depths, num_heads: of the four stages; the last one's heads are those of the cross-attention.
        window_size: of the 2-D Swin.
        fusion_depth: layers of cross-attention; 0 leaves each view to itself.
        drop_rate, attn_drop_rate, drop_path_rate: dropout of tokens and projections, of attention, and of branches.
        residual: add its input to each layer of cross-attention; the authors' code does not.
        use_checkpoint: recompute the last up block in the backward pass: its maps are most of the memory.

    Raises ValueError for sizes that do not go together.
    """

    def __init__(
        self,
        img_size: Sequence[int] = (128, 128, 160),
        in_channels: int = 1,
        out_channels: int = 55,
        feature_size: int = 96,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: Sequence[int] = (7, 7),
        fusion_depth: int = 1,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        residual: bool = False,
        *,
        use_checkpoint: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.img_size = _checked(img_size, in_channels, out_channels, depths, num_heads)
        self.in_channels, self.out_channels, self.use_checkpoint = in_channels, out_channels, use_checkpoint
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        x, _, z = self.img_size
        f, deepest = feature_size, 2 ** (STAGES + 1)
        self.swinViT = ViewEncoder(
            in_channels, f, depths, num_heads, window_size, (x // 2, z // 2), drop_path_rate,
            drop=drop_rate, attn_drop=attn_drop_rate, **factory,
        )  # fmt: skip
        self.expand_ = nn.ModuleList(DimensionExpansion(x // 2**i, **factory) for i in range(LEVELS))
        self.encoder1 = _Layer(in_channels, f, **factory)
        self.encoder2 = _Layer(f, f, **factory)
        self.encoder3 = _Layer(2 * f, 2 * f, **factory)
        self.encoder4 = _Layer(4 * f, 4 * f, **factory)
        self.encoder5 = _Layer(8 * f, 8 * f, **factory)
        self.encoder10 = _Layer(16 * f, 16 * f, **factory)
        self.cross_atte6 = CrossViewAttention(
            16 * f, num_heads[-1], fusion_depth, (x // deepest) ** 2 * (z // deepest), residual,
            drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, **factory,
        )  # fmt: skip
        self.decoder5 = FusedUpBlock(3, 16 * f, 8 * f, **factory)
        self.decoder4 = FusedUpBlock(3, 8 * f, 4 * f, **factory)
        self.decoder3 = FusedUpBlock(3, 4 * f, 2 * f, **factory)
        self.decoder2 = FusedUpBlock(3, 2 * f, f, **factory)
        self.decoder1 = FusedUpBlock(3, f, f, **factory)
        self.out = nn.Conv3d(f, out_channels, 1, **factory)

    def forward(self, xa: Tensor, xb: Tensor) -> tuple[Tensor, Tensor]:
        """Views a (B, in_channels, X, Z) and b (B, in_channels, Y, Z) -> logits of each view, (B, K, X, Y, Z)."""
        self._check(xa, "xa")
        self._check(xb, "xb")
        if len(xa) != len(xb):
            raise ValueError(f"xb: got a batch of {len(xb)}, wanted that of xa, {len(xa)}")
        # both views in one batch: nothing but the axis of the expansion and the cross-attention tells them apart
        maps = self._maps(torch.cat([xa, xb]))
        n = len(xa)
        volumes = [
            torch.cat([expand(map[:n], 1), expand(map[n:], 0)]) for expand, map in zip(self.expand_, maps, strict=True)
        ]
        *skips, deep = self._convolved(volumes)
        deep = torch.cat(self.cross_atte6(deep[:n], deep[n:]))
        logits = self._decoded(deep, skips)
        return logits[:n], logits[n:]

    @torch.no_grad()
    def predict(self, xa: Tensor, xb: Tensor) -> Tensor:
        """The labels (B, X, Y, Z), int64: argmax of both views' logits added. The mode, training or not, stays."""
        a, b = self(xa, xb)
        return (a + b).argmax(1)

    def encode(self, x: Tensor, view: Literal["a", "b"] = "a") -> list[Tensor]:
        """e_0 ... e_4 and d_4 of one view, before the cross-attention: (B, C, X / 2^i, Y / 2^i, Z / 2^i)."""
        if view not in ("a", "b"):
            raise ValueError(f"view: got {view!r}, wanted 'a' or 'b'")
        self._check(x, "x")
        axis = 1 if view == "a" else 0
        return self._convolved([expand(map, axis) for expand, map in zip(self.expand_, self._maps(x), strict=True)])

    def _maps(self, x: Tensor) -> list[Tensor]:
        return [x, *(map.movedim(-1, 1) for map in self.swinViT(x))]

    def _convolved(self, volumes: list[Tensor]) -> list[Tensor]:
        blocks = (self.encoder1, self.encoder2, self.encoder3, self.encoder4, self.encoder5, self.encoder10)
        return [block(volume) for block, volume in zip(blocks, volumes, strict=True)]

    def _decoded(self, z: Tensor, skips: list[Tensor]) -> Tensor:
        for block, skip in zip(
            (self.decoder5, self.decoder4, self.decoder3, self.decoder2), reversed(skips[1:]), strict=True
        ):
            z = block(z, skip)
        if self.use_checkpoint and torch.is_grad_enabled():
            z = checkpoint(self.decoder1, z, skips[0], use_reentrant=False)
        else:
            z = self.decoder1(z, skips[0])
        return self.out(z)

    def _check(self, x: Tensor, name: str) -> None:
        size, _, depth = self.img_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (self.in_channels, size, depth) or not len(x):
            wanted = f"(B, {self.in_channels}, {size}, {depth}), not empty"
            raise ValueError(f"{name}: got the shape {tuple(x.shape)}, wanted {wanted}")
        if not x.is_floating_point():
            raise TypeError(f"{name}: got {x.dtype}, wanted a floating-point tensor")

    def no_weight_decay(self) -> set[str]:
        """Names of the tables of position biases, which weight decay leaves alone."""
        return {name for name, _ in self.named_parameters() if "relative_position_bias_table" in name}

    def load_official_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the weights of the authors' code, with or without the prefix ``module.``; masks and indices are left.

        Raises ValueError that names what is missing, left over or of another shape; nothing is loaded then.
        """
        from_official(self, state_dict)

    def official_state_dict(self) -> dict[str, Tensor]:
        """The weights under the names of the authors' code."""
        return to_official(self)


def _checked(
    img_size: Sequence[int], in_channels: int, out_channels: int, depths: Sequence[int], num_heads: Sequence[int]
) -> tuple[int, int, int]:
    size, step = tuple(int(n) for n in img_size), 2 ** (STAGES + 1)
    if len(size) != 3 or min(size) < 1 or any(n % step for n in size):
        raise ValueError(f"img_size: got {size}, wanted three multiples of {step}")
    if size[0] != size[1]:
        raise ValueError(f"img_size: got {size}, wanted X = Y: both views share their weights")
    if max(size) == step:
        raise ValueError(f"img_size: got {size}, at which instance norm would see a single voxel at 1/{step}")
    if in_channels < 1:
        raise ValueError(f"in_channels: got {in_channels}, wanted at least 1")
    if out_channels < 2:
        raise ValueError(f"out_channels: got {out_channels}, wanted at least 2: the background and a label")
    for name, given in (("depths", depths), ("num_heads", num_heads)):
        if len(given) != STAGES or min(given) < 1:
            raise ValueError(f"{name}: got {tuple(given)}, wanted {STAGES} positive numbers, one a stage")
    return size[0], size[1], size[2]


def swin_x2s(size: Size, **options: Any) -> SwinX2S:
    """The network in one of the paper's four sizes; further options of `SwinX2S`."""
    if size not in SIZES:
        raise ValueError(f"size: got {size!r}, wanted one of {', '.join(SIZES)}")
    return SwinX2S(**{**SIZES[size], **options})
