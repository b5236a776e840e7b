"""The interval plot: everything lies inside it, and where it says."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.report_sample import METHOD, RELU, compare

from paperworks.lab.nouns import Criterion
from paperworks.lab.records import Comparison
from paperworks.lab.report.intervals import CLAIMED_SHARE, TICK_DISTANCE, interval_plot
from paperworks.lab.report.jsonform import _comparison

NUMBERS = st.floats(-1e3, 1e3).filter(lambda v: v == 0 or abs(v) > 1e-6)


def plot_of(values, direction="greater", margin=0.0):
    by_seed = {str(seed): value for seed, value in enumerate(values)}
    mean = sum(values) / len(values)
    comparison = Comparison(
        "c", "inconclusive", mean, min(values), max(values), margin=margin, direction=direction, method_values=by_seed
    )
    return interval_plot(_comparison(comparison))


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.sampled_from(["greater", "less"]), NUMBERS)
def test_everything_lies_inside_and_the_claimed_side_has_room(values, direction, margin):
    plot = plot_of(values, direction, margin)
    places = [plot.margin, plot.mean, *(at for at, _, _ in plot.dots), *(at for at, _ in plot.ticks)]
    for left, width in (plot.claimed, plot.interval):
        assert width >= 0
        places += [left, left + width]
    assert all(-0.01 <= at <= 100.01 for at in places)
    assert plot.claimed[1] >= 100 * CLAIMED_SHARE - 0.01
    assert len(plot.dots) == len(values)


@given(st.lists(NUMBERS, min_size=2, max_size=6), NUMBERS)
def test_ticks_keep_their_distance_from_one_another_and_from_the_margin(values, margin):
    plot = plot_of(values, margin=margin)
    places = sorted([at for at, _ in plot.ticks] + [plot.margin])
    assert all(b - a >= TICK_DISTANCE - 0.01 for a, b in itertools.pairwise(places))


def test_the_mean_lies_on_the_claimed_side_when_it_is_above_the_margin():
    plot = plot_of([0.1, 0.2, 0.3])
    assert plot.to_right
    assert plot.claimed[0] == plot.margin < plot.mean
    assert not plot_of([0.1, 0.2], "less").to_right
    assert plot_of([0.1, 0.2], "less").claimed[0] == 0


def test_a_ratio_is_drawn_on_the_log_scale():
    criterion = Criterion("seconds", METHOD, "less", RELU, margin=1.0, scale="ratio")
    plot = interval_plot(_comparison(compare(criterion, [0.5, 2.0], [1.0, 1.0])))
    half, double = (at for at, _, _ in plot.dots)
    assert plot.margin - half == pytest.approx(double - plot.margin, abs=0.01)


def test_dots_are_named_by_their_seed_and_in_the_order_of_seeds():
    plot = plot_of([0.1 * k for k in range(12)])
    assert [text.split(":")[0] for _, _, text in plot.dots] == [f"seed {k}" for k in range(12)]


def test_no_margin_or_no_number_no_plot():
    comparison = _comparison(compare(Criterion("accuracy", METHOD, "greater", margin=0.0, control=RELU), [1.0], None))
    assert interval_plot({**comparison, "margin": None}) is None
    empty = dict.fromkeys(("observed", "low", "high", "adjusted_low", "adjusted_high"))
    assert interval_plot({**comparison, **empty, "paired": {}}) is None


def test_an_infinite_end_of_an_interval_is_not_drawn():
    comparison = _comparison(
        compare(Criterion("accuracy", METHOD, "greater", margin=0.0, control=RELU), [1, 2, 4], None)
    )
    plot = interval_plot({**comparison, "adjusted_low": "-inf", "adjusted_high": "inf"})
    assert plot.adjusted is None
    assert plot.interval is not None
    assert math.isfinite(plot.margin)
