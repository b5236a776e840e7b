"""Swin UNETR: a Swin transformer encodes five resolutions, convolutions decode them (arXiv 2201.01266, section 3).

Encoder: patches of 2 voxels become f channels; four stages of two blocks of attention in windows of 7 voxels an axis,
the second shifted by 3, each followed by a merging that halves the size and doubles the channels. The maps h0 ... h4,
at 1/2 ... 1/32 of the size with f ... 16 f channels, leave it through a layer norm without weights.
Decoder, with the residual block R and the up block U of `paperworks.swin.unet_parts`, x the input:

    z = R(h4);  z = U(z, h3);  z = U(z, R(h2));  z = U(z, R(h1));  z = U(z, R(h0));  z = U(z, R(x));  logits = W z + b

Values, options and weights are those of MONAI's ``SwinUNETR``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.swin.backbone import SwinBackbone
from paperworks.swin.swin_unetr.names import encoder_from_monai, encoder_to_monai, from_monai, to_monai
from paperworks.swin.swin_unetr.residual_cpu import FusedResidualBlock, FusedUpBlock

__all__ = ["SwinEncoder", "SwinUNETR"]

MERGE_ORDERS = {"merging": "monai", "mergingv2": "product", "merging-legacy": "monai-legacy"}
STAGES = 4


class SwinEncoder(SwinBackbone):
    """The encoder of `SwinUNETR`, on 2 or 3 axes: the embedded patches and the map after each stage's merging.

    Args:
        in_channels: channels of the input.
        feature_size: f, the channels of the first stage.
        depths, num_heads: blocks and heads of each stage.
        window_size, patch_size: one number or one an axis.
        qkv_bias, mlp_ratio: of the blocks.
        drop_rate: dropout of the embedded patches, of projections and of the MLPs.
        attn_drop_rate: dropout of the attention.
        dropout_path_rate: of the last block, rising to it in equal steps.
        normalize: a layer norm without weights of every map returned; the path from stage to stage is without it.
        spatial_dims: 2 or 3.
        downsample: order of the patches that merge: ``"merging"`` and ``"mergingv2"`` as MONAI names them, and
            ``"merging-legacy"``, what MONAI's ``"merging"`` was before it was mended: two patches twice and two never,
            3-D alone. In 2-D the first two are the same.
        use_v2: a residual block of convolutions before each stage.
        use_checkpoint: recompute blocks in the backward pass instead of keeping their activations.
        clamped_bias: position bias of a window larger than its map: ``"monai"``, the first tokens' of the full window,
            or ``"exact"``, that of the true offsets.

    Raises ValueError for an option that is not known or sizes that do not go together.
    """

    def __init__(
        self,
        in_channels: int,
        feature_size: int = 24,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | Sequence[int] = 7,
        patch_size: int | Sequence[int] = 2,
        qkv_bias: bool = True,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dropout_path_rate: float = 0.0,
        normalize: bool = True,
        spatial_dims: int = 3,
        downsample: str = "merging",
        use_v2: bool = False,
        use_checkpoint: bool = False,
        clamped_bias: str = "monai",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims: got {spatial_dims}, wanted 2 or 3")
        for name, value, known in (
            ("downsample", downsample, tuple(MERGE_ORDERS)),
            ("clamped_bias", clamped_bias, ("monai", "exact")),
        ):
            if value not in known:
                raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(known)}")
        if spatial_dims == 2 and downsample == "merging-legacy":
            raise ValueError("downsample: got 'merging-legacy' with spatial_dims=2, wanted it with 3")
        for name, rate in (
            ("drop_rate", drop_rate), ("attn_drop_rate", attn_drop_rate), ("dropout_path_rate", dropout_path_rate)
        ):  # fmt: skip
            if not 0 <= rate < 1:
                raise ValueError(f"{name}: got {rate}, wanted 0 <= {name} < 1")
        super().__init__(
            spatial_dims, in_channels, patch_size, feature_size, depths, num_heads, window_size,
            mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, patch_norm=False, merge="each", taps="after",
            merge_order="swin2d" if spatial_dims == 2 else MERGE_ORDERS[downsample],
            out_norm="plain" if normalize else None, drop_path_rate=dropout_path_rate, checkpointing=use_checkpoint,
            drop=drop_rate, attn_drop=attn_drop_rate, clamped_bias="cut" if clamped_bias == "monai" else "exact",
            device=device, dtype=dtype,
        )  # fmt: skip
        self.pos_drop = nn.Dropout(drop_rate)
        widths = [feature_size * 2**i for i in range(len(depths))] if use_v2 else []
        self.convs = nn.ModuleList(FusedResidualBlock(spatial_dims, c, c, device=device, dtype=dtype) for c in widths)
        self.channels = (feature_size, *self.channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, *S) -> maps (B, f 2^i, *S / (patch 2^i)), the finest first, channels first."""
        x = self.pos_drop(self.patch_embed(x))
        found = [x]
        for i, (stage, merging) in enumerate(zip(self.stages, self.merges, strict=True)):
            if self.convs:
                x = self.convs[i](x.movedim(-1, 1)).movedim(1, -1)
            x = merging(stage(x))
            found.append(x)
        return [self._normed(i, map).movedim(-1, 1) for i, map in enumerate(found)]

    def load_monai_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the encoder of a MONAI checkpoint: of a whole network (``swinViT.``), or of an encoder alone.

        Raises ValueError that names what is missing, left over or of another shape; nothing is loaded then.
        """
        encoder_from_monai(self, state_dict)

    def monai_state_dict(self) -> dict[str, Tensor]:
        """The weights under the names of MONAI's ``SwinTransformer``, with the indices that it keeps among them."""
        return encoder_to_monai(self)


class SwinUNETR(nn.Module):
    """Segment volumes or images: (B, in_channels, *S) -> logits (B, out_channels, *S).

    Args:
        in_channels, out_channels: channels in, classes or regions out.
        feature_size: f, a multiple of 12; the paper's network has 48.
        patch_size: 2, since the last up block doubles the size.
        pad_input: take any size: the input is padded with zeros at the end of each axis to a multiple of 32 (and to
            64 on one axis if it is smaller), and the logits are cut to its size. Without it such sizes are an error.
        depths, ..., clamped_bias: see `SwinEncoder`.

    Raises ValueError for an option that is not known or sizes that do not go together.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        feature_size: int = 24,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | Sequence[int] = 7,
        patch_size: int | Sequence[int] = 2,
        qkv_bias: bool = True,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dropout_path_rate: float = 0.0,
        normalize: bool = True,
        spatial_dims: int = 3,
        downsample: str = "merging",
        use_v2: bool = False,
        use_checkpoint: bool = False,
        clamped_bias: str = "monai",
        pad_input: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        patches = (patch_size,) if isinstance(patch_size, int) else tuple(patch_size)
        if set(patches) != {2}:
            raise ValueError(f"patch_size: got {patch_size}, wanted 2: the decoder doubles the size five times")
        if feature_size < 12 or feature_size % 12:
            raise ValueError(f"feature_size: got {feature_size}, wanted a multiple of 12")
        if len(depths) != STAGES:
            raise ValueError(f"depths: got {tuple(depths)}, wanted {STAGES} numbers, one a stage")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        f, n = feature_size, spatial_dims
        self.spatial_dims, self.in_channels, self.pad_input = n, in_channels, pad_input
        self.encoder = SwinEncoder(
            in_channels, f, depths, num_heads, window_size, patch_size, qkv_bias, mlp_ratio, drop_rate, attn_drop_rate,
            dropout_path_rate, normalize, n, downsample, use_v2, use_checkpoint, clamped_bias, **factory,
        )  # fmt: skip
        self.encoder1 = FusedResidualBlock(n, in_channels, f, **factory)
        self.encoder2 = FusedResidualBlock(n, f, f, **factory)
        self.encoder3 = FusedResidualBlock(n, 2 * f, 2 * f, **factory)
        self.encoder4 = FusedResidualBlock(n, 4 * f, 4 * f, **factory)
        self.encoder10 = FusedResidualBlock(n, 16 * f, 16 * f, **factory)
        self.decoder5 = FusedUpBlock(n, 16 * f, 8 * f, **factory)
        self.decoder4 = FusedUpBlock(n, 8 * f, 4 * f, **factory)
        self.decoder3 = FusedUpBlock(n, 4 * f, 2 * f, **factory)
        self.decoder2 = FusedUpBlock(n, 2 * f, f, **factory)
        self.decoder1 = FusedUpBlock(n, f, f, **factory)
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[n]
        self.out = convolution(f, out_channels, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *S) -> logits (B, out_channels, *S)."""
        size = x.shape[2:]
        x = self._fitted(x)
        h0, h1, h2, h3, h4 = self.encoder(x)
        z = self.decoder5(self.encoder10(h4), h3)
        z = self.decoder4(z, self.encoder4(h2))
        z = self.decoder3(z, self.encoder3(h1))
        z = self.decoder2(z, self.encoder2(h0))
        z = self.out(self.decoder1(z, self.encoder1(x))).contiguous()
        return z[(..., *(slice(length) for length in size))] if z.shape[2:] != size else z

    def encode(self, x: Tensor) -> list[Tensor]:
        """h0 ... h4: (B, f 2^i, *S / 2^(i + 1)); of the padded input with `pad_input`."""
        return self.encoder(self._fitted(x))

    def _fitted(self, x: Tensor) -> Tensor:
        """The input, padded where that is asked for. ValueError for a shape that the network cannot take."""
        wanted = f"(B, {self.in_channels}, and {self.spatial_dims} spatial axes)"
        if x.dim() != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted {wanted}")
        if not x.numel():
            raise ValueError(f"x: got the shape {tuple(x.shape)}, which is empty")
        if not x.is_floating_point():
            raise TypeError(f"x: got {x.dtype}, wanted a floating-point tensor")
        step = 2 ** (STAGES + 1)
        size = tuple(x.shape[2:])
        fitted = [-(-length // step) * step for length in size]
        if max(fitted) < 2 * step:
            fitted[-1] = 2 * step
        if tuple(fitted) == size:
            return x
        if not self.pad_input:
            axes = [axis + 2 for axis, length in enumerate(size) if length % step]
            if axes:
                raise ValueError(
                    f"x: got the sizes {size}, of which those of the axes {axes} are no multiples of {step}; wanted "
                    "such, or pad_input=True"
                )
            raise ValueError(
                f"x: got the sizes {size}, at which instance norm would see a single voxel at 1/{step}; wanted at "
                f"least {2 * step} on one axis, or pad_input=True"
            )
        by = [wanted - length for wanted, length in zip(fitted, size, strict=True)]
        return F.pad(x, [amount for length in reversed(by) for amount in (0, length)])

    def load_monai_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the weights of a MONAI ``SwinUNETR``, with or without the prefix ``module.``; indices are left out.

        Raises ValueError that names what is missing, left over or of another shape; nothing is loaded then.
        """
        from_monai(self, state_dict)

    def monai_state_dict(self) -> dict[str, Tensor]:
        """The weights under MONAI's names, for its ``load_state_dict``, with the indices that it keeps among them."""
        return to_monai(self)
