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
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.swin.backbone import SwinBackbone
from paperworks.swin.blocks import PatchMerging
from paperworks.swin.swin_unetr.names import encoder_from_monai, encoder_to_monai, from_monai, to_monai
from paperworks.swin.swin_unetr.residual_cpu import FusedResidualBlock, FusedUpBlock

__all__ = ["SwinEncoder", "SwinUNETR"]

MERGE_ORDERS = {"merging": "monai", "mergingv2": "product", "merging-legacy": "monai-legacy"}
STAGES = 4


def _strides(patch_size: int | Sequence[int], merge_strides: Sequence[Sequence[int]] | None, axes: int) -> Any:
    """What the patch and each of the mergings divides the size of each axis by."""
    patch = (patch_size,) * axes if isinstance(patch_size, int) else tuple(patch_size)
    if merge_strides is None:
        return patch, *((2,) * axes,) * STAGES
    merges = tuple(tuple(steps) for steps in merge_strides)
    if len(merges) != STAGES or any(len(m) != axes or set(m) not in ({2}, {1, 2}) for m in merges):
        wanted = f"{STAGES} times {axes} numbers, 1 or 2, and a 2 in each"
        raise ValueError(f"merge_strides: got {merges}, wanted {wanted}")
    return patch, *merges


def _told(numbers: Sequence[int]) -> int | tuple[int, ...]:
    """One number where all are the same."""
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def _check_input(x: Tensor, channels: int, axes: int, weight: Tensor) -> None:
    if x.dim() != axes + 2 or x.shape[1] != channels:
        raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted (B, {channels}, and {axes} spatial axes)")
    if not x.numel():
        raise ValueError(f"x: got the shape {tuple(x.shape)}, which is empty")
    if not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype}, wanted a floating-point tensor")
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x: got {x.dtype}, wanted {weight.dtype}, that of the weights, or autocast")


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
        merge_strides: for each of the four mergings, 2 on the axes that it halves and 1 on the others, as for thick
            slices (see `thick_slice_strides`); all axes by default. Fewer than all merge in the order ``"mergingv2"``.

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
        merge_strides: Sequence[Sequence[int]] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if in_channels < 1:
            raise ValueError(f"in_channels: got {in_channels}, wanted at least 1")
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
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        strides = _strides(patch_size, merge_strides, spatial_dims)
        super().__init__(
            spatial_dims, in_channels, patch_size, feature_size, depths, num_heads, window_size,
            mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, patch_norm=False, merge="each", taps="after",
            merge_order="swin2d" if spatial_dims == 2 else MERGE_ORDERS[downsample],
            out_norm="plain" if normalize else None, drop_path_rate=dropout_path_rate, checkpointing=use_checkpoint,
            drop=drop_rate, attn_drop=attn_drop_rate, clamped_bias="cut" if clamped_bias == "monai" else "exact",
            **factory,
        )  # fmt: skip
        for i, steps in enumerate(strides[1:] if merge_strides is not None else ()):
            if set(steps) != {2}:
                axes = [axis for axis, step in enumerate(steps) if step == 2]
                self.merges[i] = PatchMerging(spatial_dims, feature_size * 2**i, axes, **factory)
        self.strides = strides
        self.in_channels = in_channels
        self.pos_drop = nn.Dropout(drop_rate)
        widths = [feature_size * 2**i for i in range(len(depths))] if use_v2 else []
        self.convs = nn.ModuleList(FusedResidualBlock(spatial_dims, c, c, **factory) for c in widths)
        self.channels = (feature_size, *self.channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, *S) -> maps (B, f 2^i, *S / (patch 2^i)), the finest first, channels first.

        With other strides each map is smaller by those. A size that they do not divide is padded with zeros at the end.
        """
        _check_input(x, self.in_channels, self.ndim, self.patch_embed.proj.weight)  # type: ignore[arg-type]
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
        patch_size: 2; 1 on an axis of thick slices.
        pad_input: take any size: the input is padded with zeros at the end of each axis to a multiple of 32 (and to
            64 on one axis if it is smaller), and the logits are cut to its size. Without it such sizes are an error.
        merge_strides: see `SwinEncoder`; sizes are then multiples of the product of an axis' strides in place of 32.
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
        merge_strides: Sequence[Sequence[int]] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        patches = (patch_size,) if isinstance(patch_size, int) else tuple(patch_size)
        if set(patches) not in ({2}, {1, 2}):
            wanted = "2, with 1 on some axes if they are thick: what embeds patches an up block undoes"
            raise ValueError(f"patch_size: got {patch_size}, wanted {wanted}")
        if out_channels < 1:
            raise ValueError(f"out_channels: got {out_channels}, wanted at least 1")
        if feature_size < 12 or feature_size % 12:
            raise ValueError(f"feature_size: got {feature_size}, wanted a multiple of 12")
        if len(depths) != STAGES:
            raise ValueError(f"depths: got {tuple(depths)}, wanted {STAGES} numbers, one a stage")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        f, n = feature_size, spatial_dims
        self.spatial_dims, self.in_channels, self.pad_input = n, in_channels, pad_input
        self.encoder = SwinEncoder(
            in_channels, f, depths, num_heads, window_size, patch_size, qkv_bias, mlp_ratio, drop_rate, attn_drop_rate,
            dropout_path_rate, normalize, n, downsample, use_v2, use_checkpoint, clamped_bias,
            merge_strides=merge_strides, **factory,
        )  # fmt: skip
        self.strides = strides = self.encoder.strides
        self.encoder1 = FusedResidualBlock(n, in_channels, f, **factory)
        self.encoder2 = FusedResidualBlock(n, f, f, **factory)
        self.encoder3 = FusedResidualBlock(n, 2 * f, 2 * f, **factory)
        self.encoder4 = FusedResidualBlock(n, 4 * f, 4 * f, **factory)
        self.encoder10 = FusedResidualBlock(n, 16 * f, 16 * f, **factory)
        self.decoder5 = FusedUpBlock(n, 16 * f, 8 * f, strides[4], **factory)
        self.decoder4 = FusedUpBlock(n, 8 * f, 4 * f, strides[3], **factory)
        self.decoder3 = FusedUpBlock(n, 4 * f, 2 * f, strides[2], **factory)
        self.decoder2 = FusedUpBlock(n, 2 * f, f, strides[1], **factory)
        self.decoder1 = FusedUpBlock(n, f, f, strides[0], **factory)
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
        _check_input(x, self.in_channels, self.spatial_dims, self.out.weight)
        steps = [prod(each) for each in zip(*self.strides, strict=True)]
        size = tuple(x.shape[2:])
        fitted = [-(-length // step) * step for length, step in zip(size, steps, strict=True)]
        if fitted == steps:  # a single voxel is left at the end
            fitted[-1] *= 2
        if tuple(fitted) == size:
            return x
        if not self.pad_input:
            axes = [axis + 2 for axis, (s, step) in enumerate(zip(size, steps, strict=True)) if s % step]
            if axes:
                raise ValueError(
                    f"x: got the sizes {size}, of which those of the axes {axes} are no multiples of {_told(steps)}; "
                    "wanted such, or pad_input=True"
                )
            raise ValueError(
                f"x: got the sizes {size}, at which instance norm would see a single voxel at the end; wanted at "
                f"least {_told([2 * step for step in steps])} on one axis, or pad_input=True"
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
