"""The backbone: convolutional stem, four stages of blocks with convolutions between, and a projecting head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from paperworks.swin.gated_swinrmt.attention import check_dtype
from paperworks.swin.gated_swinrmt.blocks import RMTBlock, SwinRMTBlock

__all__ = ["GatedSwinRMT", "gated_swinrmt_retention", "gated_swinrmt_swat", "rmt_baseline"]

Kind = Literal["retention", "swat", "rmt"]
KINDS = ("retention", "swat", "rmt")


def _halved(size: int) -> int:
    """The size after a convolution 3 x 3 of stride 2."""
    return (size + 1) // 2


class Stem(nn.Sequential):
    """Four convolutions 3 x 3 with batch norm, the first and third of stride 2: (B, in, H, W) -> (B, dim, H/4, W/4)."""

    def __init__(self, in_chans: int, dim: int, **factory: Any) -> None:
        half, layers = max(1, dim // 2), []
        for given, made, stride in ((in_chans, half, 2), (half, half, 1), (half, dim, 2), (dim, dim, 1)):
            layers += [nn.Conv2d(given, made, 3, stride, 1, **factory), nn.BatchNorm2d(made, **factory), nn.GELU()]
        super().__init__(*layers[:-1])


class Merging(nn.Module):
    """A convolution 3 x 3 of stride 2 and batch norm: (B, H, W, C) -> (B, H/2, W/2, C')."""

    def __init__(self, dim: int, out: int, **factory: Any) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, out, 3, 2, 1, **factory)
        self.norm = nn.BatchNorm2d(out, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Half the size on both axes, rounded up."""
        return self.norm(self.reduction(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class GatedSwinRMT(nn.Module):
    """Gated-SwinRMT, or the RMT it is compared with, as a backbone with a classifier.

    Args:
        variant: ``"retention"`` or ``"swat"`` in windows; ``"rmt"``, ungated passes over whole maps, in the last stage
            full attention.
        in_chans, num_classes: channels of the images, and classes; 0 classes leave out the last layer.
        embed_dims, depths, num_heads, mlp_ratios: channels, blocks, heads and width of the feed-forward networks, one
            number a stage.
        window_size: nominal side of the windows.
        drop_path_rate: of the last block; the others' rise to it in equal steps.
        projection: channels of the head before it pools.
        initial_value, heads_range: of the decay, one number or one a stage.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
        attn: further options of the attention (`gate`, `rotary`, `lce_kernel`).

    Attributes:
        num_features: channels of `forward_features`.
        feature_info: channels and reduction of each stage, as timm's `feature_info`.

    Raises ValueError for a variant that is not known, or options that do not have one number a stage.
    """

    def __init__(
        self,
        variant: Kind = "retention",
        in_chans: int = 3,
        num_classes: int = 100,
        embed_dims: Sequence[int] = (128, 256, 512, 1024),
        depths: Sequence[int] = (2, 2, 12, 2),
        num_heads: Sequence[int] = (4, 8, 16, 32),
        window_size: int = 7,
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        drop_path_rate: float = 0.3,
        projection: int = 1024,
        *,
        initial_value: float | Sequence[float] = 2.0,
        heads_range: float | Sequence[float] = 4.0,
        checkpointing: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **attn: Any,
    ) -> None:
        super().__init__()
        if variant not in KINDS:
            raise ValueError(f"variant: got {variant!r}, wanted one of {', '.join(KINDS)}")
        stages = len(embed_dims)
        decays = [
            (value,) * stages if isinstance(value, int | float) else tuple(value)
            for value in (initial_value, heads_range)
        ]
        for name, given in (
            *(("depths", depths), ("num_heads", num_heads), ("mlp_ratios", mlp_ratios)),
            *(("initial_value", decays[0]), ("heads_range", decays[1])),
        ):
            if len(given) != stages or not stages:
                raise ValueError(f"{name}: got {tuple(given)}, wanted one number for each of {stages} stages")
        if window_size < 1:
            raise ValueError(f"window_size: got {window_size}, wanted a whole number from 1")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.variant, self.window_size, self.in_chans = variant, window_size, in_chans
        self.checkpointing, self.projection = checkpointing, projection
        self.stem = Stem(in_chans, embed_dims[0], **factory)
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.stages, self.merges = nn.ModuleList(), nn.ModuleList()
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            options = {"initial_value": decays[0][i], "heads_range": decays[1][i], **attn, **factory}
            self.stages.append(
                nn.ModuleList(
                    self._block(i == stages - 1, j, dim, num_heads[i], mlp_ratios[i], rates.pop(0), options)
                    for j in range(depth)
                )
            )
            if i + 1 < stages:
                self.merges.append(Merging(dim, embed_dims[i + 1], **factory))
        self.num_features = embed_dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(embed_dims)
        ]
        self.proj = nn.Linear(embed_dims[-1], projection, **factory)
        self.norm = nn.BatchNorm1d(projection, **factory)
        self.num_classes = num_classes
        self.head: nn.Module = nn.Linear(projection, num_classes, **factory) if num_classes else nn.Identity()
        self.reset_parameters()

    def _block(
        self, last: bool, number: int, dim: int, heads: int, ratio: float, rate: float, options: dict[str, Any]
    ) -> nn.Module:
        if self.variant == "rmt":
            return RMTBlock(dim, heads, not last, ratio, rate, **options)
        return SwinRMTBlock(dim, heads, self.window_size, number % 2 == 1, self.variant, ratio, rate, **options)

    def reset_parameters(self) -> None:
        """Truncated normal of deviation 0.02 for linear layers, their biases zero; PyTorch's own for convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: norms, biases and depthwise convolutions (timm's contract)."""
        depthwise_weights = {
            f"{name}.weight" for name, m in self.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1
        }
        return {name for name, p in self.named_parameters() if p.ndim <= 1} | depthwise_weights

    def map_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Height and width of the map of each stage, for images of `size`."""
        height, width = (_halved(_halved(n)) for n in size)
        found = []
        for _ in self.stages:
            found.append((height, width))
            height, width = _halved(height), _halved(width)
        return found

    def _pyramid(self, x: Tensor, until: int) -> list[Tensor]:
        if x.dim() != 4 or x.shape[1] != self.in_chans or min(x.shape[2:]) < 1:
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted (B, {self.in_chans}, H, W)")
        check_dtype(x, self.proj.weight)
        x = self.stem(x).permute(0, 2, 3, 1)
        found = []
        for i in range(until + 1):
            for block in self.stages[i]:  # type: ignore[attr-defined]
                if self.checkpointing and torch.is_grad_enabled():
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
            found.append(x)
            if i < until:
                x = self.merges[i](x)
        return found

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> the map of the last stage, (B, h, w, num_features)."""
        return self._pyramid(x, len(self.stages) - 1)[-1]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of the stages, with the arguments of timm's method.

        Args:
            x: (B, in_chans, H, W).
            indices: which stages, negative from the end; a number n for the last n; None for all.
            norm: has no effect, the stages have no norm of their own.
            stop_early: leave out the stages after the last one asked for.
            output_fmt: ``"NCHW"`` or ``"NHWC"``.
            intermediates_only: return the list alone, else (the last map as (B, h, w, C), the list).
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt: got {output_fmt!r}, wanted 'NCHW' or 'NHWC'")
        stages = len(self.stages)
        given = range(stages) if indices is None else indices
        wanted = list(range(stages - given, stages)) if isinstance(given, int) else [int(i) for i in given]
        if not wanted or any(not -stages <= i < stages for i in wanted):
            raise ValueError(f"indices: got {indices}, wanted some of the {stages} stages")
        wanted = [i % stages for i in wanted]
        maps = self._pyramid(x, max(wanted) if stop_early else stages - 1)
        taken = [maps[i] if output_fmt == "NHWC" else maps[i].permute(0, 3, 1, 2) for i in wanted]
        return taken if intermediates_only else (maps[-1], taken)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, h, w, num_features) -> logits (B, num_classes); with `pre_logits` what the last layer sees.

        Linear layer, batch norm, SiLU, mean over the map, linear layer. As everywhere, batch norm does not train on a
        single token (one image whose map is 1 x 1): ValueError.
        """
        tokens = self.norm(self.proj(x).flatten(0, 2))
        pooled = F.silu(tokens).view(*x.shape[:3], self.projection).mean((1, 2))
        return pooled if pre_logits else self.head(pooled)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer; 0 classes for none. Raises ValueError for another pooling than the mean ("avg")."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool: got {global_pool!r}, wanted None or 'avg'")
        self.num_classes = num_classes
        like = {"device": self.proj.weight.device, "dtype": self.proj.weight.dtype}
        self.head = nn.Linear(self.projection, num_classes, **like) if num_classes else nn.Identity()  # type: ignore[arg-type]
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def gated_swinrmt_swat(num_classes: int = 100, **kw: Any) -> GatedSwinRMT:
    """The variant "swat"; `kw` of `GatedSwinRMT`."""
    return GatedSwinRMT("swat", num_classes=num_classes, **kw)


def gated_swinrmt_retention(num_classes: int = 100, **kw: Any) -> GatedSwinRMT:
    """The variant "retention"; `kw` of `GatedSwinRMT`."""
    return GatedSwinRMT("retention", num_classes=num_classes, **kw)


def rmt_baseline(num_classes: int = 100, **kw: Any) -> GatedSwinRMT:
    """RMT at the same size; `kw` of `GatedSwinRMT`."""
    return GatedSwinRMT("rmt", num_classes=num_classes, **kw)
