"""EAFOActivation: CRReLU is one case of it, its statistics are running ones, it is clean everywhere."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paperworks.activations.crrelu import EAFOActivation, NormalDensity, crrelu, eafo_direction
from paperworks.activations.eafo_derivatives import BASES, derivative, slopes

NAMES = list(BASES)


def with_statistics(base, mean, var, **options):
    m = EAFOActivation(base, **options).eval()
    m.running_mean.fill_(mean)
    m.running_var.fill_(var)
    return m


def test_is_crrelu_for_relu_under_the_standard_normal():
    x = torch.linspace(-6, 6, 1001)
    for eps in (0.01, -0.4):
        torch.testing.assert_close(EAFOActivation("relu", eps=eps)(x), crrelu(x, eps), rtol=0, atol=1e-6)


def test_the_names_of_the_method_are_there():
    assert {"relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "softplus", "elu"} <= set(NAMES)


@pytest.mark.parametrize("base", ["tanh", "sigmoid", "softplus"])
def test_kernel_is_the_entropy_direction_up_to_its_factor(base):
    mean, var = 0.5, 2.0
    z = torch.linspace(-2, 2, 41, dtype=torch.float64)
    m = with_statistics(base, mean, var, delta=1e-6)
    c = eafo_direction(BASES[base].value, NormalDensity(mean, math.sqrt(var)), z)
    torch.testing.assert_close(m.kernel(z), -math.sqrt(2 * math.pi) * var * c, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("base", NAMES)
def test_kernel_is_the_stated_formula(base):
    mean, var, delta = -0.3, 1.7, 0.05
    z = torch.linspace(-5, 5, 101, dtype=torch.float64) + 0.003
    m = with_statistics(base, mean, var, delta=delta, eps=0.7)
    density = NormalDensity(m.running_mean.item(), math.sqrt(m.running_var.item()))
    first, second = slopes(BASES[base].value, z)
    ratio = second * first / (first**2 + delta**2)
    k = -math.sqrt(2 * math.pi) * m.running_var.item() * (density.dpdf(z) - density.pdf(z) * ratio)
    torch.testing.assert_close(m(z), BASES[base].value(z) + m.eps.double() * k, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("base", NAMES)
def test_closed_derivatives_are_those_of_the_function(base):
    z = torch.linspace(-12, 12, 97, dtype=torch.float64) + 0.01
    value, _, curvature = BASES[base]
    first, second = slopes(value, z)
    torch.testing.assert_close(first, derivative(value)(z), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(second, derivative(derivative(value))(z), rtol=1e-6, atol=1e-9)
    assert (curvature is None) == (not bool(second.any()))


@pytest.mark.parametrize("base", NAMES)
def test_finite_with_its_derivatives_far_out(base):
    z = torch.linspace(-50, 50, 2001, requires_grad=True)
    for mean, var in ((0.0, 1.0), (0.0, 25.0), (3.0, 1e-4), (0.0, 0.0)):
        m = with_statistics(base, mean, var, eps=0.5)
        y = m(z)
        (first,) = torch.autograd.grad(y.sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), z)
        assert y.isfinite().all()
        assert first.isfinite().all()
        assert second.isfinite().all()
    half = torch.tensor([300.0, -300.0, 6e4, 0.5], dtype=torch.float16, requires_grad=True)
    y = with_statistics(base, 0.0, 1.0)(half)
    assert y.dtype == torch.float16
    assert y.isfinite().all()
    assert torch.autograd.grad(y.sum(), half)[0].isfinite().all()


@pytest.mark.parametrize("base", [*NAMES, torch.sin, nn.Mish()])
def test_gradcheck_and_gradgradcheck(base):
    m = with_statistics(base, 0.2, 1.5, eps=0.3, delta=0.1, dtype=torch.float64)
    z = torch.tensor([-1.7, -0.4, 0.35, 1.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, eps: torch.func.functional_call(m, {"eps": eps}, (z,)), (z, m.eps))
    assert torch.autograd.gradgradcheck(lambda z, eps: torch.func.functional_call(m, {"eps": eps}, (z,)), (z, m.eps))


def test_statistics_follow_the_training_input_and_nothing_else():
    m, z = EAFOActivation("gelu", momentum=0.25), torch.randn(50, 7) * 3 + 2
    assert (m.running_mean, m.running_var, m.num_batches_tracked) == (0, 1, 0)
    m(z)
    torch.testing.assert_close(m.running_mean, 0.25 * z.mean())
    torch.testing.assert_close(m.running_var, 0.75 + 0.25 * z.var(correction=0))
    assert m.num_batches_tracked == 1
    before = copy.deepcopy(m.state_dict())
    m.eval()(z)
    m.train().freeze_stats()(z)
    for name, value in m.state_dict().items():
        assert torch.equal(value, before[name])


def test_outputs_do_not_depend_on_the_rest_of_the_batch():
    m, a, b = EAFOActivation("silu", eps=0.3), torch.randn(4, 5), 10 * torch.randn(3, 5)
    for mode in (True, False):
        m.train(mode)
        together = copy.deepcopy(m)(torch.cat([a, b]))
        torch.testing.assert_close(together[:4], copy.deepcopy(m)(a))


def test_momentum_one_is_the_last_batch_and_empty_or_overflowing_batches_change_nothing():
    m, z = EAFOActivation(momentum=1.0), torch.randn(100)
    m(torch.full((10,), 5.0))
    m(z)
    torch.testing.assert_close(m.running_mean, z.mean())
    torch.testing.assert_close(m.running_var, z.var(correction=0))
    m(torch.empty(0, 3))
    m(torch.tensor([1.0, math.inf]))
    torch.testing.assert_close(m.running_mean, z.mean())


def test_two_training_passes_before_one_backward_pass():
    m = EAFOActivation("gelu")
    x = torch.randn(3, 4, requires_grad=True)
    (m(x).sum() + m(2 * x).sum()).backward()
    assert x.grad.isfinite().all()


def test_statistics_stay_float32_in_a_half_precision_model():
    m = EAFOActivation("gelu", momentum=0.001).to(torch.bfloat16)
    assert m.eps.dtype == torch.bfloat16
    for _ in range(20):
        m(torch.full((8,), 2.0, dtype=torch.bfloat16))
    assert m.running_mean.dtype == torch.float32
    assert m.running_mean.item() == pytest.approx(2 * (1 - 0.999**20), rel=1e-4)
    kept = with_statistics("relu", 1 / 3, 1.0).half()
    assert kept.running_mean.item() == pytest.approx(1 / 3, rel=1e-7)
    assert EAFOActivation().to("meta").running_var.is_meta


def test_torch_functions_and_modules_are_recognised_and_others_are_taken_as_they_are():
    assert EAFOActivation(torch.tanh).base == "tanh"
    assert EAFOActivation(nn.GELU()).base == "gelu"
    assert EAFOActivation(nn.GELU(approximate="tanh")).base == "gelu_tanh"
    assert isinstance(EAFOActivation(nn.LeakyReLU(0.2)).base, nn.LeakyReLU)
    z = torch.linspace(-3, 3, 61)
    quick = EAFOActivation(lambda t: t * torch.sigmoid(t), eps=0.3).eval()
    torch.testing.assert_close(quick(z), EAFOActivation("silu", eps=0.3).eval()(z), rtol=1e-5, atol=1e-6)
    learned = EAFOActivation(nn.PReLU())
    assert {name for name, _ in learned.named_parameters()} == {"eps", "base.weight"}


@pytest.mark.parametrize("base", ["relu", "gelu", F.mish])
def test_compiles_in_one_graph_and_vmaps(base):
    m, z = EAFOActivation(base, eps=0.3), torch.randn(6, 5)
    want = copy.deepcopy(m)
    y = torch.compile(m, backend="aot_eager", fullgraph=True)(z)
    torch.testing.assert_close(y, want(z), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(m.running_mean, want.running_mean)
    y.sum().backward()
    m.eval()
    torch.testing.assert_close(torch.func.vmap(m)(z), m(z))


def test_state_dict_deepcopy_pickle_and_export():
    m = EAFOActivation("silu", num_parameters=3, eps=0.2)
    m(torch.randn(10, 3) + 1)
    assert list(m.state_dict()) == ["eps", "running_mean", "running_var", "num_batches_tracked"]
    other, buffer = EAFOActivation("silu", num_parameters=3), io.BytesIO()
    torch.save(m.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(4, 3)
    m.freeze_stats().eval()
    for copied in (
        other.eval(),
        copy.deepcopy(m),
        pickle.loads(pickle.dumps(m)),
        torch.export.export(m, (x,)).module(),
    ):
        torch.testing.assert_close(copied(x), m(x))


@settings(max_examples=20)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    base=st.sampled_from(NAMES),
)
def test_shape_and_dtype_are_kept(shape, dtype, base):
    z = torch.randn(shape).to(dtype)
    for view in (z, z.transpose(0, -1)) if shape else (z,):
        y = EAFOActivation(base)(view)
        assert y.shape == view.shape
        assert y.dtype == dtype


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="base: got 'swish', wanted one of relu"):
        EAFOActivation("swish")
    with pytest.raises(TypeError, match="base: got int"):
        EAFOActivation(3)
    for momentum in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="momentum: got"):
            EAFOActivation(momentum=momentum)
    with pytest.raises(ValueError, match="delta: got 0"):
        EAFOActivation(delta=0.0)
    with pytest.raises(ValueError, match="eps: got nan"):
        EAFOActivation(eps=math.nan)
    with pytest.raises(ValueError, match="num_parameters: got 3 for 4 channels"):
        EAFOActivation(num_parameters=3)(torch.ones(2, 4))
    with pytest.raises(TypeError, match=r"z: got torch\.int64"):
        EAFOActivation()(torch.arange(3))
