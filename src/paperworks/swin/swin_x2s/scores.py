"""How good a reconstructed, labelled volume is: overlap, distances of surfaces, and whether each bone is found."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["chamfer_and_hd95", "identification_rate", "label_dice"]


def _spacing(spacing: Sequence[float]) -> tuple[float, ...]:
    found = tuple(float(s) for s in spacing)
    if len(found) != 3 or not all(0 < s < math.inf for s in found):
        raise ValueError(f"spacing: got {found}, wanted three positive numbers")
    return found


def _pair(pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape or pred.dim() != 3 or not pred.numel():
        got = f"{tuple(pred.shape)} and {tuple(target.shape)}"
        raise ValueError(f"pred, target: got the shapes {got}, wanted the same, (X, Y, Z), not empty")


def _label_maps(pred: Tensor, target: Tensor) -> None:
    _pair(pred, target)
    for name, given in (("pred", pred), ("target", target)):
        if given.is_floating_point() or given.is_complex():
            raise TypeError(f"{name}: got {given.dtype}, wanted whole numbers")


def label_dice(pred: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """2 |P_k and G_k| / (|P_k| + |G_k|) for the labels k = 1 ... num_classes - 1, float64; NaN where both are empty.

    Args:
        pred, target: label maps (X, Y, Z), whole numbers below `num_classes`.
    """
    _label_maps(pred, target)
    p, g = pred.flatten().long(), target.flatten().long()
    sizes = torch.bincount(p, minlength=num_classes) + torch.bincount(g, minlength=num_classes)
    both = torch.bincount(g[p == g], minlength=num_classes)
    return (2 * both.double() / sizes.double())[1:]


def chamfer_and_hd95(pred: Tensor, target: Tensor, spacing: Sequence[float]) -> tuple[float, float]:
    """Distances between the surfaces of two masks, in the unit of `spacing`.

    Args:
        pred, target: bool (X, Y, Z). A surface voxel has a face neighbour outside of the mask; beyond the edge of the
            volume is outside.
        spacing: of the voxels on the three axes.

    Returns the Chamfer distance, the mean of the two mean distances from one surface to the nearest voxel of the
    other; and the 95th percentile of all these distances, both directions pooled. NaN where both masks are empty,
    infinity where one is.
    """
    from scipy import ndimage

    _pair(pred, target)
    if pred.dtype != torch.bool or target.dtype != torch.bool:
        raise TypeError(f"pred, target: got {pred.dtype} and {target.dtype}, wanted bool")
    found, p, g = _spacing(spacing), pred.cpu().numpy(), target.cpu().numpy()
    if not p.any() or not g.any():
        nothing = math.nan if p.any() == g.any() else math.inf
        return nothing, nothing
    places = np.nonzero(p | g)
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in places)
    # a margin of one voxel, so that the edge of the box is outside as that of the volume is
    p, g = (np.pad(mask[box], 1) for mask in (p, g))
    on_p, on_g = (mask & ~ndimage.binary_erosion(mask) for mask in (p, g))
    to_g: npt.NDArray[np.float64] = ndimage.distance_transform_edt(~on_g, sampling=found)[on_p]
    to_p: npt.NDArray[np.float64] = ndimage.distance_transform_edt(~on_p, sampling=found)[on_g]
    both = np.concatenate([to_g, to_p])
    return float((to_g.mean() + to_p.mean()) / 2), float(np.percentile(both, 95))


def identification_rate(
    pred: Tensor, target: Tensor, spacing: Sequence[float], tol_mm: float = 20
) -> tuple[float, float]:
    """Whether each bone is found under its own label.

    Args:
        pred, target: label maps (X, Y, Z), whole numbers, 0 for the background.
        spacing: of the voxels, mm.
        tol_mm: how far the middle of a label may be off.

    Returns the mean distance in mm between the middles of the same label in both maps, over the labels of `target`
    that `pred` has; and the share of the labels of `target` that are within `tol_mm`. NaN where there are none.
    """
    _label_maps(pred, target)
    unit = torch.tensor(_spacing(spacing), dtype=torch.float64)
    labels = [label for label in torch.unique(target).tolist() if label != 0]
    distances = []
    for label in labels:
        middles = [(given == label).nonzero().double().mean(0).cpu() for given in (pred, target)]
        distance = float(((middles[0] - middles[1]) * unit).norm())
        if not math.isnan(distance):
            distances.append(distance)
    if not labels:
        return math.nan, math.nan
    within = sum(distance <= tol_mm for distance in distances)
    return (sum(distances) / len(distances) if distances else math.nan), within / len(labels)
