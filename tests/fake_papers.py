"""Papers, protocols and arms that cost nothing, for the tests of the lab. Workers import this module by name."""

from __future__ import annotations

import ctypes
import os
import time
from datetime import date
from typing import Any

from paperworks.lab.nouns import Arm, Bound, Criterion, Need, Paper, Setting, Tiers, protocol
from paperworks.lab.trial import Trial

HERE = __name__


def shifted(mean: float = 0.0, spread: float = 1.0) -> tuple[float, float]:
    """An arm: the mean and spread of the metric."""
    return mean, spread


def _positive(value: float) -> None:
    if value <= 0:
        raise ValueError(f"got {value}, wanted > 0")


@protocol(
    "noise",
    metrics={"score": "mean + spread * standard normal, of the seed and the arm"},
    settings=(
        Setting("scale", float, 1.0, "multiplies the score", _positive),
        Setting("rounds", int, Tiers(smoke=1, desk=2), "does nothing"),
        Setting("sleep", float, 0.0, "seconds"),
    ),
)
def noise(trial: Trial, arm: Arm) -> dict[str, float]:
    import torch

    mean, spread = arm.build()
    shared = torch.randn((), generator=trial.generator("data"))
    own = torch.randn((), generator=trial.generator(arm.key))
    print("said on standard output")
    with trial.global_generators("weights"):
        shared = shared + torch.nn.Linear(1, 1).weight.item()
    time.sleep(trial.settings["sleep"])
    trial.progress(0.5, "half way")
    trial.curve("steps", [1.0, 2.0])
    return {"score": float(trial.settings["scale"] * (mean + shared + spread * own))}


@protocol("trouble", metrics={"score": "never"}, time_limit=12.0, memory_limit_gib=1.0)
def trouble(trial: Trial, arm: Arm) -> dict[str, float]:
    kind = arm.options.get("kind", "fine")
    if kind == "raise":
        raise RuntimeError("the arm is broken")
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "exit":
        os._exit(3)
    if kind == "hang":
        time.sleep(600)
    if kind == "memory":
        held = b"x" * (5 << 28)
        time.sleep(600)
        return {"score": float(len(held))}
    if kind == "kill":
        os.kill(os.getpid(), 9)
    if kind == "nan":
        return {"score": float("nan")}
    return {} if kind == "missing" else {"score": 1.0}


METHOD = Arm("method", f"{HERE}:shifted", {"mean": 3.0})
BASELINE = Arm("baseline", f"{HERE}:shifted")


def observed(trial: Trial) -> dict[str, float]:
    return {"identity": 0.0, "count": 7.0}


def fake_paper(id: str = "fake", **claims: Any) -> Paper:
    """A card without claims."""
    return Paper(
        id=id,
        title="A Fake Paper",
        area="fakes",
        arxiv="0000.00000",
        date=date(2020, 1, 2),
        authors="A. Nobody",
        n_authors=1,
        summary="Does nothing.",
        method=HERE,
        usage="shifted(1.0)",
    )


def paper_with_claims() -> Paper:
    """One claim of each kind."""
    paper = fake_paper()
    paper.exact("Seven is seven.", source="Eq. 1", expect={"identity": Bound(at_most=1e-9), "count": Bound(equals=7)})(
        observed
    )
    paper.measured(
        "better",
        "The method scores higher.",
        source="Table 1",
        protocol=noise,
        criteria=Criterion("score", METHOD, "greater", BASELINE),
    )
    paper.measured(
        "better-on-yours",
        "The method scores higher on real data.",
        source="Table 2",
        protocol=noise,
        criteria=Criterion("score", METHOD, "greater", BASELINE),
        needs=(Need("setting", "scale", "a scale of your own"),),
    )
    return paper


def trouble_paper(*kinds: str) -> Paper:
    """One measured claim for each kind of trouble, and one that goes well."""
    paper = fake_paper("trouble")
    for kind in kinds:
        paper.measured(
            kind,
            f"{kind} is reported.",
            source="nowhere",
            protocol=trouble,
            criteria=Criterion("score", Arm(kind, f"{HERE}:shifted", {"kind": kind}), "greater", BASELINE, seeds=1),
        )
    paper.measured(
        "fine",
        "The others go on.",
        source="nowhere",
        protocol=noise,
        criteria=Criterion("score", METHOD, "greater", BASELINE),
    )
    return paper
