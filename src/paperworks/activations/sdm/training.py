"""Training of the exemplar adaptor and of the whole estimator over re-split data (Alg. 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .adaptor import ExemplarAdaptor
from .ecdf import distance_quantile
from .functional import SOFTMAX_Q
from .rescaler import fit_rescaler_batch, fit_rescaler_paper
from .robust import CalibrationOutputs, robust_offsets, robust_threshold
from .state import SDMState, balanced_median, known_distances
from .support import SupportIndex

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """The result of all rounds.

    state: the best round's, with the robust threshold and offsets.  outputs: one per round.  train_rows, cal_rows:
    where the rows of its D_tr and D_ca lie in the pooled data.  best_round: index.  history: per round the metric of
    every epoch.
    """

    state: SDMState
    outputs: list[CalibrationOutputs]
    train_rows: Integers
    cal_rows: Integers
    best_round: int
    history: list[list[float]]


def even_split(labels: Integers, rng: np.random.Generator) -> tuple[Integers, Integers]:
    """Random halves (train, calibration) of the rows, with every class in both.

    A draw that leaves a class out of a half (tiny classes) is repaired by fixing one random member of each class in
    each half.  Needs two members of every class.
    """
    order = rng.permutation(len(labels))
    half = len(labels) // 2
    classes = np.unique(labels)
    if all(np.isin(classes, labels[part]).all() for part in (order[:half], order[half:])):
        return order[:half], order[half:]
    fixed = np.array([order[labels[order] == c][:2] for c in classes])
    rest = order[~np.isin(order, fixed)]
    cut = max(0, half - len(classes))
    return np.concatenate([fixed[:, 0], rest[:cut]]), np.concatenate([fixed[:, 1], rest[cut:]])


def initial_adaptor(
    in_features: int, classes: int, filters: int, rng: np.random.Generator, device: torch.device
) -> ExemplarAdaptor:
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return ExemplarAdaptor(in_features, classes, filters, generator=generator, device=device)


def train_adaptor(
    adaptor: ExemplarAdaptor,
    x_train: Tensor,
    y_train: Integers,
    x_cal: Tensor,
    y_cal: Integers,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    rng: np.random.Generator,
    on_epoch: Callable[[], object] = lambda: None,
) -> list[float]:
    """One round of Alg. 1, in place: the adaptor ends with the weights of its best epoch.

    Epoch 0 is softmax cross entropy (q = e - 2, d = 1); q and d of D_tr are recomputed after every epoch.  The best
    epoch has the largest mean over classes of the median q over D_ca, the later one among equals.

    Returns:
        That metric after every epoch.
    """
    adaptor.fit_normalizer(x_train)
    x_train, x_cal = ((x.float() - adaptor.norm_mean) / adaptor.norm_std for x in (x_train, x_cal))
    target = F.one_hot(torch.as_tensor(y_train, device=x_train.device), adaptor.num_classes).to(x_train.dtype)
    parameters = [adaptor.conv.weight, adaptor.conv.bias, adaptor.fc.weight, adaptor.fc.bias]
    optimizer = _Adam(parameters, lr)
    q = torch.full((len(target),), SOFTMAX_Q, device=x_train.device)
    d = torch.ones_like(q)
    best = [p.detach().clone() for p in parameters]
    metrics: list[float] = []
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(len(target))).to(x_train.device)
        batches = zip(*(t[order].split(batch_size) for t in (x_train, target, q, d)), strict=True)
        for batch in batches:
            optimizer.step(affine_gradients(adaptor, *batch))
        q, d, metric = _recompute(adaptor, x_train, y_train, x_cal, y_cal)
        if metric >= max(metrics, default=0.0):
            best = [p.detach().clone() for p in parameters]
        metrics.append(metric)
        on_epoch()
    with torch.no_grad():
        for parameter, value in zip(parameters, best, strict=True):
            parameter.copy_(value)
    return metrics


class _Adam:
    """Adam over given gradients, all parameters as one vector.

    `torch.optim` loads the compiler when the first optimizer is made, which takes longer than a fit of small data.
    """

    def __init__(self, parameters: list[Tensor], lr: float) -> None:
        self.parameters, self.lr, self.steps = parameters, lr, 0
        size = sum(p.numel() for p in parameters)
        self.moment = torch.zeros(size, device=parameters[0].device)
        self.square = torch.zeros_like(self.moment)

    @torch.no_grad()
    def step(self, gradients: list[Tensor], beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.steps += 1
        gradient = torch.cat([g.ravel() for g in gradients])
        self.moment.lerp_(gradient, 1 - beta1)
        self.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = self.square.sqrt().div_(math.sqrt(1 - beta2**self.steps)).add_(eps)
        update = (self.moment / scale).mul_(self.lr / (1 - beta1**self.steps))
        for parameter, part in zip(self.parameters, update.split([p.numel() for p in self.parameters]), strict=True):
            parameter.sub_(part.view_as(parameter))


@torch.no_grad()
def affine_gradients(adaptor: ExemplarAdaptor, x: Tensor, target: Tensor, q: Tensor, d: Tensor) -> list[Tensor]:
    """Gradients of the SDM loss (Eq. 8) of normalised x (B, D) and one-hot targets (B, C).

    For conv.weight, conv.bias, fc.weight and fc.bias.  Both maps are affine, so the gradient d (p - onehot) / B with
    respect to the logits gives all four in closed form, several times faster than autograd on batches this small.
    """
    h = F.linear(x, adaptor.conv.weight, adaptor.conv.bias)
    z = F.linear(h, adaptor.fc.weight, adaptor.fc.bias)
    p = torch.softmax(z * (d * torch.log(q + 2))[:, None], 1)
    g_z = (p - target) * (d / len(x))[:, None]
    g_h = g_z @ adaptor.fc.weight
    return [g_h.T @ x, g_h.sum(0), g_z.T @ h, g_z.sum(0)]


@torch.no_grad()
def _recompute(
    adaptor: ExemplarAdaptor, x_train: Tensor, y_train: Integers, x_cal: Tensor, y_cal: Integers
) -> tuple[Tensor, Tensor, float]:
    """q and d of D_tr under the current weights, and the metric over D_ca."""
    h = F.linear(torch.cat([x_train, x_cal]), adaptor.conv.weight, adaptor.conv.bias)
    predictions = F.linear(h, adaptor.fc.weight, adaptor.fc.bias).argmax(1)
    n = len(x_train)
    if 2 * adaptor.in_features <= h.shape[1]:
        # h' spans at most D dimensions: with G = Q R the distances of R x are those of h', at D / M of the work.
        # float64 keeps the rounding of the factorisation, which depends on the threads, out of R.
        r = torch.linalg.qr(adaptor.conv.weight.double()).R.to(h.dtype)
        h = F.linear(torch.cat([x_train, x_cal]), r)
    index = SupportIndex(h[:n], torch.as_tensor(y_train), predictions[:n])
    q, d_nearest = index.query(h[:n], predictions[:n], exclude_self=True)
    q_cal, _ = index.query(h[n:], predictions[n:])
    q_train, distances = q.cpu().numpy(), d_nearest.cpu().numpy()
    d = distance_quantile(distances, known_distances(distances, q_train, y_train, adaptor.num_classes))
    metric = balanced_median(q_cal.cpu().numpy(), y_cal, adaptor.num_classes)
    return q.float(), torch.as_tensor(d, dtype=torch.float32, device=h.device), metric


def fit_rounds(
    x: Tensor,
    y: Integers,
    classes: int,
    *,
    alpha: float,
    filters: int,
    rounds: int,
    epochs: int,
    batch_size: int,
    lr: float,
    rescaler: str,
    seed: int,
    start: ExemplarAdaptor | None = None,
    on_epoch: Callable[[], object] = lambda: None,
) -> Fitted:
    """All rounds of Alg. 1: pool, split evenly at random, train, calibrate; the best round is the model.

    Args:
        x: pooled embeddings (N, D), on the device to train on.
        y: class indices (N,), every class at least twice.
        start: weights that every round begins with; None draws them anew in every round.
        on_epoch: called after every epoch.
        Others as in `SDMClassifier`.
    """
    best: tuple[SDMState, Integers, Integers, int] | None = None
    outputs, history = [], []
    for j, source in enumerate(np.random.SeedSequence(seed).spawn(rounds)):
        rng = np.random.default_rng(source)
        train, cal = even_split(y, rng)
        adaptor = initial_adaptor(x.shape[1], classes, filters, rng, x.device)
        if start is not None:
            adaptor.load_state_dict(start.state_dict())
        data = (x[torch.from_numpy(train)], y[train], x[torch.from_numpy(cal)], y[cal])
        history.append(
            train_adaptor(adaptor, *data, epochs=epochs, batch_size=batch_size, lr=lr, rng=rng, on_epoch=on_epoch)
        )
        state = SDMState.from_adaptor(adaptor, *data)
        state.set_rescaler(_fit_rescaler(state, rescaler, rng), alpha)
        outputs.append(state.outputs)
        if best is None or state.balanced_median_q >= best[0].balanced_median_q:
            best = (state, train, cal, j)
    if best is None:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    state, train, cal, number = best
    make_robust(state, outputs, alpha)
    return Fitted(state, outputs, train, cal, number, history)


def make_robust(state: SDMState, outputs: Iterable[CalibrationOutputs], alpha: float) -> SDMState:
    """Give a round's state the threshold and the offsets over all rounds at alpha' (step 12); returns it."""
    rounds = list(outputs)
    q_min, _ = state.outputs.threshold(alpha)
    q_min_robust = robust_threshold(q_min, [o.threshold(alpha)[0] for o in rounds], alpha)
    offsets = robust_offsets([o.medians() for o in rounds], alpha)
    return state.set_rescaler(state.rescaler_weight, alpha, q_min_robust, offsets)


def _fit_rescaler(state: SDMState, method: str, rng: np.random.Generator) -> NDArray[np.float64]:
    # Alg. 2 trains on the cached q~, before any flip: flips need the rescaler.
    v = state.cal_v
    soft_q = v[np.arange(len(v)), state.cal_pred] * state.cal_log_base
    if method == "paper":
        return fit_rescaler_paper(v, soft_q, state.y_cal, rng)
    return fit_rescaler_batch(v, soft_q, state.y_cal)
