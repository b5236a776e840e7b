"""SDM's neighbour search beside libraries that sort, and its estimator beside calibrated classifiers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paperworks.activations.sdm import SDMClassifier, SupportIndex
from paperworks.lab.benchmark import Case

Call = Callable[[], object]
TOP = 1000
"""Neighbours that a sorted search asks for, as the authors' code does: q is never counted further."""


class Problem:
    """Exemplars of two classes, one in fifty of them predicted wrong, and queries (torch, float32)."""

    def __init__(self, exemplars: int, filters: int, queries: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(exemplars) % 2
        wrong = torch.rand(exemplars, generator=generator) < 0.02
        self.own = torch.where(wrong, 1 - self.labels, self.labels)
        self.predicted = torch.arange(queries) % 2
        self.support = torch.randn(exemplars, filters, generator=generator) + self.labels[:, None] * 0.6
        self.h = torch.randn(queries, filters, generator=generator) + self.predicted[:, None] * 0.6
        self.top = min(TOP, exemplars)

    def count(self, neighbours: NDArray[np.int64]) -> NDArray[np.int64]:
        """q of every query from its sorted neighbours (B, k), one by one up to the first failure."""
        right, own = (self.own == self.labels).tolist(), self.own.tolist()
        found = []
        for row, predicted in zip(neighbours.tolist(), self.predicted.tolist(), strict=True):
            q = 0
            for i in row:
                if not right[i] or own[i] != predicted:
                    break
                q += 1
            found.append(q)
        return np.array(found)

    def by_counting(self) -> Call:
        index = SupportIndex(self.support, self.labels, self.own)
        return lambda: index.query(self.h, self.predicted)[0].numpy()

    def by_faiss(self) -> Call:
        import faiss

        index = faiss.IndexFlatL2(self.support.shape[1])
        index.add(self.support.numpy())
        return lambda: self.count(index.search(self.h.numpy(), self.top)[1])

    def by_sklearn(self) -> Call:
        from sklearn.neighbors import NearestNeighbors

        index = NearestNeighbors(n_neighbors=self.top, algorithm="brute").fit(self.support.numpy())
        return lambda: self.count(index.kneighbors(self.h.numpy(), return_distance=False))

    def by_topk(self) -> Call:
        return lambda: self.count(torch.cdist(self.h, self.support).topk(self.top, largest=False).indices.numpy())


def query_case(exemplars: int, filters: int, queries: int) -> Case:
    """Similarity of `queries` points to a training set."""
    problem = Problem(exemplars, filters, queries)
    operations = 2 * exemplars * filters * queries
    return Case(
        f"similarity of {queries:,} queries, {exemplars:,} training points, {filters:,} filters",
        "SupportIndex.query",
        {
            "SupportIndex.query": problem.by_counting,
            f"faiss flat top {TOP:,} and a loop": problem.by_faiss,
            f"scikit-learn NearestNeighbors top {TOP:,} and a loop": problem.by_sklearn,
            f"torch.cdist, topk {TOP:,} and a loop": problem.by_topk,
        },
        f"floor: one matrix product, {operations / 1e9:.3g} GFLOP",
    )


class Digits:
    """The digits, is one 5 or more: 700 to train, 600 to calibrate, 497 to judge."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        x, y = (digits.data[order] / 16).astype(np.float32), (digits.target[order] >= 5).astype(np.int64)
        self.train, self.cal, self.test = ((x[s], y[s]) for s in (slice(700), slice(700, 1300), slice(1300, None)))
        self.both = x[:1300], y[:1300]

    def sdm(self) -> SDMClassifier:
        return SDMClassifier(rounds=1, random_state=0).fit(*self.both)

    def calibrated(self) -> Any:
        from sklearn.calibration import CalibratedClassifierCV

        return CalibratedClassifierCV(_logistic(), method="sigmoid", cv=5).fit(*self.both)

    def mapie(self) -> Any:
        from mapie.classification import SplitConformalClassifier

        model = SplitConformalClassifier(_logistic(), confidence_level=0.95, conformity_score="lac", prefit=False)
        return model.fit(*self.train).conformalize(*self.cal)

    def crepes(self) -> Any:
        from crepes import WrapClassifier

        model = WrapClassifier(_logistic())
        model.fit(*self.train)
        model.calibrate(*self.cal)
        return model


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000)


def _fit(make: Callable[[], object]) -> Call:
    make()  # what is not installed is said here
    return make


def _use(make: Callable[[], Any], use: Callable[[Any], object]) -> Call:
    model = make()
    return lambda: use(model)


def estimator_cases() -> list[Case]:
    """Fitting, and judging new points, on the same features."""
    digits, x = Digits(), Digits().test[0]
    make: dict[str, Callable[[], Any]] = {
        "SDMClassifier, one round": digits.sdm,
        "CalibratedClassifierCV of logistic regression": digits.calibrated,
        "MAPIE split conformal (LAC) of logistic regression": digits.mapie,
        "crepes conformal of logistic regression": digits.crepes,
    }
    use: dict[str, Callable[[Any], object]] = {
        "SDMClassifier, one round": lambda m: m.select(x),
        "CalibratedClassifierCV of logistic regression": lambda m: m.predict_proba(x),
        "MAPIE split conformal (LAC) of logistic regression": lambda m: m.predict_set(x),
        "crepes conformal of logistic regression": lambda m: m.predict_set(x, confidence=0.95),
    }
    fit = {name: partial(_fit, one) for name, one in make.items()}
    judge = {name: partial(_use, make[name], one) for name, one in use.items()}
    return [
        Case("fit on 1,300 digits of two classes", "SDMClassifier, one round", fit),
        Case("verdicts on 497 digits of two classes", "SDMClassifier, one round", judge),
    ]


def cases() -> list[Case]:
    """The search at the paper's number of filters, then the estimator on digits."""
    return [query_case(20_000, 1000, 500), *estimator_cases()]
