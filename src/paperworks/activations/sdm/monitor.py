"""Watching a deployed estimator: a drift alarm against D_ca, and coverage against accuracy over alpha."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .result import SDMResult

if TYPE_CHECKING:
    from .classifier import SDMClassifier
    from .state import SDMState


@dataclass(frozen=True)
class DriftReport:
    """Shares over the current window against D_ca.

    points: in the window.  far, rejected: share of d = 0 and of rejects in the window; far_reference,
    rejected_reference: in D_ca.  far_p, rejected_p: one-sided p-values (Fisher's exact test, the window above D_ca).
    alarm: one of them is below half the level, with a full window.
    """

    points: int
    far: float
    rejected: float
    far_reference: float
    rejected_reference: float
    far_p: float
    rejected_p: float
    alarm: bool


class DriftAlarm:
    """Compares the share of d = 0 and of rejects over a sliding window with those on the calibration set.

    Both rise when inputs leave the training distribution.  The two exact tests share the level by halves, so that one
    window raises a false alarm with probability at most `level`; windows that overlap are not independent tests.

    Args:
        state: a calibrated `SDMState`.
        window: points in the window.
        level: probability of a false alarm in one window, in (0, 1).
    """

    def __init__(self, state: SDMState, *, window: int = 200, level: float = 0.01) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1), got {level}")
        reference = state.calibration_result()
        self.window, self.level = window, level
        self._size = len(reference)
        self._reference = (int((reference.d == 0).sum()), int((~reference.admitted).sum()))
        self._recent: deque[tuple[bool, bool]] = deque(maxlen=window)

    def update(self, result: SDMResult) -> DriftReport:
        """Add the points of a result, in order, and report on the window."""
        self._recent.extend(zip((result.d == 0).tolist(), (~result.admitted).tolist(), strict=True))
        return self.report()

    def report(self) -> DriftReport:
        """The shares over the points seen last."""
        from scipy.stats import hypergeom

        n = len(self._recent)
        counts = [sum(point[i] for point in self._recent) for i in (0, 1)]
        # Under no drift the window's count is hypergeometric given the total: Fisher's exact test.
        p = [
            float(hypergeom.sf(count - 1, n + self._size, count + reference, n)) if n else 1.0
            for count, reference in zip(counts, self._reference, strict=True)
        ]
        shares = [count / n if n else float("nan") for count in counts]
        return DriftReport(
            points=n,
            far=shares[0],
            rejected=shares[1],
            far_reference=self._reference[0] / self._size,
            rejected_reference=self._reference[1] / self._size,
            far_p=p[0],
            rejected_p=p[1],
            alarm=n == self.window and min(p) < self.level / 2,
        )


@dataclass(frozen=True)
class CoveragePoint:
    """At one alpha': the threshold, the share admitted, and the accuracy among the admitted (NaN for none)."""

    alpha: float
    q_min: float
    coverage: float
    accuracy: float


def coverage_accuracy_curve(
    classifier: SDMClassifier, X: ArrayLike, y: ArrayLike, alphas: Iterable[float]
) -> list[CoveragePoint]:
    """Coverage and accuracy on labelled points over alpha', with one fit: only step 9 and later are repeated.

    Raises:
        NotFittedError: the classifier is not fitted.
        ValueError: an alpha not in (1/C, 1), y of another length.
    """
    states = [classifier.at_alpha(alpha) for alpha in alphas]
    evidence = classifier.state_.evidence(X)
    labels = np.asarray(y)
    if labels.shape != evidence.prediction.shape:
        raise ValueError(f"y must have shape {evidence.prediction.shape}, got {labels.shape}")
    right = classifier.classes_[evidence.prediction] == labels
    curve = []
    for state in states:
        admitted = state.decide(evidence).admitted
        accuracy = float(right[admitted].mean()) if admitted.any() else float("nan")
        coverage = float(admitted.mean()) if len(admitted) else float("nan")
        curve.append(CoveragePoint(state.alpha, state.q_min_robust, coverage, accuracy))
    return curve
