import math
import warnings

import numpy as np
import pytest
import torch
from activations.sdm import reference
from activations.sdm.conftest import blobs
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.activations.sdm import SDMState, sdm

C, M, D = 3, 7, 4
MEAN = float(np.float32(0.3))  # the adaptor keeps it in float32


def weights(seed=0, classes=C, sharpness=3):
    """Random filters with the least squares classifier on top: right most of the time."""
    x, y = blobs(300, classes, D, seed=50)
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(M, D)).astype(np.float32)
    h = ((x - MEAN) / 2) @ g.T
    w = np.linalg.lstsq(np.c_[h, np.ones(len(h))], sharpness * np.eye(classes)[y], rcond=None)[0]
    return g, np.zeros(M, np.float32), w[:-1].T.astype(np.float32), w[-1].astype(np.float32)


def build(n_train=60, n_cal=80, seed=0, alpha=0.6, spread=1.5, sharpness=3, **options):
    (x_tr, y_tr), (x_ca, y_ca) = (blobs(n, C, D, spread, seed=seed + s) for s, n in ((0, n_train), (1000, n_cal)))
    rescaler = 3 * np.eye(C) + 0.3 * np.random.default_rng(seed).normal(size=(C, C))
    data = (x_tr, y_tr, x_ca, y_ca)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (
            SDMState.from_arrays(*data, *weights(sharpness=sharpness), MEAN, 2.0, rescaler, alpha, **options),
            data,
            rescaler,
        )


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.5, 1.5, 4.0]), alpha=st.sampled_from([0.4, 0.6, 0.9]))
def test_every_step_is_the_brute_force_one(seed, spread, alpha):
    offsets = [{0: 0.01, 1: 0.05, 2: 0.02}, {1: 0.1}, {}]
    state, (x_tr, y_tr, x_ca, y_ca), rescaler = build(40, 50, seed, alpha, spread, offsets=offsets)
    z_tr, h_tr = reference.project(x_tr, weights(), MEAN, 2.0)
    z_ca, h_ca = reference.project(x_ca, weights(), MEAN, 2.0)
    pred_tr, pred_ca = z_tr.argmax(1), z_ca.argmax(1)
    assert state.train_pred.tolist() == pred_tr.tolist()
    # Step 2: the walk; step 3: distances of points with q > 0, by true class.
    near = [reference.similarity_distance(h_tr[i], pred_tr[i], h_tr, y_tr, pred_tr, i) for i in range(len(h_tr))]
    near_ca = [reference.similarity_distance(h, p, h_tr, y_tr, pred_tr) for h, p in zip(h_ca, pred_ca, strict=True)]
    assert state.train_q.tolist() == [q for q, _ in near]
    assert state.cal_q.tolist() == [q for q, _ in near_ca]
    np.testing.assert_allclose(state.cal_d_nearest, [d for _, d in near_ca], rtol=1e-6)
    for q, nearest, y, d in (
        (state.train_q, state.train_d_nearest, y_tr, state.train_d),
        (state.cal_q, state.cal_d_nearest, y_ca, state.cal_d),
    ):
        known = [nearest[(q > 0) & (y == c)].tolist() for c in range(C)]
        np.testing.assert_allclose(d, [reference.distance(v, known) for v in nearest], atol=1e-15)
    medians = [np.median(state.cal_q[y_ca == c]) for c in range(C)]
    assert state.balanced_median_q == pytest.approx(np.mean(medians))
    # Steps 4 and 7.
    p = [reference.activation(z, q, d) for z, q, d in zip(z_ca, state.cal_q, state.cal_d, strict=True)]
    np.testing.assert_allclose(state.cal_p, p, atol=3e-6)
    assert state.cal_p.dtype == np.float32
    columns = [state.cal_p[y_ca == c, c].tolist() for c in range(C)]
    v = [[reference.ecdf(columns[c], row[c], True) for c in range(C)] for row in state.cal_p]
    np.testing.assert_allclose(state.cal_v, v, atol=1e-15)
    q_used = [q if row.argmax() == c else 0 for q, row, c in zip(state.cal_q, state.cal_p, pred_ca, strict=True)]
    branches = [reference.branch(rescaler, row, c, q) for row, c, q in zip(v, pred_ca, q_used, strict=True)]
    np.testing.assert_allclose(state.cal_soft_q, [b[1] for b in branches], atol=1e-12)
    ood = [b[2] or math.floor(b[1]) <= 0 for b in branches]
    assert state.cal_is_ood.tolist() == ood
    # Step 11.
    o = [b[0] for b in branches]
    q_min, psi = reference.threshold(o, y_ca, [b[1] for b in branches], ood, alpha, C)
    assert state.q_min == pytest.approx(q_min)
    if psi is not None:
        np.testing.assert_allclose(state.psi, psi, rtol=1e-12)
    # Steps 2-13 on new points, some far away.
    x_new, _ = blobs(25, C, D, 2 * spread, seed=seed + 7)
    result = state.evaluate(x_new)
    z, h = reference.project(x_new, weights(), MEAN, 2.0)
    known = [state.cal_d_nearest[(state.cal_q > 0) & (y_ca == c)].tolist() for c in range(C)]
    p_new = state.evidence(x_new).p
    for i in range(len(x_new)):
        c = int(z[i].argmax())
        q, nearest = reference.similarity_distance(h[i], c, h_tr, y_tr, pred_tr)
        assert (result.prediction[i], result.q[i]) == (c, q)
        assert result.d_nearest[i] == pytest.approx(nearest, rel=1e-6)
        assert result.d[i] == pytest.approx(reference.distance(result.d_nearest[i], known))
        np.testing.assert_allclose(p_new[i], reference.activation(z[i], q, result.d[i]), atol=3e-6)
        v_new = [reference.ecdf(columns[k], p_new[i, k], True) for k in range(C)]
        q = q if p_new[i].argmax() == c else 0
        expected = reference.verdict(
            c, v_new, q, rescaler, alpha, state.cal_soft_q.tolist(), y_ca, state.q_min, psi, state.offsets
        )
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(result, name)[i], value, atol=1e-12, err_msg=name)


def test_zero_distance_quantile_makes_p_uniform_and_flips_classes_other_than_0_to_q_0():
    state, _, _ = build()
    direction = np.eye(D)
    far = np.concatenate([1e3 * direction, -1e3 * direction])
    evidence = state.evidence(far)
    assert (evidence.d == 0).all()
    np.testing.assert_allclose(evidence.p, 1 / C, atol=1e-7)
    assert set(evidence.prediction.tolist()) > {0}
    expected = np.where(evidence.prediction == 0, np.log(2.0 + evidence.q), np.log(2.0))
    np.testing.assert_allclose(evidence.log_base, expected)
    assert not state.evaluate(far).admitted.any()


def test_float32_saturation_puts_every_p_of_1_at_quantile_1():
    state, (_, _, _, y_ca), _ = build(spread=0.2, seed=3, sharpness=60)
    saturated = state.cal_p[np.arange(len(y_ca)), y_ca] == 1
    assert saturated.sum() > 3
    assert (state.cal_v[np.arange(len(y_ca)), y_ca][saturated] == 1).all()


def test_a_class_without_known_distances_makes_d_0_everywhere():
    x, y = blobs(30, C, D, seed=0)
    g, b, w, bias = weights()
    bias = bias - np.array([0, 0, 1e6], dtype=np.float32)  # class 2 is never predicted
    # The training labels of class 2 are right, so its neighbourhoods hold wrongly predicted points only: q = 0.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = SDMState.from_arrays(x, y, x + 0.01, y, g, b, w, bias, MEAN, 2.0, np.eye(C), 0.9)
    assert (state.cal_q[y == 2] == 0).all()
    assert (state.cal_q > 0).any()
    assert (state.cal_d == 0).all()


def test_offset_is_looked_up_by_predicted_class_and_floor_of_the_lower_branch():
    plain, _data, _rescaler = build(200, 300, spread=0.8)
    x, _ = blobs(60, C, D, 0.8, seed=5)
    before = plain.evaluate(x)
    bins = np.floor(before.soft_q_lower).astype(int)
    c, b = int(before.prediction[0]), int(bins[0])
    other, _, _ = build(200, 300, spread=0.8, offsets={c: {b: 0.125}})
    after = other.evaluate(x)
    hit = (before.prediction == c) & (bins == b)
    assert 0 < hit.sum() < len(x)
    drop = before.probability - after.probability
    np.testing.assert_allclose(drop, np.where(hit, np.minimum(0.125, before.probability), 0))
    assert (before.lower == after.lower).all()


def test_robust_threshold_replaces_the_threshold_of_the_split():
    state, _, _ = build(200, 300, spread=0.5)
    x, _ = blobs(200, C, D, 0.5, seed=5)
    assert state.evaluate(x).admitted.any()
    strict, _, _ = build(200, 300, spread=0.5, q_min_robust=1e9)
    assert not strict.evaluate(x).admitted.any()
    assert strict.q_min == state.q_min


def test_flipped_points_are_never_admitted_even_without_a_threshold():
    state, _, _ = build(100, 120, spread=3.0, q_min_robust=-1.0)
    x, _ = blobs(300, C, D, 4.0, seed=8)
    result = state.evaluate(x)
    flipped = result.lower.argmax(1) != result.prediction
    assert flipped.any()
    assert not result.admitted[flipped].any()
    assert (result.soft_q_lower[flipped] == 0).all()
    centroid_flipped = result.centroid.argmax(1) != result.prediction
    assert (result.soft_q[centroid_flipped] == 0).all()


def test_no_threshold_rejects_everything_with_a_warning():
    x, y = blobs(60, C, D, seed=0)
    noise = np.random.default_rng(0).permutation(y)
    with pytest.warns(UserWarning, match="every point will be rejected"):
        state = SDMState.from_arrays(x, noise, x + 0.3, noise, *weights(), MEAN, 2.0, np.eye(C), 0.99)
    assert state.q_min == math.inf
    assert state.q_min_robust == math.inf
    assert not state.evaluate(x).admitted.any()


def test_duplicates_between_training_and_calibration_are_warned_of():
    x, y = blobs(60, C, D, seed=0)
    with pytest.warns(UserWarning, match="60 of 60 calibration points duplicate"):
        state = SDMState.from_arrays(x, y, x, y, *weights(), MEAN, 2.0, 9 * np.eye(C), 0.4)
    assert (state.cal_d_nearest == 0).all()
    assert (state.cal_d == 1).all()


def test_a_row_has_the_same_verdict_in_any_batch():
    state, _, _ = build(100, 120)
    x, _ = blobs(50, C, D, 2.0, seed=4)
    whole = state.evaluate(x)
    for i in range(50):
        for name, value in state.evaluate(x[i : i + 1]).items():
            assert np.array_equal(value[0], getattr(whole, name)[i]), name
    assert len(state.evaluate(x[:0])) == 0
    assert state.evaluate(torch.tensor(x)).admitted.tolist() == whole.admitted.tolist()


def test_calibration_points_evaluated_anew_are_the_stored_ones():
    state, (_, _, x_ca, _), _ = build()
    stored, anew = state.calibration_result(), state.evaluate(x_ca)
    for name, value in stored.items():
        assert np.array_equal(value, getattr(anew, name)), name


def test_activation_in_the_state_is_the_public_one():
    state, (_, _, x_ca, _), _ = build()
    z, _ = state.adaptor.project(torch.tensor(x_ca))
    p = sdm(z, torch.tensor(state.cal_q), torch.tensor(state.cal_d))
    assert np.array_equal(state.cal_p, p.numpy())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"alpha": 1 / 3}, ValueError, "alpha"),
        ({"alpha": 1.0}, ValueError, "alpha"),
        ({"y_cal": np.zeros(9, dtype=int)}, ValueError, "y_cal must hold every class"),
        ({"y_cal": np.arange(9.0)}, TypeError, "y_cal"),
        ({"y_train": np.full(9, 3)}, ValueError, "y_train must be in"),
        ({"x_train": np.full((9, D), np.nan)}, ValueError, "x_train must be finite"),
        ({"x_cal": np.zeros((9, D + 1))}, ValueError, "x_cal must have shape"),
        ({"conv_bias": np.zeros(2)}, ValueError, "conv_bias"),
        ({"fc_weight": np.zeros((C, M + 1))}, ValueError, "conv_weight"),
        ({"norm_std": 0.0}, ValueError, "norm_std"),
        ({"rescaler_weight": np.zeros((2, 2))}, ValueError, "rescaler_weight"),
        ({"offsets": [{}, {}, {}, {0: 1.0}]}, ValueError, "offsets"),
    ],
)
def test_bad_arrays_are_named(change, error, message):
    x, y = blobs(9, C, D)
    g, b, w, bias = weights()
    good = {"x_train": x, "y_train": y, "x_cal": x + 0.1, "y_cal": y, "conv_weight": g, "conv_bias": b}
    good |= {"fc_weight": w, "fc_bias": bias, "norm_mean": 0.0, "norm_std": 1.0, "rescaler_weight": np.eye(C)}
    with pytest.raises(error, match=message):
        SDMState.from_arrays(**{**good, "alpha": 0.9, **change})


def test_bad_queries_are_named():
    state, _, _ = build()
    with pytest.raises(ValueError, match="X must have shape"):
        state.evaluate(np.zeros((2, D + 1)))
    with pytest.raises(ValueError, match="X must be finite"):
        state.evaluate(np.full((2, D), np.inf))
