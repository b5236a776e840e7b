"""Verdicts come from numbers: claims that hold, fail, stay open, cannot be run, or break."""

from __future__ import annotations

from collections.abc import Callable

import fake_papers
import numpy as np
import pytest
from scipy import stats

from paperworks.lab.judge import judge
from paperworks.lab.nouns import Arm, BestOf, Bound, Criterion, Paper
from paperworks.lab.plan import CONTROL_SEED, SELECTION_SEED, Circumstances, PlannedClaim, plan
from paperworks.lab.records import TrialResult, TrialSpec, Verdict

A, B = Arm("a", "fake_papers:shifted", {"mean": 1.0}), Arm("b", "fake_papers:shifted")


def results_of(planned: list[PlannedClaim], score: Callable[[TrialSpec], float]) -> dict[str, TrialResult]:
    results: dict[str, TrialResult] = {}
    while todo := {k: s for one in planned for k, s in one.specs(results).items() if k not in results}:
        results |= {key: TrialResult(key, "done", {"score": score(spec)}) for key, spec in todo.items()}
    return results


def verdict(
    score: Callable[[TrialSpec], float], *, tier: str = "desk", control: bool = False, **criterion: object
) -> Verdict:
    paper = fake_papers.fake_paper()
    made = Criterion(**{"metric": "score", "method": A, "direction": "greater", "baseline": B, **criterion})  # type: ignore[arg-type]
    paper.measured("c", "A scores higher.", source="x", protocol=fake_papers.noise, criteria=made)
    at = Circumstances(tier, control=control)
    planned = plan(paper, at)
    [found] = judge(planned, results_of(planned, score), at)
    return found


def noisy(mean: float, spread: float = 0.1) -> Callable[[TrialSpec], float]:
    def score(spec: TrialSpec) -> float:
        rng = np.random.default_rng([spec.seed, spec.arm_options.get("mean", 0.0) != 0.0])
        return 10 + mean * (spec.arm_options.get("mean", 0.0) == 1.0) + spread * rng.standard_normal()

    return score


def test_the_whole_interval_decides() -> None:
    assert verdict(noisy(1.0)).status == "holds"
    assert verdict(noisy(-1.0)).status == "fails"
    assert verdict(noisy(0.02)).status == "inconclusive"
    assert verdict(noisy(1.0), direction="less").status == "fails"
    assert verdict(noisy(1.0), margin=2.0).status == "fails"
    assert verdict(noisy(1.0), margin=1.0).status == "inconclusive"


def test_a_ratio_is_compared_on_the_log_scale_and_shown_as_a_ratio() -> None:
    found = verdict(noisy(10.0), scale="ratio", margin=1.5)
    assert found.status == "holds"
    assert found.comparisons[0].observed == pytest.approx(2.0, abs=0.1)
    assert found.comparisons[0].margin == 1.5


def test_an_arm_alone_is_compared_with_the_margin_and_its_control_loses() -> None:
    paper = fake_papers.fake_paper()
    made = Criterion("score", A, "greater", margin=10.5, control=B)
    paper.measured("c", "A is above 10.5.", source="x", protocol=fake_papers.noise, criteria=made)
    for control, wanted in ((False, "holds"), (True, "fails")):
        at = Circumstances("desk", control=control)
        planned = plan(paper, at)
        assert judge(planned, results_of(planned, noisy(1.0)), at)[0].status == wanted


def test_two_seeds_of_the_smoke_tier_decide_nothing() -> None:
    found = verdict(noisy(5.0), tier="smoke")
    assert (found.status, found.seeds) == ("inconclusive", 2)
    assert "at least 8" in found.reason


def test_a_method_replaced_by_its_baseline_does_not_keep_holds() -> None:
    """The stand-in runs on other seeds: 400 controls of a claim that holds, at most 5 % of which hold."""
    assert verdict(noisy(1.0)).status == "holds"
    rng = np.random.default_rng(0)

    def score(spec: TrialSpec) -> float:
        return float(rng.standard_normal())

    held = sum(verdict(score, control=True).status == "holds" for _ in range(400))
    assert held <= stats.binom.ppf(0.999, 400, 0.05)


def test_a_control_runs_the_baseline_on_seeds_of_its_own() -> None:
    at = Circumstances("desk", control=True)
    paper = fake_papers.paper_with_claims()
    measured = next(p for p in plan(paper, at) if p.claim.id == "better")
    [criterion] = measured.criteria
    assert criterion.baseline is not None
    for side, offset in ((criterion.method, CONTROL_SEED), (criterion.baseline, 0)):
        [(arm, by_seed)] = side.candidates
        assert arm == fake_papers.BASELINE
        assert {spec.seed - seed for seed, spec in by_seed.items()} == {offset}


def test_the_best_of_several_arms_is_chosen_on_seeds_that_are_not_compared() -> None:
    strong, weak = (Arm(n, "fake_papers:shifted", {"mean": m}) for n, m in (("strong", 2.0), ("weak", 1.5)))

    def score(spec: TrialSpec) -> float:
        chosen_here = spec.seed >= SELECTION_SEED
        best_in_selection = {"weak": 9.0, "strong": 1.0, "a": 5.0}[spec.label]
        return best_in_selection if chosen_here else {"weak": 2.0, "strong": 100.0, "a": 5.0}[spec.label] + spec.seed

    found = verdict(score, baseline=BestOf("best", (strong, weak)))
    assert found.status == "holds"
    assert found.comparisons[0].baseline == "best (weak)"


def test_an_error_is_one_verdict_and_the_others_go_on() -> None:
    paper = fake_papers.paper_with_claims()
    at = Circumstances("desk")
    planned = plan(paper, at)
    results = results_of(planned, noisy(1.0))
    broken = next(iter(planned[1].specs()))
    results[broken] = TrialResult(broken, "error", error="Traceback ...\nRuntimeError: no")
    results[planned[0].exact.key] = TrialResult(planned[0].exact.key, "done", {"identity": 0.0, "count": 7.0})  # type: ignore[union-attr]
    exact, measured, needs = judge(planned, results, at)
    assert (exact.status, measured.status, needs.status) == ("holds", "error", "not run")
    assert "RuntimeError: no" in measured.reason
    assert "a scale of your own" in needs.reason


@pytest.mark.parametrize(
    ("bound", "observed", "wanted"),
    [
        (Bound(equals=98), 98.0, "holds"),
        (Bound(equals=98), 97.0, "fails"),
        (Bound(equals=1.0, tolerance=0.1), 1.05, "holds"),
        (Bound(at_most=1e-12), 2e-12, "fails"),
        (Bound(at_least=1.0, at_most=2.0), 2.5, "fails"),
        (Bound(at_most=4.0), float("nan"), "fails"),
    ],
)
def test_an_exact_claim_is_decided_by_its_bound(bound: Bound, observed: float, wanted: str) -> None:
    paper: Paper = fake_papers.fake_paper()
    paper.exact("Exact.", source="x", expect=bound)(fake_papers.observed)
    at = Circumstances("desk")
    planned = plan(paper, at)
    assert planned[0].exact is not None
    key = planned[0].exact.key
    [found] = judge(planned, {key: TrialResult(key, "done", {"": observed})}, at)
    assert found.status == wanted


def test_holm_needs_more_from_one_claim_among_many() -> None:
    def status(claims: int) -> str:
        paper = fake_papers.fake_paper()
        for i in range(claims):
            arm = A if i == 0 else Arm(f"n{i}", "fake_papers:shifted", {"mean": 5.0 + i})
            criterion = Criterion("score", arm, "greater", B)
            paper.measured(f"c{i}", "Higher.", source="x", protocol=fake_papers.noise, criteria=criterion)
        at = Circumstances("desk")
        planned = plan(paper, at)
        return judge(planned, results_of(planned, noisy(0.115)), at)[0].status

    assert status(1) == "holds"
    assert status(30) == "inconclusive"


def test_every_criterion_of_a_claim_has_to_hold() -> None:
    def status(second: str) -> str:
        paper = fake_papers.fake_paper()
        criteria = (Criterion("score", A, "greater", B), Criterion("score", A, second, B))  # type: ignore[arg-type]
        paper.measured("c", "Both.", source="x", protocol=fake_papers.noise, criteria=criteria)
        at = Circumstances("desk")
        planned = plan(paper, at)
        return judge(planned, results_of(planned, noisy(1.0)), at)[0].status

    assert status("greater") == "holds"
    assert status("less") == "fails"


def test_a_verdict_survives_json() -> None:
    found = verdict(noisy(1.0))
    assert Verdict.from_json(found.to_json()) == found
    unbounded = verdict(noisy(0.02))
    assert unbounded.comparisons[0].adjusted_high == pytest.approx(unbounded.comparisons[0].high)
    assert Verdict.from_json(unbounded.to_json()).content == unbounded.content
