"""Runs share trials, reuse what the store has, resume after SIGKILL, and lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fake_papers
import pytest

from paperworks.lab.arena import Arena, run_arena, stored_arena
from paperworks.lab.engines import Progress
from paperworks.lab.engines.local import LocalEngine
from paperworks.lab.execute import execute
from paperworks.lab.nouns import Arm, BestOf, Criterion
from paperworks.lab.records import TrialResult, TrialSpec, Verdict
from paperworks.lab.runner import Watcher, choose_device, run
from paperworks.lab.store import Store, open_store

TESTS = Path(__file__).parents[1]


class Here:
    """An engine that runs trials in this process and counts them."""

    def __init__(self) -> None:
        self.ran: list[TrialSpec] = []

    def run(self, specs: list[TrialSpec], progress: Progress | None = None) -> Iterator[TrialResult]:
        for spec in specs:
            self.ran.append(spec)
            yield execute(spec)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "lab.sqlite") as opened:
        yield opened


def numbers(verdicts: list[Verdict]) -> list[tuple[object, ...]]:
    return [(v.claim, v.status, v.comparisons, v.trials) for v in verdicts]


def test_claims_share_trials_and_a_second_run_reuses_all(store: Store) -> None:
    paper, engine = fake_papers.paper_with_claims(), Here()
    heard: list[str] = []
    watcher = Watcher(verdict=lambda paper, claim, verdict: heard.append(claim.id))
    first = run([paper], store, engine, settings={"scale": 2.0}, watcher=watcher)
    assert [v.status for v in first] == ["holds", "holds", "holds"]
    assert len(engine.ran) == 1 + 20, "two claims with the same arms and settings share their trials"
    assert sorted(heard) == sorted(c.id for c in paper.claims)
    second = run([paper], store, engine, settings={"scale": 2.0})
    assert len(engine.ran) == 21
    assert numbers(first) == numbers(second)
    assert len(store.history("fake", "better")) == 1, "an unchanged verdict is not stored twice"


def test_other_settings_seeds_and_tiers_are_other_trials(store: Store) -> None:
    paper, engine = fake_papers.paper_with_claims(), Here()
    for settings in ({}, {"scale": 3.0}):
        run([paper], store, engine, claims=["better"], settings=settings)
    run([paper], store, engine, claims=["better"], tier="smoke")
    assert len(engine.ran) == 20 + 20 + 4


def test_a_changed_source_is_measured_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    paper, engine = fake_papers.paper_with_claims(), Here()
    run([paper], store, engine, claims=["better"], tier="smoke")
    monkeypatch.setattr("paperworks.lab.plan._fingerprint", lambda *a: "changed")
    run([paper], store, engine, claims=["better"], tier="smoke")
    assert len(engine.ran) == 8


def test_trials_in_error_are_run_again_and_done_ones_are_not(store: Store) -> None:
    paper, engine = fake_papers.trouble_paper("raise"), Here()
    statuses = [v.status for v in run([paper], store, engine)]
    assert statuses == ["error", "holds"]
    ran = len(engine.ran)
    run([paper], store, engine)
    assert [s.label for s in engine.ran[ran:]] == ["raise"]


def test_only_the_chosen_arm_of_several_is_compared(store: Store) -> None:
    paper, engine = fake_papers.fake_paper(), Here()
    weak = tuple(Arm(f"mean {m}", "fake_papers:shifted", {"mean": m}) for m in (-9.0, 0.0, -5.0))
    criterion = Criterion("score", fake_papers.METHOD, "greater", BestOf("best", weak), seeds=10)
    paper.measured("c", "Higher.", source="x", protocol=fake_papers.noise, criteria=criterion)
    planned: list[tuple[int, int]] = []
    watcher = Watcher(planned=lambda total, reused: planned.append((total, reused)))
    [verdict] = run([paper], store, engine, watcher=watcher)
    assert (verdict.status, verdict.comparisons[0].baseline) == ("holds", "best (mean 0.0)")
    assert planned == [(10 + 3 * 2, 0), (10, 0)]
    assert len(verdict.trials) == 26
    assert run([paper], store, engine)[0].trials == verdict.trials
    assert len(engine.ran) == 26


def test_a_control_never_holds(store: Store) -> None:
    verdicts = run([fake_papers.paper_with_claims()], store, Here(), control=True)
    assert [v.kind for v in verdicts] == ["measured", "needs"]
    assert all(v.control and v.status in ("inconclusive", "not run", "fails") for v in verdicts)
    assert store.latest_verdicts(control=False) == []


def test_bad_usage_is_refused_before_anything_runs(store: Store) -> None:
    paper, engine = fake_papers.paper_with_claims(), Here()
    for bad, words in (
        ({"settings": {"colour": 1}}, "setting 'colour'"),
        ({"settings": {"scale": "much"}}, "setting 'scale'"),
        ({"claims": ["nope"]}, "claim: got 'nope', fake has observed, better"),
        ({"tier": "huge"}, "tier: got 'huge'"),
        ({"device": "warp:9"}, "device: got 'warp:9'"),
    ):
        with pytest.raises(ValueError, match=words):
            run([paper], store, engine, **bad)  # type: ignore[arg-type]
    assert not engine.ran


def test_the_gpu_tier_wants_a_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        assert choose_device("gpu", None) == "cuda"
    else:
        with pytest.raises(ValueError, match="wants a CUDA device"):
            choose_device("gpu", None)
        assert choose_device("full", None) == "cpu"


def test_an_arena_shares_the_trials_of_claims(store: Store) -> None:
    engine = Here()
    run([fake_papers.paper_with_claims()], store, engine, claims=["better"])
    broken = Arm("broken", "fake_papers:no_such_arm")
    arms = (fake_papers.BASELINE, fake_papers.METHOD, broken)
    arena = Arena("fakes", fake_papers.noise, "score", arms, {}, seeds=10)
    rows = run_arena(arena, store, engine)
    assert len(engine.ran) == 20 + 10
    assert [row.arm for row in rows] == ["method", "baseline", "broken"]
    assert rows[0].difference is not None
    assert rows[0].difference.low > 0
    assert "no_such_arm" in rows[2].error
    ran = len(engine.ran)
    assert stored_arena(arena, store) == rows
    assert len(engine.ran) == ran
    # an arm with a missing trial is left out, and without the reference there are no differences
    longer = replace(arena, arms=(replace(fake_papers.BASELINE, options={"mean": 9.0}), fake_papers.METHOD))
    [row] = stored_arena(longer, store)
    assert (row.arm, row.difference) == ("method", None)
    assert row.mean == rows[0].mean


SCRIPT = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import fake_papers
from paperworks.lab.engines.local import LocalEngine
from paperworks.lab.runner import run
from paperworks.lab.store import open_store

if __name__ == "__main__":
    with open_store(sys.argv[1]) as store:
        run([fake_papers.paper_with_claims()], store, LocalEngine(2), claims=["better"], settings={{"sleep": 0.3}})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_numbers(tmp_path: Path) -> None:
    script, db = tmp_path / "run.py", tmp_path / "killed.sqlite"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script), str(db)])
    deadline, kept = time.monotonic() + 90, 0
    while kept < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
        if db.exists():
            with open_store(db) as store:
                kept = _count(store)
    assert process.poll() is None, "the run was still going on"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with open_store(db) as store:
        kept = _count(store)
        assert 4 <= kept < 20
        asked: list[tuple[int, int]] = []
        watcher = Watcher(planned=lambda total, reused: asked.append((total, reused)))
        paper = fake_papers.paper_with_claims()
        settings = {"sleep": 0.3}
        resumed = run([paper], store, LocalEngine(2), claims=["better"], settings=settings, watcher=watcher)
        assert asked == [(20, kept)]
    with open_store(tmp_path / "whole.sqlite") as whole:
        uninterrupted = run([paper], whole, LocalEngine(2), claims=["better"], settings=settings)
    assert numbers(resumed) == numbers(uninterrupted)


def _count(store: Store) -> int:
    paper = fake_papers.paper_with_claims()
    from paperworks.lab.plan import Circumstances, plan_claim

    keys = plan_claim(paper, paper.claim("better"), Circumstances("desk", given={"sleep": 0.3})).specs()
    return len(store.trials(keys))


def test_the_key_of_a_trial_is_what_is_run_and_not_how() -> None:
    spec = TrialSpec("m:f", "abc", seed=3, settings={"a": 1})
    assert replace(spec, label="x", time_limit=1.0, memory_limit_gib=2.0, exclusive=True).key == spec.key
    for change in ({"seed": 4}, {"tier": "full"}, {"settings": {"a": 2}}, {"fingerprint": "d"}, {"device": "cuda"}):
        assert replace(spec, **change).key != spec.key  # type: ignore[arg-type]
