"""Whole volumes by windows that overlap, weighted by a Gaussian; values as MONAI's sliding-window inferer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["importance_map", "predict_volume"]

SIGMA = 0.125


def importance_map(roi: Sequence[int], mode: str = "gaussian") -> Tensor:
    """Weight of each voxel of a window, (*roi), positive everywhere.

    ``"gaussian"``: deviation an eighth of the window on each axis, 1 in the middle, at least 0.001; ``"constant"``: 1.
    """
    if mode not in ("gaussian", "constant"):
        raise ValueError(f"mode: got {mode!r}, wanted 'gaussian' or 'constant'")
    found = torch.ones(())
    for length in roi:
        at = torch.arange(length) - (length - 1) / 2
        axis = torch.exp(-(at**2) / (2 * (SIGMA * length) ** 2)) if mode == "gaussian" else torch.ones(length)
        found = found.unsqueeze(-1) * axis
    return found.clamp(min=max(float(found.min()), 1e-3))


def starts(size: int, window: int, overlap: float) -> list[int]:
    step = max(1, int(window * (1 - overlap))) if window < size else window
    count = -(-(size - window) // step) + 1
    return [min(i * step, size - window) for i in range(count)]


@contextmanager
def _in_evaluation(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _flips(axes: int, wanted: bool) -> list[tuple[int, ...]]:
    """Axes to flip, counted from the end; none first."""
    every = range(-axes, 0)
    return [found for n in range(axes + 1 if wanted else 1) for found in combinations(every, n)]


@torch.no_grad()
def predict_volume(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    roi: Sequence[int] | int = (128, 128, 128),
    overlap: float = 0.7,
    mode: str = "gaussian",
    tta_flips: bool = False,
    batch: int = 1,
) -> Tensor:
    """Logits of a whole volume, averaged over windows: (C, D, H, W) -> (K, D, H, W).

    Args:
        model: takes windows (B, C, *roi) and returns logits (B, K, *roi). A module is run on the device of its
            parameters and in their type, in evaluation mode; its mode is put back.
        image: (C, *S), of 1 to 3 spatial axes. A volume smaller than `roi` is padded with zeros on both sides.
        roi: size of a window, one number or one an axis.
        overlap: of neighbouring windows, a part of `roi` in [0, 1).
        mode: see `importance_map`.
        tta_flips: average the logits over all flips of the axes, 8 in 3-D.
        batch: windows at a time.

    Returns float32 on the CPU, where the windows are added up, so that a device holds one batch of them at a time.
    """
    roi = (roi,) * (image.dim() - 1) if isinstance(roi, int) else tuple(int(length) for length in roi)
    if image.dim() != len(roi) + 1 or min(roi, default=0) < 1:
        raise ValueError(f"roi: got {roi} for an image {tuple(image.shape)}, wanted one number for each spatial axis")
    if not image.numel():
        raise ValueError(f"image: got the shape {tuple(image.shape)}, which is empty")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap: got {overlap}, wanted 0 <= overlap < 1")
    if batch < 1:
        raise ValueError(f"batch: got {batch}, wanted at least 1")
    first = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    like = image if first is None else first
    size = tuple(image.shape[1:])
    short = [max(0, wanted - length) for wanted, length in zip(roi, size, strict=True)]
    image = F.pad(image, [amount for by in reversed(short) for amount in (by // 2, by - by // 2)])
    corners = list(product(*(starts(s, w, overlap) for s, w in zip(image.shape[1:], roi, strict=True))))
    places: list[Any] = [(..., *(slice(a, a + w) for a, w in zip(at, roi, strict=True))) for at in corners]
    weight, flips = importance_map(roi, mode), _flips(len(roi), tta_flips)
    total, weights = torch.zeros(()), torch.zeros(image.shape[1:])
    with _in_evaluation(model):
        for i in range(0, len(places), batch):
            some = places[i : i + batch]
            windows = torch.stack([image[at] for at in some]).to(like)
            logits = sum(model(windows.flip(flip) if flip else windows).flip(flip) for flip in flips) / len(flips)
            if not isinstance(logits, Tensor) or logits.shape[2:] != windows.shape[2:]:
                raise ValueError(f"model: got logits that are not (B, K, {', '.join(map(str, roi))})")
            if not total.dim():
                total = torch.zeros(logits.shape[1], *image.shape[1:])
            for at, values in zip(some, logits.float().cpu(), strict=True):
                total[at] += weight * values
                weights[at] += weight
    total /= weights
    return total[(slice(None), *(slice(by // 2, by // 2 + s) for by, s in zip(short, size, strict=True)))].clone()
