"""Time of an activation on one tensor, beside a reference, in one process."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial


def _shape(value: str) -> None:
    if not all(part.isdigit() and int(part) > 0 for part in value.split("x")):
        raise ValueError(f"got {value!r}, wanted sizes such as 32x64x56x56")


@protocol(
    "latency",
    metrics={
        "seconds": "median time of a call",
        "ratio": "median over rounds of the arm's time divided by the reference's time in the same round",
    },
    settings=(
        Setting("shape", str, "32x64x56x56", "sizes of the input", _shape),
        Setting("reference", str, "torch.nn:SiLU", "package.module:class(options) that the arm is timed beside"),
        Setting("backward", bool, False, "forward and backward instead of forward alone"),
        Setting("rounds", int, Tiers(smoke=6, desk=15), "interleaved rounds"),
    ),
    exclusive=True,
)
def latency(trial: Trial, arm: Arm) -> dict[str, float]:
    """Arm and reference alternate in random order; each seed is a process of its own, run with nothing beside it."""
    import torch

    from paperworks.measure.latency import paired_latency

    sizes = [int(part) for part in trial.settings["shape"].split("x")]
    x = torch.randn(sizes, generator=trial.generator("input")).to(trial.device)
    gradient = torch.ones_like(x)
    backward = trial.settings["backward"]

    def contender(module: torch.nn.Module) -> object:
        module = module.to(trial.device)
        leaf = x.clone().requires_grad_(backward)

        def call() -> object:
            if not backward:
                with torch.no_grad():
                    return module(leaf)
            leaf.grad = None
            module.zero_grad()
            module(leaf).backward(gradient)
            return leaf.grad

        return call

    reference = Arm.parse(trial.settings["reference"]).build()
    found = paired_latency(
        {"arm": contender(arm.build()), "reference": contender(reference)},  # type: ignore[dict-item]
        rounds=trial.settings["rounds"],
        seed=trial.derived_seed("order") % 2**31,
    )
    return {"seconds": found.medians["arm"], "ratio": found.ratio("arm", "reference").median}
