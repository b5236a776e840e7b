"""What the estimator says of each point, and accuracy among the points it admits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SDMResult:
    """Steps 2-13 for N points and C classes; NumPy arrays, first axis N.

    prediction: yhat, class index or label.
    admitted: bool, Eq. 28.
    probability: max(0, lower estimate of yhat - m), the number to report.
    lower, centroid, upper: (N, C), the rescaled distribution o of each branch, without the offset m.
    q: similarity.  d: distance quantile.  d_nearest: distance to the nearest training exemplar.
    soft_q, soft_q_lower: q~ of the centroid and of the lower branch, 0 where the branch flips.
    effective_n: (N, C), effective sample size per class.
    """

    prediction: NDArray[Any]
    admitted: NDArray[np.bool_]
    probability: NDArray[np.float64]
    lower: NDArray[np.float64]
    centroid: NDArray[np.float64]
    upper: NDArray[np.float64]
    q: NDArray[np.int64]
    d: NDArray[np.float64]
    d_nearest: NDArray[np.floating]
    soft_q: NDArray[np.float64]
    soft_q_lower: NDArray[np.float64]
    effective_n: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prediction)

    def __getitem__(self, rows: slice | NDArray[Any]) -> SDMResult:
        """The result of some rows: a slice, a mask or an index array."""
        return SDMResult(**{name: values[rows] for name, values in self.items()})

    def items(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for field in fields(self):
            yield field.name, getattr(self, field.name)

    def to_frame(self) -> pd.DataFrame:
        """A pandas table, a row a point; (N, C) fields become C columns `lower_0`, `lower_1`, ...

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas") from error
        columns: dict[str, NDArray[Any]] = {}
        for name, values in self.items():
            if values.ndim == 1:
                columns[name] = values
            else:
                columns.update({f"{name}_{c}": values[:, c] for c in range(values.shape[1])})
        return pd.DataFrame(columns)


def index_conditional_report(y: ArrayLike, result: SDMResult, alpha: float) -> dict[str, Any]:
    """Accuracy among the admitted points by true class, by predicted class and over all of them.

    Args:
        y: true labels (N,), in the labels of `result.prediction`.
        result: of the same points.
        alpha: the wanted accuracy alpha'.

    Returns:
        {"by_class": {label: {"count", "accuracy"}}, "by_prediction": {...}, "marginal": {"count", "accuracy"},
        "alpha": alpha, "reached": whether every group with points has accuracy >= alpha}.  An empty group has
        accuracy NaN.

    Raises:
        ValueError: y has another length or another kind of label, or alpha is out of range.
    """
    y = np.asarray(y)
    if y.shape != result.prediction.shape:
        raise ValueError(f"y must have shape {result.prediction.shape}, got {y.shape}")
    if (y.dtype.kind in "OUS") != (result.prediction.dtype.kind in "OUS"):
        raise ValueError(f"y must hold labels like the predictions ({result.prediction.dtype}), got {y.dtype}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
    right = y == result.prediction

    def group(mask: NDArray[np.bool_]) -> dict[str, Any]:
        count = int(mask.sum())
        return {"count": count, "accuracy": float(right[mask].mean()) if count else float("nan")}

    labels = np.unique(np.concatenate([y, result.prediction]))
    keys = labels.tolist()
    admitted = result.admitted
    by_class = {k: group(admitted & (y == label)) for k, label in zip(keys, labels, strict=True)}
    by_prediction = {k: group(admitted & (result.prediction == label)) for k, label in zip(keys, labels, strict=True)}
    groups = [g for g in (*by_class.values(), *by_prediction.values()) if g["count"]]
    return {
        "by_class": by_class,
        "by_prediction": by_prediction,
        "marginal": group(admitted),
        "alpha": float(alpha),
        "reached": all(g["accuracy"] >= alpha for g in groups),
    }
