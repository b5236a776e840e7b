"""The scores against their formulas, and the decayed score in constant time against the full sum."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.feed.ranking import DecayedScore, decay, hn, hot, rrf, wilson

START = datetime(2026, 4, 24, tzinfo=UTC)
EVENTS = st.lists(st.tuples(st.floats(0.05, 5), st.floats(0, 2000)), max_size=20)


def test_formulas() -> None:
    assert hn(11, 2) == pytest.approx(10 / 4**1.8)
    assert hn(5, -3) == hn(5, 0)
    assert hot(100, 1_134_028_003 + 45_000) == pytest.approx(3)
    assert hot(-100, 1_134_028_003) == pytest.approx(-2)
    assert hot(0, 1_134_028_003) == 0
    assert decay([(1, 0), (1, 24), (2, 48)], 24) == pytest.approx(1 + 0.5 + 0.5)
    assert wilson(0, 0) == 0
    assert wilson(10, 10) == pytest.approx(0.7225, abs=1e-4)


@given(st.integers(0, 100), st.integers(0, 100), st.floats(0.5, 3))
def test_wilson_is_the_lower_root_of_the_score_equation(a: int, b: int, z: float) -> None:
    total = a + b
    low = wilson(a, total, z)
    assert low + 1e-12 >= 0
    if total:
        share = a / total
        assert low <= share + 1e-12
        assert (share - low) ** 2 == pytest.approx(z * z * low * (1 - low) / total, abs=1e-9)


@given(EVENTS, st.floats(1, 300), st.randoms())
def test_the_running_score_is_the_sum_over_all_events_in_any_order(events, half_life, random) -> None:  # type: ignore[no-untyped-def]
    score = DecayedScore(half_life)
    random.shuffle(events)
    for weight, hours in events:
        score.add(weight, START + timedelta(hours=hours))
    now = START + timedelta(hours=2100)
    whole = decay([(w, (now - (START + timedelta(hours=h))).total_seconds() / 3600) for w, h in events], half_life)
    assert math.isclose(score.at(now), whole, rel_tol=1e-9, abs_tol=1e-300)


def test_times_without_a_zone_and_bad_numbers_are_refused() -> None:
    score = DecayedScore(24)
    assert score.at(START) == 0
    for call in (lambda: score.add(1, datetime(2026, 1, 1)), lambda: score.at(datetime(2026, 1, 1))):
        with pytest.raises(ValueError, match="time zone"):
            call()
    with pytest.raises(TypeError, match="wanted a datetime"):
        score.at(3)  # type: ignore[arg-type]
    for bad in (0, -1, math.nan):
        with pytest.raises(ValueError, match="half_life_hours"):
            DecayedScore(bad)
    with pytest.raises(ValueError, match="wilson"):
        wilson(3, 2)


def test_fusion_scores_ties_and_weights() -> None:
    fused = rrf([["a", "b"], ["b", "c"]])
    assert fused[0] == ("b", pytest.approx(1 / 62 + 1 / 61))
    assert [id for id, _ in fused] == ["b", "a", "c"]
    assert rrf([["x"], ["y"]])[0][0] == "x", "the list named first"
    assert [id for id, _ in rrf([["x"], ["y"]], weights=[1, 2])] == ["y", "x"]
    assert rrf([["a", "a", "b"]]) == rrf([["a", "b"]])
    assert rrf([]) == []
    with pytest.raises(ValueError, match="weights: got 1 for 2 lists"):
        rrf([["a"], ["b"]], weights=[1])


@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=8), max_size=4))
def test_fusion_names_everything_once_best_first(lists: list[list[int]]) -> None:
    fused = rrf(lists)
    assert sorted(id for id, _ in fused) == sorted({id for ids in lists for id in ids})
    assert [s for _, s in fused] == sorted((s for _, s in fused), reverse=True)
