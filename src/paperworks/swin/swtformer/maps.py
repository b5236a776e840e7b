"""From class maps to seeds, prototypes and prototype maps, with the losses on them: functions of tensors alone.

Maps are (B, K, h, w) for K classes, or (B, K + 1, h, w) with the background first; labels are (B, K) of 0 and 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.native import must_be_traceable

__all__ = [
    "class_contrast_loss",
    "class_prototypes",
    "gsc_loss",
    "normalize_cam",
    "prototype_cam",
    "structure_seeds",
    "with_background",
]

EPS = 1e-5
ROWS = 512
"""Rows of the correlation matrix that exist at a time."""


def check_labels(labels: Tensor, batch: int, classes: int) -> Tensor:
    """`labels` as they are. Raises ValueError unless they are (batch, classes) of 0 and 1."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels: got {type(labels).__name__}, wanted a tensor ({batch}, {classes})")
    if labels.shape != (batch, classes):
        raise ValueError(f"labels: got the shape {tuple(labels.shape)}, wanted ({batch}, {classes})")
    # inside a compiled or transformed function values are not known
    if not must_be_traceable(labels) and not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError("labels: got other values than 0 and 1, wanted 1 for a class that is in the image, else 0")
    return labels


def _check_maps(name: str, maps: Tensor) -> None:
    if maps.dim() != 4:
        raise ValueError(f"{name}: got the shape {tuple(maps.shape)}, wanted four axes (B, maps, h, w)")


def _check_grids(name: str, maps: Tensor, features: Tensor) -> None:
    _check_maps(name, maps)
    _check_maps("features", features)
    if maps.shape[0] != features.shape[0] or maps.shape[2:] != features.shape[2:]:
        got = f"the batch and grid {maps.shape[0]}, {tuple(maps.shape[2:])}"
        raise ValueError(
            f"{name}: got {got}, wanted those of features: {features.shape[0]}, {tuple(features.shape[2:])}"
        )


def _present(labels: Tensor, maps: Tensor) -> Tensor:
    """(B, K + 1) bool with the background, which is in every image."""
    labels = check_labels(labels, maps.shape[0], maps.shape[1] - 1)
    return F.pad(labels.to(maps.device).bool(), (1, 0), value=True)


def _over_maximum(maps: Tensor) -> Tensor:
    return maps / (maps.amax((-2, -1), keepdim=True) + EPS)


def normalize_cam(cam: Tensor) -> Tensor:
    """ReLU(A_k) / (max_xy ReLU(A_k) + 1e-5): raw class maps (B, K, h, w) in [0, 1]. One without positives is zero."""
    _check_maps("cam", cam)
    return _over_maximum(cam.relu())


def with_background(norm_cam: Tensor, labels: Tensor) -> Tensor:
    """M = [1 - max_k CAM_k, CAM_1..K] * [1, y]: the background of all classes, and the maps of those in the image.

    Args:
        norm_cam: (B, K, h, w) in [0, 1].
        labels: (B, K) of 0 and 1.

    Returns (B, K + 1, h, w), the background first. Raises ValueError for labels of another shape or value.
    """
    _check_maps("norm_cam", norm_cam)
    labels = check_labels(labels, norm_cam.shape[0], norm_cam.shape[1]).to(norm_cam)
    background = 1 - norm_cam.amax(1, keepdim=True)
    return torch.cat([background, norm_cam * labels[:, :, None, None]], 1)


@torch.no_grad()
def structure_seeds(maps: Tensor, features: Tensor, labels: Tensor, background_weight: float = 0.5) -> Tensor:
    """Each pixel goes to the class whose map overlaps most with the pixels that look like it.

    With unit features x_i and R_ij = ReLU(<x_i, x_j>), pixel i and map k overlap by

        IoU_ik = sum_j R_ij M_kj / (sum_j R_ij + sum_j M_kj - sum_j R_ij M_kj)

    The background's counts `background_weight`. Without gradients. R is made some rows at a time: memory grows with the
    number of pixels, not with its square.

    Args:
        maps: M (B, K + 1, h, w), the background first.
        features: (B, C, h, w).
        labels: (B, K) of 0 and 1; other classes get no seed.
        background_weight: of the background's overlap.

    Returns one-hot seeds (B, K + 1, h, w), of the dtype of `maps`. Raises ValueError for grids or labels that do not
    go together.
    """
    _check_grids("maps", maps, features)
    present = _present(labels, maps)
    with torch.autocast(maps.device.type, enabled=False):
        # overlaps are sums over the whole map: too long for half precision
        exact = torch.promote_types(torch.promote_types(maps.dtype, features.dtype), torch.float32)
        found = maps.flatten(2).to(exact)
        x = features.flatten(2).to(exact)
        x = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPS)
        inter, total = [], []
        for some in x.split(ROWS, 2):
            r = (some.transpose(1, 2) @ x).relu_()
            inter.append(found @ r.transpose(1, 2))
            total.append(r.sum(2))
        shared = torch.cat(inter, 2)
        union = torch.cat(total, 1).unsqueeze(1) + found.sum(2, keepdim=True) - shared
        overlap = shared / union.clamp_min(torch.finfo(exact).tiny)
        overlap[:, 0] *= background_weight
        overlap = overlap.masked_fill(~present.unsqueeze(2), -1)
        seeds = torch.zeros_like(overlap).scatter_(1, overlap.argmax(1, keepdim=True), 1.0)
    return seeds.view(maps.shape).to(maps.dtype)


def class_prototypes(seeds: Tensor, features: Tensor) -> Tensor:
    """P_k = mean over the map of seed_k * features: (B, K + 1, h, w) and (B, F, h, w) give (B, K + 1, F).

    A class without a seed has the prototype 0. The scale does not matter for what follows.
    """
    _check_grids("seeds", seeds, features)
    x = features.flatten(2)
    return seeds.to(features.dtype).flatten(2) @ x.transpose(1, 2) / max(x.shape[2], 1)


def _cosines(prototypes: Tensor, features: Tensor) -> Tensor:
    """cos(features_i, P_k), (B, K + 1, h, w), in float32 at least; 0 where one of them is 0."""
    _check_maps("features", features)
    batch, width = features.shape[:2]
    if prototypes.dim() != 3 or prototypes.shape[0] != batch or prototypes.shape[2] != width:
        raise ValueError(f"prototypes: got the shape {tuple(prototypes.shape)}, wanted ({batch}, K + 1, {width})")
    with torch.autocast(features.device.type, enabled=False):
        exact = torch.promote_types(features.dtype, torch.float32)
        p, x = prototypes.to(exact), features.flatten(2).to(exact)
        cosines = F.normalize(p, dim=2, eps=1e-8) @ F.normalize(x, dim=1, eps=1e-8)
    return cosines.unflatten(2, features.shape[2:])


def prototype_cam(prototypes: Tensor, features: Tensor) -> Tensor:
    """I_k = ReLU(cos(features, P_k)): (B, K + 1, F) and (B, F, h, w) give (B, K + 1, h, w).

    The background has a prototype of its own, and so a map that is not just what the classes leave over.
    """
    return _cosines(prototypes, features).relu().to(features.dtype)


def gsc_loss(maps: Tensor, prototype_map: Tensor) -> Tensor:
    """General-specific consistency, mean |M - I / (max_xy I + 1e-5)| over all entries; gradients flow into both.

    Both are (B, K + 1, h, w); `prototype_map` is normalised here.
    """
    _check_maps("maps", maps)
    if maps.shape != prototype_map.shape:
        raise ValueError(f"prototype_map: got the shape {tuple(prototype_map.shape)}, wanted {tuple(maps.shape)}")
    return (maps - _over_maximum(prototype_map)).abs().mean()


def class_contrast_loss(
    features: Tensor, seeds: Tensor, prototypes: Tensor, labels: Tensor, tau: float = 0.1
) -> Tensor:
    """Contrast between the classes of an image: -log softmax_k(cos(features_i, P_k) / tau) at the seed's class.

    The softmax runs over the background and the labelled classes that have seeds in that image; the mean over all
    pixels that have a seed, 0 where none has.

    Args:
        features: (B, F, h, w).
        seeds: one-hot (B, K + 1, h, w); a pixel may have none.
        prototypes: (B, K + 1, F).
        labels: (B, K) of 0 and 1.
        tau: temperature, > 0.
    """
    if tau <= 0:
        raise ValueError(f"tau: got {tau}, wanted a number > 0")
    _check_grids("seeds", seeds, features)
    present = _present(labels, seeds) & seeds.flatten(2).any(2)
    logits = _cosines(prototypes, features) / tau
    if logits.shape != seeds.shape:
        raise ValueError(f"prototypes: got {logits.shape[1]} of them, wanted one for each of {seeds.shape[1]} seeds")
    allowed = present[:, :, None, None]
    chosen = seeds.to(logits.dtype) * allowed
    # a large negative number: with -inf a row without a class would have no gradient but NaN
    log_all = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min / 2).logsumexp(1)
    seeded = chosen.sum(1)
    return (seeded * log_all - (chosen * logits).sum(1)).sum() / seeded.sum().clamp_min(1)
