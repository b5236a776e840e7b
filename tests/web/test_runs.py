"""Runs from the page: carried out one at a time, watched, stopped; what finished is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_papers import BASELINE, METHOD, fake_paper, noise, observed, paper_with_claims
from pydantic import ValidationError

from paperworks.feed.store import Store, card_record
from paperworks.lab.nouns import Bound, Criterion, Paper
from paperworks.web import api
from paperworks.web.models import RunRequest, RunState
from paperworks.web.runs import FINAL, KEPT, WAITING, Refused, Runs

PATIENCE = 120.0
"""Seconds after which a test gives up; none of them waits so long unless something is broken."""


def slow_paper() -> Paper:
    """One exact claim, and one whose trials sleep for an hour."""
    paper = fake_paper("slow")
    expect = {"identity": Bound(at_most=1e-9), "count": Bound(equals=7)}
    paper.exact("Seven is seven.", source="Eq. 1", expect=expect)(observed)
    paper.measured(
        "sleeps", "It sleeps.", source="Table 1", protocol=noise,
        criteria=Criterion("score", METHOD, "greater", BASELINE), settings={"sleep": 3600.0},
    )  # fmt: skip
    return paper


CARDS = {card.id: card for card in (paper_with_claims(), slow_paper())}


def find(id: str) -> Paper:
    if id not in CARDS:
        raise ValueError(f"paper: got {id!r}, wanted one of {', '.join(CARDS)}")
    return CARDS[id]


@pytest.fixture
def location(tmp_path: Path) -> Path:
    with Store(tmp_path / "runs.sqlite") as store:
        store.add([card_record(CARDS["fake"])])
    return tmp_path / "runs.sqlite"


@pytest.fixture
def runs(location: Path) -> Iterator[Runs]:
    made = Runs(location, lambda: datetime.now(UTC), find=find, workers=1)
    yield made
    made.close()


def wait(runs: Runs, id: str, until: Callable[[RunState], bool]) -> RunState:
    give_up = time.monotonic() + PATIENCE
    while not until(state := runs.get(id)):
        assert time.monotonic() < give_up, state
        time.sleep(0.02)
    return state


def ended(state: RunState) -> bool:
    return state.state in FINAL


def test_a_run_tells_its_way_to_the_verdicts_and_they_are_kept(runs: Runs, location: Path) -> None:
    async def watch(id: str) -> list[RunState]:
        return [state async for state in runs.events(id) if state is not None]

    async def two(id: str) -> list[list[RunState]]:
        return await asyncio.gather(watch(id), watch(id))

    started = runs.start(RunRequest(paper="fake", claims=["observed", "better", "observed"]))
    assert (started.state, started.claims, started.finished) == ("waiting", ["observed", "better"], None)
    for told in asyncio.run(two(started.id)):
        last = told[-1]
        assert (last.state, last.total, last.done, last.running) == ("done", 5, 5, [])
        assert last.verdicts == {"observed": "holds", "better": "inconclusive"}
        assert last.finished is not None
        assert last.finished >= last.started >= started.started
        assert [state.done for state in told] == sorted(state.done for state in told)
        assert {state.state for state in told} <= {"waiting", "running", "done"}
    assert asyncio.run(watch(started.id)) == [last]  # who comes late is told the end
    with Store(location) as store:
        assert {v.claim: v.status for v in store.lab.latest_verdicts()} == last.verdicts
        assert [kind for kind, _, _ in store.history("fake")] == ["run", "run"]
    again = runs.start(RunRequest(paper="fake", claims=["observed", "better"]))
    assert wait(runs, again.id, ended).verdicts == last.verdicts
    assert [one.id for one in runs.all()] == [again.id, started.id]
    with Store(location) as store:  # nothing new was measured
        assert len(store.history("fake")) == 2


def test_a_stopped_run_keeps_what_it_finished(runs: Runs, location: Path) -> None:
    id = runs.start(RunRequest(paper="slow")).id
    waiting = runs.start(RunRequest(paper="fake", claims=["observed"])).id
    state = wait(runs, id, lambda state: state.done == 1 and bool(state.running))
    assert (state.state, state.total, state.verdicts) == ("running", 5, {"observed": "holds"})
    assert state.running[0].startswith(("method, seed 0", "baseline, seed 0"))
    assert runs.get(waiting).state == "waiting"
    runs.stop(id)
    state = wait(runs, id, ended)
    assert (state.state, state.message) == ("stopped", "Stopped. 1 finished trial of 5 kept.")
    assert runs.stop(id) == state
    assert wait(runs, waiting, ended).state == "done"
    with Store(location) as store:
        kept = store.lab.trials(_keys(store))
        assert [result.status for result in kept.values()] == ["done"]  # the check that both papers share


def _keys(store: Store) -> list[str]:
    from paperworks.lab.store.tables import trials

    with store.database.read() as connection:
        return [row.key for row in connection.execute(trials.select())]


def test_a_waiting_run_that_is_stopped_never_begins_and_closing_ends_the_rest(location: Path) -> None:
    runs = Runs(location, lambda: datetime.now(UTC), find=find, workers=1)
    ids = [runs.start(RunRequest(paper="slow")).id for _ in range(3)]
    wait(runs, ids[0], lambda state: state.state == "running")
    stopped = runs.stop(ids[1])
    assert (stopped.state, stopped.message, stopped.total) == ("stopped", "Stopped before it began.", 0)
    runs.close()
    assert [runs.get(id).state for id in ids] == ["stopped"] * 3
    runs.close()
    with pytest.raises(Refused, match="409"):
        runs.start(RunRequest(paper="fake"))


def test_a_run_that_cannot_be_carried_out_says_why(tmp_path: Path) -> None:
    runs = Runs(tmp_path, lambda: datetime.now(UTC), find=find)  # a folder is no database
    for _ in range(2):
        state = wait(runs, runs.start(RunRequest(paper="fake")).id, ended)
        assert (state.state, state.total, state.finished is None) == ("failed", 0, False)
        assert state.message.startswith("paperworks.lab.store.database.StoreError: ")
    runs.close()


def test_watchers_who_leave_cost_nothing_and_silence_is_told(runs: Runs) -> None:
    async def leave(id: str) -> None:
        states = runs.events(id, silence=0.01)
        first = await anext(states)
        assert first is not None
        while await anext(states) is not None:
            pass
        assert len(runs._runs[id].listeners) == 1
        await states.aclose()
        assert not runs._runs[id].listeners

    async def torn(id: str) -> None:
        states = runs.events(id)
        await anext(states)
        hanging = asyncio.create_task(anext(states))
        await asyncio.sleep(0.01)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        assert not runs._runs[id].listeners

    id = runs.start(RunRequest(paper="slow")).id
    asyncio.run(leave(id))
    asyncio.run(torn(id))
    assert runs.get(id).state in ("waiting", "running")


def test_a_stream_is_kept_open_by_comments(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    async def first_comment(id: str) -> list[str]:
        told = []
        async with aclosing(api._stream(SimpleNamespace(runs=runs), id)) as lines:  # type: ignore[arg-type, type-var]
            async for line in lines:
                told.append(line)
                if line.startswith(":"):
                    break
        return told

    monkeypatch.setattr(api, "HEARTBEAT_SECONDS", 0.01)
    *states, comment = asyncio.run(first_comment(runs.start(RunRequest(paper="slow")).id))
    assert comment == ": nothing new\n\n"
    for text in states:
        id, data = text.removesuffix("\n\n").split("\n")
        state = RunState.model_validate_json(data.removeprefix("data: "))
        assert id == f"id: {state.state}"


def test_only_claims_of_papers_that_are_carried_and_the_four_tiers(runs: Runs) -> None:
    for paper in ("nowhere", "../fake", "fake\x00", "FAKE", " fake"):
        with pytest.raises(ValueError, match="paper: got"):
            runs.start(RunRequest(paper=paper))
    with pytest.raises(ValueError, match="claim: got 'sleeps', fake has observed, better"):
        runs.start(RunRequest(paper="fake", claims=["sleeps"]))
    for wrong in (
        {"paper": "fake", "tier": "huge"}, {"paper": "fake", "settings": {"scale": 2}}, {"paper": "x" * 65},
        {"paper": "fake", "claims": []}, {"paper": "fake", "claims": ["observed"] * 101}, {"paper": ""},
        {"paper": "fake", "claims": "observed"}, {"paper": "fake", "device": "cpu"}, {},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            RunRequest.model_validate(wrong)
    with pytest.raises(LookupError, match="run: there is none"):
        runs.get("../../etc")
    assert runs.all() == []


def test_the_registry_has_no_paper_of_such_names(location: Path) -> None:
    runs = Runs(location, lambda: datetime.now(UTC))
    for paper in ("__init__", "protocols", "os", "announced", "paperworks.papers.ash", "ash/../ash", "swin"):
        with pytest.raises(ValueError, match="paper: got"):
            runs.start(RunRequest(paper=paper))
    runs.close()


def test_a_gpu_is_wanted_for_its_tier(runs: Runs) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(Refused) as refused:
        runs.start(RunRequest(paper="fake", tier="gpu"))
    assert (refused.value.status_code, "CUDA" in refused.value.detail) == (409, True)


def test_a_bounded_number_waits_and_a_bounded_number_is_remembered(runs: Runs) -> None:
    first = runs.start(RunRequest(paper="slow")).id
    wait(runs, first, lambda state: state.state == "running")
    waiting = [runs.start(RunRequest(paper="slow")).id for _ in range(WAITING)]
    with pytest.raises(Refused, match="wait already"):
        runs.start(RunRequest(paper="slow"))
    for id in waiting:
        runs.stop(id)
    for _ in range(KEPT):
        newest = runs.start(RunRequest(paper="slow")).id
        runs.stop(newest)
    states = runs.all()
    assert len(states) == KEPT
    assert (states[0].id, states[-1].id) == (newest, first)  # the one that runs is never forgotten
    with pytest.raises(LookupError):
        runs.get(waiting[0])
