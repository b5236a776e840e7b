"""Networks of the image classification protocol. Every activation is an `nn.ReLU` module of its own, to be replaced.

`convnet` and `vit` are small enough for seconds on a processor core; `vit-tiny` and `resnet18` are for one accelerator;
`resnet164`, `wrn28-10` and `densenet100-12` are the networks of the CIFAR experiments in the literature.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.data.images import ImageData
from paperworks.surgery.models import load_model, model_signature


def _conv(i: int, o: int, kernel: int = 3, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=bias)


class _Pool(nn.Module):
    """Global average pooling: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def convnet(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Three 3x3 convolutions of 16, 32 and 64 filters with strides 1, 2, 2, global average, linear; no norm."""
    layers: list[nn.Module] = []
    for i, o, stride in ((in_channels, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [_conv(i, o, 3, stride, bias=True), nn.ReLU()]
    return nn.Sequential(*layers, _Pool(), nn.Linear(64, num_classes))


class Attention(nn.Module):
    """Multi-head self-attention of (N, L, dim) without a mask."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, length, dim = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, dim))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block with an MLP of four times the width."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """ViT with a class token and learned positions; the patch is 2 pixels up to size 16, else 4."""

    def __init__(
        self, num_classes: int, in_channels: int, image_size: int, dim: int = 32, depth: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        patch = 2 if image_size <= 16 else 4
        self.embedding = nn.Conv2d(in_channels, dim, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, (image_size // patch) ** 2 + 1, dim) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x)[:, 0]))


def vit_tiny(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """ViT-Tiny: width 192, 12 blocks, 3 heads."""
    return VisionTransformer(num_classes, in_channels, image_size, dim=192, depth=12, heads=3)


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions, post-activation."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1, self.act1 = _conv(i, o, 3, stride), nn.BatchNorm2d(o), nn.ReLU()
        self.conv2, self.norm2, self.act2 = _conv(o, o), nn.BatchNorm2d(o), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or i != o:
            self.shortcut = nn.Sequential(_conv(i, o, 1, stride), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """ResNet-18 for small images: a 3x3 stem with stride 1, no max pooling."""
    layers: list[nn.Module] = [_conv(in_channels, 64), nn.BatchNorm2d(64), nn.ReLU()]
    i = 64
    for o, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(i, o, stride), BasicBlock(o, o, 1)]
        i = o
    return nn.Sequential(*layers, _Pool(), nn.Linear(512, num_classes))


class PreActivation(nn.Module):
    """Pre-activation residual block of the given convolutions (in, out, kernel, stride)."""

    def __init__(self, convolutions: list[tuple[int, int, int, int]]) -> None:
        super().__init__()
        steps = [[nn.BatchNorm2d(i), nn.ReLU(), _conv(i, o, k, s)] for i, o, k, s in convolutions]
        self.first = nn.Sequential(*steps[0][:2])
        self.rest = nn.Sequential(steps[0][2], *(layer for step in steps[1:] for layer in step))
        i, o, stride = convolutions[0][0], convolutions[-1][1], max(s for *_, s in convolutions)
        self.shortcut = _conv(i, o, 1, stride) if i != o or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.rest(y) + (x if self.shortcut is None else self.shortcut(y))


def _three_stages(
    num_classes: int, in_channels: int, widths: tuple[int, int, int], blocks: int, bottleneck: bool
) -> nn.Module:
    layers: list[nn.Module] = [_conv(in_channels, 16)]
    i = 16
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            if bottleneck:
                o = 4 * width
                convolutions = [(i, width, 1, 1), (width, width, 3, stride), (width, o, 1, 1)]
            else:
                o = width
                convolutions = [(i, o, 3, stride), (o, o, 3, 1)]
            layers.append(PreActivation(convolutions))
            i = o
    return nn.Sequential(*layers, nn.BatchNorm2d(i), nn.ReLU(), _Pool(), nn.Linear(i, num_classes))


def resnet164(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Pre-activation ResNet-164 for CIFAR: 3 x 18 bottleneck blocks."""
    return _three_stages(num_classes, in_channels, (16, 32, 64), 18, bottleneck=True)


def wrn28_10(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Wide ResNet 28-10: 3 x 4 blocks of ten times the width."""
    return _three_stages(num_classes, in_channels, (160, 320, 640), 4, bottleneck=False)


class DenseLayer(nn.Module):
    """BatchNorm, activation, 3x3 convolution; the output is appended to the input's channels."""

    def __init__(self, i: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(i), nn.ReLU(), _conv(i, growth))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet100_12(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """DenseNet of 100 layers with growth 12, without bottlenecks: 3 blocks of 32 layers."""
    layers: list[nn.Module] = [_conv(in_channels, 16)]
    i = 16
    for block in range(3):
        for _ in range(32):
            layers.append(DenseLayer(i, 12))
            i += 12
        if block < 2:
            layers += [nn.BatchNorm2d(i), nn.ReLU(), _conv(i, i, 1), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.BatchNorm2d(i), nn.ReLU(), _Pool(), nn.Linear(i, num_classes))


NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "convnet": convnet,
    "vit": VisionTransformer,
    "vit-tiny": vit_tiny,
    "resnet18": resnet18,
    "resnet164": resnet164,
    "wrn28-10": wrn28_10,
    "densenet100-12": densenet100_12,
}


def build_network(spec: str, data: ImageData) -> nn.Module:
    """The network that `spec` names, for the classes, channels and size of `data`: (N, C, H, W) -> (N, classes).

    Raises ValueError for a name that is neither a network here nor something that `surgery.models.load_model` takes.
    """
    if spec in NETWORKS:
        return NETWORKS[spec](data.num_classes, data.in_channels, data.image_size)
    try:
        return load_model(spec, num_classes=data.num_classes, in_channels=data.in_channels, image_size=data.image_size)
    except ValueError as error:
        raise ValueError(f"{error} (or one of the networks {', '.join(NETWORKS)})") from error


def network_signature(spec: str) -> str:
    """Digest of what `spec` names outside this module: a user's factory or checkpoint folder."""
    return "" if spec in NETWORKS else model_signature(spec)
