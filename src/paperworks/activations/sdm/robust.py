"""Thresholds on the calibration set (Alg. 3) and their spread over training rounds (Eqs. 22-27)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bins = Mapping[int, float]


@dataclass(frozen=True)
class CalibrationOutputs:
    """What the rescaled model says of D_ca: all that a threshold at any alpha' needs.

    labels (N,) true classes; prediction (N,) yhat; output (N, C) the centroid o; soft_q (N,) q~ after the flip rule;
    is_ood (N,) whether floor(q~) = 0 or o flipped.
    """

    labels: NDArray[np.int64]
    prediction: NDArray[np.int64]
    output: NDArray[np.float64]
    soft_q: NDArray[np.float64]
    is_ood: NDArray[np.bool_]

    def threshold(self, alpha: float) -> tuple[float, NDArray[np.float64]]:
        """q~_min and psi (C,) by Alg. 3; infinite where no threshold reaches alpha'.

        Over the points that are not out of distribution, q~' runs upwards; psi_c is the (1 - alpha') quantile of o_c
        over true class c among the points with q~ >= q~', and the first q~' with every psi_c >= alpha' is taken.
        """
        classes = self.output.shape[1]
        valid = ~self.is_ood
        soft_q, labels = self.soft_q[valid], self.labels[valid]
        true_output = self.output[valid, labels]
        values: list[list[float]] = [np.sort(true_output[labels == c]).tolist() for c in range(classes)]
        order = np.argsort(soft_q, kind="stable")
        position = 0
        while position < len(order) and all(values):
            psi = np.array([class_quantile(v, alpha) for v in values])
            q_min = soft_q[order[position]]
            if (psi >= alpha).all():
                return float(q_min), psi
            while position < len(order) and soft_q[order[position]] == q_min:
                i = order[position]
                own = values[labels[i]]
                del own[bisect_left(own, float(true_output[i]))]
                position += 1
        return math.inf, np.full(classes, math.inf)

    def medians(self) -> dict[int, dict[int, float]]:
        """Per predicted class and floor(q~) the median of o_yhat; points out of distribution count in bin 0."""
        bins = np.where(self.is_ood, 0, np.floor(self.soft_q)).astype(np.int64)
        own = self.output[np.arange(len(bins)), self.prediction]
        found: dict[int, dict[int, float]] = {}
        for c in range(self.output.shape[1]):
            here = self.prediction == c
            found[c] = {int(b): float(np.median(own[here & (bins == b)])) for b in np.unique(bins[here])}
        return found


def class_quantile(ascending: Sequence[float], alpha: float) -> float:
    """The value at index min(floor((1 - alpha') n), n - 1) of n ascending values."""
    # 1 - .95 = .05000000000000004 would otherwise move the index where (1 - alpha') n is a whole number.
    index = min(math.floor((1 - alpha) * len(ascending) + 1e-9), len(ascending) - 1)
    return float(ascending[index])


def _cauchy_offset(values: Sequence[float], alpha: float) -> float:
    """MAD(values) tan(pi (alpha' - 1/2)): how far the alpha' quantile of a Cauchy law of that scale lies out."""
    if len(values) < 2:
        return 0.0
    x = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        deviation = float(np.median(np.abs(x - np.median(x))))
    return deviation * math.tan(math.pi * (alpha - 0.5))


def robust_threshold(q_min: float, q_mins: Sequence[float], alpha: float) -> float:
    """q~_min,gamma = q~_min* + MAD({q~_min,j}) tan(pi (alpha' - 1/2)), Eq. 26.

    Args:
        q_min: threshold of the best round.
        q_mins: thresholds of all rounds.
        alpha: alpha', in (0, 1).

    Returns:
        q_min itself for one round or a deviation that is not finite.

    Raises:
        ValueError: alpha out of range.
    """
    _check_alpha(alpha)
    offset = _cauchy_offset([float(q) for q in q_mins], alpha)
    return float(q_min) + offset if math.isfinite(offset) else float(q_min)


def robust_offsets(medians: Sequence[Mapping[int, Bins]], alpha: float) -> list[dict[int, float]]:
    """m^yhat_bin = MAD over rounds of the medians of o_yhat, times tan(pi (alpha' - 1/2)), Eq. 27.

    Args:
        medians: for every round {predicted class: {floor(q~): median of o_yhat}}; a bin may be missing in a round.
        alpha: alpha', in (0, 1).

    Returns:
        offsets[class][bin] = m, with every class up to the largest one named and every bin seen in a round; 0 for a
        bin seen once or a deviation that is not finite.

    Raises:
        ValueError: alpha out of range.
    """
    _check_alpha(alpha)
    classes = max((c for round_ in medians for c in round_), default=-1) + 1
    offsets: list[dict[int, float]] = []
    for c in range(classes):
        bins = sorted({b for round_ in medians for b in round_.get(c, {})})
        own = {b: _cauchy_offset([r[c][b] for r in medians if b in r.get(c, {})], alpha) for b in bins}
        offsets.append({b: m if math.isfinite(m) else 0.0 for b, m in own.items()})
    return offsets


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
