"""The estimator in scikit-learn's form: selective classification over any frozen embedding."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from . import storage
from .adaptor import ExemplarAdaptor
from .explanation import Explanation, LabelError, explain_points, find_label_errors
from .result import SDMResult
from .state import SDMState
from .training import fit_rounds, make_robust


class LabelTypeError(TypeError, ValueError):
    """Labels of two kinds (text and numbers) where one kind is needed."""


class SDMClassifier(ClassifierMixin, BaseEstimator):
    """Similarity-Distance-Magnitude estimator over embeddings (Alg. 1-3, Eqs. 5-28).

    `fit` pools its data, re-splits it evenly at random into D_tr and D_ca in each of J rounds, trains an exemplar
    adaptor, and calibrates it; the round with the best class-balanced median similarity is the model, and the spread
    over rounds makes its threshold and its probabilities conservative.  `select` then tells, for each input, the
    prediction, a lower probability and whether it is admitted at accuracy alpha.

    Args:
        alpha: wanted accuracy alpha' among admitted points, by class and by prediction; in (1/C, 1).
        num_filters: M; None is min(1000, 4 D).  The paper has 1000.
        rounds: J.  The paper has 10.
        epochs, batch_size, lr: of the adaptor's training with Adam.  The paper has 50, 50 and 1e-5.
        rescaler: "batch" (L-BFGS on the convex problem, deterministic and fast) or "paper" (Adam, batches of one).
        warm_start: weights that every round begins with: None or False draws them anew, True takes this estimator's
            last fit, an `ExemplarAdaptor` or a fitted `SDMClassifier` gives its own.
        random_state: int, RandomState or None; splits, initial weights and shuffles all follow from it.
        device: where to train and search; None is the CPU.
        verbose: show a progress bar.

    Attributes:
        classes_: labels.  state_: `SDMState` of the best round.  rounds_: calibration outputs of every round.
        train_index_, cal_index_: rows of the best round's D_tr and D_ca in the pooled data (X, then X_cal).
        best_round_, history_: the round taken, and the metric of every epoch of every round.
        n_features_in_, feature_names_in_: as in scikit-learn.
    """

    def __init__(
        self,
        alpha: float = 0.95,
        *,
        num_filters: int | None = None,
        rounds: int = 5,
        epochs: int = 40,
        batch_size: int = 50,
        lr: float = 1e-3,
        rescaler: Literal["batch", "paper"] = "batch",
        warm_start: bool | ExemplarAdaptor | SDMClassifier | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
        verbose: bool = False,
    ) -> None:
        self.alpha = alpha
        self.num_filters = num_filters
        self.rounds = rounds
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.rescaler = rescaler
        self.warm_start = warm_start
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    # -- fitting ---------------------------------------------------------------------------------------------------

    def fit(
        self, X: ArrayLike, y: ArrayLike, X_cal: ArrayLike | None = None, y_cal: ArrayLike | None = None
    ) -> SDMClassifier:
        """Train and calibrate on embeddings X (N, D) with labels y (N,); returns self.

        X_cal, y_cal are pooled with X, y before the random re-splits (Alg. 1).

        Raises:
            ValueError: fewer than 2 classes, a class with fewer than 2 points, alpha not in (1/C, 1), a class of y
                missing in y_cal or a label of y_cal missing in y, NaN or infinite features, settings out of range.
            LabelTypeError: y and y_cal hold text and numbers (it is a TypeError and a ValueError).
        """
        start = self._start()
        own: Any = validate_data(self, X, y, dtype=[np.float64, np.float32])
        pooled, labels = self._pooled(own[0], own[1], X_cal, y_cal)
        check_classification_targets(labels)
        self.classes_, indices, counts = np.unique(labels, return_inverse=True, return_counts=True)
        self._check_settings(counts)
        features = pooled.shape[1]
        filters = self.num_filters or min(1000, 4 * features)
        if start is not None:
            shape = (start.in_features, start.num_classes, start.conv.out_features)
            if self.num_filters is None:
                filters = start.conv.out_features
            if shape != (features, len(self.classes_), filters):
                raise ValueError(
                    f"warm_start must have (D, C, M) = {(features, len(self.classes_), filters)}, got {shape}"
                )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with self._progress() as advance:
            fitted = fit_rounds(
                torch.tensor(pooled, device=self.device or "cpu"),
                indices.astype(np.int64).ravel(),
                len(self.classes_),
                alpha=self.alpha,
                filters=filters,
                rounds=self.rounds,
                epochs=self.epochs,
                batch_size=self.batch_size,
                lr=self.lr,
                rescaler=self.rescaler,
                seed=seed,
                start=start,
                on_epoch=advance,
            )
        self.state_, self.rounds_ = fitted.state, fitted.outputs
        self.train_index_, self.cal_index_ = fitted.train_rows, fitted.cal_rows
        self.best_round_, self.history_ = fitted.best_round, fitted.history
        self.state_.warn()
        return self

    def _start(self) -> ExemplarAdaptor | None:
        source = self.warm_start
        if source is None or source is False or (source is True and not hasattr(self, "state_")):
            return None
        if isinstance(source, ExemplarAdaptor):
            return source
        if source is not True and not isinstance(source, SDMClassifier):
            raise TypeError(
                f"warm_start must be a bool, an ExemplarAdaptor or a fitted SDMClassifier, got {type(source).__name__}"
            )
        other = self if source is True else source
        check_is_fitted(other, "state_")
        return other.state_.adaptor

    def _pooled(
        self, X: NDArray[Any], y: NDArray[Any], X_cal: ArrayLike | None, y_cal: ArrayLike | None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        if (X_cal is None) != (y_cal is None):
            missing = "X_cal" if X_cal is None else "y_cal"
            raise ValueError(f"X_cal and y_cal go together, got {missing}=None")
        if X_cal is None:
            return X, y
        more = np.asarray(validate_data(self, X_cal, reset=False, dtype=[np.float64, np.float32]))
        y_more = np.asarray(check_array(y_cal, ensure_2d=False, dtype=None, input_name="y_cal"))
        if y_more.shape != (len(more),):
            raise ValueError(f"y_cal must have shape ({len(more)},), got {y_more.shape}")
        if _is_text(y) != _is_text(y_more):
            raise LabelTypeError(f"y and y_cal must hold labels of one type, got {y.dtype} and {y_more.dtype}")
        labels, labels_cal = set(y.tolist()), set(y_more.tolist())
        if labels != labels_cal:
            raise ValueError(
                f"y_cal must hold the classes of y: missing {sorted(labels - labels_cal)}, "
                f"unknown {sorted(labels_cal - labels)}"
            )
        return np.concatenate([X, more]), np.concatenate([y, y_more])

    def _check_settings(self, counts: NDArray[np.int64]) -> None:
        classes = len(counts)
        if classes < 2:
            raise ValueError(f"y must hold at least 2 classes, got {classes} class")
        if counts.min() < 2:
            label = self.classes_[counts.argmin()]
            raise ValueError(f"every class needs at least 2 points (one in D_tr, one in D_ca), class {label!r} has 1")
        if not 1 / classes < self.alpha < 1:
            raise ValueError(f"alpha must be in (1/C, 1) = ({1 / classes:.4g}, 1), got {self.alpha}")
        for name in ("rounds", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_filters is not None and self.num_filters < 1:
            raise ValueError(f"num_filters must be at least 1 or None, got {self.num_filters}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if self.rescaler not in ("batch", "paper"):
            raise ValueError(f"rescaler must be 'batch' or 'paper', got {self.rescaler!r}")

    def _progress(self) -> Any:
        if not self.verbose:
            return nullcontext(lambda: None)
        from .progress import progress_bar

        return progress_bar("SDM fit", self.rounds * self.epochs)

    # -- using -----------------------------------------------------------------------------------------------------

    def _checked(self, X: ArrayLike) -> NDArray[Any]:
        check_is_fitted(self, "state_")
        return np.asarray(validate_data(self, X, reset=False, dtype=[np.float64, np.float32]))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels (N,): argmax z'."""
        X = self._checked(X)
        logits, _ = self.state_.adaptor.project(torch.tensor(X))
        return np.asarray(self.classes_[logits.argmax(1).cpu().numpy()])

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """SDM probabilities p (N, C) of Eq. 7, columns as in `classes_`; uniform where d = 0."""
        X = self._checked(X)
        return self.state_.evidence(X).p.astype(np.float64)

    def select(self, X: ArrayLike) -> SDMResult:
        """Prediction, admit or reject, probabilities and evidence for every row of X; predictions are labels.

        Raises:
            NotFittedError: before `fit`.
            ValueError: X is not (N, D) or not finite.
        """
        X = self._checked(X)
        result = self.state_.evaluate(X)
        return replace(result, prediction=self.classes_[result.prediction])

    def explain(self, X: ArrayLike, k: int = 5) -> Explanation:
        """What backs each verdict: its nearest training points and its calibration twins, at most k of each.

        Twins are the calibration points of the same prediction and the same floor(q~).  Rows are those of the pooled
        fit data.  The result prints as text and has `to_frame()` and `to_html()`.
        """
        X = self._checked(X)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        return explain_points(self.state_, X, k, self.classes_, self.train_index_, self.cal_index_)

    def label_errors(self, X: ArrayLike, y: ArrayLike) -> list[LabelError]:
        """Points whose label disagrees with an admitted prediction, the most probable errors first.

        Meant for data outside D_tr: a training point is its own nearest neighbour.
        """
        return find_label_errors(y, self.select(X))

    def at_alpha(self, alpha: float) -> SDMState:
        """The best round's state calibrated for another alpha', from the outputs of all rounds and without training.

        Raises:
            ValueError: alpha not in (1/C, 1).
        """
        check_is_fitted(self, "state_")
        return make_robust(copy.copy(self.state_), self.rounds_, alpha)

    # -- keeping ---------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the fitted estimator into a folder (safetensors and JSON)."""
        check_is_fitted(self, "state_")
        names = ("alpha", "num_filters", "rounds", "epochs", "batch_size", "lr", "rescaler", "random_state", "verbose")
        parameters = {n: _plain(getattr(self, n)) for n in names}
        if parameters["random_state"] is not None and not isinstance(parameters["random_state"], int):
            parameters["random_state"] = None
        meta = {
            "parameters": parameters,
            "classes": {"dtype": self.classes_.dtype.str, "values": self.classes_.tolist()},
            "feature_names": getattr(self, "feature_names_in_", np.array([])).tolist(),
            "best_round": self.best_round_,
            "history": self.history_,
        }
        extra = {"train.row": self.train_index_, "cal.row": self.cal_index_}
        storage.write(folder, self.state_, self.rounds_, extra, meta)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> SDMClassifier:
        """Read what `save` wrote, onto `device` (None: the CPU).

        Raises:
            FileNotFoundError, ValueError: no such files, or of another format.
        """
        state, outputs, arrays, meta = storage.read(folder, torch.device(device or "cpu"))
        made = cls(**meta["parameters"], device=device)
        made.state_, made.rounds_ = state, outputs
        made.train_index_, made.cal_index_ = arrays["train.row"], arrays["cal.row"]
        made.best_round_, made.history_ = meta["best_round"], meta["history"]
        made.classes_ = np.array(meta["classes"]["values"], dtype=np.dtype(meta["classes"]["dtype"]))
        made.n_features_in_ = state.adaptor.in_features
        if meta["feature_names"]:
            made.feature_names_in_ = np.array(meta["feature_names"], dtype=object)
        return made


def _is_text(y: NDArray[Any]) -> bool:
    return y.dtype.kind in "US" or (y.dtype.kind == "O" and any(isinstance(label, str) for label in y))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
