"""What Swin-X2S is trained with: each view against the truth, and the views against each other (arXiv 2501.05961)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["two_view_loss"]

SMOOTH = 1e-5


def two_view_loss(
    logits_a: Tensor,
    logits_b: Tensor,
    target: Tensor,
    *,
    kl_weight: float = 1.0,
    kl_reduction: Literal["mean", "voxel"] = "mean",
) -> dict[str, Tensor]:
    """Dice and cross-entropy of both views, and how far apart they are; each the mean over the views.

        dice_ce = 1 - (2 sum_n p_nk g_nk + s) / (sum_n p_nk + sum_n g_nk + s)  -  mean_n log p_n,g(n)
        kl      = mean of  p_b (log p_b - log p_a)  and of the same with a and b exchanged
        total   = dice_ce + kl_weight kl

    p = softmax(logits), s = 1e-5, Dice averaged over all K classes and the batch. Neither view is detached in `kl`.

    Args:
        logits_a, logits_b: (B, K, X, Y, Z), floating point; half types are computed in float32.
        target: (B, 1, X, Y, Z), whole numbers from 0 to K - 1.
        kl_weight: of `kl`.
        kl_reduction: ``"mean"`` divides by voxels and classes (PyTorch's "mean", the authors' code), ``"voxel"`` by
            voxels alone.

    Returns ``{"total", "dice_ce", "kl"}``, scalars. Raises ValueError for shapes that do not go together or another
    reduction, TypeError for a target that is not whole numbers.
    """
    if kl_reduction not in ("mean", "voxel"):
        raise ValueError(f"kl_reduction: got {kl_reduction!r}, wanted 'mean' or 'voxel'")
    if logits_a.shape != logits_b.shape or logits_a.dim() != 5 or not logits_a.numel():
        got = f"{tuple(logits_a.shape)} and {tuple(logits_b.shape)}"
        raise ValueError(f"logits_a, logits_b: got the shapes {got}, wanted two of (B, K, X, Y, Z), not empty")
    batch, classes, *space = logits_a.shape
    if tuple(target.shape) != (batch, 1, *space):
        raise ValueError(f"target: got the shape {tuple(target.shape)}, wanted {(batch, 1, *space)}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target: got {target.dtype}, wanted whole numbers")
    wide = torch.float64 if logits_a.dtype == torch.float64 else torch.float32
    logs = [F.log_softmax(logits.flatten(2), 1, dtype=wide) for logits in (logits_a, logits_b)]
    shares = [log.exp() for log in logs]
    index = target.flatten(2).long()
    dice_ce = torch.stack([_dice_ce(p, log, index) for p, log in zip(shares, logs, strict=True)]).mean()
    # both directions at once: p_b (log p_b - log p_a) + p_a (log p_a - log p_b)
    apart = 0.5 * ((shares[0] - shares[1]) * (logs[0] - logs[1])).sum()
    kl = apart / (batch * index.shape[-1] * (classes if kl_reduction == "mean" else 1))
    return {"total": dice_ce + kl_weight * kl, "dice_ce": dice_ce, "kl": kl}


def _dice_ce(p: Tensor, log_p: Tensor, index: Tensor) -> Tensor:
    """Of one view: p, log_p (B, K, N), index (B, 1, N)."""
    inside, label = p.gather(1, index).squeeze(1), index.squeeze(1)
    none = p.new_zeros(p.shape[:2])
    overlap, size = none.scatter_add(1, label, inside), none.scatter_add(1, label, torch.ones_like(inside))
    dice = 1 - (2 * overlap + SMOOTH) / (p.sum(-1) + size + SMOOTH)
    return dice.mean() - log_p.gather(1, index).mean()
