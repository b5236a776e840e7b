"""Selective classification: admit or reject each point, in distribution and under shift. And the time of doing so."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial

SHIFTS = {
    "": "of the test part",
    "_rotate25": "of the test part turned by 25 degrees",
    "_rotate45": "of the test part turned by 45 degrees",
    "_noise0.35": "of the test part with normal noise of standard deviation 0.35",
    "_shifted": "of the setting shifted; of the test part where that is empty",
}
MEASURED = {
    "share": "share of the points {} that is admitted",
    "error": "share of wrong predictions among the admitted points {}; 0 where none is admitted",
    "accuracy": "accuracy over all points {}, admitted or not",
    "lowest_by_class": "least accuracy of a true class among the admitted points {}; 1 where none is admitted",
    "lowest_by_prediction": "the same of a predicted class, {}",
}
METRICS = {f"{name}{suffix}": text.format(where) for suffix, where in SHIFTS.items() for name, text in MEASURED.items()}


def _task(value: str) -> None:
    if value not in ("halves", "classes"):
        raise ValueError(f"got {value!r}, wanted halves or classes")


def _rescaler(value: str) -> None:
    if value not in ("batch", "paper"):
        raise ValueError(f"got {value!r}, wanted batch or paper")


def _positive(value: float) -> None:
    if not value > 0:
        raise ValueError(f"got {value}, wanted a number > 0")


def _not_negative(value: float) -> None:
    if value < 0:
        raise ValueError(f"got {value}, wanted 0 or more")


def _accuracy(value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"got {value}, wanted a number between 0 and 1")


_SIGNATURE = "paperworks.papers.protocols.selective_data:points_signature"
_SPECS = "digits, imagefolder:PATH, npz:PATH, idx:PATH, cifar:PATH, or jsonl:PATH (embeddings as Reexpress writes them)"


@protocol(
    "selective classification",
    metrics=METRICS
    | {
        "centroid_share": "share of the test part that the estimator admits without its lower bound; share, where an "
        "arm has no such bound",
        "spread_correlation": "Spearman correlation of floor(q~) and the median absolute deviation over rounds of the "
        "output in that bin, mean over predicted classes; 0 where an arm has no rounds",
        "aurc": "area under the risk-coverage curve of the test part and its rotation by 45 degrees together, ranked "
        "by the arm's own confidence",
    },
    settings=(
        Setting("data", str, "digits", _SPECS, signature=_SIGNATURE),
        Setting("test", str, "", f"test part of its own: {_SPECS}; empty divides the data", signature=_SIGNATURE),
        Setting("shifted", str, "", f"data from elsewhere: {_SPECS}", signature=_SIGNATURE),
        Setting("task", str, "halves", "halves (is the class in the upper half?) or classes", _task),
        Setting("answers", bool, False, "the first C features of the data are a language model's stated confidence"),
        Setting("fit_size", int, Tiers(smoke=500, desk=1300, full=0),
                "points for training and calibration, which every round halves anew; at most three quarters of the "
                "data are taken, and 0 takes these", _not_negative),
        Setting("alpha", float, 0.95, "wanted accuracy, confidence level, threshold of probabilities", _accuracy),
        Setting("rounds", int, Tiers(smoke=2, desk=10), "splits and trainings, of which the best is taken", _positive),
        Setting("filters", int, Tiers(smoke=0, full=1000), "width of the adaptor; 0 is min(1000, 4 D)", _not_negative),
        Setting("epochs", int, Tiers(smoke=4, desk=40, full=50), "passes over the training half", _positive),
        Setting("batch_size", int, 50, "points a step", _positive),
        Setting("lr", float, Tiers(smoke=1e-3, full=1e-5), "learning rate of Adam", _positive),
        Setting("rescaler", str, Tiers(smoke="batch", full="paper"), "batch (to the optimum) or paper", _rescaler),
    ),
    time_limit=4 * 3600.0,
    memory_limit_gib=24.0,
    preload=("scipy.ndimage", "scipy.optimize", "sklearn.datasets", "sklearn.preprocessing", "mapie.conformity_scores"),
)  # fmt: skip
def selective_classification(trial: Trial, arm: Arm) -> dict[str, float]:
    """Fit the arm once and judge what it admits of the test part and of each shift of it.

    All arms get the same points, the same adaptor and the same number of rounds, epochs and steps. What an arm admits
    nothing of has no error: `share` tells it apart from what is admitted and right.
    """
    from paperworks.papers.protocols.selective_trials import run_arm

    return run_arm(trial, arm)


@protocol(
    "verification time",
    metrics={
        "search_share": "time of the neighbour search over the time of the whole verdict, median over rounds",
        "seconds": "time of the whole verdict on one query, in a batch",
    },
    settings=(
        Setting("support", int, Tiers(smoke=500, desk=20_000), "training points of the method's arm", _positive),
        Setting("features", int, Tiers(smoke=64, desk=6144), "size of the embedding", _positive),
        Setting("filters", int, Tiers(smoke=50, desk=1000), "width of the adaptor", _positive),
        Setting("queries", int, Tiers(smoke=16, desk=100), "points verified at once", _positive),
        Setting("timings", int, 6, "interleaved rounds of timing, at least 6", _positive),
    ),
    exclusive=True,
)
def verification_time(trial: Trial, arm: Arm) -> dict[str, float]:
    """Time a whole verdict and the neighbour search in it, in turn; the arm gives the number of training points."""
    from paperworks.papers.protocols.selective_trials import time_of_search

    return time_of_search(trial, arm)
