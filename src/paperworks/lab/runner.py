"""Run claims: plan their distinct trials, skip what the store has, run the rest, judge and keep."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from paperworks.lab.engines import Engine
from paperworks.lab.judge import judge
from paperworks.lab.machine import this_machine
from paperworks.lab.nouns import Claim, Paper, check_tier
from paperworks.lab.plan import Circumstances, PlannedClaim, plan
from paperworks.lab.records import Machine, TrialResult, TrialSpec, Verdict
from paperworks.lab.settings import check_known


class Keeper(Protocol):
    """What the runner asks of a store."""

    def trials(self, keys: Iterable[str]) -> dict[str, TrialResult]: ...

    def put_trial(self, spec: TrialSpec, result: TrialResult) -> None: ...

    def put_verdict(self, verdict: Verdict) -> bool: ...

    def put_machine(self, machine: Machine) -> None: ...


@dataclass
class Watcher:
    """Told what happens during a run; the defaults do nothing."""

    planned: Callable[[int, int], None] = lambda total, reused: None
    progress: Callable[[TrialSpec, float, str], None] = lambda spec, fraction, text: None
    finished: Callable[[TrialSpec, TrialResult], None] = lambda spec, result: None
    verdict: Callable[[Paper, Claim, Verdict], None] = lambda paper, claim, verdict: None


def choose_device(tier: str, device: str | None) -> str:
    """The device of a run. The `gpu` tier wants CUDA unless the user names a device: ValueError where there is none."""
    check_tier(tier)
    if device is not None:
        import torch

        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device: got {device!r}, which cannot be used here: {error}") from None
        return device
    if tier not in ("gpu", "full"):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if tier == "gpu":
        raise ValueError("tier: 'gpu' wants a CUDA device and there is none here; --device cpu runs it anyway, slowly")
    return "cpu"


def run_trials(
    specs: Mapping[str, TrialSpec], store: Keeper, engine: Engine, watcher: Watcher, rerun: bool = False
) -> Iterable[tuple[TrialSpec, TrialResult]]:
    """Yield every trial of `specs` with its result: those the store has first, then the others as they finish.

    A finished trial is stored before it is yielded. Trials that ended in an error are run again.
    """
    stored = {} if rerun else {k: r for k, r in store.trials(specs).items() if r.status == "done"}
    todo = [spec for key, spec in specs.items() if key not in stored]
    watcher.planned(len(specs), len(stored))
    for key, result in stored.items():
        yield specs[key], result
    if not todo:
        return
    store.put_machine(this_machine())
    with contextlib.closing(iter(engine.run(todo, watcher.progress))) as results:  # type: ignore[type-var]
        for result in results:
            store.put_trial(specs[result.key], result)
            watcher.finished(specs[result.key], result)
            yield specs[result.key], result


def run(
    papers: Sequence[Paper],
    store: Keeper,
    engine: Engine,
    *,
    tier: str = "desk",
    settings: Mapping[str, Any] | None = None,
    claims: Sequence[str] | None = None,
    control: bool = False,
    device: str | None = None,
    rerun: bool = False,
    watcher: Watcher | None = None,
) -> list[Verdict]:
    """Measure the claims of `papers` and return their verdicts, in the order of the cards.

    Args:
        papers: the cards.
        store: keeps trials and verdicts; what it has is not run again.
        engine: carries the trials out.
        tier: ``"smoke"``, ``"desk"``, ``"gpu"`` or ``"full"``.
        settings: the user's own values of the protocols' settings.
        claims: ids of the claims wanted, all by default. Holm's correction runs over the measured ones of these.
        control: put each measured claim's baseline in its method's place; none may hold then.
        device: where trials run; CUDA for the `gpu` tier, else the CPU.
        rerun: run what the store has again.
        watcher: is told of progress, finished trials and verdicts.

    Raises:
        ValueError: an unknown tier, device, setting or claim, or a bad value; nothing has been run then.
    """
    watcher = watcher or Watcher()
    given = dict(settings or {})
    at = Circumstances(check_tier(tier), choose_device(tier, device), given, control)
    wanted = {p.id: list(p.claims) if claims is None else [p.claim(c) for c in claims] for p in papers}
    check_known(given, [c for chosen in wanted.values() for c in chosen])
    plans = {p.id: plan(p, at, wanted[p.id]) for p in papers}

    results: dict[str, TrialResult] = {}
    verdicts: dict[str, list[Verdict]] = {}
    announced: set[tuple[str, str]] = set()

    def announce(one: PlannedClaim, verdict: Verdict) -> None:
        if (verdict.paper, verdict.claim) not in announced:
            announced.add((verdict.paper, verdict.claim))
            watcher.verdict(one.paper, one.claim, verdict)

    def finish(id: str) -> None:
        verdicts[id] = judge(plans[id], results, at)
        for one, verdict in zip(plans[id], verdicts[id], strict=True):
            store.put_verdict(verdict)
            announce(one, verdict)

    exact = {one.exact.key: one for planned in plans.values() for one in planned if one.exact}
    while True:
        # The trials that a `BestOf` compares are known when those that choose are done: a second round runs them.
        todo = _todo(plans.values(), results)
        pending = {
            id: {k for one in planned for k in one.specs(results)} - set(results) for id, planned in plans.items()
        }
        for id, keys in pending.items():
            if not keys and id not in verdicts:
                finish(id)
        if not todo:
            return [verdict for paper in papers for verdict in verdicts[paper.id]]
        for spec, result in run_trials(todo, store, engine, watcher, rerun):
            results[spec.key] = result
            if spec.key in exact:
                announce(exact[spec.key], judge([exact[spec.key]], results, at)[0])
            for id, keys in pending.items():
                keys.discard(spec.key)
                if not keys and id not in verdicts and not _todo([plans[id]], results):
                    finish(id)


def _todo(plans: Iterable[Sequence[PlannedClaim]], results: Mapping[str, TrialResult]) -> dict[str, TrialSpec]:
    """The trials without a result, exact checks first: the first verdicts come at once."""
    claims = [one for planned in plans for one in planned]
    claims.sort(key=lambda one: ("exact", "measured", "needs").index(one.claim.kind))
    specs = {key: spec for one in claims for key, spec in one.specs(results).items()}
    return {key: spec for key, spec in specs.items() if key not in results}
