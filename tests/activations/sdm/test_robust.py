import math

import numpy as np
import pytest
from activations.sdm import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.activations.sdm import CalibrationOutputs, robust_offsets, robust_threshold
from paperworks.activations.sdm.robust import class_quantile


def outputs(rng, n, classes, soft_q=None, sharpness=1.0):
    """Points of random categorical outputs whose labels are drawn from them."""
    o = rng.dirichlet(np.full(classes, sharpness), n)
    labels = (rng.random((n, 1)) < o.cumsum(1)).argmax(1)
    prediction = o.argmax(1)
    soft_q = np.round(rng.random(n) * 4, 1) if soft_q is None else soft_q(o)
    return CalibrationOutputs(labels, prediction, o, soft_q, np.floor(soft_q) <= 0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60), classes=st.integers(2, 4), data=st.data())
def test_threshold_is_the_first_that_every_class_passes(seed, n, classes, data):
    alpha = data.draw(st.sampled_from([0.55, 0.7, 0.9, 0.95]))
    made = outputs(np.random.default_rng(seed), n, classes, sharpness=0.1)
    q_min, psi = made.threshold(alpha)
    expected_q, expected_psi = reference.threshold(
        made.output.tolist(), made.labels.tolist(), made.soft_q.tolist(), made.is_ood.tolist(), alpha, classes
    )
    assert q_min == expected_q
    if math.isfinite(q_min):
        assert psi.tolist() == expected_psi
        assert (psi >= alpha).all()
    else:
        assert np.isinf(psi).all()


def test_quantile_index_survives_the_rounding_of_1_minus_alpha():
    values = list(range(100))
    assert (1 - 0.9) * 10 < 1  # what the index would be cut to without care
    assert class_quantile(values[:10], 0.9) == 1
    assert [class_quantile(values[:n], 0.95) for n in (1, 19, 20, 39, 40, 100)] == [0, 0, 1, 1, 2, 5]
    assert class_quantile(values[:3], 0.01) == 2


def test_classwise_cut_gives_classwise_accuracy_on_outputs_that_are_the_law_of_the_label():
    """Remark 4.5: 1e5 points; the lower end of the 99% interval of the class-wise accuracy is above alpha'."""
    rng, alpha = np.random.default_rng(0), 0.9
    confidence = lambda o: 1 + 3 * o.max(1)  # noqa: E731
    q_min, psi = outputs(rng, 100_000, 3, confidence, 0.3).threshold(alpha)
    test = outputs(rng, 100_000, 3, confidence, 0.3)
    own = test.output[np.arange(100_000), test.prediction]
    admitted = (test.soft_q >= q_min) & (own >= psi[test.prediction])
    assert 0.2 < admitted.mean() < 1
    for c in range(3):
        right = (test.prediction == c)[admitted & (test.labels == c)]
        assert right.mean() - 2.58 * right.std() / math.sqrt(len(right)) >= alpha


def test_medians_by_predicted_class_and_bin_with_everything_ood_in_bin_0():
    o = np.array([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4], [0.2, 0.8]])
    made = CalibrationOutputs(
        labels=np.array([1, 1, 0, 0]),
        prediction=np.array([0, 0, 0, 1]),
        output=o,
        soft_q=np.array([2.5, 2.9, 3.5, 0.4]),
        is_ood=np.array([False, False, True, True]),
    )
    assert made.medians() == {0: {2: pytest.approx(0.8), 0: 0.6}, 1: {0: 0.8}}


def test_robust_threshold_adds_a_cauchy_quantile_of_the_deviation():
    q_mins = [1.0, 2.0, 4.0, 2.5, 9.0]  # median 2.5, deviations 1.5 .5 1.5 0 6.5 -> 1.5
    assert robust_threshold(2.0, q_mins, 0.95) == pytest.approx(2.0 + 1.5 * math.tan(math.pi * 0.45))
    assert robust_threshold(2.0, q_mins, 0.5) == pytest.approx(2.0)
    assert robust_threshold(2.0, [2.0], 0.95) == 2.0
    assert robust_threshold(2.0, [2.0, math.inf, math.inf], 0.95) == 2.0  # inf - inf is no deviation
    assert robust_threshold(2.0, [2.0, 3.0, math.inf], 0.75) == pytest.approx(3.0)
    assert robust_threshold(math.inf, [math.inf, 2.0, 2.0], 0.95) == math.inf


def test_robust_offsets_by_class_and_bin():
    rounds = [{0: {1: 0.9, 2: 0.8}, 1: {1: 0.7}}, {0: {1: 0.6}, 1: {}}, {0: {1: 0.8}}]
    offsets = robust_offsets(rounds, 0.75)  # tan(pi / 4) = 1; median .8, deviations .1 .2 0
    assert offsets == [{1: pytest.approx(0.1), 2: 0.0}, {1: 0.0}]
    assert robust_offsets([rounds[0]], 0.95) == [{1: 0.0, 2: 0.0}, {1: 0.0}]
    assert robust_offsets([], 0.95) == []
    with pytest.raises(ValueError, match="alpha"):
        robust_offsets(rounds, 1.0)
