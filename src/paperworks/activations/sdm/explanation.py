"""Why a point was admitted or rejected, and labels that the estimator contradicts."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .result import SDMResult
from .state import SDMState, embeddings

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Witness:
    """One point that speaks for or against a verdict.

    kind: "exemplar" (a training point) or "twin" (a calibration point of the same prediction and floor(q~)).
    row: in the pooled fit data.  label, prediction: true and predicted class.  distance: to the query's exemplar
    vector (exemplars), or |q~ - q~'| (twins).  matched: an exemplar among the q consecutive matches; a twin that was
    predicted rightly.
    """

    kind: str
    row: int
    label: Any
    prediction: Any
    distance: float
    matched: bool


@dataclass(frozen=True)
class PointExplanation:
    """The verdict on one point with its witnesses; twin_count and twin_accuracy are over all twins, shown or not."""

    prediction: Any
    admitted: bool
    probability: float
    q: int
    d: float
    soft_q: float
    exemplars: list[Witness]
    twins: list[Witness]
    twin_count: int
    twin_accuracy: float

    def __str__(self) -> str:
        verdict = "admitted" if self.admitted else "rejected"
        lines = [
            f"{self.prediction!r} {verdict}: probability >= {self.probability:.3f}, "
            f"q = {self.q}, d = {self.d:.3f}, q~ = {self.soft_q:.2f}"
        ]
        lines += [
            f"  exemplar {w.row}: label {w.label!r}, predicted {w.prediction!r}, distance {w.distance:.4g}"
            + (", matched" if w.matched else "")
            for w in self.exemplars
        ]
        share = f", {self.twin_accuracy:.1%} right" if self.twin_count else ""
        lines.append(f"  {self.twin_count} calibration twins{share}")
        lines += [f"  twin {w.row}: label {w.label!r}, predicted {w.prediction!r}" for w in self.twins]
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """Explanations of several points; prints as text."""

    points: list[PointExplanation]
    result: SDMResult

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, i: int) -> PointExplanation:
        return self.points[i]

    def __str__(self) -> str:
        return "\n".join(f"[{i}] {p}" for i, p in enumerate(self.points))

    def rows(self) -> list[dict[str, Any]]:
        """One row a witness: the query's position, its verdict, and the witness's fields."""
        return [
            {"point": i, "verdict": p.prediction, "admitted": p.admitted, **asdict(w)}
            for i, p in enumerate(self.points)
            for w in (*p.exemplars, *p.twins)
        ]

    def to_frame(self) -> pd.DataFrame:
        """`rows` as a pandas table."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas") from error
        return pd.DataFrame(self.rows())

    def to_html(self) -> str:
        """A section for a page: a heading and a table a point, every value escaped."""
        columns = ("kind", "row", "label", "prediction", "distance", "matched")
        head = "".join(f"<th>{c}</th>" for c in columns)
        sections = []
        for i, point in enumerate(self.points):
            body = "".join(
                "<tr>" + "".join(f"<td>{html.escape(str(getattr(w, c)))}</td>" for c in columns) + "</tr>"
                for w in (*point.exemplars, *point.twins)
            )
            title = html.escape(f"[{i}] " + str(point).splitlines()[0])
            sections.append(
                f"<h3>{title}</h3><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
                f"<p>{point.twin_count} calibration twins, accuracy {point.twin_accuracy:.3f}</p>"
            )
        return f'<section class="sdm-explanation">{"".join(sections)}</section>'


def explain_points(
    state: SDMState,
    x: ArrayLike,
    k: int,
    classes: NDArray[Any],
    train_rows: NDArray[np.int64],
    cal_rows: NDArray[np.int64],
) -> Explanation:
    """Explain the verdicts on embeddings x (N, D) with at most k exemplars and k twins each."""
    result = state.evaluate(x)
    _, h = state.adaptor.project(embeddings(x, state.adaptor.in_features, "X"))
    found = state.index.neighbours(h, min(k, len(state.index)))
    neighbours, distances = (t.cpu().numpy() for t in found)
    names, cal_bins = classes.tolist(), np.floor(state.cal_soft_q)
    points = []
    for i in range(len(result)):
        predicted = int(result.prediction[i])
        exemplars = [
            Witness(
                "exemplar", int(train_rows[j]), names[state.y_train[j]], names[state.train_pred[j]],
                float(distance), rank < result.q[i],
            )
            for rank, (j, distance) in enumerate(zip(neighbours[i], distances[i], strict=True))
        ]  # fmt: skip
        twins = np.flatnonzero((state.cal_pred == predicted) & (cal_bins == np.floor(result.soft_q[i])))
        right = state.y_cal[twins] == predicted
        gaps = np.abs(state.cal_soft_q[twins] - result.soft_q[i])
        shown = [
            Witness(
                "twin", int(cal_rows[twins[t]]), names[state.y_cal[twins[t]]], names[predicted],
                float(gaps[t]), bool(right[t]),
            )
            for t in np.argsort(gaps, kind="stable")[:k]
        ]  # fmt: skip
        points.append(
            PointExplanation(
                prediction=names[predicted],
                admitted=bool(result.admitted[i]),
                probability=float(result.probability[i]),
                q=int(result.q[i]),
                d=float(result.d[i]),
                soft_q=float(result.soft_q[i]),
                exemplars=exemplars,
                twins=shown,
                twin_count=len(twins),
                twin_accuracy=float(right.mean()) if len(twins) else float("nan"),
            )
        )
    return Explanation(points, replace(result, prediction=classes[result.prediction]))


@dataclass(frozen=True)
class LabelError:
    """A label that an admitted prediction contradicts."""

    row: int
    label: Any
    prediction: Any
    probability: float


def find_label_errors(y: ArrayLike, result: SDMResult) -> list[LabelError]:
    """Rows that are admitted yet labelled otherwise, the highest lower probability first.

    Args:
        y: labels (N,) in the labels of `result.prediction`.
        result: of the same points.

    Raises:
        ValueError: y has another length.
    """
    labels = np.asarray(y)
    if labels.shape != result.prediction.shape:
        raise ValueError(f"y must have shape {result.prediction.shape}, got {labels.shape}")
    rows = np.flatnonzero(result.admitted & (labels != result.prediction))
    rows = rows[np.argsort(-result.probability[rows], kind="stable")]
    given, predicted = labels.tolist(), result.prediction.tolist()
    return [LabelError(int(i), given[i], predicted[i], float(result.probability[i])) for i in rows]
