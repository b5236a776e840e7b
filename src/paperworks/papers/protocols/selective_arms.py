"""The arms of selective classification: one exemplar adaptor, and the rules by which its outputs are admitted.

An arm is an object with `fit(points, classes, trial)` and `decide(x)`, x (N, D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from paperworks.activations.sdm import ExemplarAdaptor, SDMClassifier, SDMResult, SDMState, robust_offsets
from paperworks.activations.sdm.robust import CalibrationOutputs
from paperworks.activations.sdm.training import even_split, initial_adaptor
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.selective_data import Points

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Decisions:
    """prediction (N,), admitted (N,), and score (N,), the arm's confidence in each prediction.

    centroid_admitted: what is admitted without a lower bound; admitted, where an arm has none.
    """

    prediction: Integers
    admitted: Bools
    score: Floats
    centroid_admitted: Bools

    def at(self, rows: slice) -> Decisions:
        return Decisions(self.prediction[rows], self.admitted[rows], self.score[rows], self.centroid_admitted[rows])


class Rule(Protocol):
    """What the protocol asks of an arm."""

    def fit(self, points: Points, classes: int, trial: Trial) -> None: ...

    def decide(self, x: Floats) -> Decisions: ...


# -- the method --------------------------------------------------------------------------------------------------------


class SDM:
    """The estimator, admitting by its lower bound.

    Args:
        bound: ``"centroid"`` admits without the bound: the same thresholds over the centroid's q~ and output.
        shuffle_labels: a control, fitted on labels in random order.
        shuffle_spread: a control, with the spreads over rounds in random order over the bins.
    """

    def __init__(
        self,
        bound: Literal["lower", "centroid"] = "lower",
        shuffle_labels: bool = False,
        shuffle_spread: bool = False,
    ) -> None:
        if bound not in ("lower", "centroid"):
            raise ValueError(f"bound: got {bound!r}, wanted lower or centroid")
        self.bound, self.shuffle_labels, self.shuffle_spread = bound, shuffle_labels, shuffle_spread

    def fit(self, points: Points, classes: int, trial: Trial) -> None:
        settings, labels = trial.settings, points.y
        if self.shuffle_labels:
            labels = trial.numpy_generator("labels").permutation(labels)
        trial.progress(0.0, f"{settings['rounds']} rounds of {settings['epochs']} epochs")
        self.model = SDMClassifier(
            settings["alpha"],
            num_filters=settings["filters"] or None,
            rounds=settings["rounds"],
            epochs=settings["epochs"],
            batch_size=settings["batch_size"],
            lr=settings["lr"],
            rescaler=settings["rescaler"],
            random_state=trial.derived_seed("method") % 2**32,
            device=trial.device,
        ).fit(points.rows, labels)
        self.shuffler = trial.numpy_generator("spread") if self.shuffle_spread else None

    def decide(self, x: Floats) -> Decisions:
        result, classes = self.model.select(x), self.model.classes_
        rows, own = np.arange(len(x)), np.searchsorted(classes, result.prediction)
        output = result.centroid[rows, own]
        centroid = centroid_admitted(self.model.state_, result, own)
        admitted = result.admitted if self.bound == "lower" else centroid
        # q~ first, the output among equals: a rank, since their product has no meaning.
        score = np.empty(len(x))
        score[np.lexsort((output, result.soft_q))] = rows
        return Decisions(result.prediction, admitted, score, centroid)

    def spread_correlation(self) -> float:
        """See the metric of that name."""
        return spread_correlation(self.model.rounds_, self.shuffler)


def centroid_admitted(state: SDMState, result: SDMResult, predicted: Integers) -> Bools:
    """Eq. 28 with the centroid's q~ and output where the paper has those of the lower bound; flips are rejected."""
    bins = np.floor(result.soft_q).astype(int).tolist()
    offset = np.array([state.offsets[c].get(b, 0.0) for c, b in zip(predicted.tolist(), bins, strict=True)])
    output = result.centroid[np.arange(len(predicted)), predicted]
    kept = result.centroid.argmax(1) == predicted
    return np.asarray(kept & (result.soft_q >= state.q_min_robust) & (output - offset >= state.psi[predicted]))


def spread_correlation(rounds: Sequence[CalibrationOutputs], shuffler: np.random.Generator | None) -> float:
    """Spearman correlation of floor(q~) and the spread of the output in that bin, mean over predicted classes.

    The spread is the median absolute deviation over rounds of the bin's median output (Eq. 27 without its constant
    factor). Bins count that at least half of the rounds have; a class with fewer than three of them, or with one and
    the same spread in all, counts as 0. With `shuffler` the spreads change places at random.
    """
    from scipy import stats

    medians = [r.medians() for r in rounds]
    found = []
    for c, spreads in enumerate(robust_offsets(medians, 0.75)):  # tan(pi / 4) = 1
        often = [b for b in spreads if 2 * sum(b in m.get(c, {}) for m in medians) >= len(medians)]
        values = np.array([spreads[b] for b in often])
        if shuffler is not None:
            values = shuffler.permutation(values)
        told = len(often) > 2 and np.ptp(values) > 0
        found.append(float(stats.spearmanr(often, values).statistic) if told else 0.0)
    return float(np.mean(found))


# -- baselines: the same adaptor under cross entropy -------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """An adaptor with the calibration half it was chosen by."""

    adaptor: ExemplarAdaptor
    x_cal: torch.Tensor
    y_cal: Integers

    def logits(self, x: Floats) -> Floats:
        """(N, C) float64."""
        rows = torch.as_tensor(np.ascontiguousarray(x), device=self.x_cal.device)
        return np.asarray(self.adaptor.project(rows)[0].double().cpu().numpy())


@torch.no_grad()
def train_cross_entropy(points: Points, classes: int, trial: Trial) -> Trained:
    """The adaptor trained with cross entropy on as many splits, epochs and steps as the method.

    As the authors do for their baselines, the epoch with the best class-balanced accuracy on the calibration half is
    kept, and here also the best of the rounds; of equals the later. All rounds are trained together, which is faster.
    """
    settings = trial.settings
    x, y = torch.from_numpy(points.rows).to(trial.device), torch.from_numpy(points.y).to(trial.device)
    width = settings["filters"] or min(1000, 4 * x.shape[1])
    rngs = [np.random.default_rng([trial.derived_seed("baseline"), j]) for j in range(settings["rounds"])]
    splits = [even_split(points.y, rng) for rng in rngs]
    adaptors = [
        initial_adaptor(x.shape[1], classes, width, rng, x.device).fit_normalizer(x[torch.from_numpy(train)])
        for rng, (train, _) in zip(rngs, splits, strict=True)
    ]
    stack = CrossEntropyStack(adaptors, settings["lr"])
    best, best_accuracy = dict[int, tuple[torch.Tensor, ...]](), np.zeros(len(rngs))
    for epoch in range(settings["epochs"]):
        order = np.stack([rng.permutation(train) for rng, (train, _) in zip(rngs, splits, strict=True)])
        for rows in torch.from_numpy(order).to(x.device).split(settings["batch_size"], dim=1):
            stack.step(x[rows], y[rows])
        for j, (_, cal) in enumerate(splits):
            logits, _ = stack.adaptor(j)(x[torch.from_numpy(cal)])
            accuracy = balanced_accuracy(logits.argmax(1).cpu().numpy(), points.y[cal])
            if epoch == 0 or accuracy >= best_accuracy[j]:
                best[j] = tuple(p[j].clone() for p in stack.parameters)
                best_accuracy[j] = accuracy
        trial.progress((epoch + 1) / settings["epochs"], "training")
    chosen = len(rngs) - 1 - int(best_accuracy[::-1].argmax())
    cal = splits[chosen][1]
    return Trained(stack.adaptor(chosen, best[chosen]), x[torch.from_numpy(cal)], points.y[cal])


class CrossEntropyStack:
    """Adaptors of one size trained side by side with Adam on cross entropy, by its gradient in closed form."""

    def __init__(self, adaptors: Sequence[ExemplarAdaptor], lr: float) -> None:
        self.adaptors, self.lr = adaptors, lr
        layers = [(a.conv.weight, a.conv.bias[None], a.fc.weight, a.fc.bias[None]) for a in adaptors]
        self.parameters = [torch.stack(p) for p in zip(*layers, strict=True)]
        self.moments, self.squares = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        self.steps = [torch.tensor(0.0, device=p.device) for p in self.parameters]
        self.mean, self.std = (
            torch.stack([getattr(a, name) for a in adaptors])[:, None, None] for name in ("norm_mean", "norm_std")
        )

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """A step on x (J, B, D) and y (J, B), a batch for each of the J adaptors."""
        from torch.optim.adam import adam  # the function: an optimizer object would load the compiler first

        conv, conv_bias, fc, fc_bias = self.parameters
        x = (x - self.mean) / self.std
        h = torch.baddbmm(conv_bias, x, conv.mT)
        p = torch.baddbmm(fc_bias, h, fc.mT).softmax(2)
        g_z = (p - functional.one_hot(y, fc.shape[1])) / x.shape[1]
        g_h = g_z @ fc
        gradients = [g_h.mT @ x, g_h.sum(1, keepdim=True), g_z.mT @ h, g_z.sum(1, keepdim=True)]
        adam(
            self.parameters, gradients, self.moments, self.squares, [], self.steps, fused=True, foreach=False,
            amsgrad=False, beta1=0.9, beta2=0.999, lr=self.lr, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip

    def adaptor(self, j: int, parameters: Sequence[torch.Tensor] | None = None) -> ExemplarAdaptor:
        """The j-th adaptor with its weights of now, or with others."""
        made = self.adaptors[j]
        own = (made.conv.weight, made.conv.bias, made.fc.weight, made.fc.bias)
        with torch.no_grad():
            for parameter, value in zip(own, parameters or [p[j] for p in self.parameters], strict=True):
                parameter.copy_(value.view_as(parameter))
        return made


def balanced_accuracy(prediction: Integers, y: Integers) -> float:
    """Mean over the classes of y of the accuracy on them."""
    return float(np.mean([(prediction[y == c] == c).mean() for c in np.unique(y)]))


def softmax(logits: Floats) -> Floats:
    """Along the classes, in float64."""
    exponential = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(exponential / exponential.sum(1, keepdims=True))


class Softmax:
    """Admit where the largest probability reaches `alpha`.

    Args:
        temperature: divide the logits by the temperature of least cross entropy on the calibration half.
        threshold: instead of `alpha`; 0 admits everything.
    """

    def __init__(self, temperature: bool = False, threshold: float | None = None) -> None:
        self.temperature, self.threshold = temperature, threshold

    def fit(self, points: Points, classes: int, trial: Trial) -> None:
        self.model = train_cross_entropy(points, classes, trial)
        self.level = trial.settings["alpha"] if self.threshold is None else self.threshold
        logits = self.model.logits(self.model.x_cal.cpu().numpy())
        self.scale = 1 / fit_temperature(logits, self.model.y_cal) if self.temperature else 1.0

    def decide(self, x: Floats) -> Decisions:
        return by_probability(softmax(self.model.logits(x) * self.scale), self.level)


def by_probability(probability: Floats, level: float) -> Decisions:
    """Admit where the largest probability (N, C) reaches `level`."""
    score = probability.max(1)
    admitted = score >= level
    return Decisions(probability.argmax(1), admitted, score, admitted)


def fit_temperature(logits: Floats, y: Integers) -> float:
    """The temperature of least cross entropy, between 0.01 and 100."""
    from scipy import optimize, special

    def loss(log_temperature: float) -> float:
        return float(-special.log_softmax(logits / math.exp(log_temperature), axis=1)[np.arange(len(y)), y].mean())

    found = optimize.minimize_scalar(loss, bounds=(math.log(0.01), math.log(100)), method="bounded")
    return math.exp(float(found.x))


class Conformal:
    """Admit where the split-conformal prediction set holds one class and no more.

    Args:
        score: ``"aps"`` or ``"raps"``, both by MAPIE.
    """

    def __init__(self, score: Literal["aps", "raps"]) -> None:
        if score not in ("aps", "raps"):
            raise ValueError(f"score: got {score!r}, wanted aps or raps")
        self.score = score

    def fit(self, points: Points, classes: int, trial: Trial) -> None:
        self.model = train_cross_entropy(points, classes, trial)
        self.level, self.seed = trial.settings["alpha"], trial.derived_seed("conformal") % 2**31
        self.probability_cal = softmax(self.model.logits(self.model.x_cal.cpu().numpy()))

    def decide(self, x: Floats) -> Decisions:
        probability = softmax(self.model.logits(x))
        sets = conformal_sets(
            self.score, self.probability_cal, self.model.y_cal, probability, 1 - self.level, self.seed
        )
        admitted = sets.sum(1) == 1
        prediction = np.where(admitted, sets.argmax(1), probability.argmax(1))
        return Decisions(prediction, admitted, probability.max(1), admitted)


def conformal_sets(
    score: str, probability_cal: Floats, y_cal: Integers, probability: Floats, miss: float, seed: int
) -> Bools:
    """Prediction sets (N, C) of MAPIE's APS or RAPS, at its defaults, with coverage 1 - miss.

    MAPIE's own classifier refuses both for two classes, where its scores are as valid: they are called directly, with
    a third class of probability 0 that keeps their one-hot labels three columns wide. With two classes RAPS penalises
    no label, so that it is APS calibrated on the nine tenths that its penalty leaves.
    """
    try:
        from mapie.conformity_scores import APSConformityScore, RAPSConformityScore
    except ImportError as error:
        raise ImportError("conformal arms need MAPIE: pip install 'paperworks[peers]'") from error
    from types import SimpleNamespace

    from sklearn.preprocessing import LabelEncoder

    classes = probability.shape[1]
    if classes == 2:
        probability_cal, probability = (np.pad(p, ((0, 0), (0, 1))) for p in (probability_cal, probability))
    names = np.arange(probability.shape[1])
    alpha = np.array([miss])
    found: Any = RAPSConformityScore() if score == "raps" else APSConformityScore()
    shared = {"classes": names, "random_state": seed}
    if score == "raps":
        found.set_external_attributes(**shared, label_encoder=LabelEncoder().fit(names))
        # The calibration points are given as their probabilities, which the predictor only hands on.
        found.set_ref_predictor(SimpleNamespace(single_estimator_=SimpleNamespace(predict_proba=lambda p: p)))
        probability_cal, _, y_cal, _, _ = found.split_data(probability_cal, y_cal, y_cal)
    else:
        found.set_external_attributes(**shared)
    scores = found.get_conformity_scores(y_cal, probability_cal, y_enc=y_cal)
    sets = found.get_sets(
        X=probability, alpha_np=alpha, y_pred_proba=probability, cv="prefit", conformity_scores=scores,
        include_last_label=True,
    )  # fmt: skip
    return np.asarray(sets[:, :classes, 0], dtype=bool)


class StatedConfidence:
    """A language model's own answer, admitted where the confidence it states reaches `alpha`; nothing is fitted.

    The first C features of a point are its stated confidence at the place of its answer, and 0 elsewhere.
    """

    def fit(self, points: Points, classes: int, trial: Trial) -> None:
        if not trial.settings["answers"] or points.rows.shape[1] < classes:
            raise ValueError("answers: the data has to begin with a stated confidence for each class (--set answers=1)")
        self.classes, self.level = classes, trial.settings["alpha"]

    def decide(self, x: Floats) -> Decisions:
        return by_probability(x[:, : self.classes], self.level)
