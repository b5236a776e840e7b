"""CumSum against its product: every axis and flag, types, what stays, and the cost of either."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.efficiency.xamba import cumba, cumsum_cost, op_histogram

ov = pytest.importorskip("openvino", reason="the graph passes need OpenVINO")
op = ov.opset13


def cumulative(x, axis, exclusive, reverse):
    """The same by NumPy."""
    x = np.flip(x, axis) if reverse else x
    y = np.cumsum(x, axis) - (x if exclusive else 0)
    return np.flip(y, axis) if reverse else y


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), axis=st.integers(-4, 3),
    exclusive=st.booleans(), reverse=st.booleans(),
)  # fmt: skip
def test_every_axis_and_flag(infer, unary, shape, axis, exclusive, reverse):
    axis = axis % len(shape) - (len(shape) if axis < 0 else 0)
    model = unary(lambda x: op.cum_sum(x, np.int64(axis), exclusive=exclusive, reverse=reverse), shape)
    assert cumba(model) == 1
    assert op_histogram(model)["CumSum"] == 0
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    [y] = infer(model, x)
    np.testing.assert_allclose(y, cumulative(x, axis, exclusive, reverse), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_constant_has_the_graphs_type(infer, unary, dtype):
    model = unary(lambda x: op.cum_sum(x, np.int64(-2)), (2, 5, 3), dtype)
    assert cumba(model) == 1
    assert model.output(0).get_element_type() == ov.Type(dtype)
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(dtype)
    np.testing.assert_allclose(infer(model, x)[0], np.cumsum(x, -2), atol=1e-2 if dtype == np.float16 else 1e-5)


def test_bfloat16(unary):
    def build(x):
        return op.convert(op.cum_sum(op.convert(x, "bf16"), np.int64(-1)), "f32")

    model = unary(build, (2, 5))
    assert cumba(model) == 1
    assert op_histogram(model)["MatMul"] == 1


def test_names_stay_and_equal_triangles_are_shared(unary):
    def build(x):
        first = op.cum_sum(x, np.int64(-1), name="first")
        second = op.cum_sum(first, np.int64(-1), name="second")
        second.output(0).get_tensor().set_names({"sums"})
        return second

    model = unary(build, (3, 4))
    assert cumba(model) == 2
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    assert [node.get_friendly_name() for node in products] == ["first", "second"]
    assert "sums" in model.output(0).get_names()
    assert products[0].input_value(1).get_node().get_name() == products[1].input_value(1).get_node().get_name()


def test_positions_stay_integers(infer, unary):
    model = unary(lambda x: op.cum_sum(x, np.int64(1)), (1, 4), np.int64)
    assert cumba(model) == 0
    assert op_histogram(model)["CumSum"] == 1


def test_match_chooses(unary):
    def build(x):
        return op.cum_sum(op.cum_sum(x, np.int64(0), name="keep"), np.int64(1), name="rewrite")

    model = unary(build, (3, 4))
    assert cumba(model, match=lambda node: node.get_friendly_name() == "rewrite") == 1
    assert op_histogram(model)["CumSum"] == 1


def test_a_dynamic_length_is_refused_and_another_dynamic_axis_is_not(infer):
    x = op.parameter([-1, 4], np.float32)
    bad = ov.Model([op.cum_sum(x, np.int64(0), name="over time")], [x])
    with pytest.raises(ValueError, match=r"over time.*reshape"):
        cumba(bad)
    bad.reshape([3, 4])
    assert cumba(bad) == 1
    x = op.parameter([-1, 4], np.float32)
    good = ov.Model([op.cum_sum(x, np.int64(1))], [x])
    assert cumba(good) == 1
    np.testing.assert_allclose(infer(good, np.ones((5, 4), np.float32))[0][2], [1, 2, 3, 4])


def test_an_axis_that_is_computed_stays_with_a_warning():
    x, axis = op.parameter([3, 4], np.float32), op.parameter([], np.int64)
    model = ov.Model([op.cum_sum(x, axis)], [x, axis])
    with pytest.warns(UserWarning, match="axis is not constant"):
        assert cumba(model) == 0


def test_an_axis_behind_constants_is_folded(unary):
    model = unary(lambda x: op.cum_sum(x, op.subtract(op.constant(np.int64(1)), op.constant(np.int64(2)))), (3, 4))
    assert cumba(model) == 1


def test_an_empty_axis_stays(unary):
    assert cumba(unary(lambda x: op.cum_sum(x, np.int64(0)), (0, 4))) == 0


def test_bodies_are_rewritten(infer):
    condition, x = op.parameter([], np.bool_), op.parameter([2, 3], np.float32)
    then_x, else_x = op.parameter([2, 3], np.float32), op.parameter([2, 3], np.float32)
    branch = op.if_op(condition)
    branch.set_then_body(ov.Model([op.cum_sum(then_x, np.int64(1))], [then_x]))
    branch.set_else_body(ov.Model([op.relu(else_x)], [else_x]))
    branch.set_input(x.output(0), then_x, else_x)
    out = branch.set_output(branch.get_then_body().results[0], branch.get_else_body().results[0])
    model = ov.Model([out], [condition, x])
    assert op_histogram(model)["CumSum"] == 1
    assert cumba(model) == 1
    assert op_histogram(model)["CumSum"] == 0
    ones = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(infer(model, np.array(True), ones)[0], [[1, 2, 3]] * 2)


def test_weights_kept_in_half_precision_stay_so(unary):
    from openvino._offline_transformations import compress_model_transformation

    weight = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    model = unary(lambda x: op.cum_sum(op.matmul(x, op.constant(weight), False, False), np.int64(-1)), (2, 4))
    compress_model_transformation(model)
    assert cumba(model) == 1
    kept = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant" and node.shape == [4, 64]]
    assert [node.get_element_type() for node in kept] == [ov.Type.f16]
    assert len(model.inputs) == 1


def test_cost():
    """L M additions against L^2 M multiply-adds, (L + 1) / (2 L) of them with a one: 50.2 % at L = 256."""
    cost = cumsum_cost(256, 24 * 256)
    assert cost.additions == 256 * 24 * 256
    assert cost.macs == 256 * cost.additions
    assert cost.useful == pytest.approx(np.tri(256).mean())
    assert round(100 * cost.useful, 1) == 50.2
    for bad in ({"length": 0}, {"length": 4, "vectors": 0}):
        with pytest.raises(ValueError, match="want at least 1"):
            cumsum_cost(**bad)


def test_wrong_type():
    with pytest.raises(TypeError, match="model"):
        cumba("model.xml")
