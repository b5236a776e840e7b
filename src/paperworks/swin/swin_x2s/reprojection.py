"""What a reconstruction can be checked by without the truth: its own X-rays, and where its two views disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.data.radiographs import drr

__all__ = ["disagreement", "reprojection_loss", "silhouette", "silhouette_overlap"]


def silhouette(
    volume: Tensor, spacing: Sequence[float], angle_deg: float | Tensor, *, softness: float | None = None, **cone: Any
) -> Tensor:
    """The shadow of a shape, 1 - exp(-r / softness), r being the length of a ray inside of it; differentiable.

    Args:
        volume: (B, 1, X, Y, Z), 1 inside and 0 outside, or probabilities.
        spacing, angle_deg, cone: see `paperworks.data.radiographs.drr`.
        softness: mm; half of the smallest spacing if None.

    Returns (B, 1, h, w) in [0, 1].
    """
    softness = min(float(s) for s in spacing) / 2 if softness is None else softness
    if softness <= 0:
        raise ValueError(f"softness: got {softness}, wanted a positive number, or None")
    return -torch.expm1(-drr(volume, spacing, angle_deg, **cone) / softness)


def silhouette_overlap(
    pred: Tensor, target: Tensor, spacing: Sequence[float], angle_deg: float | Tensor, **cone: Any
) -> Tensor:
    """Dice score of the shadows of two shapes, both projected with the same geometry.

    Args:
        pred, target: bool (B, X, Y, Z).
        spacing, angle_deg, cone: see `paperworks.data.radiographs.drr`.

    Returns float64 (B,); NaN where both shadows are empty. A pixel is in the shadow where its ray passes through more
    than half of the smallest spacing.
    """
    if pred.shape != target.shape or pred.dim() != 4:
        got = f"{tuple(pred.shape)} and {tuple(target.shape)}"
        raise ValueError(f"pred, target: got the shapes {got}, wanted the same, (B, X, Y, Z)")
    if pred.dtype != torch.bool or target.dtype != torch.bool:
        raise TypeError(f"pred, target: got {pred.dtype} and {target.dtype}, wanted bool")
    p, g = (
        silhouette(mask.unsqueeze(1).float(), spacing, angle_deg, **cone).flatten(1) > 1 - math.exp(-1)
        for mask in (pred, target)
    )
    return 2 * (p & g).sum(1).double() / (p.sum(1) + g.sum(1)).double()


def reprojection_loss(
    logits: Tensor,
    radiographs: Sequence[Tensor],
    attenuation: Tensor,
    spacing: Sequence[float],
    angles_deg: Sequence[float] = (0.0, 90.0),
    **cone: Any,
) -> Tensor:
    """1 - correlation of the X-rays that a reconstruction would give with those it was made from; needs no truth.

    Each voxel absorbs sum_k softmax(logits)_k attenuation_k. Correlation does not ask how an X-ray was scaled.

    Args:
        logits: (B, K, X, Y, Z).
        radiographs: one a view, (B, 1, h, w).
        attenuation: (K,), of each class.
        spacing, cone: see `paperworks.data.radiographs.drr`.
        angles_deg: one a view.

    Returns the mean over views and batch, a scalar from 0 to 2.
    """
    if logits.dim() != 5 or tuple(attenuation.shape) != (logits.shape[1],):
        got = f"{tuple(logits.shape)} and {tuple(attenuation.shape)}"
        raise ValueError(f"logits, attenuation: got the shapes {got}, wanted (B, K, X, Y, Z) and (K,)")
    if len(radiographs) != len(angles_deg) or not len(radiographs):
        raise ValueError(f"radiographs: got {len(radiographs)} for {len(angles_deg)} angles, wanted one an angle")
    shares = logits.softmax(1)
    volume = torch.einsum("bkxyz,k->bxyz", shares, attenuation.to(shares)).unsqueeze(1)
    found = []
    for radiograph, angle in zip(radiographs, angles_deg, strict=True):
        made = drr(volume, spacing, angle, detector_shape=radiograph.shape[-2:], **cone)
        x, y = (image.flatten(1) - image.flatten(1).mean(1, keepdim=True) for image in (made, radiograph))
        found.append(1 - F.cosine_similarity(x, y, dim=1))
    return torch.stack(found).mean()


def disagreement(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """Where the two views' outputs differ: the Jensen-Shannon divergence of their class probabilities, in bits.

    Args:
        logits_a, logits_b: (B, K, X, Y, Z).

    Returns (B, X, Y, Z), from 0, the same, to 1, no class in common.
    """
    if logits_a.shape != logits_b.shape or logits_a.dim() != 5:
        got = f"{tuple(logits_a.shape)} and {tuple(logits_b.shape)}"
        raise ValueError(f"logits_a, logits_b: got the shapes {got}, wanted two of (B, K, X, Y, Z)")
    a, b = logits_a.log_softmax(1), logits_b.log_softmax(1)
    # log a - log((a + b) / 2) as a function of log b - log a, which is 0 at 0 to the last bit
    more, two = b - a, F.softplus(a.new_zeros(()))
    apart = a.exp() * (two - F.softplus(more)) + b.exp() * (two - F.softplus(-more))
    return (apart.sum(1) / (2 * math.log(2))).clamp(0, 1)
