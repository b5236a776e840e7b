"""The networks that are trained from tags: SWTformer of both versions, a CNN of equal size, and a plain transformer."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.swin.backbone import SwinClassifier
from paperworks.swin.state_dicts import load_swin_state_dict
from paperworks.swin.swtformer import SWTformer


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions with group norms and a skip, which is projected where size or width change."""

    def __init__(self, dim: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(dim, out, 3, stride, 1, bias=False), nn.GroupNorm(1, out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.GroupNorm(1, out))
        self.skip = nn.Identity() if stride == 1 and dim == out else nn.Conv2d(dim, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, out, H / stride, W / stride)."""
        return torch.relu(self.second(self.first(x)) + self.skip(x))


class ResidualNetwork(nn.Module):
    """A residual CNN with the stages, and the stride, of a Swin: a patch convolution, then units that halve the map.

    Args:
        channels: width of each stage.
        patch: stride of the first convolution.
    """

    def __init__(self, channels: Sequence[int], patch: int) -> None:
        super().__init__()
        self.channels, self.stride = tuple(channels), patch * 2 ** (len(channels) - 1)
        self.stem = nn.Conv2d(3, channels[0], 2 * patch - 1, patch, patch - 1, bias=False)
        before = (channels[0], *channels[:-1])
        self.stages = nn.ModuleList(
            ResidualUnit(a, b, 2 if i else 1) for i, (a, b) in enumerate(zip(before, channels, strict=True))
        )
        self.norm = nn.GroupNorm(1, channels[-1])

    def stage_maps(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, 3, H, W) -> the channels-last map of each stage, and the last after a norm."""
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x.movedim(1, -1))
        return maps, self.norm(x).movedim(1, -1)


def swin_backbone(settings: Mapping[str, Any]) -> SwinClassifier:
    """A Swin of the size of the settings."""
    stages = settings["stages"]
    return SwinClassifier(
        0,
        patch=settings["patch"],
        dim=settings["width"],
        depths=(settings["depth"],) * stages,
        num_heads=tuple(2 * 2**i for i in range(stages)),
        window=settings["window"],
        mlp_ratio=2.0,
    )


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def cnn_backbone(settings: Mapping[str, Any]) -> ResidualNetwork:
    """The residual network with as many weights as the Swin: widths double, the last makes up the rest."""
    patch, stages = settings["patch"], settings["stages"]

    def count(*channels: int) -> int:
        with torch.device("meta"):
            return _count(ResidualNetwork(channels, patch))

    with torch.device("meta"):
        wanted = _count(swin_backbone(settings))
    firsts = range(1, settings["width"] + 1)
    below = bisect_right(firsts, wanted, key=lambda w: count(*(w * 2**i for i in range(stages))))
    *first, last = (max(1, below) * 2**i for i in range(stages))
    lasts = range(last, 2 * last + 1)
    above = bisect_left(lasts, wanted, key=lambda c: count(*first, c))
    near = lasts[max(0, above - 1) : above + 1]
    best = (*first, min(near, key=lambda c: abs(count(*first, c) - wanted)))
    return ResidualNetwork(best, patch)


def swin_cam(settings: Mapping[str, Any], classes: int, version: int, **_: float) -> SWTformer:
    """SWTformer on the small Swin; weights of the losses are the protocol's business."""
    sides = tuple(settings["width"] * 2 ** min(i, 1) for i in range(settings["stages"]))
    return SWTformer(swin_backbone(settings), classes, version, sides)


def cnn_cam(settings: Mapping[str, Any], classes: int, **_: float) -> SWTformer:
    """Class maps of the CNN, read as in version 1."""
    return SWTformer(cnn_backbone(settings), classes, 1)


class PatchTokens(nn.Module):
    """A plain vision transformer of transformers as one stage: its patch tokens, without class tokens.

    Args:
        model: ViTModel or DeiTModel.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        config: Any = model.config
        self.model, self.channels, self.stride = model, (int(config.hidden_size),), int(config.patch_size)

    def stage_maps(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, 3, H, W) -> its map after the final norm, (B, h, w, C), as the only stage."""
        grid = (x.shape[2] // self.stride, x.shape[3] // self.stride)
        tokens = self.model(x, interpolate_pos_encoding=True).last_hidden_state
        tokens = tokens[:, -grid[0] * grid[1] :].unflatten(1, grid)
        return [tokens], tokens


def deit_cam(settings: Mapping[str, Any], classes: int) -> SWTformer:
    """Class maps of a DeiT of transformers (`peer_weights`: an id or folder), read as in version 1."""
    from transformers import AutoModel

    return SWTformer(PatchTokens(AutoModel.from_pretrained(settings["peer_weights"])), classes, 1)


def voc_swin(settings: Mapping[str, Any], classes: int, version: int, **_: float) -> SWTformer:
    """SWTformer on a Swin-T with the weights that the settings name: `timm`, a file in timm's layout, or none."""
    weights, width = settings["weights"], settings["width"]
    if weights == "timm":
        return SWTformer(num_classes=classes, version=version, pretrained=True)
    backbone = SwinClassifier(
        0, dim=width, num_heads=tuple(max(1, width // 32) * 2**i for i in range(4)), order="roll-pad",
        drop_path_rate=0.1,
    )  # fmt: skip
    if weights:
        load_swin_state_dict(backbone, _headless(weights), "timm")
    return SWTformer(backbone, classes, version)


def _headless(path: str) -> dict[str, Tensor]:
    """The weights in a .safetensors or torch file, which is not unpickled freely, without the classification head."""
    where = Path(path).expanduser()
    if where.suffix == ".safetensors":
        from safetensors.torch import load_file

        found = load_file(where)
    else:
        found = torch.load(where, map_location="cpu", weights_only=True)
        found = found.get("model", found)
    return {name: value for name, value in found.items() if not name.startswith("head.")}
