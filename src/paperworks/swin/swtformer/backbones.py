"""The map of every stage, before it merges, of Swins from three libraries and of backbones that give it themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from paperworks.swin.backbone import SwinClassifier
from paperworks.swin.state_dicts import load_swin_state_dict

__all__ = ["Stages", "build_backbone", "find_stages"]

SUPPORTED = (
    "timm's SwinTransformer, transformers' SwinModel, paperworks' SwinClassifier or GatedSwinRMT, or a module with "
    "`channels`, `stride` and `stage_maps(x)`"
)
SIZES = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
"""Channels, blocks and heads of Swin's sizes."""
Found = tuple[list[Tensor], Tensor]


@dataclass(frozen=True)
class Stages:
    """What is known of a backbone.

    Attributes:
        channels: width of each stage.
        stride: pixels a token of the last stage.
        maps: (backbone, image (B, 3, H, W)) -> the channels-last map of every stage, taken after its blocks and before
            its merging, and the last of them after the final norm.
    """

    channels: tuple[int, ...]
    stride: int
    maps: Callable[[Any, Tensor], Found]


def build_backbone(name: str, pretrained: bool, img_size: int, **factory: Any) -> nn.Module:
    """The backbone of a timm name, without a head.

    Swin-T, S, B and L (``swin_tiny_patch4_window7_224``) are built here and compute what timm's do; weights
    (`pretrained`) and all other names are timm's. Raises ImportError where timm is needed and missing.
    """
    found = re.fullmatch(r"swin_(tiny|small|base|large)_patch4_window(\d+)_\d+(?:\..+)?", name)
    if found is None or pretrained:
        try:
            import timm
        except ImportError as error:
            wanted = "pretrained weights are" if found else f"{name!r} is"
            raise ImportError(f"backbone: {wanted} timm's: pip install timm") from error
        size = {} if found else {"img_size": img_size}
        theirs: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **size)
        if found is None:
            return theirs.to(**factory)
    dim, depths, heads = SIZES[found[1]]
    ours = SwinClassifier(
        0,
        dim=dim,
        depths=depths,
        num_heads=heads,
        window=int(found[2]),
        order="roll-pad",
        drop_path_rate=0.1,
        **factory,
    )
    if pretrained:
        load_swin_state_dict(ours, theirs.state_dict(), "timm")
    return ours


def find_stages(backbone: nn.Module) -> Stages:
    """How to read the stages of a backbone. Raises TypeError that says what is supported."""
    if isinstance(backbone, SwinClassifier):
        body = backbone.backbone
        if body.ndim != 2 or body.taps != "before" or len(body.merges) >= len(body.stages):
            raise TypeError("backbone: got a SwinClassifier that merges after each stage, wanted merging between them")
        return Stages(body.channels, max(body.patch_embed.patch) * 2 ** (len(body.channels) - 1), _ours)
    if all(hasattr(backbone, name) for name in ("channels", "stride", "stage_maps")):
        return Stages(tuple(backbone.channels), int(backbone.stride), _own)  # type: ignore[arg-type]
    theirs: Any = getattr(backbone, "swin", backbone)  # transformers' SwinForImageClassification
    layers = getattr(getattr(theirs, "encoder", None), "layers", ())
    known = all(hasattr(theirs, name) for name in ("embeddings", "layernorm", "config")) and len(layers) > 0
    if known and all(hasattr(layer, name) for layer in layers for name in ("blocks", "downsample")):
        channels = tuple(int(theirs.config.embed_dim) * 2**i for i in range(len(layers)))
        return Stages(channels, int(theirs.config.patch_size) * 2 ** (len(layers) - 1), _transformers)
    if all(hasattr(backbone, name) for name in ("patch_embed", "layers", "norm", "feature_info")):
        return _timm_stages(backbone)
    if all(hasattr(backbone, name) for name in ("map_sizes", "forward_intermediates", "feature_info")):
        info: Any = backbone.feature_info
        return Stages(tuple(int(one["num_chs"]) for one in info), int(info[-1]["reduction"]), _intermediates)
    raise TypeError(f"backbone: found no stages in {type(backbone).__name__}, wanted {SUPPORTED}")


def _timm_stages(backbone: Any) -> Stages:
    # later timm merges at the start of a stage, so that what a stage returns is what is wanted; earlier ones at its end
    if not isinstance(getattr(backbone.layers[0], "downsample", None), nn.Identity):
        raise TypeError(
            f"backbone: got a Swin that merges at the end of its stages, as timm's before 0.9, wanted {SUPPORTED}"
        )
    # other sizes than it was built for: not refused, and with masks of their own
    backbone.patch_embed.strict_img_size = False
    for layer in backbone.layers:
        for block in layer.blocks:
            block.dynamic_mask = True
    info = backbone.feature_info
    return Stages(tuple(one["num_chs"] for one in info), int(info[-1]["reduction"]), _timm)


def _ours(backbone: SwinClassifier, x: Tensor) -> Found:
    maps = backbone.backbone(x)
    return maps, backbone.norm(maps[-1])


def _own(backbone: Any, x: Tensor) -> Found:
    maps, last = backbone.stage_maps(x)
    return list(maps), last


def _intermediates(backbone: Any, x: Tensor) -> Found:
    # Gated-SwinRMT has no norm behind its last stage
    maps = backbone.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
    return maps, maps[-1]


def _transformers(backbone: Any, x: Tensor) -> Found:
    body = getattr(backbone, "swin", backbone)
    hidden, grid = body.embeddings(x, interpolate_pos_encoding=True)
    maps = []
    for stage in body.encoder.layers:
        for block in stage.blocks:
            out = block(hidden, grid)
            hidden = out[0] if isinstance(out, tuple) else out
        maps.append(hidden.unflatten(1, tuple(grid)))
        if stage.downsample is not None:
            hidden = stage.downsample(hidden, grid)
            grid = tuple((size + 1) // 2 for size in grid)
    return maps, body.layernorm(maps[-1])


def _timm(backbone: Any, x: Tensor) -> Found:
    x = backbone.patch_embed(x)
    maps = []
    for layer in backbone.layers:
        x = layer(x)
        maps.append(x)
    return maps, backbone.norm(x)
