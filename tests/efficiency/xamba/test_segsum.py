"""Segment sums by difference: found in the graphs that transformers and the naive style make, equal, and only there."""

import numpy as np
import pytest

from paperworks.efficiency.xamba import cumba, op_histogram, segsum_difference

ov = pytest.importorskip("openvino", reason="the graph passes need OpenVINO")
op = ov.opset13
L = 6
BELOW = np.tri(L, k=-1, dtype=bool)


def graph(mask=BELOW, axis=-2, dtype=np.float32, multiply=False, wide=False, **flags):
    """exp of the segment sum of (2, L), written as transformers does."""
    a = op.parameter([2, L, L] if wide else [2, L], dtype, name="a")
    spread = a if wide else op.broadcast(op.unsqueeze(a, np.int64(-1)), np.array([2, L, L]))
    if multiply:
        masked = op.multiply(spread, op.constant(mask.astype(dtype)))
    else:
        masked = op.select(op.constant(~mask), op.constant(dtype(0)), spread)
    sums = op.cum_sum(masked, np.int64(axis), **flags)
    shown = op.select(op.constant(np.tri(L, dtype=bool)), sums, op.constant(dtype(-np.inf)))
    return ov.Model([op.exp(shown), sums], [a])


@pytest.mark.parametrize("multiply", [False, True])
def test_it_equals_the_sums_of_columns(infer, multiply):
    a = -np.random.default_rng(0).uniform(0, 3, (2, L)).astype(np.float32)
    model = graph(multiply=multiply)
    wanted = infer(model, a)
    assert segsum_difference(model) == 1
    assert op_histogram(model)["Broadcast"] == 0
    for found, before in zip(infer(model, a), wanted, strict=True):
        np.testing.assert_allclose(found, before, atol=1e-5)
    assert cumba(model) == 1  # the one cumulative sum that is left can be a product too
    np.testing.assert_allclose(infer(model, a)[0], wanted[0], atol=1e-5)


def test_a_strong_decay_does_not_overflow(infer):
    model = graph()
    segsum_difference(model)
    decay, sums = infer(model, np.full((2, L), -60.0, np.float32))
    assert np.isfinite(decay).all()
    np.testing.assert_array_equal(sums[:, ~np.tri(L, dtype=bool)], 0)


@pytest.mark.parametrize(
    "other",
    [
        {"mask": np.tri(L, dtype=bool)},
        {"mask": BELOW.T},
        {"axis": -1},
        {"exclusive": True},
        {"reverse": True},
        {"wide": True},
    ],
)
def test_other_sums_stay(infer, other):
    model = graph(**other)
    assert segsum_difference(model) == 0
    assert op_histogram(model)["CumSum"] == 1


def test_half_precision_stays_with_a_warning():
    model = graph(dtype=np.float16)
    with pytest.warns(UserWarning, match="half precision"):
        assert segsum_difference(model) == 0


def test_rounding_is_a_few_eps_of_the_whole_sum(infer):
    """Off by at most 4 eps |c_L|, as measured against float64, where the columns' sums are off by eps |S|."""
    model = graph()
    segsum_difference(model)
    a = -np.random.default_rng(1).uniform(0, 100, (2, L)).astype(np.float32)
    _, found = infer(model, a)
    c = np.cumsum(a.astype(np.float64), -1)
    exact = np.where(BELOW, c[:, :, None] - c[:, None], 0)
    assert np.abs(found - exact).max() <= 4 * np.finfo(np.float32).eps * np.abs(c[:, -1]).max()


def test_both_are_found_in_every_layer(infer, prompt_graph, tokens):
    model = prompt_graph.clone()
    assert segsum_difference(model) == 2 * 2
    for found, wanted in zip(infer(model, tokens), infer(prompt_graph, tokens), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
