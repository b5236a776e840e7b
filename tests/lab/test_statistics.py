"""Facts about the statistics: levels that are kept, effects that are found, limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from paperworks.lab.nouns import MINIMUM_SEEDS
from paperworks.lab.statistics import decide, estimate, holm_levels, interval, power

NULLS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy tails": lambda rng, n: rng.standard_t(2, n),
    "few values": lambda rng, n: rng.integers(-2, 3, n) / 100,
}


@pytest.mark.parametrize("name", NULLS)
@pytest.mark.parametrize("n", [8, 10])
def test_null_experiments_hold_at_most_at_the_stated_level(name: str, n: int) -> None:
    rng = np.random.default_rng(7)
    experiments = 400
    holds = sum(decide(estimate(NULLS[name](rng, n)), 0.0, "greater") == "holds" for _ in range(experiments))
    # The most that a true rate of 5 % gives in all but one of a thousand runs.
    assert holds <= stats.binom.ppf(0.999, experiments, 0.05)
    assert stats.binomtest(holds, experiments, 0.05, alternative="greater").pvalue > 0.001


def test_a_planted_effect_is_found_with_the_stated_power() -> None:
    rng = np.random.default_rng(3)
    effect, n, experiments = 1.2, 10, 300
    stated = power(effect, n)
    assert 0.85 < stated < 0.95
    holds = sum(
        decide(estimate(rng.standard_normal(n) + effect), 0.0, "greater") == "holds" for _ in range(experiments)
    )
    assert holds >= stats.binom.ppf(0.001, experiments, stated - 0.03)


def test_near_normal_values_take_student_t_and_skewed_ones_the_bootstrap() -> None:
    normal = stats.norm.ppf((np.arange(10) + 0.5) / 10)
    low, high, method = interval(normal)
    expected = stats.ttest_1samp(normal, 0).confidence_interval()
    assert method == "t"
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert interval(np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 9.0]))[2] == "BCa"
    assert interval(normal[:7])[2] == "BCa"


@pytest.mark.parametrize("n", range(1, MINIMUM_SEEDS))
def test_fewer_than_the_minimum_of_seeds_decide_nothing(n: int) -> None:
    assert decide(estimate(np.linspace(5, 6, n)), 0.0, "greater") == "inconclusive"


def test_identical_arms_never_hold_nor_fail() -> None:
    found = estimate(np.zeros(10))
    assert (found.low, found.high, found.method) == (0.0, 0.0, "point")
    assert decide(found, 0.0, "greater") == "inconclusive"
    assert decide(found, 0.0, "less") == "inconclusive"


def test_equal_differences_away_from_the_margin_are_decided() -> None:
    found = estimate(np.full(10, 0.25))
    assert decide(found, 0.0, "greater") == "holds"
    assert decide(found, 0.5, "greater") == "fails"


@given(st.lists(st.floats(-1e3, 1e3), min_size=9, max_size=9), st.floats(-5, 5))
def test_the_two_directions_never_agree(values: list[float], margin: float) -> None:
    found = estimate(values, margin)
    greater, less = decide(found, margin, "greater"), decide(found, margin, "less")
    assert {greater, less} in ({"holds", "fails"}, {"inconclusive"})


@given(st.lists(st.floats(-10, 10), min_size=10, max_size=10))
def test_a_decision_at_95_percent_means_that_the_interval_excludes_the_margin(values: list[float]) -> None:
    found = estimate(values)
    if decide(found, 0.0, "greater") == "holds":
        assert found.low > -1e-9
    if decide(found, 0.0, "greater") == "fails":
        assert found.high < 1e-9


def test_holm_steps_down_and_stops() -> None:
    assert holm_levels([0.01, 0.04, 0.03]) == pytest.approx([0.05 / 3, 0.0, 0.05 / 2])
    assert holm_levels([0.01, 0.02, 0.03]) == pytest.approx([0.05 / 3, 0.05 / 2, 0.05])
    assert holm_levels([0.02]) == [0.05]
    assert holm_levels([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_bonferroni_and_no_correction(p: list[float]) -> None:
    for value, level in zip(p, holm_levels(p), strict=True):
        if value <= 0.05 / len(p):
            assert value <= level
        assert level <= 0.05


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [float("inf")]])
def test_values_that_are_not_finite_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        estimate(bad)
