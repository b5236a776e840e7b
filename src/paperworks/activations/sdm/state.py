"""Every number of steps 2-12 of the estimator for one split, and its verdict on new points.

"Similarity-Distance-Magnitude Universal Verification" (arXiv 2502.20167), sections 4.1 and 4.2.  An `SDMState` is
made from an adaptor with its training and calibration data (`from_adaptor`: q, d, p, v), then given the rescaler
(`set_rescaler`: q~, thresholds, offsets), and then evaluates points.  `from_arrays` does both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .adaptor import ExemplarAdaptor
from .ecdf import classwise_ecdf, distance_quantile
from .functional import sdm
from .rescaler import rescale
from .result import SDMResult
from .robust import Bins, CalibrationOutputs
from .support import SupportIndex

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Evidence:
    """Steps 1-7 for N points: what the rescaler and the bounds start from.

    p (N, C) is float32; v (N, C) are its class-wise quantiles; log_base (N,) is ln(2 + q), with q = 0 where p is
    uniform and its argmax differs from yhat.
    """

    prediction: Integers
    q: Integers
    d_nearest: NDArray[np.floating]
    d: Floats
    p: NDArray[np.float32]
    v: Floats
    log_base: Floats


class SDMState:
    """The estimator of one split.

    Attributes (NumPy): train_pred, train_q, train_d_nearest, train_d (N_tr,); cal_pred, cal_q, cal_d_nearest, cal_d
    (N_ca,), cal_p, cal_v (N_ca, C); balanced_median_q; and after `set_rescaler` rescaler_weight (C, C), alpha,
    cal_soft_q (after the flip rule), cal_is_ood (N_ca,), q_min, psi (C,), q_min_robust, offsets.  y_train, y_cal are
    the class indices, `adaptor` and `index` the torch parts.
    """

    alpha: float
    rescaler_weight: Floats
    outputs: CalibrationOutputs
    cal_soft_q: Floats
    cal_is_ood: NDArray[np.bool_]
    q_min: float
    psi: Floats
    q_min_robust: float
    offsets: list[dict[int, float]]

    def __init__(
        self,
        adaptor: ExemplarAdaptor,
        index: SupportIndex,
        train: Mapping[str, NDArray[Any]],
        cal: Mapping[str, NDArray[Any]],
        cal_p: NDArray[np.float32],
    ) -> None:
        """`train` and `cal` hold label, prediction, q and d_nearest (N,)."""
        classes = adaptor.num_classes
        self.adaptor, self.index = adaptor, index
        self.y_train, self.train_pred = train["label"], train["prediction"]
        self.train_q, self.train_d_nearest = train["q"], train["d_nearest"]
        self.y_cal, self.cal_pred, self.cal_q, self.cal_d_nearest = (
            cal[k] for k in ("label", "prediction", "q", "d_nearest")
        )
        self.cal_p = cal_p
        # eCDFs of the distance leave out points with q = 0: their nearest neighbour is no match (Eq. 6).
        self.train_distances = known_distances(self.train_d_nearest, self.train_q, self.y_train, classes)
        self.cal_distances = known_distances(self.cal_d_nearest, self.cal_q, self.y_cal, classes)
        self.train_d = distance_quantile(self.train_d_nearest, self.train_distances)
        self.cal_d = distance_quantile(self.cal_d_nearest, self.cal_distances)
        self._outputs_ecdf = classwise_ecdf(cal_p, self.y_cal, classes, saturate=True)
        self._cal = self._with_quantiles(self.cal_pred, self.cal_q, self.cal_d_nearest, self.cal_d, cal_p)
        self.cal_v, self.cal_log_base = self._cal.v, self._cal.log_base
        self.balanced_median_q = balanced_median(self.cal_q, self.y_cal, classes)

    # -- building --------------------------------------------------------------------------------------------------

    @classmethod
    def from_adaptor(
        cls, adaptor: ExemplarAdaptor, x_train: Tensor, y_train: Integers, x_cal: Tensor, y_cal: Integers
    ) -> SDMState:
        """Steps 2-7 for a trained adaptor: the rescaler is still to be set."""
        z_train, h_train = adaptor.project(x_train)
        z_cal, h_cal = adaptor.project(x_cal)
        pred_train, pred_cal = z_train.argmax(1), z_cal.argmax(1)
        index = SupportIndex(h_train, torch.as_tensor(y_train), pred_train)
        train = _neighbourhood(y_train, pred_train, *index.query(h_train, pred_train, exclude_self=True))
        cal = _neighbourhood(y_cal, pred_cal, *index.query(h_cal, pred_cal))
        distances = known_distances(cal["d_nearest"], cal["q"], y_cal, adaptor.num_classes)
        cal_p = activation(z_cal, cal["q"], distance_quantile(cal["d_nearest"], distances))
        return cls(adaptor, index, train, cal, cal_p)

    @classmethod
    def from_arrays(
        cls,
        x_train: ArrayLike | Tensor,
        y_train: ArrayLike | Tensor,
        x_cal: ArrayLike | Tensor,
        y_cal: ArrayLike | Tensor,
        conv_weight: ArrayLike | Tensor,
        conv_bias: ArrayLike | Tensor,
        fc_weight: ArrayLike | Tensor,
        fc_bias: ArrayLike | Tensor,
        norm_mean: float,
        norm_std: float,
        rescaler_weight: ArrayLike | Tensor,
        alpha: float,
        q_min_robust: float | None = None,
        offsets: Sequence[Bins] | Mapping[int, Bins] | None = None,
    ) -> SDMState:
        """The estimator of given weights and data: steps 2-13 without training.

        Args:
            x_train, x_cal: embeddings (N, D).
            y_train, y_cal: class indices 0..C-1 (N,).
            conv_weight (M, D) or (M, 1, D), conv_bias (M,), fc_weight (C, M), fc_bias (C,): the adaptor.
            norm_mean, norm_std: its scalar normalisation.
            rescaler_weight: W'' (C, C).
            alpha: alpha', in (1/C, 1).
            q_min_robust: Eq. 26; None takes the threshold of this split.
            offsets: m, offsets[class][bin], a missing bin counts 0; None is m = 0.

        Raises:
            ValueError: shapes that do not fit, NaN, alpha out of range, a class missing in y_cal.
            TypeError: labels that are not integers.
        """
        weight, head = (torch.as_tensor(w, dtype=torch.float32) for w in (conv_weight, fc_weight))
        weight = weight.squeeze(1) if weight.ndim == 3 else weight
        if weight.ndim != 2 or head.ndim != 2 or head.shape[1] != len(weight):
            raise ValueError(
                "conv_weight must be (M, D) and fc_weight (C, M) with one M, got "
                f"{tuple(weight.shape)} and {tuple(head.shape)}"
            )
        if not (math.isfinite(norm_std) and norm_std > 0):
            raise ValueError(f"norm_std must be positive, got {norm_std}")
        adaptor = ExemplarAdaptor(weight.shape[1], len(head), len(weight), device=weight.device)
        parts = {"conv.weight": weight, "fc.weight": head, "norm_mean": norm_mean, "norm_std": norm_std}
        parts |= {"conv.bias": conv_bias, "fc.bias": fc_bias}
        state = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in parts.items()}
        for name, size in (("conv.bias", len(weight)), ("fc.bias", len(head))):
            if state[name].shape != (size,):
                raise ValueError(f"{name.replace('.', '_')} must have shape ({size},), got {tuple(state[name].shape)}")
        adaptor.load_state_dict(state)
        x_tr, x_ca = (embeddings(x, weight.shape[1], n) for x, n in ((x_train, "x_train"), (x_cal, "x_cal")))
        y_tr = class_indices(y_train, len(x_tr), len(head), "y_train")
        y_ca = class_indices(y_cal, len(x_ca), len(head), "y_cal")
        check_every_class(y_ca, len(head), "y_cal")
        made = cls.from_adaptor(adaptor, x_tr, y_tr, x_ca, y_ca)
        made.set_rescaler(rescaler_weight, alpha, q_min_robust, offsets)
        made.warn()
        return made

    def set_rescaler(
        self,
        weight: ArrayLike | Tensor,
        alpha: float,
        q_min_robust: float | None = None,
        offsets: Sequence[Bins] | Mapping[int, Bins] | None = None,
    ) -> SDMState:
        """Steps 7-12 with W'' = weight at alpha'; returns self.  Arguments and errors as in `from_arrays`."""
        classes = self.adaptor.num_classes
        if not 1 / classes < alpha < 1:
            raise ValueError(f"alpha must be in (1/C, 1) = ({1 / classes:.4g}, 1), got {alpha}")
        w = np.asarray(torch.as_tensor(weight).detach().cpu(), dtype=np.float64)
        if w.shape != (classes, classes) or not np.isfinite(w).all():
            raise ValueError(f"rescaler_weight must be finite of shape ({classes}, {classes}), got {w.shape}")
        self.rescaler_weight, self.alpha = w, float(alpha)
        output, soft_q, flipped = self._branch(self._cal.v, self._cal)
        is_ood = flipped | (np.floor(soft_q) <= 0)
        self.outputs = CalibrationOutputs(self.y_cal, self.cal_pred, output, soft_q, is_ood)
        self.cal_soft_q, self.cal_is_ood = soft_q, is_ood
        self._soft_q_ecdf = classwise_ecdf(soft_q, self.y_cal, classes)
        self.q_min, self.psi = self.outputs.threshold(self.alpha)
        self.q_min_robust = self.q_min if q_min_robust is None else float(q_min_robust)
        by_class = dict(offsets) if isinstance(offsets, Mapping) else dict(enumerate(offsets or ()))
        if not set(by_class) <= set(range(classes)):
            raise ValueError(f"offsets must name classes 0..{classes - 1}, got {sorted(by_class)}")
        self.offsets = [{int(b): float(m) for b, m in by_class.get(c, {}).items()} for c in range(classes)]
        return self

    def warn(self) -> None:
        """Warn of duplicates between training and calibration data, and of a threshold that rejects everything."""
        duplicates = int((self.cal_d_nearest == 0).sum())
        if duplicates:
            warnings.warn(
                f"{duplicates} of {len(self.y_cal)} calibration points duplicate a training point (distance 0): "
                "memorised points have d = 1 and make the estimate optimistic",
                stacklevel=3,
            )
        if math.isinf(self.q_min):
            warnings.warn(
                f"no threshold reaches class-wise accuracy alpha = {self.alpha} on the calibration data: "
                "every point will be rejected",
                stacklevel=3,
            )

    # -- evaluating ------------------------------------------------------------------------------------------------

    def evidence(self, x: ArrayLike | Tensor) -> Evidence:
        """Steps 1-7 for embeddings x (N, D)."""
        z, h = self.adaptor.project(embeddings(x, self.adaptor.in_features, "X"))
        prediction = z.argmax(1)
        q, d_nearest = (t.cpu().numpy() for t in self.index.query(h, prediction))
        d = distance_quantile(d_nearest, self.cal_distances)
        return self._with_quantiles(prediction.cpu().numpy(), q, d_nearest, d, activation(z, q, d))

    def training_evidence(self, x: ArrayLike | Tensor) -> tuple[Integers, Integers, Floats]:
        """yhat, q and d of embeddings x with the distance eCDFs of D_tr; x is compared with all of D_tr.

        This is the (q, d) of documents generated anew from training prompts (section 4.3).
        """
        z, h = self.adaptor.project(embeddings(x, self.adaptor.in_features, "X"))
        prediction = z.argmax(1)
        q, d_nearest = (t.cpu().numpy() for t in self.index.query(h, prediction))
        return prediction.cpu().numpy(), q, distance_quantile(d_nearest, self.train_distances)

    def evaluate(self, x: ArrayLike | Tensor) -> SDMResult:
        """Steps 1-13 for embeddings x (N, D); predictions are class indices.

        Raises:
            ValueError: x is not (N, D) or not finite.
        """
        return self.decide(self.evidence(x))

    def calibration_result(self) -> SDMResult:
        """The verdict on D_ca itself, from the stored numbers."""
        return self.decide(self._cal)

    def _with_quantiles(
        self, prediction: Integers, q: Integers, d_nearest: NDArray[Any], d: Floats, p: NDArray[np.float32]
    ) -> Evidence:
        v = np.stack([e(p[:, c]) for c, e in enumerate(self._outputs_ecdf)], axis=1)
        # At d = 0 p is uniform and its argmax is class 0.
        log_base = np.log(2.0 + np.where(p.argmax(1) == prediction, q, 0)) if len(p) else np.zeros(0)
        return Evidence(prediction, q, d_nearest, d, p, v, log_base)

    def _branch(self, v: Floats, evidence: Evidence) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """o (N, C), q~ after the flip rule and the flips, for quantiles v (Eqs. 10-11)."""
        soft_q = v[np.arange(len(v)), evidence.prediction] * evidence.log_base
        output = rescale(self.rescaler_weight, v, soft_q)
        flipped = output.argmax(1) != evidence.prediction if len(v) else np.zeros(0, dtype=bool)
        return output, np.where(flipped, 0.0, soft_q), flipped

    def decide(self, evidence: Evidence) -> SDMResult:
        """Steps 7-13 for evidence already gathered."""
        rows, predicted, v = np.arange(len(evidence.prediction)), evidence.prediction, evidence.v
        centroid, soft_q, _ = self._branch(v, evidence)
        # Eq. 12: n^_c = |D_ca,c| eCDF_c(q~), a count, at most n_c - 1.
        effective_n = np.stack([np.minimum(e.count(soft_q), len(e) - 1) for e in self._soft_q_ecdf], axis=1)
        # Eq. 13.
        epsilon = np.sqrt(math.log(2 / (1 - self.alpha)) / (2 * np.maximum(effective_n, 1)))
        epsilon = np.where(effective_n > 0, epsilon, 1.0)
        sign = np.ones_like(v)
        sign[rows, predicted] = -1.0
        lower, soft_q_lower, flipped = self._branch(np.clip(v + sign * epsilon, 0, 1), evidence)
        upper, _, _ = self._branch(np.clip(v - sign * epsilon, 0, 1), evidence)
        bins = np.floor(soft_q_lower).astype(np.int64).tolist()
        offset = np.array([self.offsets[c].get(b, 0.0) for c, b in zip(predicted.tolist(), bins, strict=True)])
        estimate = lower[rows, predicted] - offset
        admitted = (soft_q_lower >= self.q_min_robust) & (estimate >= self.psi[predicted]) & ~flipped
        return SDMResult(
            prediction=predicted,
            admitted=admitted,
            probability=np.maximum(0.0, estimate),
            lower=lower,
            centroid=centroid,
            upper=upper,
            q=evidence.q,
            d=evidence.d,
            d_nearest=evidence.d_nearest,
            soft_q=soft_q,
            soft_q_lower=soft_q_lower,
            effective_n=effective_n,
        )


def activation(z: Tensor, q: Integers, d: Floats) -> NDArray[np.float32]:
    """p of Eq. 7 in float32: the quantiles of step 7 rest on its saturation at 1."""
    q_, d_ = (torch.as_tensor(a, dtype=torch.float32, device=z.device) for a in (q, d))
    return np.asarray(sdm(z.float(), q_, d_).cpu().numpy())


def known_distances(d_nearest: NDArray[Any], q: Integers, labels: Integers, classes: int) -> list[Any]:
    """eCDFs of the nearest distance per true class over the points with q > 0."""
    return classwise_ecdf(d_nearest[q > 0], labels[q > 0], classes)


def balanced_median(q: Integers, labels: Integers, classes: int) -> float:
    """Mean over classes of the median q, the metric of Alg. 1."""
    return float(np.mean([np.median(q[labels == c]) if (labels == c).any() else 0.0 for c in range(classes)]))


def _neighbourhood(labels: Integers, predictions: Tensor, q: Tensor, d_nearest: Tensor) -> dict[str, NDArray[Any]]:
    parts = {"prediction": predictions, "q": q, "d_nearest": d_nearest}
    return {"label": np.asarray(labels)} | {name: t.cpu().numpy() for name, t in parts.items()}


def embeddings(x: ArrayLike | Tensor, features: int, name: str) -> Tensor:
    """x as a finite floating point tensor (N, features)."""
    t = x.detach() if isinstance(x, Tensor) else torch.tensor(np.asarray(x))
    if t.ndim != 2 or t.shape[1] != features:
        raise ValueError(f"{name} must have shape (N, {features}), got {tuple(t.shape)}")
    t = t if t.is_floating_point() else t.double()
    if not bool(torch.isfinite(t).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return t


def class_indices(y: ArrayLike | Tensor, size: int, classes: int, name: str) -> Integers:
    """y as class indices 0..classes-1 (size,)."""
    labels = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integer class indices, got {labels.dtype}")
    if labels.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {labels.shape}")
    if size and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"{name} must be in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    return labels.astype(np.int64)


def check_every_class(y: Integers, classes: int, name: str) -> None:
    missing = sorted(set(range(classes)) - set(y.tolist()))
    if missing:
        raise ValueError(f"{name} must hold every class, missing {missing}")
