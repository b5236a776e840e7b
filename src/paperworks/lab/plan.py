"""From claims to trials: which runs the wanted claims rest on, each named once however many claims share it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import fmean
from typing import Any

from paperworks.lab.fingerprint import fingerprint
from paperworks.lab.machine import this_machine
from paperworks.lab.nouns import Arm, BestOf, Claim, Contender, Criterion, Paper, Protocol, at_tier, resolve
from paperworks.lab.records import TrialResult, TrialSpec
from paperworks.lab.settings import complete

Results = Mapping[str, TrialResult]

SELECTION_SEED = 1_000_000
"""First seed of the runs that choose the arm of a `BestOf`."""
CONTROL_SEED = 2_000_000
"""First seed of a baseline that stands in the method's place."""


@dataclass(frozen=True)
class Side:
    """One side of a criterion: the trials of each candidate arm by paired seed, and those that choose among them."""

    name: str
    candidates: tuple[tuple[Arm, Mapping[int, TrialSpec]], ...]
    selection: tuple[tuple[TrialSpec, ...], ...] = ()

    def chosen(self, criterion: Criterion, results: Results) -> int | None:
        """Which candidate is compared: the best mean on the selection seeds; None while one of those is not done."""
        if not self.selection:
            return 0
        means = []
        for specs in self.selection:
            found = [results[spec.key] for spec in specs if spec.key in results]
            if len(found) < len(specs) or any(result.status != "done" for result in found):
                return None
            means.append(fmean(result.metrics[criterion.metric] for result in found))
        return means.index(max(means) if criterion.direction == "greater" else min(means))

    def specs(self, criterion: Criterion, results: Results) -> list[TrialSpec]:
        """The trials known so far: those that choose, and of the chosen candidate those that are compared."""
        choosing = [spec for specs in self.selection for spec in specs]
        chosen = self.chosen(criterion, results)
        return choosing if chosen is None else choosing + list(self.candidates[chosen][1].values())


@dataclass(frozen=True)
class PlannedCriterion:
    """A criterion with the trials of its two sides; `baseline` is None where the metric is compared with the margin."""

    criterion: Criterion
    method: Side
    baseline: Side | None


@dataclass
class PlannedClaim:
    """A claim with its trials, or with what is missing to run it."""

    paper: Paper
    claim: Claim
    settings: Mapping[str, Any] = field(default_factory=dict)
    exact: TrialSpec | None = None
    criteria: list[PlannedCriterion] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    control: bool = False

    def specs(self, results: Results | None = None) -> dict[str, TrialSpec]:
        """The distinct trials of the claim by key. What a `BestOf` compares is known once `results` has its choice."""
        found = [self.exact] if self.exact else []
        for planned in self.criteria:
            for side in filter(None, (planned.method, planned.baseline)):
                found += side.specs(planned.criterion, results or {})
        return {spec.key: spec for spec in found}


@dataclass(frozen=True)
class Circumstances:
    """What a run is asked for beside the claims: tier, device, the user's settings, and whether it is a control."""

    tier: str
    device: str = "cpu"
    given: Mapping[str, Any] = field(default_factory=dict)
    control: bool = False


@lru_cache(maxsize=1024)
def _fingerprint(target: str, arm_target: str, signatures: tuple[str, ...]) -> str:
    return fingerprint(*filter(None, (target, arm_target)), extra=signatures)


@lru_cache(maxsize=256)
def _signature(target: str, value: Any) -> str:
    return str(resolve(target)(value))


def _stage_code(target: str, signatures: tuple[str, ...] = (), named: Mapping[str, Any] | None = None) -> str:
    """Digest of the source of a protocol, whatever the arm, and of the user's files that its settings name."""
    return _fingerprint(target, "", (*signatures, json.dumps(named or {}, sort_keys=True)))


def trial_spec(protocol: Protocol, arm: Arm, seed: int, settings: Mapping[str, Any], at: Circumstances) -> TrialSpec:
    """The trial of one arm at one seed with complete `settings`."""
    signing = {setting.name: setting.signature for setting in protocol.settings if setting.signature}
    signatures = tuple(_signature(signature, settings[name]) for name, signature in signing.items())
    return TrialSpec(
        protocol.target,
        _fingerprint(protocol.target, arm.target, signatures),
        seed,
        at.tier,
        at.device,
        arm.target,
        dict(arm.options),
        dict(settings),
        machine=this_machine().id if protocol.exclusive else "",
        label=arm.name,
        exclusive=protocol.exclusive,
        time_limit=protocol.time_limit,
        memory_limit_gib=protocol.memory_limit_gib,
        preload=protocol.preload,
        code=_stage_code(protocol.target, signatures, {name: settings[name] for name in signing}),
    )


def _side(
    contender: Contender, claim: Claim, settings: Mapping[str, Any], at: Circumstances, n: int, offset: int
) -> Side:
    assert claim.protocol is not None
    arms = contender.arms if isinstance(contender, BestOf) else (contender,)
    candidates = tuple(
        (arm, {seed: trial_spec(claim.protocol, arm, seed + offset, settings, at) for seed in range(n)}) for arm in arms
    )
    selection: tuple[tuple[TrialSpec, ...], ...] = ()
    if isinstance(contender, BestOf):
        seeds = range(SELECTION_SEED, SELECTION_SEED + contender.selection_seeds)
        selection = tuple(tuple(trial_spec(claim.protocol, arm, seed, settings, at) for seed in seeds) for arm in arms)
    return Side(contender.name, candidates, selection)


def _plan_criterion(
    criterion: Criterion, claim: Claim, settings: Mapping[str, Any], at: Circumstances
) -> PlannedCriterion:
    n = int(at_tier(criterion.seeds, at.tier))
    offset = 0
    if at.control:
        # The baseline against itself on other seeds: their differences are noise, and noise must not hold.
        stand_in = criterion.control or criterion.baseline
        assert stand_in is not None
        offset = CONTROL_SEED if criterion.control is None else 0
        criterion = replace(criterion, method=stand_in)
    method = _side(criterion.method, claim, settings, at, n, offset)
    baseline = _side(criterion.baseline, claim, settings, at, n, 0) if criterion.baseline else None
    return PlannedCriterion(criterion, method, baseline)


def plan_claim(paper: Paper, claim: Claim, at: Circumstances) -> PlannedClaim:
    """The trials of one claim under the circumstances. Raises ValueError for a setting that cannot be used."""
    missing = [lack for need in claim.needs if (lack := need.missing(at.given))]
    planned = PlannedClaim(paper, claim, missing=missing, control=at.control)
    if claim.protocol is not None:
        names = [s.name for s in claim.protocol.settings]
        planned.settings = {name: at.given[name] for name in names if name in at.given}
    if missing:
        return planned
    if claim.protocol is None:
        planned.exact = TrialSpec(
            claim.target,
            _fingerprint(claim.target, "", ()),
            tier=at.tier,
            label=f"{paper.id}: {claim.id}",
            code=_stage_code(claim.target),
        )
        return planned
    settings = complete(claim.protocol, at.tier, claim.settings, at.given)
    planned.criteria = [_plan_criterion(criterion, claim, settings, at) for criterion in claim.criteria]
    return planned


def plan(paper: Paper, at: Circumstances, claims: Iterable[Claim] | None = None) -> list[PlannedClaim]:
    """The trials of the wanted claims of a paper (all by default); of a control, of the measured ones."""
    wanted = paper.claims if claims is None else list(claims)
    if at.control:
        wanted = [claim for claim in wanted if claim.protocol is not None]
    return [plan_claim(paper, claim, at) for claim in wanted]
