"""The gate: its equation, limit cases and gradients; fused loops and plain tensor operations agree."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paperworks.efficiency.dopamine import GatedActivation, TauGate, fused, tau_gate
from paperworks.efficiency.dopamine.gate import gated

ACTIVATIONS = {"relu": nn.ReLU(), "gelu": nn.GELU(), "gelu tanh": nn.GELU("tanh"), "silu": nn.SiLU(), "tanh": nn.Tanh()}


def tensors(*shape, rows=(), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z = (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)
    tau, gain = (torch.randn(*rows, shape[-1], generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return z, tau, gain


# --- the equation and its limits ---


def test_the_equation_in_numbers():
    z, tau, gain = torch.tensor([0.5, -1.0]), torch.tensor([0.0, -2.0]), torch.tensor([2.0, 3.0])
    soft = [2 * 0.5 / (1 + math.exp(-4 * 0.5)), 3 * -1 / (1 + math.exp(-4 * 1))]
    assert tau_gate(z, z, tau, gain, 4.0).tolist() == pytest.approx(soft)
    assert tau_gate(z, z, tau, gain, 4.0, hard=True).tolist() == [1.0, -3.0]


def test_the_start_leaves_units_that_are_on_within_two_percent():
    gate = TauGate(3)
    z = torch.tensor([0.0, 0.5, 4.0])
    assert torch.sigmoid(torch.tensor(4.0)).item() == pytest.approx(0.982, abs=5e-4)
    assert (gate(z, torch.ones(3)) >= 0.982).all()
    assert (gate.sharpness, gate.tau.shape, gate.gain.tolist()) == (4.0, (3,), [1, 1, 1])


def test_a_threshold_of_minus_infinity_leaves_the_gain_alone():
    z, _, gain = tensors(5, 7)
    for hard in (False, True):
        h = tau_gate(z, torch.relu(z), torch.full((7,), -math.inf, dtype=z.dtype), gain, 4.0, hard=hard)
        assert torch.equal(h, gain * torch.relu(z))


def test_a_hard_gate_at_or_below_zero_is_the_identity_of_relu():
    z, tau, _ = tensors(50, 7)
    h = tau_gate(z, torch.relu(z), -tau.abs(), torch.ones_like(tau), 4.0, hard=True)
    assert torch.equal(h, torch.relu(z))


def test_the_gate_reads_the_pre_activation():
    # phi(z) = 0 > tau would be open; z = -5 < tau is not
    z = torch.tensor([-5.0])
    assert tau_gate(z, torch.exp(z), torch.tensor([-1.0]), torch.ones(1), 4.0, hard=True).item() == 0


def test_soft_becomes_hard_with_the_sharpness():
    z, tau, gain = tensors(100, 7)
    far = (z - tau).abs() > 0.05
    soft, hard = (tau_gate(z, z, tau, gain, 1000.0, hard=h) for h in (False, True))
    torch.testing.assert_close(soft[far], hard[far])


# --- gradients ---


@pytest.mark.parametrize("hard", [False, True])
def test_gradients_and_second_gradients(hard):
    z, tau, gain = (t.requires_grad_() for t in tensors(3, 4))
    inputs = (z, gain) if hard else (z, tau, gain)

    def f(*given):
        threshold = tau.detach() if hard else given[1]
        return tau_gate(given[0], torch.tanh(given[0]), threshold, given[-1], 4.0, hard=hard)

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_the_threshold_has_the_gradient_of_the_paper_and_none_from_silent_units():
    z, tau, gain = tensors(1, 6, dtype=torch.float32)
    tau.requires_grad_()
    phi = torch.relu(z)
    [slope] = torch.autograd.grad(tau_gate(z, phi, tau, gain, 4.0).sum(), tau)
    g = torch.sigmoid(4 * (z - tau))
    torch.testing.assert_close(slope, (-gain * phi * 4 * g * (1 - g))[0])
    assert not slope[z[0] <= 0].any()


def test_a_hard_gate_gives_the_threshold_no_gradient():
    z, tau, gain = tensors(3, 4, dtype=torch.float32)
    tau.requires_grad_(), gain.requires_grad_()
    tau_gate(z, z, tau, gain, 4.0, hard=True).sum().backward()
    assert tau.grad is None or not tau.grad.any()
    torch.testing.assert_close(gain.grad, (z * (z > tau)).sum(0))


def test_second_derivatives_of_the_fused_pass():
    z, tau, gain = (t.requires_grad_() for t in tensors(6, 5, dtype=torch.float32))
    second = []
    for phi in (None, nn.functional.silu(z)):
        h = gated(z, phi, nn.SiLU(), tau, gain, 4.0, False, -1)
        [first] = torch.autograd.grad(h.sum(), z, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), (z, tau, gain)))
    for a, b in zip(*second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# --- one pass and several ---

SHAPES = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 9)),
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6)),
)


@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES,
    name=st.sampled_from(list(ACTIVATIONS)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    hard=st.booleans(),
    per_sample=st.booleans(),
    order=st.sampled_from(["contiguous", "channels last", "strided"]),
    seed=st.integers(0, 99),
)
def test_any_layout_gives_the_formula(shape, name, dtype, hard, per_sample, order, seed):
    generator = torch.Generator().manual_seed(seed)
    dim = 1 if len(shape) == 4 else -1
    z = (2 * torch.randn(*shape, generator=generator)).to(dtype)
    if order == "channels last" and len(shape) == 4:
        z = z.contiguous(memory_format=torch.channels_last)
    if order == "strided":
        z = torch.stack([z, z], -1)[..., 0]
    rows = (shape[0],) if per_sample else ()
    gates = torch.float64 if dtype == torch.float64 else torch.float32
    tau, gain = (torch.randn(*rows, shape[dim], generator=generator).to(gates).requires_grad_() for _ in range(2))
    z.requires_grad_()
    g = torch.randn(*shape, generator=generator).to(dtype)
    activation = ACTIVATIONS[name]
    want = fused.formula(z, activation(z), tau, gain, 4.0, hard, dim)
    rough = dtype in (torch.bfloat16, torch.float16)
    for h in (
        gated(z, None, activation, tau, gain, 4.0, hard, dim),
        tau_gate(z, activation(z), tau, gain, 4.0, hard=hard, dim=dim),
    ):
        assert h.dtype == dtype
        torch.testing.assert_close(h, want, **({"rtol": 2e-2, "atol": 3e-2} if rough else {"rtol": 1e-5, "atol": 5e-6}))
        found, wanted = (torch.autograd.grad(t, (z, gain), g, retain_graph=True) for t in (h, want))
        tolerance = {"rtol": 5e-2, "atol": 0.3} if rough else {"rtol": 1e-4, "atol": 2e-4}
        torch.testing.assert_close(found, wanted, **tolerance)
        if not hard:
            found, wanted = (torch.autograd.grad(t, tau, g, retain_graph=True) for t in (h, want))
            torch.testing.assert_close(found, wanted, **tolerance)


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu tanh", "silu"])
def test_float32_on_a_cpu_is_one_fused_pass(name):
    if fused._kernels("cpu", torch.float32) is None:
        pytest.skip("no C compiler")
    z, tau, gain = tensors(6, 5, dtype=torch.float32)
    h = gated(z.requires_grad_(), None, ACTIVATIONS[name], tau, gain, 4.0, False, -1)
    assert type(h.grad_fn).__name__ == "_FusedBackward"


def test_sums_do_not_depend_on_the_threads():
    z, tau, gain = tensors(700, 96, dtype=torch.float32)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        t, a = tau.clone().requires_grad_(), gain.clone().requires_grad_()
        found.append(torch.autograd.grad(gated(z, None, nn.GELU(), t, a, 4.0, False, -1).sum(), (t, a)))
    torch.set_num_threads(before)
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_not_a_number_and_infinity_stay(name):
    z = torch.tensor([[math.nan, math.inf, 30.0]])
    h = gated(z, None, ACTIVATIONS[name], torch.zeros(3), torch.ones(3), 4.0, False, -1)
    assert torch.isnan(h[0, 0])
    torch.testing.assert_close(h[0, 1:], ACTIVATIONS[name](z[0, 1:]))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)])
def test_empty_input(shape):
    gate = TauGate(4)
    z = torch.zeros(shape, requires_grad=True)
    h = gate(z, torch.relu(z))
    h.sum().backward()
    assert h.shape == z.grad.shape == shape
    assert not gate.tau.grad.any()


# --- transforms ---


def test_functional_transforms():
    z, tau, gain = tensors(3, 4, dtype=torch.float32)
    f = lambda z, tau: tau_gate(z, torch.tanh(z), tau, gain, 4.0)  # noqa: E731
    torch.testing.assert_close(torch.func.vmap(f, (0, None))(z, tau), f(z, tau))
    jacobian = torch.func.jacrev(f, argnums=1)(z[:1], tau)[0]
    want = torch.autograd.functional.jacobian(lambda t: f(z[:1], t), tau)[0]
    torch.testing.assert_close(jacobian, want)
    _, tangent = torch.func.jvp(lambda t: f(z[:1], t), (tau,), (torch.ones_like(tau),))
    torch.testing.assert_close(tangent[0], want.sum(1))


def test_compiled_without_a_graph_break():
    torch._dynamo.reset()
    module = GatedActivation(nn.GELU(), 6, ("a", "b"))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    z = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    for mode in ("a", "b", torch.tensor([0, -1, 1, 0]), None):
        module.set_mode(mode)
        torch.testing.assert_close(compiled(z), module(z))


def test_autocast_keeps_the_gate_in_float32():
    gate = TauGate(4)
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        h = gate(z, torch.relu(z))
    assert h.dtype == torch.bfloat16
    torch.testing.assert_close(h, (torch.relu(z.float()) * torch.sigmoid(4 * (z.float() + 1))).bfloat16())


# --- modules ---


def test_modules_are_copied_pickled_and_restored():
    for module in (TauGate(4, sharpness=2.0), GatedActivation(nn.GELU(), 4, ("a", "b"), tau_init=-2.0)):
        with torch.no_grad():
            module.tau.add_(0.5)
        args = (torch.ones(2, 4), torch.ones(2, 4))[: 2 if isinstance(module, TauGate) else 1]
        fresh = TauGate(4, sharpness=2.0) if isinstance(module, TauGate) else GatedActivation(nn.GELU(), 4, ("a", "b"))
        fresh.load_state_dict(module.state_dict())
        for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
            assert torch.equal(again(*args), module(*args))


def test_float32_stays_in_a_half_precision_model():
    module = GatedActivation(nn.GELU(), 4).bfloat16()
    assert module.tau.dtype == module.gain.dtype == torch.float32
    assert module(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert GatedActivation(nn.GELU(), 4).double().tau.dtype == torch.float64


def test_a_module_that_works_in_place_does_not_spoil_what_the_gate_reads():
    z = torch.tensor([[-2.0, -0.5, 1.0]])
    module = GatedActivation(nn.LeakyReLU(0.5, inplace=True), 3)
    want = nn.functional.leaky_relu(z, 0.5) * torch.sigmoid(4 * (z + 1))
    torch.testing.assert_close(module(z.clone()), want)
    module.set_mode(torch.tensor([-1]))
    torch.testing.assert_close(module(z.clone()), nn.functional.leaky_relu(z, 0.5))


def test_modes_are_rows_in_the_order_they_were_added():
    module = GatedActivation(nn.ReLU(), 3, ("first",))
    module.add_mode("second", tau=torch.tensor([1.0, 2.0, 3.0]))
    assert module.modes == ["first", "second"]
    assert module.tau.tolist() == [[-1, -1, -1], [1, 2, 3]]
    assert module.gain.shape == (2, 3)


def test_each_sample_in_its_mode():
    generator = torch.Generator().manual_seed(0)
    module = GatedActivation(nn.GELU(), 5, ("a", "b"))
    with torch.no_grad():
        module.tau.normal_(generator=generator), module.gain.normal_(generator=generator)
    for shape in ((4, 5), (4, 3, 5)):
        z = torch.randn(shape, generator=generator)
        rows = torch.tensor([1, -1, 0, 1])
        module.set_mode(rows)
        mixed = module(z)
        for i, row in enumerate(rows.tolist()):
            module.set_mode(None if row < 0 else module.modes[row])
            torch.testing.assert_close(mixed[i : i + 1], module(z[i : i + 1]))
        module.set_mode(None)
        assert torch.equal(mixed[1], module(z)[1]), "the base, bit by bit"


def test_only_the_rows_in_use_are_trained():
    module = GatedActivation(nn.GELU(), 5, ("a", "b", "c"))
    module.set_mode(torch.tensor([2, 0, 2]))
    module(torch.ones(3, 5)).sum().backward()
    assert module.gain.grad.abs().sum(1).bool().tolist() == [True, False, True]
    torch.testing.assert_close(module.gain.grad[2], 2 * module.gain.grad[0])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: TauGate(0), ValueError, "width"),
        (lambda: TauGate(3, sharpness=0), ValueError, "sharpness"),
        (lambda: TauGate(3, tau_init=math.nan), ValueError, "tau_init"),
        (lambda: GatedActivation(nn.ReLU(), 3, ()), ValueError, "modes"),
        (lambda: GatedActivation(nn.ReLU(), 3, ("a", "a")), ValueError, "modes"),
        (lambda: GatedActivation(torch.relu, 3), TypeError, "activation"),
        (lambda: GatedActivation(nn.ReLU(), 3)(torch.ones(2, 4)), ValueError, "wanted 3 units"),
        (lambda: GatedActivation(nn.ReLU(), 3).set_mode("x"), ValueError, "default"),
        (lambda: GatedActivation(nn.ReLU(), 3).set_mode(torch.tensor([1])), ValueError, "rows"),
        (lambda: GatedActivation(nn.ReLU(), 3).set_mode(1), TypeError, "mode"),
        (lambda: GatedActivation(nn.ReLU(), 3).add_mode("default"), ValueError, "exists"),
        (lambda: tau_gate(torch.ones(2, 3), torch.ones(2, 2), torch.ones(3), torch.ones(3), 1.0), ValueError, "phi_z"),
        (lambda: tau_gate(torch.ones(2, 3), torch.ones(2, 3), torch.ones(4), torch.ones(3), 1.0), ValueError, "tau"),
        (
            lambda: tau_gate(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3), torch.ones(5, 3), 1.0),
            ValueError,
            "rows",
        ),
        (
            lambda: tau_gate(torch.ones(2, 3, dtype=int), torch.ones(2, 3), torch.ones(3), torch.ones(3), 1.0),
            TypeError,
            "z",
        ),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_batch_of_another_size_than_the_modes():
    module = GatedActivation(nn.ReLU(), 3)
    module.set_mode(torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="batch of 5"):
        module(torch.ones(5, 3))
