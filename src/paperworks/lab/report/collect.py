"""Read from a store what a report shows: one verdict a claim, its history, its trials and the machines."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from paperworks import __version__
from paperworks.lab.nouns import Claim, Paper, Setting
from paperworks.lab.records import Machine, TrialResult, TrialSpec, Verdict, now
from paperworks.lab.settings import complete, convert
from paperworks.lab.tiers import TIERS, check_tier

Trials = Mapping[str, tuple[TrialSpec, TrialResult]]


class Store(Protocol):
    """What a report asks of a store. A key or id that the store does not know is left out of the answer."""

    def latest_verdicts(
        self, *, paper: str | None = None, tier: str | None = None, control: bool = False
    ) -> Iterable[Verdict]:
        """The newest verdict of every question asked about `paper`, at `tier` or at any."""

    def history(self, paper: str, claim: str) -> Iterable[Verdict]:
        """Every verdict of a claim."""

    def trials(self, keys: list[str]) -> Mapping[str, TrialResult]:
        """The results of trials by key."""

    def specs(self, keys: list[str]) -> Mapping[str, TrialSpec]:
        """The specifications of trials by key."""

    def machines(self, ids: list[str]) -> Mapping[str, Machine]:
        """Machines by id."""


@dataclass(frozen=True)
class Report:
    """Papers with what is known about their claims.

    Attributes:
        papers: the cards, in the order of the report.
        verdicts: the verdict shown for ``(paper id, claim id)``; a claim that was never run has none.
        history: every verdict of ``(paper id, claim id)``, the newest first, controls left out.
        trials: specification and result of the trials behind `verdicts`, by key.
        machines: by id, those of `verdicts`.
        tier, settings: what the report was restricted to.
        command: the command that makes this report again.
    """

    papers: tuple[Paper, ...]
    verdicts: Mapping[tuple[str, str], Verdict] = field(default_factory=dict)
    history: Mapping[tuple[str, str], tuple[Verdict, ...]] = field(default_factory=dict)
    trials: Trials = field(default_factory=dict)
    machines: Mapping[str, Machine] = field(default_factory=dict)
    tier: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str = "paperworks report"
    version: str = __version__
    created: datetime = field(default_factory=now)


def _same(setting: Setting, one: Any, other: Any) -> bool:
    """Whether two values of a setting are equal once they have its type; what it refuses is compared as it is."""
    try:
        return bool(convert(setting, one) == convert(setting, other))
    except ValueError:
        return str(one) == str(other)


def changed_settings(claim: Claim, verdict: Verdict) -> dict[str, Any]:
    """The settings of `verdict` that differ from what `claim` has at that tier when nothing is given."""
    if claim.protocol is None:
        return {}
    usual = complete(claim.protocol, verdict.tier, claim.settings, {})
    changed = {}
    for name, value in verdict.settings.items():
        setting = claim.protocol.setting(name)
        # A setting that the protocol has lost since is shown as it was.
        if setting is None or not _same(setting, value, usual[name]):
            changed[name] = value
    return changed


def _answers(claim: Claim, verdict: Verdict, settings: Mapping[str, Any]) -> bool:
    """Whether `verdict` was made under `settings`, as far as the claim's protocol has them."""
    if claim.protocol is None:
        return True
    used = complete(claim.protocol, verdict.tier, claim.settings, {}) | dict(verdict.settings)
    for name, value in settings.items():
        setting = claim.protocol.setting(name)
        if setting is not None and not _same(setting, used[name], value):
            return False
    return True


def _precedence(claim: Claim, verdict: Verdict) -> tuple[bool, bool, int, datetime]:
    """What was run comes before what was not, the claim's own settings before a user's, then the higher tier, then
    the newer verdict."""
    return (
        verdict.status != "not run",
        not changed_settings(claim, verdict),
        TIERS.index(check_tier(verdict.tier)),
        verdict.created,
    )


def _command(papers: Sequence[Paper], tier: str | None, settings: Mapping[str, Any]) -> str:
    words = ["paperworks", "report", *(word for paper in papers for word in ("--paper", paper.id))]
    if tier is not None:
        words += ["--tier", tier]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join(words)


def collect(
    store: Store,
    papers: Iterable[Paper],
    *,
    tier: str | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> Report:
    """The report of `papers` from what `store` has.

    Args:
        tier: show verdicts of this tier only. Without it a verdict of the highest tier that was run is shown.
        settings: show only verdicts made under these settings, for the claims whose protocol has them. Without it a
            verdict under the claim's own settings comes before one under a user's.
        command: the command line named at the end of the report; put together from the arguments if None.

    Raises ValueError for an unknown tier.
    """
    if tier is not None:
        check_tier(tier)
    papers, settings = tuple(papers), dict(settings or {})
    verdicts: dict[tuple[str, str], Verdict] = {}
    history: dict[tuple[str, str], tuple[Verdict, ...]] = {}
    for paper in papers:
        found = list(store.latest_verdicts(paper=paper.id, tier=tier, control=False))
        for claim in paper.claims:
            name = (paper.id, claim.id)
            mine = [v for v in found if v.claim == claim.id and not v.control and _answers(claim, v, settings)]
            if mine:
                verdicts[name] = max(mine, key=lambda verdict: _precedence(claim, verdict))
            told = [v for v in store.history(*name) if not v.control]
            history[name] = tuple(sorted(told, key=lambda v: v.created, reverse=True))
    keys = sorted({key for verdict in verdicts.values() for key in verdict.trials})
    specs, results = store.specs(keys), store.trials(keys)
    machines = store.machines(sorted({v.machine for v in verdicts.values() if v.machine}))
    return Report(
        papers=papers,
        verdicts=verdicts,
        history=history,
        trials={key: (specs[key], results[key]) for key in keys if key in specs and key in results},
        machines=dict(machines),
        tier=tier,
        settings=settings,
        command=command if command is not None else _command(papers, tier, settings),
    )
