"""The rescaler W'': o = softmax(W'' v ln(2 + q~)), trained on the calibration set (Eqs. 11 and 21, Alg. 2).

The loss is the mean of -log_(2 + q~) o_y.  It is convex in W'': multinomial logistic regression with a temperature
1 / ln(2 + q~) per sample, whose gradient is mean (o - onehot(y)) v^T, free of the base.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def rescale(weight: Floats, v: Floats, soft_q: Floats) -> Floats:
    """o = softmax(W'' v ln(2 + q~)): weight (C, C), v (N, C), soft_q (N,) to (N, C), float64."""
    # A sum per row, not a matrix product: the same row gives the same bits in any batch.
    step = max(1, (1 << 22) // weight.size)
    sums = [(v[i : i + step, None, :] * weight).sum(-1) for i in range(0, len(v), step)]
    logits = np.concatenate([np.zeros((0, len(weight))), *sums]) * np.log(2.0 + soft_q)[:, None]
    logits -= logits.max(axis=1, keepdims=True)
    exponential = np.exp(logits)
    return np.asarray(exponential / exponential.sum(axis=1, keepdims=True), dtype=np.float64)


def rescaler_loss(weight: Floats, v: Floats, soft_q: Floats, labels: NDArray[np.int64]) -> tuple[float, Floats]:
    """Mean -log_(2 + q~) o_y and its gradient (C, C)."""
    log_base = np.log(2.0 + soft_q)
    logits = (v @ weight.T) * log_base[:, None]
    logits -= logits.max(axis=1, keepdims=True)
    exponential = np.exp(logits)
    total = exponential.sum(axis=1)
    rows = np.arange(len(labels))
    loss = float(((np.log(total) - logits[rows, labels]) / log_base).mean())
    residual = exponential / total[:, None]
    residual[rows, labels] -= 1.0
    return loss, residual.T @ v / len(labels)


def fit_rescaler_batch(v: Floats, soft_q: Floats, labels: NDArray[np.int64]) -> Floats:
    """W'' (C, C) by L-BFGS on the whole convex problem, from zero; deterministic.

    Where the calibration set is separable the loss has no minimum and the search ends when its gradient is below
    1e-7 or after 1000 iterations.
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    shape = (v.shape[1], v.shape[1])

    def objective(flat: Floats) -> tuple[float, Floats]:
        loss, gradient = rescaler_loss(flat.reshape(shape), v, soft_q, labels)
        return loss, gradient.ravel()

    options = {"maxiter": 1000, "gtol": 1e-7, "ftol": 0.0}
    # One thread: a product split over threads sums in another order, and 1000 iterations would show it.
    with threadpool_limits(1):
        found = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, dtype=np.float64).reshape(shape)


def fit_rescaler_paper(
    v: Floats,
    soft_q: Floats,
    labels: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    lr: float = 1e-4,
    max_epochs: int = 1000,
    patience: int = 10,
) -> Floats:
    """W'' (C, C) by Alg. 2: Adam with batches of one, the weights of the best epoch.

    Stops when the epoch's mean loss exceeded the best in more than `patience` consecutive epochs.
    """
    classes = v.shape[1]
    bound = 1 / math.sqrt(classes)
    weight = rng.uniform(-bound, bound, (classes, classes))
    best_weight, best_loss, worse = weight.copy(), math.inf, 0
    moment, square = np.zeros_like(weight), np.zeros_like(weight)
    log_base = np.log(2.0 + soft_q)
    step, beta1, beta2, eps = 0, 0.9, 0.999, 1e-8
    for _ in range(max_epochs):
        total = 0.0
        for i in rng.permutation(len(labels)):
            logits = weight.dot(v[i]) * log_base[i]
            top = logits.max()
            residual = np.exp(logits - top)
            normaliser = residual.sum()
            total += (math.log(normaliser) + top - logits[labels[i]]) / log_base[i]
            residual /= normaliser
            residual[labels[i]] -= 1.0
            gradient = np.multiply.outer(residual, v[i])
            step += 1
            moment += (1 - beta1) * (gradient - moment)
            square += (1 - beta2) * (gradient * gradient - square)
            rate = lr / (1 - beta1**step)
            weight -= rate * moment / (np.sqrt(square / (1 - beta2**step)) + eps)
        loss = total / len(labels)
        if loss < best_loss:
            best_weight, best_loss, worse = weight.copy(), loss, 0
        else:
            worse = worse + 1 if loss > best_loss else 0
            if worse > patience:
                break
    return best_weight
