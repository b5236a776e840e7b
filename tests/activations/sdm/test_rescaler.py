import numpy as np
import pytest
from activations.sdm import reference

from paperworks.activations.sdm import fit_rescaler_batch, fit_rescaler_paper, rescale, rescaler_loss


def data(n=200, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    v = rng.random((n, classes))
    labels = np.where(rng.random(n) < 0.7, v.argmax(1), rng.integers(0, classes, n))
    return v, 4 * rng.random(n), labels


def test_rescaled_outputs_are_the_equation_and_do_not_depend_on_the_batch():
    v, soft_q, _ = data()
    weight = np.random.default_rng(1).normal(size=(3, 3))
    o = rescale(weight, v, soft_q)
    expected = [reference.rescaled(weight, row, s) for row, s in zip(v, soft_q, strict=True)]
    np.testing.assert_allclose(o, expected, rtol=1e-12)
    for i in (0, 7):
        assert (rescale(weight, v[i : i + 1], soft_q[i : i + 1])[0] == o[i]).all()
    assert rescale(weight, v[:0], soft_q[:0]).shape == (0, 3)


def test_gradient_is_free_of_the_base():
    v, soft_q, y = data(40)
    weight = np.random.default_rng(2).normal(size=(3, 3))
    loss, gradient = rescaler_loss(weight, v, soft_q, y)
    o = rescale(weight, v, soft_q)
    assert loss == pytest.approx(np.mean(-np.log(o[np.arange(40), y]) / np.log(2 + soft_q)))
    np.testing.assert_allclose(gradient, (o - np.eye(3)[y]).T @ v / 40, atol=1e-14)
    step = np.zeros((3, 3))
    step[1, 2] = 1e-6
    slope = (rescaler_loss(weight + step, v, soft_q, y)[0] - rescaler_loss(weight - step, v, soft_q, y)[0]) / 2e-6
    assert gradient[1, 2] == pytest.approx(slope, rel=1e-6)


def test_batch_fit_is_the_minimum_of_the_convex_loss():
    v, soft_q, y = data()
    weight = fit_rescaler_batch(v, soft_q, y)
    loss, gradient = rescaler_loss(weight, v, soft_q, y)
    assert np.abs(gradient).max() < 1e-6
    rng = np.random.default_rng(3)
    assert all(
        rescaler_loss(weight + 0.05 * rng.normal(size=(3, 3)), v, soft_q, y)[0] > loss - 1e-12 for _ in range(50)
    )
    assert (fit_rescaler_batch(v, soft_q, y) == weight).all()


def test_paper_fit_descends_to_the_same_minimum():
    v, soft_q, y = data(60)
    best = rescaler_loss(fit_rescaler_batch(v, soft_q, y), v, soft_q, y)[0]
    weight = fit_rescaler_paper(v, soft_q, y, np.random.default_rng(0), lr=1e-2, max_epochs=120)
    assert best <= rescaler_loss(weight, v, soft_q, y)[0] < best + 0.01


def test_paper_fit_keeps_the_best_epoch_and_stops():
    v, soft_q, y = data(30)
    # Steps this long only get worse after the first epochs.
    weight = fit_rescaler_paper(v, soft_q, y, np.random.default_rng(0), lr=10.0, max_epochs=400)
    assert np.isfinite(weight).all()


def test_separable_calibration_data_ends():
    v = np.array([[0.9, 0.1], [0.8, 0.3], [0.1, 0.7], [0.2, 0.9]])
    weight = fit_rescaler_batch(v, np.ones(4), np.array([0, 0, 1, 1]))
    assert np.isfinite(weight).all()
    assert (rescale(weight, v, np.ones(4)).argmax(1) == [0, 0, 1, 1]).all()
