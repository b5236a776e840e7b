"""Judging what an arm of selective classification admits, and timing the verdict of the method."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paperworks.activations.sdm import ExemplarAdaptor, SDMState, SupportIndex
from paperworks.activations.sdm.ecdf import distance_quantile
from paperworks.activations.sdm.state import activation, known_distances
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.selective_arms import SDM, Decisions, Rule
from paperworks.papers.protocols.selective_data import select_points

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]


def judge(decisions: Decisions, y: Integers) -> dict[str, float]:
    """The five numbers of `paperworks.papers.protocols.selective.MEASURED`; y is -99 where no class is right."""
    admitted, prediction = decisions.admitted, decisions.prediction
    right = prediction == y

    def lowest(of: Integers) -> float:
        groups = [admitted & (of == c) for c in np.unique(of[of >= 0])]
        return float(min((right[g].mean() for g in groups if g.any()), default=1.0))

    return {
        "share": float(admitted.mean()),
        "error": float(1 - right[admitted].mean()) if admitted.any() else 0.0,
        "accuracy": float(right.mean()),
        "lowest_by_class": lowest(y),
        "lowest_by_prediction": lowest(prediction),
    }


def risk_coverage_area(score: Floats, right: Bools) -> float:
    """Mean over k of the share of errors among the k points of highest score; among equal scores in the mean."""
    order = np.argsort(-score, kind="stable")
    wrong = 1.0 - right[order]
    _, group = np.unique(-score[order], return_inverse=True)
    wrong = (np.bincount(group, wrong) / np.bincount(group))[group]
    return float((np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).mean())


def run_arm(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.selective.selective_classification`."""
    selection = select_points(trial)
    rule: Rule = arm.build()
    rule.fit(selection.fit, selection.classes, trial)
    everything = rule.decide(np.concatenate([points.rows for points in selection.tests.values()]))
    found: dict[str, float] = {}
    parts: dict[str, Decisions] = {}
    start = 0
    for suffix, points in selection.tests.items():
        parts[suffix] = everything.at(slice(start, start + len(points)))
        start += len(points)
        found |= {f"{name}{suffix}": value for name, value in judge(parts[suffix], points.y).items()}
    mixed = [(parts[s], selection.tests[s].y) for s in ("", "_rotate45")]
    right = np.concatenate([d.prediction == y for d, y in mixed])
    found["aurc"] = risk_coverage_area(np.concatenate([d.score for d, _ in mixed]), right)
    found["centroid_share"] = float(parts[""].centroid_admitted.mean())
    found["spread_correlation"] = rule.spread_correlation() if isinstance(rule, SDM) else 0.0
    return found


# -- time --------------------------------------------------------------------------------------------------------------


def support_size(size: int | None = None) -> int | None:
    """An arm of the timing protocol: the number of training points, None for that of the settings."""
    return size


def time_of_search(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.selective.verification_time`."""
    from paperworks.measure.latency import paired_latency

    settings = trial.settings
    state, x = state_of_size(trial, arm.build() or settings["support"])
    z, h = state.adaptor.project(x)
    predictions = z.argmax(1)
    found = paired_latency(
        {"verdict": lambda: state.evaluate(x), "search": lambda: state.index.query(h, predictions)},
        rounds=settings["timings"],
        warmup=1,
        seed=trial.derived_seed("order") % 2**31,
    )
    return {"search_share": found.ratio("search", "verdict").median, "seconds": found.medians["verdict"] / len(x)}


def state_of_size(trial: Trial, size: int, calibration: int = 100, rank: int = 64) -> tuple[SDMState, torch.Tensor]:
    """A calibrated estimator with `size` training points, and queries (Q, D); a tenth of the points is predicted wrong.

    The weights are random and the embeddings u A with u (N, 64) normal, so that the exemplars of the training points
    come from u alone and D_tr is never held as embeddings. D_tr's own q and d, which no verdict uses, are those of its
    first points.
    """
    settings = trial.settings
    generator = trial.generator("points")
    adaptor = ExemplarAdaptor(settings["features"], 2, settings["filters"], generator=generator)
    basis = torch.randn(rank, settings["features"], generator=generator)

    def points(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        u = torch.randn(n, rank, generator=generator)
        h = u @ (basis @ adaptor.conv.weight.T) + adaptor.conv.bias
        return u, h, torch.nn.functional.linear(h, adaptor.fc.weight, adaptor.fc.bias)

    def labelled(z: torch.Tensor) -> torch.Tensor:
        wrong = torch.rand(len(z), generator=generator) < 0.1
        return torch.where(wrong, 1 - z.argmax(1), z.argmax(1))

    def neighbourhood(y: torch.Tensor, z: torch.Tensor, h: torch.Tensor, own: bool) -> dict[str, NDArray[Any]]:
        q, d_nearest = index.query(h, z.argmax(1), exclude_self=own)
        parts = {"label": y, "prediction": z.argmax(1), "q": q, "d_nearest": d_nearest}
        return {name: part.numpy() for name, part in parts.items()}

    with torch.no_grad():
        (_, h_train, z_train), (_, h_cal, z_cal), (u, _, _) = (
            points(n) for n in (size, calibration, settings["queries"])
        )
        y_train, y_cal = labelled(z_train), labelled(z_cal)
        index = SupportIndex(h_train, y_train, z_train.argmax(1))
        first = slice(0, calibration)
        train = neighbourhood(y_train[first], z_train[first], h_train[first], own=True)
        cal = neighbourhood(y_cal, z_cal, h_cal, own=False)
        known = known_distances(cal["d_nearest"], cal["q"], cal["label"], 2)
        p = activation(z_cal, cal["q"], distance_quantile(cal["d_nearest"], known))
        state = SDMState(adaptor, index, train, cal, p).set_rescaler(4 * np.eye(2), 0.95)
        return state, u @ basis
