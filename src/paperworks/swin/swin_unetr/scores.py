"""Overlap and distance of segmentations: the loss that Swin UNETR is trained with, and the scores it is judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["dice_score", "hd95", "soft_dice_loss"]


def soft_dice_loss(
    logits: Tensor, target: Tensor, *, squared: bool = True, smooth: float = 1e-5, reduction: str = "mean"
) -> Tensor:
    """1 - (2 sum(G Y) + smooth) / (sum G^2 + sum Y^2 + smooth), Y = sigmoid(logits), sums over space (Eq. 3).

    Args:
        logits: (B, C, *S), one sigmoid a channel: regions may overlap. Half precision is summed in float32.
        target: (B, C, *S), G, in [0, 1] or bool.
        squared: squares in the denominator; without them sum G + sum Y.
        smooth: added to numerator and denominator.
        reduction: ``"mean"`` over batch and channels, or ``"none"``, (B, C).

    Raises ValueError for other shapes, nothing to sum, or another reduction; TypeError for logits of whole numbers.
    """
    if not logits.is_floating_point():
        raise TypeError(f"logits: got {logits.dtype}, wanted a floating-point tensor")
    if logits.shape != target.shape or logits.dim() < 3:
        wanted = "the same, (B, C, and spatial axes)"
        raise ValueError(
            f"target: got the shape {tuple(target.shape)} for logits {tuple(logits.shape)}, wanted {wanted}"
        )
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction: got {reduction!r}, wanted 'mean' or 'none'")
    if not logits.numel():
        raise ValueError(f"logits: got the shape {tuple(logits.shape)}, which is empty")
    if not smooth >= 0:
        raise ValueError(f"smooth: got {smooth}, wanted 0 or more")
    # sums over a volume pass the largest half-precision number, and stop growing in bfloat16
    wide = torch.promote_types(logits.dtype, torch.float32)
    y, g = torch.sigmoid(logits.to(wide)).flatten(2), target.to(wide).flatten(2)
    overlap = (g * y).sum(-1)
    size = (g.square() + y.square()).sum(-1) if squared else (g + y).sum(-1)
    loss = 1 - (2 * overlap + smooth) / (size + smooth)
    return loss.mean() if reduction == "mean" else loss


def _masks(pred: Tensor, target: Tensor) -> None:
    if pred.dtype != torch.bool or target.dtype != torch.bool:
        raise TypeError(f"pred, target: got {pred.dtype} and {target.dtype}, wanted bool")
    if pred.shape != target.shape or pred.dim() < 2:
        raise ValueError(
            f"target: got the shape {tuple(target.shape)} for pred {tuple(pred.shape)}, wanted the same, (C, *S)"
        )


def dice_score(pred: Tensor, target: Tensor) -> Tensor:
    """2 |P and G| / (|P| + |G|) of each channel: bool (C, *S) twice -> float64 (C,); NaN where both are empty.

    BraTS counts a region that is empty in both as 1: ``dice_score(...).nan_to_num(1.0)``.
    """
    _masks(pred, target)
    p, g = pred.flatten(1), target.flatten(1)
    return 2 * (p & g).sum(1).double() / (p.sum(1) + g.sum(1)).double()


def hd95(pred: Tensor, target: Tensor, spacing: Sequence[float] | float) -> Tensor:
    """95th percentile of the distances from each surface voxel of one mask to the nearest of the other, both ways.

    Args:
        pred, target: bool (C, *S). A surface voxel has a face neighbour outside of the mask; beyond the edge of the
            volume is outside.
        spacing: length of a voxel on each axis, or one number for all; the result has its unit.

    Returns float64 (C,): NaN where both are empty, infinity where one is.
    """
    from scipy import ndimage

    _masks(pred, target)
    given = (spacing,) * (pred.dim() - 1) if isinstance(spacing, int | float) else spacing
    spacing = tuple(float(s) for s in given)
    if len(spacing) != pred.dim() - 1 or min(spacing) <= 0:
        raise ValueError(f"spacing: got {spacing}, wanted {pred.dim() - 1} positive numbers, one an axis")

    def surface(mask: np.ndarray) -> np.ndarray:
        return mask & ~ndimage.binary_erosion(mask)

    found = []
    for p, g in zip(pred.cpu().numpy(), target.cpu().numpy(), strict=True):
        if not p.any() or not g.any():
            found.append(float("nan") if p.any() == g.any() else float("inf"))
            continue
        both = np.nonzero(p | g)
        box = tuple(slice(axis.min(), axis.max() + 1) for axis in both)
        # the box of both masks with a margin of one voxel, so that the box's edge is outside as it is in the volume
        p, g = (surface(np.pad(mask[box], 1)) for mask in (p, g))
        to_g, to_p = (ndimage.distance_transform_edt(~mask, sampling=spacing) for mask in (g, p))
        found.append(float(np.percentile(np.concatenate([to_g[p], to_p[g]]), 95)))
    return torch.tensor(found, dtype=torch.float64)
