"""Strides for volumes of thick slices, so that windows and convolutions span alike lengths on every axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["thick_slice_strides"]

LEVELS = 5


def thick_slice_strides(
    spacing: Sequence[float], size: Sequence[int], window_size: int | Sequence[int] = 7
) -> dict[str, Any]:
    """Options ``patch_size`` and ``merge_strides`` of `SwinUNETR` for voxels of this spacing.

    An axis is halved by the patches, and by each merging, where its voxels are then less than twice as long as the
    shortest of those that may be halved. An axis whose voxels are at least twice as long as the shortest from the start
    is never halved while it holds fewer tokens than two windows. Isotropic voxels give 2 everywhere.

    Args:
        spacing: length of a voxel on each of 2 or 3 axes.
        size: voxels on each axis, of the crops that the network sees.
        window_size: of the network.

    Raises ValueError for other numbers of axes, or numbers that are not positive.
    """
    window = (window_size,) * len(spacing) if isinstance(window_size, int) else tuple(window_size)
    if len(spacing) not in (2, 3) or not min(spacing) > 0:
        raise ValueError(f"spacing: got {tuple(spacing)}, wanted 2 or 3 positive numbers")
    for name, given in (("size", tuple(size)), ("window_size", window)):
        if len(given) != len(spacing) or min(given) < 1:
            raise ValueError(f"{name}: got {given}, wanted {len(spacing)} positive numbers, one an axis")
    length, tokens, strides = list(spacing), list(size), []
    thick = [s >= 2 * min(spacing) for s in spacing]
    for _ in range(LEVELS):
        may = [not slow or n >= 2 * w for slow, n, w in zip(thick, tokens, window, strict=True)]
        shortest = min(s for s, free in zip(length, may, strict=True) if free)
        steps = tuple(2 if free and s < 2 * shortest else 1 for s, free in zip(length, may, strict=True))
        strides.append(steps)
        length = [s * step for s, step in zip(length, steps, strict=True)]
        tokens = [-(-n // step) for n, step in zip(tokens, steps, strict=True)]
    return {"patch_size": strides[0], "merge_strides": tuple(strides[1:])}
