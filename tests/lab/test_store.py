"""The store on SQLite and on PostgreSQL: what is put comes back, which of two results stays, which verdicts are new."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from math import copysign, inf, nan
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paperworks.lab.records import Comparison, Machine, TrialResult, TrialSpec, Verdict
from paperworks.lab.store import Store, StoreError, open_store
from paperworks.lab.store.tables import pack, restored, storable, unpack

MORNING = datetime(2026, 4, 24, 8, 30, 0, 123456, tzinfo=UTC)
MACHINE = Machine("m1", "a CPU", 2, 23.5, "Debian", "3.11.7", "", {"torch": "2.13.0"})


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with open_store(store_url) as opened:
        yield opened


def spec(seed: int = 0, **changes: Any) -> TrialSpec:
    return TrialSpec("paperworks.papers.ash:accuracy", "f" * 64, seed=seed, **changes)


def done(of: TrialSpec, value: float = 0.5, at: datetime = MORNING) -> TrialResult:
    return TrialResult(of.key, "done", {"accuracy": value}, {"loss": [2.0, 1.5]}, "", 1.25, 1 << 40, "m1", at)


def failed(of: TrialSpec, error: str = "ValueError", at: datetime = MORNING) -> TrialResult:
    return TrialResult(of.key, "error", error=error, finished=at)


def verdict(at: datetime = MORNING, claim: str = "c1", **changes: Any) -> Verdict:
    return replace(Verdict("ash", claim, "measured", "holds", "desk", "cpu", seeds=10, created=at), **changes)


def later(minutes: float) -> datetime:
    return MORNING + timedelta(minutes=minutes)


# trials


def test_a_trial_comes_back_as_it_was_put(store: Store) -> None:
    asked = spec(
        3, arm_target="a:b", arm_options={"k": 2}, settings={"data": "imagefolder:/x"}, label="ASH", machine="m1"
    )
    store.put_trial(asked, done(asked))
    assert store.trial(asked.key) == done(asked)
    assert store.specs([asked.key]) == {asked.key: asked}
    assert store.trial("0" * 64) is None


def test_results_survive_closing(store_url: str) -> None:
    with open_store(store_url) as store:
        store.put_trial(spec(), done(spec()))
        store.put_verdict(verdict())
        store.put_machine(MACHINE)
    with open_store(store_url) as store:
        assert store.trial(spec().key) == done(spec())
        assert store.latest_verdicts() == [verdict()]
        assert store.machines() == {"m1": MACHINE}


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (done(spec(), 0.5), failed(spec(), at=later(1)), 0),  # an error never replaces a done result
        (failed(spec()), done(spec(), at=later(1)), 1),
        (failed(spec(), at=later(1)), done(spec()), 1),  # a done one is better than a later error
        (failed(spec(), "a"), failed(spec(), "b", later(1)), 1),
        (failed(spec(), "a", later(1)), failed(spec(), "b"), 0),
        (done(spec(), 0.5), done(spec(), 0.6, later(1)), 1),
        (done(spec(), 0.5, later(1)), done(spec(), 0.6), 0),
        (done(spec(), 0.5), done(spec(), 0.6), 1),
    ],
)
def test_which_of_two_results_is_kept(store: Store, first: TrialResult, second: TrialResult, kept: int) -> None:
    store.put_trial(spec(), first)
    store.put_trial(spec(), second)
    assert store.trial(spec().key) == (first, second)[kept]


def test_the_specification_kept_is_that_of_the_result_kept(store: Store) -> None:
    store.put_trial(spec(label="first"), done(spec()))
    store.put_trial(spec(label="second"), failed(spec(), at=later(1)))
    assert store.specs([spec().key])[spec().key].label == "first"
    store.put_trial(spec(label="third"), done(spec(), at=later(1)))
    assert store.specs([spec().key])[spec().key].label == "third"


def test_many_keys_in_the_order_asked(store: Store) -> None:
    specs = [spec(seed) for seed in range(1203)]
    for one in specs[::3]:
        store.put_trial(one, done(one, one.seed))
    keys = [one.key for one in reversed(specs)]
    found = store.trials(iter(keys))
    assert list(found) == [one.key for one in reversed(specs[::3])]
    assert all(found[one.key].metrics["accuracy"] == one.seed for one in specs[::3])
    assert list(store.specs(keys)) == list(found)
    assert store.trials([]) == {} == store.specs([])


def test_numbers_that_json_lacks_come_back(store: Store) -> None:
    values = {"a": inf, "b": -inf, "c": nan, "d": -0.0, "e": 1e16, "f": 1e300, "g": 5e-324, "h": 0.1, "i": 3.0}
    asked = spec(settings={"limit": inf, "big": 1e22, "small": 1e-5, "whole": 2, "one": 1.0, "zero": -0.0})
    store.put_trial(asked, replace(done(asked), metrics=values, curves={"loss": list(values.values())}))
    result, again = store.trial(asked.key), store.specs([asked.key])[asked.key]
    assert result is not None
    assert list(map(repr, result.curves["loss"])) == list(map(repr, values.values()))
    assert {name: repr(value) for name, value in result.metrics.items()} == {n: repr(v) for n, v in values.items()}
    assert copysign(1, result.metrics["d"]) == -1
    assert again == asked
    assert again.key == asked.key
    assert {n: type(v) for n, v in again.settings.items()} == {n: type(v) for n, v in asked.settings.items()}


HARD_TEXTS = [
    "żółć 你好 😀 \u202e",
    "before\x00after",
    "lone \udcff surrogates \ud800",
    "\x1a0000 looks like a mark, \x1a too, \\u0000 too",
    "\x1a=inf",
    "line\r\n" * 200_000,
    "",
]


@pytest.mark.parametrize("hard", HARD_TEXTS, ids=range(len(HARD_TEXTS)))
def test_any_text_comes_back(store: Store, hard: str) -> None:
    asked = spec(settings={hard[:50]: hard}, label=hard)
    result = replace(failed(asked, hard), machine=hard)
    store.put_trial(asked, result)
    assert store.trial(asked.key) == result
    assert store.specs([asked.key]) == {asked.key: asked}
    said = verdict(claim=hard[:50], reason=hard, settings={"x": hard})
    store.put_verdict(said)
    assert store.history("ash", hard[:50], settings={"x": hard}) == [said]
    store.put_machine(replace(MACHINE, id=hard[:50], cpu=hard))
    assert store.machines([hard[:50]])[hard[:50]].cpu == hard


ANY_TEXT = st.text(st.characters(exclude_categories=()))
JSON_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(ANY_TEXT)
def test_storable_text_is_utf8_without_nul_and_is_restored(some: str) -> None:
    assert b"\x00" not in storable(some).encode()
    assert restored(storable(some)) == some


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(ANY_TEXT, JSON_DATA, max_size=4), ANY_TEXT)
def test_any_json_data_and_text_round_trips(store: Store, data: dict[str, Any], error: str) -> None:
    assert repr(unpack(pack(data))) == repr(data)
    asked = spec(settings=data)
    store.put_trial(asked, failed(asked, error))
    assert store.trial(asked.key) == failed(asked, error)
    back = store.specs([asked.key])[asked.key]
    assert (back, back.key) == (asked, asked.key)


def test_times_come_back_in_utc(store: Store) -> None:
    tokyo = datetime(2026, 1, 1, 3, 0, tzinfo=timezone(timedelta(hours=9)))
    store.put_trial(spec(), done(spec(), at=tokyo))
    result = store.trial(spec().key)
    assert result is not None
    assert result.finished == tokyo
    assert result.finished.tzinfo is UTC
    store.put_verdict(verdict(tokyo))
    assert store.latest_verdicts()[0].created == tokyo


def test_bad_records_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="result: got the key"):
        store.put_trial(spec(1), done(spec(2)))
    with pytest.raises(ValueError, match=r"result\.status: got 'running'"):
        store.put_trial(spec(), replace(done(spec()), status="running"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wanted a datetime with a time zone"):
        store.put_trial(spec(), done(spec(), at=datetime(2026, 1, 1)))
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.put_machine(replace(MACHINE, versions={"torch": object()}))  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="keys: got the string 'abc'"):
        store.trials("abc")
    assert store.trials([spec(n).key for n in range(3)]) == {}


# verdicts


def test_an_unchanged_verdict_is_not_stored_twice(store: Store) -> None:
    assert store.put_verdict(verdict(seconds=3.0)) is True
    assert store.checked([verdict().question]) == {verdict().question: MORNING}
    assert store.put_verdict(verdict(later(5), seconds=9.0)) is False
    assert store.history("ash", "c1") == [verdict(seconds=3.0)]
    assert store.checked([verdict().question]) == {verdict().question: later(5)}
    assert store.put_verdict(verdict(later(2))) is False
    assert store.checked([verdict().question, "?"]) == {verdict().question: later(5)}


def test_a_verdict_that_flips_and_flips_back_is_three_verdicts(store: Store) -> None:
    told = [verdict(), verdict(later(1), status="fails"), verdict(later(2))]
    assert [store.put_verdict(v) for v in told] == [True, True, True]
    assert store.history("ash", "c1") == told
    assert store.latest_verdicts() == [told[-1]]


def test_a_verdict_comes_back_with_all_its_numbers(store: Store) -> None:
    comparison = Comparison(
        "accuracy", "holds", 0.1, low=-inf, high=inf, p=nan, effect=-0.0, level=1e-17, margin=1e17,
        method_values={"0": 0.5, "1": nan}, baseline_values={"0": -inf},
    )  # fmt: skip
    put = verdict(comparisons=(comparison, Comparison("", "fails")), trials=("k1", "k2"), settings={"b": 1, "a": "é"})
    store.put_verdict(put)
    [got] = store.latest_verdicts()
    # by repr: NaN does not equal itself, -0.0 equals 0.0; JSONB does not keep the order of names
    assert repr(got.comparisons) == repr(put.comparisons)
    assert (got.settings, got.trials) == (put.settings, put.trials)
    assert (got.question, got.content) == (put.question, put.content)
    assert store.put_verdict(replace(got, created=later(1))) is False


def test_latest_verdicts_are_filtered(store: Store) -> None:
    ash, control = verdict(), verdict(control=True, status="fails")
    smoke, gpu = verdict(tier="smoke"), verdict(device="cuda")
    mine, sdm = verdict(settings={"data": "x", "n": 2}), verdict(paper="sdm", claim="a")
    for one in (sdm, mine, gpu, smoke, control, ash):
        store.put_verdict(one)
        store.put_verdict(replace(one, reason="again", created=later(1)))
    found = store.latest_verdicts()
    assert all(v.reason == "again" for v in found)
    assert {v.question for v in found} == {v.question for v in (ash, smoke, gpu, mine, sdm)}
    assert [(v.paper, v.tier, v.device) for v in found] == sorted((v.paper, v.tier, v.device) for v in found)

    def questions(**filters: Any) -> set[str]:
        return {v.question for v in store.latest_verdicts(**filters)}

    assert questions(paper="sdm") == {sdm.question}
    assert questions(tier="smoke") == {smoke.question}
    assert questions(control=True) == {control.question}
    assert len(questions(control=None)) == 6
    assert questions(settings={"n": 2, "data": "x"}) == {mine.question}
    assert questions(settings={}, paper="ash", tier="desk") == {ash.question, gpu.question}
    assert questions(paper="none") == set()
    assert len(store.history("ash", "c1")) == 8
    assert len(store.history("ash", "c1", device="cuda")) == 2
    assert len(store.history("ash", "c1", tier="desk", settings={}, device="cpu")) == 2
    assert len(store.history("ash", "c1", control=True)) == 2
    assert store.history("ash", "c2") == []


# machines


def test_machines(store: Store) -> None:
    other = replace(MACHINE, id="m2", cores=64)
    store.put_machine(MACHINE)
    store.put_machine(other)
    store.put_machine(MACHINE)
    assert store.machines() == {"m1": MACHINE, "m2": other}
    assert store.machines(["m2", "m9"]) == {"m2": other}
    assert store.machines([]) == {}


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    for call in (lambda: store.trial("x"), lambda: store.put_machine(MACHINE), store.latest_verdicts):
        with pytest.raises(StoreError, match="the store is closed"):
            call()
