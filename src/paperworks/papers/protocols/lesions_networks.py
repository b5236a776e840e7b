"""Networks for the lesion protocol that stand beside Swin UNETR: built like it, without attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from paperworks.swin.swin_unetr import SwinUNETR
from paperworks.swin.unet_parts import ResidualBlock

__all__ = ["ConvolutionalEncoder", "residual_unet", "segresnet", "voxelwise"]


class ConvolutionalEncoder(nn.Module):
    """In place of the stages of attention: a residual block of 3-wide convolutions, then a strided one, five times."""

    def __init__(self, in_channels: int, feature_size: int, spatial_dims: int) -> None:
        super().__init__()
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        widths = [feature_size * 2**i for i in range(5)]
        self.patch_embed = convolution(in_channels, feature_size, 2, 2)
        self.blocks = nn.ModuleList(ResidualBlock(spatial_dims, c, c) for c in widths[:-1])
        self.downs = nn.ModuleList(convolution(c, 2 * c, 2, 2) for c in widths[:-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, *S) -> five maps at 1/2 to 1/32 of the size."""
        found = [self.patch_embed(x)]
        for block, down in zip(self.blocks, self.downs, strict=True):
            found.append(down(block(found[-1])))
        return found


def residual_unet(
    in_channels: int, out_channels: int, feature_size: int = 12, spatial_dims: int = 3, **options: Any
) -> nn.Module:
    """A residual U-Net: Swin UNETR's decoder and skips behind a convolutional encoder of the same widths and depths."""
    model = SwinUNETR(in_channels, out_channels, feature_size, spatial_dims=spatial_dims, **options)
    model.encoder = ConvolutionalEncoder(in_channels, feature_size, spatial_dims)  # type: ignore[assignment]
    return model


def segresnet(in_channels: int, out_channels: int, feature_size: int = 12, spatial_dims: int = 3) -> nn.Module:
    """MONAI's SegResNet as its BraTS recipe has it, 16 channels at a feature size of 48; scaled with it."""
    from monai.networks.nets import SegResNet

    width = max(8, feature_size // 3)
    model: nn.Module = SegResNet(
        spatial_dims, width, in_channels, out_channels, dropout_prob=0.2, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1)
    )
    return model


def voxelwise(in_channels: int, out_channels: int, feature_size: int = 12, spatial_dims: int = 3) -> nn.Module:
    """Each voxel by itself, three layers: what intensities alone say."""
    convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
    return nn.Sequential(
        convolution(in_channels, 4 * feature_size, 1), nn.GELU(),
        convolution(4 * feature_size, 4 * feature_size, 1), nn.GELU(),
        convolution(4 * feature_size, out_channels, 1),
    )  # fmt: skip
