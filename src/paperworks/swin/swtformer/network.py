"""The network of both versions, and its losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.swin.swtformer.backbones import build_backbone, find_stages
from paperworks.swin.swtformer.maps import (
    EPS,
    check_labels,
    class_contrast_loss,
    class_prototypes,
    gsc_loss,
    normalize_cam,
    prototype_cam,
    structure_seeds,
    with_background,
)

__all__ = ["LocalizationOutput", "SWTformer", "swtformer_loss"]

SIDE_CHANNELS = (128, 128, 256, 256)


@dataclass
class LocalizationOutput:
    """What a forward pass gives; the last four are None in version 1.

    Attributes:
        logits: (B, K), the mean of `cam`.
        cam: A (B, K, h, w), raw class maps on the last grid.
        norm_cam: M (B, K + 1, h', w'), the background first, labels applied; on the fusion grid, in version 1 that of
            `cam`.
        seeds: one-hot (B, K + 1, h', w').
        prototypes: (B, K + 1, F).
        prototype_map: I (B, K + 1, h', w'), not normalised.
        features: fused (B, F, h', w').
    """

    logits: Tensor
    cam: Tensor
    norm_cam: Tensor
    seeds: Tensor | None = None
    prototypes: Tensor | None = None
    prototype_map: Tensor | None = None
    features: Tensor | None = None


def _resized(x: Tensor, grid: Sequence[int]) -> Tensor:
    if tuple(x.shape[2:]) == tuple(grid):
        return x
    return F.interpolate(x, tuple(grid), mode="bilinear", align_corners=True)


class SWTformer(nn.Module):
    """Class activation maps of a Swin without a class token; in version 2 prototype maps from all its stages as well.

    Version 1: A = head(LN(S_n)), a 1x1 convolution without bias, so that the mean of a map is its logit. Version 2 adds
    a 1x1 convolution without bias for each stage, fuses them on the grid of the second-last stage, and matches every
    pixel with prototypes of the classes and of the background.

    Args:
        backbone: a name of timm (Swin-T, S, B and L are built here, others and weights need timm), or a module: timm's
            SwinTransformer, transformers' SwinModel, paperworks' SwinClassifier or GatedSwinRMT, or one with `channels`
            (of its stages), `stride` (of the last) and `stage_maps(x)` (channels-last maps, and the last after a norm).
            Heads that it has are kept, and not used.
        num_classes: K, without the background.
        version: 1 or 2.
        side_channels: of version 2, one a stage; a backbone of fewer stages takes the last ones of the default.
        pretrained: timm's weights for a named backbone.
        img_size: a named backbone of timm is built for it; others take any multiple of their last stride.

    Raises ValueError for numbers that make no sense, TypeError for a backbone without stages that are understood,
    ImportError where timm is needed and missing.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "swin_tiny_patch4_window7_224",
        num_classes: int = 20,
        version: int = 2,
        side_channels: Sequence[int] = SIDE_CHANNELS,
        pretrained: bool = False,
        img_size: int = 224,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if version not in (1, 2):
            raise ValueError(f"version: got {version!r}, wanted 1 or 2")
        if num_classes < 1:
            raise ValueError(f"num_classes: got {num_classes}, wanted a positive number")
        factory: Any = {"device": device, "dtype": dtype}
        if isinstance(backbone, str):
            backbone = build_backbone(backbone, pretrained, img_size, **factory)
        elif not isinstance(backbone, nn.Module):
            raise TypeError(f"backbone: got {type(backbone).__name__}, wanted a name or an nn.Module")
        elif pretrained:
            raise ValueError("pretrained: got True with a module, wanted a name: a module has the weights it has")
        self._stages = find_stages(backbone)
        channels = self._stages.channels
        self.num_classes, self.version, self.stride = num_classes, version, self._stages.stride
        self.backbone = backbone
        self.head = nn.Conv2d(channels[-1], num_classes, 1, bias=False, **factory)
        self.sides = nn.ModuleList()
        if version == 2:
            widths = tuple(side_channels)
            if widths == SIDE_CHANNELS:
                widths = widths[-len(channels) :]
            if len(channels) < 2 or len(widths) != len(channels) or any(width < 1 for width in widths):
                wanted = f"one positive number for each of the {len(channels)} stages, of which there are two or more"
                raise ValueError(f"side_channels: got {tuple(side_channels)}, wanted {wanted}")
            self.sides.extend(
                nn.Conv2d(c, width, 1, bias=False, **factory) for c, width in zip(channels, widths, strict=True)
            )

    def extra_repr(self) -> str:
        """Version and classes."""
        return f"version={self.version}, num_classes={self.num_classes}"

    def forward(self, image: Tensor, labels: Tensor | None = None) -> LocalizationOutput:
        """Logits and maps.

        Args:
            image: (B, 3, H, W), both sides multiples of the stride of the last stage (32 for Swin).
            labels: (B, K), 1 for a class that is in the image, else 0. Without them the classes with
                sigmoid(logits) > 0.5, and the one with the largest logit. Version 2 wants them in training.

        Raises ValueError for sizes or labels that do not fit, TypeError for another dtype.
        """
        if image.dim() != 4 or any(size < 1 or size % self.stride for size in image.shape[2:]):
            wanted = f"(B, channels, H, W) with H and W multiples of {self.stride}"
            raise ValueError(f"image: got the shape {tuple(image.shape)}, wanted {wanted}")
        kind = self.head.weight.dtype
        if image.dtype != kind and not (image.is_floating_point() and torch.is_autocast_enabled(image.device.type)):
            raise TypeError(f"image: got {image.dtype}, wanted {kind}, the dtype of the weights")
        if labels is not None:
            check_labels(labels, image.shape[0], self.num_classes)
        elif self.training and self.version == 2:
            raise ValueError("labels: got None, wanted (B, K) of 0 and 1 to train version 2")
        maps, last = self._stages.maps(self.backbone, image)
        x = last.movedim(-1, 1)
        cam = self.head(x)
        logits = cam.mean((2, 3))
        labels = self._predicted(logits) if labels is None else labels.to(cam)
        norm_cam = with_background(normalize_cam(cam), labels)
        if self.version == 1:
            return LocalizationOutput(logits, cam, norm_cam)
        grid = maps[-2].shape[1:3]
        norm_cam = _resized(norm_cam, grid)
        features = self._fused(maps, grid)
        seeds = structure_seeds(norm_cam, _resized(x, grid), labels)
        prototypes = class_prototypes(seeds, features)
        return LocalizationOutput(
            logits, cam, norm_cam, seeds, prototypes, prototype_cam(prototypes, features), features
        )

    @staticmethod
    def _predicted(logits: Tensor) -> Tensor:
        scores = logits.detach()
        best = torch.zeros_like(scores).scatter_(1, scores.argmax(1, keepdim=True), 1.0)
        return torch.maximum((scores > 0).to(scores.dtype), best)

    def _fused(self, maps: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
        """(B, sum of the side channels, h', w'). The stages are detached: what is fused does not train the backbone."""
        sides = []
        for side, found in zip(self.sides, maps, strict=True):
            one = side(found.detach().movedim(-1, 1))
            sides.append(_resized(one / (torch.linalg.vector_norm(one, dim=1, keepdim=True) + EPS), grid))
        return torch.cat(sides, 1)


def swtformer_loss(
    out: LocalizationOutput, labels: Tensor, *, gsc: float = 1.0, ccl: float = 0.1, tau: float = 0.1
) -> dict[str, Tensor]:
    """L = L_cls + gsc L_gsc + ccl L_ccl; the last two are 0 in version 1.

    L_cls is the mean over images and classes of the binary cross entropy of the logits.

    Args:
        out: of `SWTformer`.
        labels: (B, K) of 0 and 1.
        gsc, ccl: weights; a term of weight 0 is not computed.
        tau: temperature of `class_contrast_loss`.

    Returns ``total``, ``cls``, ``gsc`` and ``ccl``, the terms before they are weighted.
    """
    check_labels(labels, *out.logits.shape)
    terms = {"cls": F.multilabel_soft_margin_loss(out.logits, labels.to(out.logits))}
    terms["gsc"] = terms["ccl"] = out.logits.new_zeros(())
    if out.features is not None and out.seeds is not None and out.prototypes is not None:
        if gsc and out.prototype_map is not None:
            terms["gsc"] = gsc_loss(out.norm_cam, out.prototype_map)
        if ccl:
            terms["ccl"] = class_contrast_loss(out.features, out.seeds, out.prototypes, labels, tau)
    return {"total": terms["cls"] + gsc * terms["gsc"] + ccl * terms["ccl"], **terms}
