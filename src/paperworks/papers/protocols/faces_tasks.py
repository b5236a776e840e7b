"""Identity, age, expression and attributes of drawn faces, learned together or apart."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial


def positive(value: float) -> None:
    """Raises ValueError for a number that is not above zero."""
    if value <= 0:
        raise ValueError(f"got {value}, wanted a number > 0")


def not_negative(value: float) -> None:
    """Raises ValueError for a number below zero."""
    if value < 0:
        raise ValueError(f"got {value}, wanted a number >= 0")


@protocol(
    "face tasks",
    metrics={
        "score": "mean over age, expression, attributes and, if learned, identity: 0 for guessing, 1 at most",
        "identity": "2 accuracy - 1 on pairs of people who were not trained on; 0 where identities are not learned",
        "age": "1 - mean error in years / that of the median age",
        "expression": "of accuracy, averaged over classes, on seven expressions and on smiling",
        "attributes": "of accuracy, averaged over classes, on each of seven attributes",
        "gate_spread": "mean over pairs of branches of the share of the gates that lies on other levels",
        "parameters": "of the network, or of all where there are several",
    },
    settings=(
        Setting("size", int, Tiers(smoke=32, gpu=64), "side of the faces in pixels", positive),
        Setting("faces", int, Tiers(smoke=24, desk=200, gpu=5000), "labelled faces of each part", positive),
        Setting("identities", bool, Tiers(smoke=True, desk=False, gpu=True), "learn identities too, the fourth part"),
        Setting("people", int, Tiers(smoke=6, desk=40, gpu=500), "identities to learn", positive),
        Setting("test_size", int, Tiers(smoke=60, desk=400, gpu=3000), "test faces, of other people", positive),
        Setting("steps", int, Tiers(smoke=2, desk=150, gpu=4000), "updates", positive),
        Setting("batch_size", int, Tiers(smoke=4, desk=16, gpu=32), "faces a step of each part", positive),
        Setting("width", int, Tiers(smoke=8, desk=16, gpu=96), "channels of the first of three stages", positive),
        Setting("lr", float, 2e-3, "learning rate of AdamW at its highest", positive),
    ),
)  # fmt: skip
def face_tasks(trial: Trial, arm: Arm) -> dict[str, float]:
    """Train a small SwinFace from scratch on parts of faces, each labelled for its own tasks; test it on others.

    All arms of a seed see the same faces. The gates' shares of the levels, some test faces and what was said of them
    are kept as curves.
    """
    from paperworks.papers.protocols.faces_training import train_and_score

    return train_and_score(trial, arm)
