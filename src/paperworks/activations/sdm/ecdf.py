"""Empirical distribution functions in the convention of the paper (App. A.5): strict, with saturation on request."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


class ECDF:
    """eCDF(v) = #{values < v} / n.

    The inequality is strict: a value does not count itself.  With `saturate` the result is 1 from the maximum on
    (Eq. 9 needs this for probabilities that saturate at 1; distances and similarities do without).  No values at all
    give 0 everywhere.

    Args:
        values: observations, any shape, finite.
        saturate: return 1 for v >= max(values).

    Raises:
        ValueError: a value is NaN.
    """

    def __init__(self, values: ArrayLike, saturate: bool = False) -> None:
        flat = np.asarray(values, dtype=np.float64).ravel()
        if np.isnan(flat).any():
            raise ValueError(f"values must not hold NaN, got {int(np.isnan(flat).sum())} of {flat.size}")
        self.values = np.sort(flat)
        self.saturate = bool(saturate)

    def __len__(self) -> int:
        return self.values.size

    def count(self, v: ArrayLike) -> NDArray[np.int64]:
        """#{values < v}, of v's shape."""
        points = np.asarray(v, dtype=np.float64)
        return np.searchsorted(self.values, points, side="left").astype(np.int64)

    def __call__(self, v: ArrayLike) -> NDArray[np.float64]:
        """eCDF at v, float64, of v's shape."""
        points = np.asarray(v, dtype=np.float64)
        if not len(self):
            return np.zeros(points.shape)
        fraction = np.asarray(self.count(points) / len(self))
        return np.where(points >= self.values[-1], 1.0, fraction) if self.saturate else fraction


def classwise_ecdf(
    values: NDArray[np.floating], labels: NDArray[np.int64], num_classes: int, *, saturate: bool = False
) -> list[ECDF]:
    """One `ECDF` per class: over values (N,), or over column c of values (N, C), of the points labelled c."""
    columns = values if values.ndim == 2 else np.broadcast_to(values[:, None], (len(values), num_classes))
    return [ECDF(columns[labels == c, c], saturate) for c in range(num_classes)]


def distance_quantile(d_nearest: NDArray[np.floating], ecdfs: list[ECDF]) -> NDArray[np.float64]:
    """d = min_c [1 - eCDF_c(d_nearest)], Eq. 6; a class without values makes d = 0."""
    if any(len(e) == 0 for e in ecdfs):
        return np.zeros(d_nearest.shape)
    return np.asarray(np.min([1.0 - e(d_nearest) for e in ecdfs], axis=0))
