"""Activations in the graph: the table exactly, the cheap stand-ins and their errors, what stays."""

import numpy as np
import pytest

from paperworks.efficiency.xamba import PiecewiseLinear, actiba, op_histogram

ov = pytest.importorskip("openvino", reason="the graph passes need OpenVINO")
op = ov.opset13
BUILD = {"Swish": op.swish, "SoftPlus": op.softplus, "Sigmoid": op.sigmoid}
TABLE = {"Swish": "silu", "SoftPlus": "softplus", "Sigmoid": "sigmoid"}
X = np.concatenate([np.linspace(-12, 12, 2001), [-1e4, 1e4]]).astype(np.float32)


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize(("segments", "bound"), [(5, 8.0), (32, 8.0), (64, 6.0)])
def test_the_graph_holds_the_table(infer, unary, name, segments, bound):
    model = unary(lambda x: BUILD[name](x), X.shape)
    assert actiba(model, ops=(name,), segments=segments, bound=bound) == {name: 1}
    assert op_histogram(model)[name] == 0
    table = PiecewiseLinear.fit(TABLE[name], segments, bound)
    np.testing.assert_allclose(infer(model, X)[0], table(X.astype(np.float64)), atol=5e-6, rtol=1e-6)


def test_half_precision_finds_the_same_segment(infer, unary):
    x = X[:-2].astype(np.float16)
    model = unary(lambda t: op.swish(t, np.float16(1)), x.shape, np.float16)
    assert actiba(model)["Swish"] == 1
    wanted = PiecewiseLinear.fit("silu")(x.astype(np.float64))
    assert model.output(0).get_element_type() == ov.Type.f16
    np.testing.assert_allclose(infer(model, x)[0], wanted, atol=0.02)


@pytest.mark.parametrize(
    ("name", "error", "stand_in"),
    [("Swish", 0.1422, "HSwish"), ("SoftPlus", np.log(2), "Relu"), ("Sigmoid", 0.0692, "HardSigmoid")],
)
def test_the_cheap_ones_err_as_published(infer, unary, name, error, stand_in):
    before = unary(lambda x: BUILD[name](x), X.shape)
    after = before.clone()
    assert actiba(after, ops=[name], realise="cheap") == {name: 1}
    assert op_histogram(after)[stand_in] == 1
    assert np.abs(infer(after, X)[0] - infer(before, X)[0]).max() == pytest.approx(error, abs=1e-3)


def test_native_leaves_the_ops(unary):
    model = unary(lambda x: op.swish(op.softplus(x)), (4,))
    assert actiba(model, realise="native") == {"Swish": 0, "SoftPlus": 0}
    assert op_histogram(model)["Swish"] == op_histogram(model)["SoftPlus"] == 1


def test_only_what_was_asked_for(unary):
    model = unary(lambda x: op.sigmoid(op.swish(op.softplus(x))), (4,))
    assert actiba(model, ops="SoftPlus") == {"SoftPlus": 1}
    assert op_histogram(model)["Swish"] == op_histogram(model)["Sigmoid"] == 1


def test_swish_with_a_beta(infer, unary):
    model = unary(lambda x: op.swish(x, op.constant(np.float32(2))), X.shape)
    assert actiba(model, segments=64) == {"Swish": 1, "SoftPlus": 0}
    np.testing.assert_allclose(
        infer(model, X)[0], X / (1 + np.exp(np.clip(-2 * X.astype(np.float64), None, 700))), atol=2e-3
    )


def test_a_computed_beta_stays_with_a_warning():
    x, beta = op.parameter([4], np.float32), op.parameter([], np.float32)
    model = ov.Model([op.swish(x, beta)], [x, beta])
    with pytest.warns(UserWarning, match="beta"):
        assert actiba(model)["Swish"] == 0


def test_an_empty_tensor_stays(unary):
    model = unary(lambda x: op.swish(x), (0, 3))
    assert actiba(model)["Swish"] == 0


@pytest.mark.parametrize("bad", [{"ops": ("Exp",)}, {"segments": 1}, {"realise": "table"}, {"bound": -1.0}])
def test_bad_input(unary, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        actiba(unary(lambda x: op.swish(x), (4,)), **bad)
