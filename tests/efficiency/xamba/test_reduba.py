"""Sums against products with ones, and contractions against einsum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.efficiency.xamba import largest_intermediate, op_histogram, reduba

ov = pytest.importorskip("openvino", reason="the graph passes need OpenVINO")
op = ov.opset13


@settings(deadline=None, max_examples=50)
@given(data=st.data(), keep=st.booleans(), mean=st.booleans())
def test_any_axes_of_any_shape(infer, unary, data, keep, mean):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axes = data.draw(st.lists(st.integers(-len(shape), len(shape) - 1), min_size=1, max_size=3))
    axes = list({axis % len(shape): axis for axis in axes}.values())
    reduce = op.reduce_mean if mean else op.reduce_sum
    model = unary(lambda x: reduce(x, np.array(axes), keep), shape)
    before = model.output(0).get_shape()
    assert reduba(model, include_mean=True) == 1
    assert op_histogram(model)["ReduceSum"] + op_histogram(model)["ReduceMean"] == 0
    assert model.output(0).get_shape() == before
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    wanted = (np.mean if mean else np.sum)(x, tuple(axes), keepdims=keep)
    np.testing.assert_allclose(infer(model, x)[0], wanted, atol=1e-5)


def test_means_are_left_unless_asked_for(unary):
    assert reduba(unary(lambda x: op.reduce_mean(x, np.array([1]), False), (2, 3))) == 0


def test_integers_empty_axes_and_empty_sums_stay(unary):
    assert reduba(unary(lambda x: op.reduce_sum(x, np.array([1]), False), (2, 3), np.int32)) == 0
    assert reduba(unary(lambda x: op.reduce_sum(x, np.array([], np.int64), False), (2, 3))) == 0
    assert reduba(unary(lambda x: op.reduce_sum(x, np.array([1]), False), (2, 0))) == 0


def test_the_vector_is_shared(unary):
    model = unary(
        lambda x: op.add(op.reduce_sum(x, np.array([1]), True), op.reduce_sum(x, np.array([0]), True)), (4, 4)
    )
    assert reduba(model) == 2
    ones = [n for n in model.get_ordered_ops() if n.get_type_name() == "Constant" and n.shape == [4, 1]]
    assert len(ones) == 1


def test_dynamic_axes(infer):
    x = op.parameter([-1, 3, -1, 4], np.float32)
    model = ov.Model([op.reduce_sum(x, np.array([1, 3]), False)], [x])
    assert reduba(model) == 1
    data = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(infer(model, data)[0], data.sum((1, 3)), atol=1e-5)
    x = op.parameter([2, -1], np.float32)
    with pytest.raises(ValueError, match="dynamic"):
        reduba(ov.Model([op.reduce_sum(x, np.array([1]), False)], [x]))


LETTERS = "abcdef"


@settings(deadline=None, max_examples=60)
@given(data=st.data(), keep=st.booleans())
def test_fused_contractions_equal_einsum(infer, data, keep):
    rank = data.draw(st.integers(1, 5))
    full = data.draw(st.lists(st.integers(2, 3), min_size=rank, max_size=rank))
    kinds = data.draw(st.lists(st.sampled_from(["both", "left", "right", "sum"]), min_size=rank, max_size=rank))
    kinds[data.draw(st.integers(0, rank - 1))] = "sum"
    shapes = [[1 if kind == other else n for n, kind in zip(full, kinds, strict=True)] for other in ("right", "left")]
    axes = [i for i, kind in enumerate(kinds) if kind == "sum"]
    a, b = (op.parameter(shape, np.float32) for shape in shapes)
    model = ov.Model([op.reduce_sum(op.multiply(a, b), np.array(axes), keep)], [a, b])
    before = model.output(0).get_shape()
    assert reduba(model, fuse=True) == 1
    counts = op_histogram(model)
    assert (counts["Multiply"], counts["ReduceSum"], counts["MatMul"]) == (0, 0, 1)
    assert model.output(0).get_shape() == before
    generator = np.random.default_rng(0)
    x, y = (generator.normal(size=shape).astype(np.float32) for shape in shapes)
    np.testing.assert_allclose(infer(model, x, y)[0], (x * y).sum(tuple(axes), keepdims=keep), atol=1e-4)


def test_factors_of_lower_rank_are_fused(infer):
    a, b = op.parameter([4, 3, 5], np.float32), op.parameter([5], np.float32)
    model = ov.Model([op.reduce_sum(op.multiply(a, b), np.array([-1]), False)], [a, b])
    assert reduba(model, fuse=True) == 1
    assert op_histogram(model)["Multiply"] == 0
    generator = np.random.default_rng(0)
    x, y = (generator.normal(size=s).astype(np.float32) for s in ((4, 3, 5), (5,)))
    np.testing.assert_allclose(infer(model, x, y)[0], x @ y, atol=1e-5)


def test_what_is_no_contraction_becomes_a_plain_product(infer):
    """A product that something else reads too, and a factor that is constant along the sum."""
    x = op.parameter([2, 3], np.float32)
    product = op.multiply(x, x)
    model = ov.Model([op.reduce_sum(product, np.array([1]), False), op.relu(product)], [x])
    assert reduba(model, fuse=True) == 1
    assert op_histogram(model)["Multiply"] == 1
    a, b = op.parameter([2, 1], np.float32), op.parameter([2, 3], np.float32)
    model = ov.Model([op.reduce_sum(op.multiply(a, b), np.array([1]), False)], [a, b])
    assert reduba(model, fuse=True) == 1
    u, v = np.array([[2.0], [3.0]], np.float32), np.ones((2, 3), np.float32)
    np.testing.assert_allclose(infer(model, u, v)[0], [6, 9])


def test_the_product_is_never_made_when_fused():
    def graph():
        c, b = op.parameter([1, 1, 16, 1, 3, 8], np.float32), op.parameter([1, 1, 1, 16, 3, 8], np.float32)
        return ov.Model([op.reduce_sum(op.multiply(c, b), np.array([-1]), False)], [c, b])

    plain, fused = graph(), graph()
    reduba(plain)
    reduba(fused, fuse=True)
    assert largest_intermediate(graph()) == largest_intermediate(plain) == 16 * 16 * 3 * 8 * 4
    assert largest_intermediate(fused) == 16 * 16 * 3 * 4
