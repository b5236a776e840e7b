"""From trials to verdicts: nothing but numbers and the criterion that was written before decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paperworks.lab.machine import this_machine
from paperworks.lab.nouns import MINIMUM_SEEDS, Criterion
from paperworks.lab.plan import Circumstances, PlannedClaim, PlannedCriterion, Results, Side
from paperworks.lab.records import Comparison, Status, Verdict, digest
from paperworks.lab.statistics import LEVEL, Estimate, decide, estimate, holm_levels, interval


def _values(side: Side, criterion: Criterion, results: Results) -> tuple[str, dict[int, float]]:
    """The side's name and value by seed; of a `BestOf`, of the arm that was chosen, which is named too."""
    chosen = side.chosen(criterion, results)
    assert chosen is not None
    arm, by_seed = side.candidates[chosen]
    name = f"{side.name} ({arm.name})" if side.selection else side.name
    return name, {seed: float(results[spec.key].metrics[criterion.metric]) for seed, spec in by_seed.items()}


class _Measured:
    """The paired values of one criterion and what they say, before the level is known."""

    def __init__(self, planned: PlannedCriterion, results: Results) -> None:
        self.criterion: Criterion = planned.criterion
        metric = self.criterion.metric
        self.method, self.method_values = _values(planned.method, self.criterion, results)
        self.baseline, self.baseline_values = "", dict[int, float]()
        values = np.array(list(self.method_values.values()))
        self.margin = self.criterion.margin
        if planned.baseline is not None:
            self.baseline, self.baseline_values = _values(planned.baseline, self.criterion, results)
            against = np.array([self.baseline_values[seed] for seed in self.method_values])
            if self.criterion.scale == "ratio":
                if (values <= 0).any() or (against <= 0).any():
                    raise ValueError(f"{metric}: a ratio wants positive values, got {values.min()} and {against.min()}")
                values, self.margin = np.log(values / against), float(np.log(self.margin))
            else:
                values = values - against
        self.values = values
        self.found: Estimate = estimate(values, self.margin)

    @property
    def on_claimed_side(self) -> bool:
        return (self.found.mean > self.margin) == (self.criterion.direction == "greater")

    def comparison(self, level: float, fail_level: float) -> Comparison:
        """Decide at `level`; a failure at `fail_level`, since any one criterion of a claim may fail it."""
        found, criterion = self.found, self.criterion
        own = level if self.on_claimed_side else fail_level
        side = decide(found, self.margin, criterion.direction, own)
        shown = (lambda v: float(np.exp(v))) if criterion.scale == "ratio" else float
        low, high, _ = interval(self.values, 1 - own) if own > 0 else (-np.inf, np.inf, "t")
        reason = ""
        if side == "inconclusive":
            if found.n < MINIMUM_SEEDS:
                reason = f"{found.n} paired seed{'s'[: found.n > 1]}; a verdict takes at least {MINIMUM_SEEDS}"
            elif found.p <= LEVEL:
                reason = "significant alone, but not after Holm's correction over the paper's measured claims"
            else:
                reason = "the interval includes the margin"
        return Comparison(
            str(criterion), side, shown(found.mean), shown(found.low), shown(found.high), shown(low), shown(high),
            level=own, p=found.p, effect=found.effect, interval=found.method, margin=criterion.margin,
            direction=criterion.direction, scale=criterion.scale, method=self.method, baseline=self.baseline,
            method_values={str(s): v for s, v in self.method_values.items()},
            baseline_values={str(s): v for s, v in self.baseline_values.items()}, reason=reason,
        )  # fmt: skip


def _claim_p(measured: Sequence[_Measured]) -> float:
    """p of a claim whose criteria all have to hold: it holds by the weakest of them and fails by the strongest."""
    if any(m.found.n < MINIMUM_SEEDS for m in measured):
        return 1.0
    holds = max(m.found.p if m.on_claimed_side else 1.0 for m in measured)
    fails = min(1.0 if m.on_claimed_side else m.found.p * len(measured) for m in measured)
    return min(holds, fails)


def _overall(comparisons: Sequence[Comparison]) -> Status:
    sides = [c.side for c in comparisons]
    if "fails" in sides:
        return "fails"
    return "inconclusive" if "inconclusive" in sides else "holds"


def _exact_comparisons(planned: PlannedClaim, results: Results) -> list[Comparison]:
    assert planned.exact is not None
    metrics, bounds = results[planned.exact.key].metrics, planned.claim.bounds
    if missing := set(bounds) - set(metrics):
        raise ValueError(f"the check did not return {', '.join(sorted(missing))}; it returned {sorted(metrics)}")
    return [
        Comparison(
            name or planned.claim.id,
            "holds" if bound.met(metrics[name]) else "fails",
            metrics[name],
            expected=str(bound),
        )
        for name, bound in bounds.items()
    ]


def judge(planned: Sequence[PlannedClaim], results: Results, at: Circumstances) -> list[Verdict]:
    """The verdicts of the claims of one paper. `results` holds every trial of `planned` that ended, done or in error.

    Holm's correction runs over the measured claims among `planned` that can be decided.
    """
    verdicts: dict[int, Verdict] = {}
    measured: dict[int, list[_Measured]] = {}
    for i, one in enumerate(planned):
        specs = one.specs(results)
        common: dict[str, Any] = {
            "paper": one.paper.id,
            "claim": one.claim.id,
            "kind": one.claim.kind,
            "tier": at.tier,
            "device": at.device,
            "settings": dict(one.settings),
            "control": at.control,
            "machine": this_machine().id,
            "trials": tuple(specs),
            "fingerprint": digest(sorted({spec.fingerprint for spec in specs.values()}))[:24] if specs else "",
            "seconds": sum(results[key].seconds for key in specs if key in results),
        }

        def conclude(status: Status, i: int = i, common: dict[str, Any] = common, **rest: Any) -> None:
            verdicts[i] = Verdict(status=status, **common, **rest)

        errors = [results[key] for key in specs if key in results and results[key].status == "error"]
        if one.missing:
            conclude("not run", reason="needs " + " and ".join(one.missing))
        elif errors:
            more = f"\n\n({len(errors) - 1} more of {len(specs)} trials ended in an error)" if len(errors) > 1 else ""
            conclude("error", reason=errors[0].error + more)
        elif unfinished := [key for key in specs if key not in results]:
            conclude("not run", reason=f"{len(unfinished)} of {len(specs)} trials have not been run")
        else:
            try:
                if one.exact is not None:
                    comparisons = _exact_comparisons(one, results)
                    conclude(_overall(comparisons), comparisons=tuple(comparisons), seeds=1)
                else:
                    measured[i] = [_Measured(criterion, results) for criterion in one.criteria]
                    verdicts[i] = Verdict(status="inconclusive", **common)
            except (ValueError, KeyError) as error:
                conclude("error", reason=f"{type(error).__name__}: {error}")

    order = list(measured)
    levels = holm_levels([_claim_p(measured[i]) for i in order])
    for i, level in zip(order, levels, strict=True):
        comparisons = [m.comparison(level, level / len(measured[i])) for m in measured[i]]
        reasons = dict.fromkeys(c.reason for c in comparisons if c.reason)
        verdicts[i] = Verdict(
            **{
                **verdicts[i].__dict__,
                "status": _overall(comparisons),
                "comparisons": tuple(comparisons),
                "seeds": max(len(m.method_values) for m in measured[i]),
                "reason": "; ".join(reasons),
            }
        )
    return [verdicts[i] for i in range(len(planned))]
