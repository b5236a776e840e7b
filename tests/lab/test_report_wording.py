"""Numbers and reasons in words."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.report_sample import FIXED, METHOD, RELU, ash_paper, compare

from paperworks.lab.nouns import Bound, Criterion
from paperworks.lab.report import wording
from paperworks.lab.report.jsonform import _comparison


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (25_557_130, "25,557,130"), (0.0, "0"), (-3.0, "−3"), (0.25, "0.25"), (2.220446e-16, "2.220446e−16"),
        (None, "–"), ("inf", "inf"), ("-inf", "−inf"), (1e22, "1e+22"),
    ],
)  # fmt: skip
def test_exact_numbers(value, said):
    assert wording.exact_number(value) == said


@pytest.mark.parametrize(
    ("value", "width", "said"),
    [
        (0.0123456, 0.0081, "+0.0123"), (0.0123456, 0.081, "+0.012"), (-12.345, 3.2, "−12.3"), (1234.5, 210, "+1,234"),
        (1e-9, 1e-10, "+1e−09"), (0.5, 0.0, "+0.5000"), (None, 1.0, "–"), ("inf", 1.0, "inf"),
    ],
)  # fmt: skip
def test_digits_follow_the_width_of_the_interval(value, width, said):
    assert wording.with_digits(value, width, sign=True) == said


@given(st.floats(-1e6, 1e6), st.floats(1e-5, 1e5))
def test_rounding_moves_a_number_by_less_than_its_interval(value, width):
    said = float(wording.with_digits(value, width).replace("−", "-").replace(",", ""))
    assert abs(said - value) <= 0.05 * width + 0.5 * (width >= 10)


@pytest.mark.parametrize(
    ("p", "said"),
    [(0.0412, "0.041"), (0.000123, "0.00012"), (1e-9, "<\N{NO-BREAK SPACE}0.0001"), (1.0, "1"), (None, "–")],
)
def test_p_numbers(p, said):
    assert wording.p_number(p) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.7, "1 min"), (200, "3 min 20 s"), (3600, "1 h"), (7500, "2 h 5 min")],
)
def test_durations(seconds, said):
    assert wording.duration(seconds) == said


def test_days():
    assert wording.day("2025-11-05T09:30:00+00:00") == "5 November 2025"


def test_bounds_are_printed_with_their_signs():
    assert wording.bound_words(str(Bound(equals=-0.5, tolerance=1e-3))) == "= −0.5 (± 0.001)"
    assert wording.bound_words(str(Bound(at_least=1, at_most=2))) == "≥ 1 and ≤ 2"


def test_a_criterion_says_arms_seeds_side_and_margin_of_the_tier():
    criterion = Criterion("accuracy", METHOD, "greater", RELU, margin=0.01)
    assert wording.criterion_words(criterion, "smoke") == (
        "accuracy, ASH minus ReLU, over 2 paired seeds: the whole interval above 0.01."
    )
    alone = Criterion("loss", METHOD, "less", margin=-1, control=RELU, seeds=12)
    assert wording.criterion_words(alone, "desk") == "loss of ASH, over 12 seeds: the whole interval below −1."
    best = Criterion("time", METHOD, "less", FIXED, margin=0.5, scale="ratio")
    assert wording.criterion_words(best, "desk") == (
        "time, ASH / fixed, over 10 paired seeds: the whole interval below 0.5; "
        "fixed is the best of z=0.0, z=0.52, z=1.28, chosen on 2 seeds of its own."
    )


def said(values, level=0.05):
    criterion = ash_paper().claim("earlier-convergence").criteria[0]
    return wording.comparison_words(_comparison(compare(criterion, values, [9.0] * len(values), level)))


def test_the_numbers_of_a_comparison():
    words = said([7, 6, 8, 6, 7, 7, 5, 8, 6, 7])
    assert words["kind"] == "difference"
    assert words["estimate"] == "−2.30"
    assert (words["method_mean"], words["baseline_mean"]) == ("6.70", "9.00")
    assert words["interval"] == "−2.98 to −1.62"
    assert words["interval_kind"] == "Student's t"
    assert words["n"] == "10"
    assert words["level"] == "0.05"


def test_values_without_spread_have_an_infinite_effect():
    assert said([8.95] * 10)["effect"] == "−∞"


def test_a_criterion_that_holm_did_not_reach_has_no_interval_at_its_level():
    words = said([7.0, 9.5, 8.0], level=0.0)
    assert words["level"] == "0"
    assert words["adjusted"] == "–"


def test_headlines():
    traceback = "Traceback (most recent call last):\n  File x\n    raise\n\nValueError: bad\n  more"
    assert wording.headline(traceback) == "ValueError: bad"
    assert wording.headline("killed by signal 9\nsecond line") == "killed by signal 9"
    assert wording.headline("  \n") == ""
    assert len(wording.headline("x" * 5000)) == 300


@given(st.lists(st.text("ab ", max_size=500), max_size=40))
def test_an_excerpt_keeps_all_lines_or_says_how_many_it_left_out(lines):
    text = "\n".join(lines)
    found = wording.excerpt(text)
    kept = found["first"] + found["last"]
    assert len(kept) + found["omitted"] == len(text.strip("\n").splitlines())
    assert found["omitted"] != 1
    assert all(len(line) <= 400 for line in kept)


def test_undecided_by_holms_stop():
    criterion = ash_paper().claim("more-accurate").criteria[0]
    values = [0.01 * math.sin(k) for k in range(10)]
    undecided = _comparison(compare(criterion, values, [0.0] * 10, 0.0))
    assert "had stopped at a criterion with a smaller p" in wording.why_undecided(undecided)
