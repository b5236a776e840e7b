"""The factor by step: flat, then half a sine a stage, with the paper's peaks at the paper's steps."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.efficiency.prosparse import (
    SparsityRegularisation,
    peak_for_sparsity,
    published_schedule,
    sparsity_for_peak,
)


def test_substitution_then_flat_then_half_a_sine():
    schedule = SparsityRegularisation([0.1, 0.5], [20, 60], start=10)
    assert [schedule.factor(step) for step in (0, 1, 10)] == [0, 0, 0]
    assert {schedule.factor(step) for step in range(11, 21)} == {0.1}
    assert schedule.factor(40) == pytest.approx(0.3, abs=1e-15)  # half way in time, half way up
    assert schedule.factor(30) == pytest.approx(0.1 + 0.4 * (1 - math.sqrt(0.5)) / 2, abs=1e-15)
    assert schedule.factor(60) == 0.5
    assert schedule.factor(61) == schedule.factor(10**9) == 0.5


@pytest.mark.parametrize("name", ["7b", "13b", "1b"])
def test_published_peaks_are_met_at_the_published_steps(name):
    schedule = published_schedule(name)
    assert schedule.factor(schedule.start) == 0
    assert schedule.factor(schedule.start + 1) == schedule.peaks[0]
    for peak, end in zip(schedule.peaks, schedule.steps, strict=True):
        assert schedule.factor(end) == peak


@given(
    peaks=st.lists(st.floats(1e-6, 10), min_size=1, max_size=5).map(sorted),
    lengths=st.lists(st.integers(1, 30), min_size=5, max_size=5),
    start=st.integers(0, 20),
)
def test_the_factor_never_falls(peaks, lengths, start):
    ends = [start + sum(lengths[: i + 1]) for i in range(len(peaks))]
    schedule = SparsityRegularisation(peaks, ends, start=start)
    factors = [schedule.factor(step) for step in range(ends[-1] + 3)]
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(factors))
    assert all(schedule.factor(end) == peak for peak, end in zip(peaks, ends, strict=True))


def test_equal_neighbours_are_a_constant_stage():
    schedule = SparsityRegularisation([0.05, 0.2, 0.2], [5, 9, 30])
    assert {schedule.factor(step) for step in range(9, 40)} == {0.2}


@pytest.mark.parametrize(
    ("peaks", "steps", "options"),
    [
        ([], [], {}),
        ([0.1], [1, 2], {}),
        ([0.0, 0.1], [1, 2], {}),
        ([0.2, 0.1], [1, 2], {}),
        ([float("nan")], [1], {}),
        ([float("inf")], [1], {}),
        ([0.1, 0.2], [2, 2], {}),
        ([0.1], [5], {"start": 5}),
        ([0.1], [5], {"start": -1}),
        ([0.1], [5.5], {}),
        ([0.1], [5], {"reduction": "sum"}),
    ],
)
def test_a_schedule_that_is_none_is_refused(peaks, steps, options):
    with pytest.raises(ValueError, match="got"):
        SparsityRegularisation(peaks, steps, **options)


def test_a_step_before_the_first_is_refused():
    with pytest.raises(ValueError, match="step: got -1"):
        SparsityRegularisation([0.1], [5]).factor(-1)
    with pytest.raises(ValueError, match="7b, 13b, 1b"):
        published_schedule("70b")


@given(st.floats(0.01, 5))
def test_the_peak_is_the_inverse_of_the_fit(peak):
    sparsity = sparsity_for_peak(peak)
    assert sparsity == pytest.approx(100 - math.exp(-1.76 * peak**0.30 + 3.49))
    assert peak_for_sparsity(sparsity) == pytest.approx(peak, rel=1e-9)


def test_more_sparsity_takes_a_higher_peak_and_some_cannot_be_had():
    assert peak_for_sparsity(92) > peak_for_sparsity(89.32) > peak_for_sparsity(80) > 0
    for bad in (100.0, 101.0, 100 - math.exp(3.49), 20.0, float("nan")):
        with pytest.raises(ValueError, match="target: got"):
            peak_for_sparsity(bad)
    with pytest.raises(ValueError, match="peak: got 0"):
        sparsity_for_peak(0.0)
