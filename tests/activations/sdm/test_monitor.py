import math

import numpy as np
import pytest
from activations.sdm.conftest import blobs
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from paperworks.activations.sdm import DriftAlarm, coverage_accuracy_curve


def test_alarm_stays_silent_in_distribution_and_rings_on_a_shift(fitted):
    classifier, _, _ = fitted
    alarm = DriftAlarm(classifier.state_, window=100)
    same, _ = blobs(100, seed=77)
    report = alarm.update(classifier.select(same))
    assert not report.alarm
    assert report.points == 100
    shifted = alarm.update(classifier.select(same[:60] * 3 + 2))
    assert shifted.alarm
    assert shifted.rejected > report.rejected
    assert shifted.rejected_p < report.rejected_p


def test_shares_are_those_of_the_window_and_of_the_calibration_set(fitted):
    classifier, _, (x, _) = fitted
    state = classifier.state_
    alarm = DriftAlarm(state, window=50)
    assert math.isnan(alarm.report().far)
    result = classifier.select(x)
    report = alarm.update(result)
    assert report.points == 50
    assert report.far == (result.d[-50:] == 0).mean()
    assert report.rejected == (~result.admitted[-50:]).mean()
    assert report.far_reference == (state.cal_d == 0).mean()
    assert report.rejected_reference == (~state.calibration_result().admitted).mean()


def test_p_value_is_fishers(fitted):
    from scipy.stats import fisher_exact

    classifier, _, (x, _) = fitted
    alarm = DriftAlarm(classifier.state_, window=300)
    result = classifier.select(x)
    report = alarm.update(result)
    reference = ~classifier.state_.calibration_result().admitted
    rejected = ~result.admitted
    table = [[rejected.sum(), (~rejected).sum()], [reference.sum(), (~reference).sum()]]
    assert report.rejected_p == pytest.approx(fisher_exact(table, alternative="greater").pvalue)


def test_false_alarms_keep_the_level(fitted):
    """Windows drawn from the calibration results themselves: no drift by construction."""
    classifier, _, _ = fitted
    result = classifier.state_.calibration_result()
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(300):
        alarm = DriftAlarm(classifier.state_, window=40, level=0.1)
        alarms.append(alarm.update(result[rng.integers(0, len(result), 40)]).alarm)
    assert np.mean(alarms) <= 0.1


def test_curve_is_select_at_every_alpha(fitted):
    classifier, _, (x, y) = fitted
    curve = coverage_accuracy_curve(classifier, x, y, [0.6, 0.8, 0.95])
    at_fit = curve[1]
    result = classifier.select(x)
    assert at_fit.coverage == result.admitted.mean()
    assert at_fit.accuracy == (result.prediction == y)[result.admitted].mean()
    assert at_fit.q_min == classifier.state_.q_min_robust
    assert curve[0].coverage >= curve[1].coverage >= curve[2].coverage
    assert classifier.state_.alpha == 0.8  # the fit is left as it was
    with pytest.raises(ValueError, match="alpha"):
        coverage_accuracy_curve(classifier, x, y, [0.2])
    with pytest.raises(ValueError, match="y must have shape"):
        coverage_accuracy_curve(classifier, x, y[1:], [0.8])
    with pytest.raises(NotFittedError):
        coverage_accuracy_curve(clone(classifier), x, y, [0.8])


def test_bad_settings_are_named(fitted):
    with pytest.raises(ValueError, match="window"):
        DriftAlarm(fitted[0].state_, window=0)
    with pytest.raises(ValueError, match="level"):
        DriftAlarm(fitted[0].state_, level=1.0)
