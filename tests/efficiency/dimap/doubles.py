"""Small networks with the parts of timm's, torchvision's and transformers' Swin, under their names."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class WindowAttention(nn.Module):
    """timm's window attention on (windows, tokens, dim): fused qkv, head width read from the weights."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window_size, self.num_heads = (window, window), heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        place = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        down, right = (place[:, None] - place[None] + window - 1).unbind(-1)
        self.register_buffer("relative_position_index", down * (2 * window - 1) + right, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        weights = ((q * self.scale) @ k.transpose(-2, -1) + bias).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.act, self.drop1 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(0.0)
        self.norm, self.fc2 = nn.Identity(), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.drop1(self.act(self.fc1(x)))))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), WindowAttention(dim, heads, window)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        s = self.attn.window_size[0]
        windows = self.norm1(x).view(b, h // s, s, w // s, s, c).transpose(2, 3).reshape(-1, s * s, c)
        y = self.attn(windows).view(b, h // s, w // s, s, s, c).transpose(2, 3).reshape(b, h, w, c)
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    def __init__(self, dim: int, out: int, depth: int, heads: int, window: int) -> None:
        super().__init__()
        self.downsample = PatchMerging(dim, out) if out != dim else nn.Identity()
        self.blocks = nn.Sequential(*(Block(out, heads, window) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(channels, dim, patch, patch), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Head(nn.Module):
    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((1, 2)))


class TimmSwin(nn.Module):
    """The layout of timm's swin_*: images (N, 3, 8 * patch, 8 * patch)."""

    def __init__(self, dim: int = 8, depths: tuple[int, ...] = (2, 2), window: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(3, dim, 2)
        widths = [dim * 2**i for i in range(len(depths))]
        self.layers = nn.Sequential(
            *(
                Stage(widths[max(0, i - 1)], width, depth, 2 ** (i + 1), window)
                for i, (width, depth) in enumerate(zip(widths, depths, strict=True))
            )
        )
        self.norm, self.head = nn.LayerNorm(widths[-1]), Head(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.patch_embed(x))))


class FunctionalAttention(nn.Module):
    """torchvision's: the layers are never called, their weights go to a function."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        qkv = functional.linear(x.view(b, h * w, c), self.qkv.weight, self.qkv.bias)
        q, k, v = qkv.reshape(b, h * w, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return functional.linear(y.transpose(1, 2).reshape(b, h, w, c), self.proj.weight, self.proj.bias)


class TorchvisionBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attn = FunctionalAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class Channelslast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class TorchvisionSwin(nn.Module):
    """The layout of torchvision's swin_*: `features` alternates stages and merging; images (N, 3, 16, 16)."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, dim, 4, 4), Channelslast(), nn.LayerNorm(dim)),
            nn.Sequential(TorchvisionBlock(dim, 2), TorchvisionBlock(dim, 2)),
            PatchMerging(dim, 2 * dim),
            nn.Sequential(TorchvisionBlock(2 * dim, 4)),
        )
        self.head = nn.Linear(2 * dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((1, 2)))


def transformers_swin(**options: object) -> nn.Module:
    """A small random Swin of transformers for 16-pixel images of 3 channels."""
    from transformers import SwinConfig, SwinForImageClassification

    size = {"image_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [2, 2]}
    return SwinForImageClassification(SwinConfig(**{**size, "num_heads": [2, 4], "num_labels": 5, **options})).eval()
