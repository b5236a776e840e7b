"""The ASH function: its identities, its gradients, and that every way of computing it gives the same numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks import native
from paperworks.activations.ash import ash, hard_ash, percent_from_z, z_from_percent
from paperworks.activations.ash.operator import _FUNCTIONS, _SOURCE, formula

SAMPLE = (1, 2, 3)


@pytest.fixture(params=["native", "torch"])
def engine(request, monkeypatch):
    """Both ways that a CPU tensor is computed."""
    monkeypatch.setenv("PAPERWORKS_NATIVE", "1" if request.param == "native" else "0")
    if request.param == "native" and native.load(_SOURCE, _FUNCTIONS) is None:
        pytest.skip("no C compiler on this machine")
    return request.param


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def sigma_of(x, dims=SAMPLE, eps=1e-6):
    return (x.var(dims, correction=0, keepdim=True) + eps).sqrt()


# ---- identities ------------------------------------------------------------------------------------------------------


def test_is_silu_at_half_alpha_where_the_threshold_is_zero():
    x = randn(1000, 3, 4, 5) * 3 + randn(1000, 1, 1, 1, seed=1) * 5
    z_k = -x.mean(SAMPLE, keepdim=True) / sigma_of(x)
    assert (ash(x, 0.5, z_k) - torch.nn.functional.silu(x)).abs().max() <= 1e-12


def test_logistic_form_is_the_smoothed_step_of_the_derivation():
    x, alpha, z_k = randn(20, 3, 4, 5), 0.7, 0.4
    u = x - x.mean(SAMPLE, keepdim=True) - z_k * sigma_of(x)
    assert (ash(x, alpha, z_k) - x * (1 + torch.tanh(alpha * u)) / 2).abs().max() <= 1e-12


def test_is_a_swish_whose_a_and_b_follow_the_sample():
    x, alpha, z_k = randn(20, 3, 4, 5) + 1, 1.3, -0.6
    a, b = 2 * alpha, -2 * alpha * (x.mean(SAMPLE, keepdim=True) + z_k * sigma_of(x))
    assert (ash(x, alpha, z_k) - x * torch.sigmoid(a * x + b)).abs().max() <= 1e-12


def test_steep_gate_is_the_hard_threshold(engine):
    x = randn(20, 3, 8, 8, dtype=torch.float32)
    u = x - x.mean(SAMPLE, keepdim=True) - 1.2 * sigma_of(x)
    outside = u.abs() > 1e-3
    torch.testing.assert_close(ash(x, 1e4, 1.2)[outside], (x * (u > 0))[outside], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("z_k", [-1.0, 0.0, 1.2816, 1.6449, 1.96])
def test_z_score_lets_its_percentage_of_normal_values_through(z_k):
    x = 3 + 2 * randn(5, 100_000)
    through = (ash(x, 1e8, z_k) / x > 0.5).double().mean(1)
    share = percent_from_z(z_k) / 100
    assert ((through - share).abs() < 4 * math.sqrt(share * (1 - share) / 100_000)).all()


@pytest.mark.parametrize(("percent", "z"), [(2.5, 1.959964), (50, 0), (10, 1.2815516), (97.5, -1.959964)])
def test_percent_and_z_score(percent, z):
    assert z_from_percent(percent) == pytest.approx(z, abs=1e-6)
    assert percent_from_z(z) == pytest.approx(percent, abs=1e-5)


@given(st.floats(1e-6, 100 - 1e-6))
def test_percent_round_trip(percent):
    assert percent_from_z(z_from_percent(percent)) == pytest.approx(percent, rel=1e-9)


def test_variance_is_that_of_the_population():
    x = torch.tensor([[0.0, 2.0]], dtype=torch.float64)  # mean 1, population sigma 1, sample sigma 1.41
    expected = x * torch.sigmoid(2 * (x - 1 - 0.5))
    torch.testing.assert_close(ash(x, 1.0, 0.5, eps=0.0), expected, rtol=1e-14, atol=0)


def test_samples_do_not_see_one_another(engine):
    a, b = randn(3, 4, 6, 6, dtype=torch.float32), 100 * randn(2, 4, 6, 6, seed=1, dtype=torch.float32)
    assert torch.equal(ash(torch.cat([a, b]), 1.0, 0.3), torch.cat([ash(a, 1.0, 0.3), ash(b, 1.0, 0.3)]))


def test_three_dimensions_are_tokens_each_for_itself(engine):
    x = randn(2, 5, 16, dtype=torch.float32)
    later = x.clone()
    later[:, 3:] = 7.0
    assert torch.equal(ash(x, 1.0, 0.3)[:, :3], ash(later, 1.0, 0.3)[:, :3])
    assert not torch.equal(ash(x, 1.0, 0.3, dims="sample")[:, :3], ash(later, 1.0, 0.3, dims="sample")[:, :3])


@pytest.mark.parametrize(
    ("shape", "dims", "same"),
    [
        ((4, 7), "auto", (1,)),
        ((2, 5, 7), "auto", (2,)),
        ((2, 5, 7), "sample", (-2, -1)),
        ((2, 3, 4, 5), "auto", (1, 2, 3)),
        ((2, 3, 4, 5, 2), "auto", (4, 3, 2, 1)),
    ],
)
def test_names_of_dimensions(shape, dims, same):
    x = randn(*shape)
    assert torch.equal(ash(x, 1.0, 0.3, dims=dims), ash(x, 1.0, 0.3, dims=same))


def test_negative_percentile_leaves_large_negative_values():
    x = torch.tensor([[-10.0, -10.0, -10.0, -10.0, -50.0]], dtype=torch.float64)
    assert ash(x, 1.0, -1.0)[0, 0] == pytest.approx(-10, abs=1e-6)


def test_leak_zero_is_ash_and_leak_one_would_be_identity():
    x = randn(3, 4, 5, 5)
    torch.testing.assert_close(ash(x, 1.0, 0.2, leak=0.3), 0.3 * x + 0.7 * ash(x, 1.0, 0.2), rtol=1e-13, atol=1e-13)


# ---- hard ------------------------------------------------------------------------------------------------------------


def test_hard_form():
    x = 4 * randn(6, 50)
    u = 2 * 1.5 * (x - x.mean(1, keepdim=True) - 0.8 * sigma_of(x, (1,)))
    y = hard_ash(x, 1.5, 0.8)
    torch.testing.assert_close(y, x.clamp(0, 2) * torch.nn.functional.hardsigmoid(u), rtol=1e-13, atol=1e-13)
    assert y.min() == 0
    assert y.max() <= 2
    assert (y[u <= -3] == 0).all()
    assert torch.equal(y[(u >= 3) & (x >= 2)], torch.full_like(y[(u >= 3) & (x >= 2)], 2.0))


def test_hard_form_is_sparse_at_a_high_percentile():
    share = (hard_ash(randn(20, 1000), 5.0, 2.0) > 0).double().mean()
    assert share < percent_from_z(2.0 - 0.3 - 0.1) / 100  # u > -3 is x - mean > (z - 3 / (2 alpha)) sigma


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leak", [0.0, 0.2])
@pytest.mark.parametrize("parameter_shape", [(), (1,), (3, 1, 1), (1, 1, 4, 1), (2, 1, 1, 1), (2, 3, 4, 2)])
def test_first_and_second_derivatives(leak, parameter_shape):
    x = randn(2, 3, 4, 2).requires_grad_()
    alpha = (1 + 0.3 * randn(*parameter_shape, seed=1)).requires_grad_()
    z_k = randn(*parameter_shape, seed=2).requires_grad_()

    def function(x, alpha, z_k):
        return ash(x, alpha, z_k, leak=leak)

    assert torch.autograd.gradcheck(function, (x, alpha, z_k))
    assert torch.autograd.gradgradcheck(function, (x, alpha, z_k))


def test_hard_derivatives():
    x = randn(2, 9).requires_grad_()
    alpha, z_k = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (0.9, 0.2))
    assert torch.autograd.gradcheck(hard_ash, (x, alpha, z_k))


LAYOUTS = {
    "NCHW": ((5, 8, 7, 9), (8, 1, 1), None),
    "NCHW, more than one part": ((2, 5, 90, 111), (5, 1, 1), None),
    "NHWC": ((5, 8, 7, 9), (8, 1, 1), torch.channels_last),
    "NDHWC": ((2, 8, 3, 7, 5), (8, 1, 1, 1), torch.channels_last_3d),
    "NCDHW": ((2, 8, 3, 7, 5), (8, 1, 1, 1), None),
    "tokens": ((3, 6, 75), (75,), None),
    "features": ((9, 40), (40,), None),
    "one element": ((4, 1), (1,), None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("many", [False, True], ids=["scalar", "channel"])
@pytest.mark.parametrize("mean", [0.2, 1e4])
def test_float32_agrees_with_float64(engine, layout, many, mean):
    shape, channels, memory_format = LAYOUTS[layout]
    parameter_shape = channels if many else (1,)
    leaves = [
        (randn(*shape) + mean).float(),
        (1 + 0.3 * randn(*parameter_shape, seed=1)).float(),
        randn(*parameter_shape, seed=2).float(),
    ]
    g = randn(*shape, seed=3).float()
    if memory_format:
        leaves[0], g = (t.contiguous(memory_format=memory_format) for t in (leaves[0], g))
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    y = ash(*leaves, leak=0.05)
    dims = (2,) if len(shape) == 3 else tuple(range(1, len(shape)))
    wanted = formula(*exact, dims, 0.05, 1e-6)
    assert y.stride() == leaves[0].stride()
    pairs = [(y, wanted)]
    pairs += zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(wanted, exact, g.double()), strict=True)
    for got, exactly in pairs:
        # A gradient of one parameter adds terms of the size of the mean and of both signs: n roundings, sqrt(n) in all.
        terms = (1 + mean) * (y.numel() / exactly.numel()) ** 0.5
        torch.testing.assert_close(got.double(), exactly, rtol=5e-6, atol=1e-6 * terms)


def test_number_of_threads_changes_no_bit(engine):
    if engine == "torch":
        pytest.skip("torch's own sums are its own affair")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for shape in ((7, 4, 70, 80), (1, 4, 150, 160)):
                x = randn(*shape, dtype=torch.float32).requires_grad_()
                alpha, z_k = torch.ones(4, 1, 1, requires_grad=True), torch.full((4, 1, 1), 0.3, requires_grad=True)
                y = ash(x, alpha, z_k)
                results.append((y, *torch.autograd.grad(y, (x, alpha, z_k), randn(*shape, seed=1).float())))
    finally:
        torch.set_num_threads(before)
    for one, two, three in (results[0::2], results[1::2]):
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, three, strict=True))


def test_defaults_for_new_tensors_do_not_matter(engine):
    x = randn(3, 4, 5, 5, dtype=torch.float32)
    wanted = ash(x, 1.0, 0.3)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(ash(x, 1.0, 0.3), wanted)
    finally:
        torch.set_default_dtype(torch.float32)


def test_second_derivatives_in_float32(engine):
    def second(dtype):
        x = randn(3, 4, 5, 5, dtype=dtype).requires_grad_()
        alpha = torch.tensor([0.8], dtype=dtype, requires_grad=True)
        y = ash(x, alpha, torch.tensor([0.3], dtype=dtype))
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (x, alpha))

    for got, exactly in zip(second(torch.float32), second(torch.float64), strict=True):
        torch.testing.assert_close(got.double(), exactly, rtol=1e-5, atol=1e-5 * exactly.abs().max().item())


def test_only_the_input_and_two_statistics_a_sample_are_kept(engine):
    x = randn(4, 8, 16, 16, dtype=torch.float32).requires_grad_()
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ash(x, torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True))
    assert kept.pop(x.untyped_storage().data_ptr()) == x.numel() * 4
    assert sum(kept.values()) <= 4 * 3 * 4 + 8


# ---- numbers that overflow, underflow, or are none -------------------------------------------------------------------


def test_constant_map_has_finite_gradients(engine):
    x = torch.full((2, 3, 4, 4), 5.0, requires_grad=True)
    ash(x, 1.0, 0.0).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.5), rtol=1e-4, atol=1e-4)


def test_not_a_number_stays_in_its_sample(engine):
    x = randn(3, 4, 5, 5, dtype=torch.float32)
    x[1, 0, 0, 0] = math.nan
    x.requires_grad_()
    y = ash(x, 1.0, 0.2)
    y.sum().backward()
    for t in (y, x.grad):
        assert t[1].isnan().all()
        assert t[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(engine, dtype):
    x = (40 * randn(3, 4, 50, 50)).to(dtype).requires_grad_()  # exp(2 alpha u) is beyond float16, x^2 summed as well
    y = ash(x, 2.0, 0.5)
    y.backward(torch.ones_like(y))
    exact = x.detach().double().requires_grad_()
    wanted = formula(exact, 2.0, 0.5, SAMPLE, 0.0, 1e-6)
    wanted.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), wanted, rtol=step, atol=step * 1e-2)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=step, atol=step * 1e-2)


def test_saturated_gate_is_exactly_closed_and_open(engine):
    x = torch.tensor([[-1e6, 1e6, 3e6]])
    y = ash(x, 1e4, 0.0)
    assert y[0, 0] == 0
    assert y[0, 2] == 3e6


# ---- shapes ----------------------------------------------------------------------------------------------------------


def test_empty_batch(engine):
    x = torch.empty(0, 3, 4, 4, requires_grad=True)
    alpha = torch.ones(1, requires_grad=True)
    y = ash(x, alpha, 0.1)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 3, 4, 4)
    assert alpha.grad.item() == 0


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    form=st.sampled_from(["contiguous", "transposed", "strided", "expanded"]),
    seed=st.integers(0, 1000),
)
def test_any_shape_dtype_and_memory_layout(shape, dtype, form, seed):
    x = randn(*shape, seed=seed)
    if form == "transposed":
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif form == "strided":
        x = torch.stack([x, x + 1], dim=-1)[..., 0]
    elif form == "expanded":
        x = x[..., :1].expand(*shape)
    x = x.to(dtype) if form == "contiguous" else x.to(dtype, memory_format=torch.preserve_format)
    dims = (2,) if len(shape) == 3 else tuple(range(1, len(shape)))
    y = ash(x, 0.8, 0.4)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    wanted = formula(x.double(), 0.8, 0.4, dims, 0.0, 1e-6)
    step = max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(y.double(), wanted, rtol=4 * step, atol=4 * step)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9000), st.integers(1, 3), st.integers(0, 100))
def test_any_number_of_elements(n, rows, seed):
    x = randn(rows, n, seed=seed, dtype=torch.float32)
    torch.testing.assert_close(
        ash(x, 1.0, 0.3).double(), formula(x.double(), 1.0, 0.3, (1,), 0.0, 1e-6), rtol=4e-6, atol=2e-6
    )


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [ash, hard_ash])
@pytest.mark.parametrize(
    ("x", "arguments", "error", "words"),
    [
        (torch.zeros(2, 3, dtype=torch.long), {}, TypeError, r"x must be a floating tensor, got torch\.int64"),
        (torch.zeros(2, 3, dtype=torch.complex64), {}, TypeError, "x must be a floating tensor"),
        (torch.zeros(3), {}, ValueError, r"batch dimension.*\(3,\)"),
        (torch.zeros(2, 3), {"dims": (0, 1)}, ValueError, r"dims.*batch"),
        (torch.zeros(2, 3), {"dims": (-2,)}, ValueError, r"dims.*batch"),
        (torch.zeros(2, 3), {"dims": (2,)}, ValueError, r"dims.*\(2,\).*2-D"),
        (torch.zeros(2, 3), {"dims": (1, -1)}, ValueError, "dims.*distinct"),
        (torch.zeros(2, 3), {"dims": ()}, ValueError, "dims must name"),
        (torch.zeros(2, 3), {"dims": "batch"}, ValueError, "dims.*'batch'"),
        (torch.zeros(2, 0), {}, ValueError, r"elements along dims \(1,\).*\(2, 0\)"),
        (torch.zeros(2, 3, 0, 4), {}, ValueError, "elements along dims"),
        (torch.zeros(2, 3), {"alpha": torch.ones(2)}, ValueError, r"alpha must broadcast.*\(2, 3\).*\(2,\)"),
        (torch.zeros(2, 1), {"z_k": torch.ones(4)}, ValueError, "z_k must broadcast"),
        (torch.zeros(2, 3), {"z_k": torch.ones(1, 1, 3)}, ValueError, "z_k must broadcast"),
    ],
)
def test_bad_input_is_named(function, x, arguments, error, words):
    with pytest.raises(error, match=words):
        function(x, **{"alpha": 1.0, "z_k": 0.0, **arguments})


@pytest.mark.parametrize("percent", [0, 100, -1, math.nan])
def test_percent_has_bounds(percent):
    with pytest.raises(ValueError, match="percent must be inside"):
        z_from_percent(percent)
