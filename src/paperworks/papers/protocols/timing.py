"""Time of one piece of work beside a reference, in one process: for whatever is no activation."""

from __future__ import annotations

from paperworks.lab.fingerprint import fingerprint
from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial


def call_signature(reference: str) -> str:
    """Digest of the code that prepares the reference's call."""
    return fingerprint(Arm.parse(reference).target)


@protocol(
    "timing",
    metrics={
        "seconds": "median time of a call",
        "ratio": "median over rounds of the arm's time divided by the reference's time in the same round",
    },
    settings=(
        Setting(
            "reference",
            str,
            "",
            "package.module:function(options) that prepares the call the arm is timed beside",
            signature="paperworks.papers.protocols.timing:call_signature",
        ),
        Setting("rounds", int, Tiers(smoke=6, desk=15), "interleaved rounds"),
    ),
    exclusive=True,
)
def timing(trial: Trial, arm: Arm) -> dict[str, float]:
    """An arm's target takes the trial and returns the call to time, a function of no argument.

    Arm and reference alternate in random order; each seed is a process of its own, run with nothing beside it.
    """
    from paperworks.measure.latency import paired_latency

    calls = {"arm": arm.build(trial), "reference": Arm.parse(trial.settings["reference"]).build(trial)}
    found = paired_latency(calls, rounds=trial.settings["rounds"], seed=trial.derived_seed("order") % 2**31)
    return {"seconds": found.medians["arm"], "ratio": found.ratio("arm", "reference").median}
