"""Bits are one a value; activations are exact forwards and follow the stated slope backwards."""

import copy
import itertools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paperworks.efficiency.mobiletl import (
    ShiftOnlyNorm2d,
    SignedHardswish,
    SignedReLU,
    SignedReLU6,
    SignedSiLU,
    pack_bits,
    signed_activation,
    stored_activations,
    unpack_bits,
)
from paperworks.efficiency.mobiletl.activation import bin_slopes

KINDS = {"relu": torch.relu, "relu6": F.relu6, "hardswish": F.hardswish, "silu": F.silu}
SHAPES = st.lists(st.integers(0, 7), min_size=0, max_size=4)


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- bits ---


@given(SHAPES, st.integers(0, 99))
def test_what_is_packed_comes_back(shape, seed):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (math.ceil(mask.numel() / 8),)
    assert torch.equal(unpack_bits(packed, shape), mask)


def test_the_first_value_is_the_lowest_bit_and_spare_bits_are_0():
    assert pack_bits(torch.tensor([True, False, True, False, False, False, False, False, True])).tolist() == [5, 1]


def test_a_transposed_mask_is_packed_in_its_own_order():
    mask = torch.arange(12).view(3, 4) % 5 == 0
    assert torch.equal(pack_bits(mask.T), pack_bits(mask.T.contiguous()))


def test_bad_bits():
    with pytest.raises(TypeError, match="mask"):
        pack_bits(torch.ones(3))
    with pytest.raises(TypeError, match="packed"):
        unpack_bits(torch.ones(1), (3,))
    with pytest.raises(ValueError, match="want \\(2,\\)"):
        unpack_bits(torch.zeros(1, dtype=torch.uint8), (9,))


# --- the activation ---


def slope(z: torch.Tensor, kind: str, backward: str) -> torch.Tensor:
    """The stated slope, written out."""
    if kind == "relu" or backward == "sign":
        return (z > 0).to(z.dtype)
    if kind == "relu6":
        return ((z > 0) & (z < 6)).to(z.dtype)
    if backward == "exact":
        leaf = z.detach().clone().requires_grad_()
        return torch.autograd.grad(KINDS[kind](leaf).sum(), leaf)[0]
    s = bin_slopes(kind, "two_bit")
    bins = (z < -1.5, (z >= -1.5) & (z < 0), (z >= 0) & (z < 1.5), z >= 1.5)
    return sum(value * inside for value, inside in zip(s, bins, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backward", ["sign", "exact", "two_bit"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forward_is_exact_and_backward_has_the_stated_slope(kind, backward, packed, dtype):
    x = values(3, 5, 7, dtype=dtype).requires_grad_()
    g = values(3, 5, 7, seed=1, dtype=dtype)
    y = signed_activation(x, kind, backward=backward, pack_bits=packed)
    torch.testing.assert_close(y, KINDS[kind](x), rtol=1e-6, atol=1e-6)
    [dx] = torch.autograd.grad(y, x, g)
    torch.testing.assert_close(dx, g * slope(x.detach(), kind, backward), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["hardswish", "silu"])
def test_a_bins_slope_is_its_mean_under_a_normal_input(kind):
    z = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = slope(z, kind, "exact")
    edges = (-math.inf, -1.5, 0.0, 1.5, math.inf)
    means = [exact[(z >= low) & (z < high)].mean().item() for low, high in itertools.pairwise(edges)]
    assert bin_slopes(kind, "two_bit") == pytest.approx(means, abs=2e-3)


def test_two_bits_are_nearer_to_hardswish_than_its_sign():
    x = values(20_000) / 4
    exact = slope(x, "hardswish", "exact")
    cosine = {rule: F.cosine_similarity(slope(x, "hardswish", rule), exact, dim=0) for rule in ("sign", "two_bit")}
    assert cosine["two_bit"] > 0.97 > cosine["sign"]


def test_the_sign_is_that_of_the_input_and_0_passes_nothing():
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 7.0], requires_grad=True)
    for kind in KINDS:
        [dx] = torch.autograd.grad(signed_activation(x, kind).sum(), x)
        assert dx.tolist() == [0, 0, 0, 1, 1]
    [dx] = torch.autograd.grad(signed_activation(x, "relu6", backward="exact").sum(), x)
    assert dx.tolist() == [0, 0, 0, 1, 0]


def test_infinite_and_undefined_values_go_through_as_in_torch():
    x = torch.tensor([math.inf, -math.inf, math.nan])
    for kind in ("relu", "relu6"):
        torch.testing.assert_close(signed_activation(x, kind), KINDS[kind](x), equal_nan=True)
    assert signed_activation(x, "hardswish")[0] == math.inf
    assert math.isnan(signed_activation(x, "silu")[2])


@given(SHAPES, st.sampled_from(sorted(KINDS)), st.sampled_from(["sign", "two_bit"]), st.booleans())
def test_any_shape_dtype_and_stride(shape, kind, backward, transposed):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = values(*shape, dtype=torch.float32).to(dtype)
        x = (x.transpose(0, -1) if transposed and x.dim() else x).requires_grad_()
        y = signed_activation(x, kind, backward=backward)
        [dx] = torch.autograd.grad(y, x, torch.ones_like(y))
        assert (y.shape, y.dtype, dx.shape, dx.dtype) == (x.shape, dtype, x.shape, dtype)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(
            dx.float(), slope(x.detach().float(), kind, backward), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (2, 17, 9, 11), (1, 2, 70, 70), (130, 70, 1, 1), (3, 5000, 1, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("kind", "backward"), [("relu6", "exact"), ("hardswish", "sign"), ("silu", "two_bit")])
def test_fused_passes_are_those_of_tensor_operations(shape, channels_last, kind, backward, monkeypatch):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = values(*shape, dtype=torch.float32).to(memory_format=layout)
    norm = ShiftOnlyNorm2d(
        shape[1], act={"relu6": SignedReLU6, "hardswish": SignedHardswish, "silu": SignedSiLU}[kind](backward)
    )
    for name, buffer in norm.named_buffers():
        buffer.copy_(torch.rand(shape[1], generator=torch.Generator().manual_seed(len(name))) + 0.5)
    g = values(*shape, seed=1, dtype=torch.float32)

    def passes(g: torch.Tensor) -> list[torch.Tensor]:
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = norm(leaf)
        return [y, *torch.autograd.grad(y, (leaf, norm.bias), g)]

    uniform = torch.tensor(0.3).expand(shape)
    fused, fused_uniform = passes(g), passes(uniform)
    monkeypatch.setattr("paperworks.efficiency.mobiletl.activation.may_fuse", lambda x: False)
    for got, want in zip(fused + fused_uniform, passes(g) + passes(uniform), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert fused[0].is_contiguous(memory_format=layout)


def test_the_shift_has_the_same_gradient_for_every_number_of_threads():
    norm = ShiftOnlyNorm2d(6, act=SignedReLU())
    x = values(8, 6, 90, 90, dtype=torch.float32)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(torch.autograd.grad(norm(x).square().sum(), norm.bias)[0])
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_one_bit_a_value_is_kept():
    x = values(2, 8, 10, 10, dtype=torch.float32).requires_grad_()
    n = x.numel()
    for module, bytes in (
        (SignedHardswish(), n / 8),
        (SignedHardswish("two_bit"), n / 4),
        (SignedHardswish(pack_bits=False), n),
        (SignedReLU6("exact"), n / 8),
        (SignedReLU("two_bit"), n / 8),
        (SignedHardswish("exact"), 4 * n),
    ):
        assert stored_activations(nn.Sequential(module), x).bytes == bytes


def test_without_a_gradient_nothing_is_kept():
    assert stored_activations(nn.Sequential(SignedReLU()), values(4, 4)).bytes == 0


def test_a_second_derivative_is_refused():
    x = values(5).requires_grad_()
    [dx] = torch.autograd.grad(signed_activation(x, "hardswish").square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_bad_input():
    with pytest.raises(ValueError, match="relu, relu6, hardswish, silu"):
        signed_activation(torch.ones(2), "gelu")
    with pytest.raises(ValueError, match="sign, exact, two_bit"):
        signed_activation(torch.ones(2), "relu", backward="bit")
    with pytest.raises(TypeError, match="int64"):
        signed_activation(torch.ones(2, dtype=torch.int64), "relu")
    with pytest.raises(ValueError, match="backward"):
        SignedSiLU("both")


@pytest.mark.parametrize("backward", ["sign", "two_bit"])
def test_compiled_and_transformed(backward):
    x = values(4, 6, dtype=torch.float32)

    def loss(t: torch.Tensor) -> torch.Tensor:
        return signed_activation(t, "hardswish", backward=backward).square().sum()

    want = torch.autograd.grad(loss(leaf := x.clone().requires_grad_()), leaf)[0]
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf), leaf)[0], want)
    torch.testing.assert_close(torch.func.grad(loss)(x), want)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x), want)


# --- the norm ---


def trained_norm(channels: int = 6, dtype: torch.dtype = torch.float64) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, dtype=dtype)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(channels, generator=g) + 0.2)
    return norm.eval()


def test_the_norm_is_the_batch_norm_of_eval_mode_in_both_modes():
    norm, x = trained_norm(), values(4, 6, 3, 3)
    shift = ShiftOnlyNorm2d.from_norm(norm)
    for mode in (True, False):
        torch.testing.assert_close(shift.train(mode)(x), norm(x))
    assert torch.equal(shift.mean, norm.running_mean)


def test_gradients_of_the_norm_are_those_of_the_batch_norm():
    norm, x, g = trained_norm(), values(4, 6, 3, 3).requires_grad_(), values(4, 6, 3, 3, seed=1)
    shift = ShiftOnlyNorm2d.from_norm(norm)
    got = torch.autograd.grad(shift(x), (x, shift.bias), g)
    for a, b in zip(got, torch.autograd.grad(norm(x), (x, norm.bias), g), strict=True):
        torch.testing.assert_close(a, b)
    assert [name for name, p in shift.named_parameters() if p.requires_grad] == ["bias"]


def test_the_norm_keeps_no_input_where_batch_norm_does():
    x = values(4, 6, 8, 8, dtype=torch.float32).requires_grad_()
    norm = trained_norm(dtype=torch.float32).requires_grad_(False)
    norm.bias.requires_grad_(True)
    assert stored_activations(nn.Sequential(norm), x).bytes >= 4 * x.numel()
    assert stored_activations(nn.Sequential(ShiftOnlyNorm2d.from_norm(norm)), x).bytes <= 4 * 6


def test_norm_and_activation_are_differentiated_as_stated():
    norm, x, g = trained_norm(), values(4, 6, 3, 3).requires_grad_(), values(4, 6, 3, 3, seed=1)
    fused = ShiftOnlyNorm2d.from_norm(norm, SignedHardswish())
    z = norm(x).detach()
    torch.testing.assert_close(fused(x), F.hardswish(z))
    dx, db = torch.autograd.grad(fused(x), (x, fused.bias), g)
    a = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(1, -1, 1, 1)
    torch.testing.assert_close(dx, a * g * (z > 0))
    torch.testing.assert_close(db, (g * (z > 0)).sum((0, 2, 3)))


def test_autocast_keeps_the_half_type_and_the_mask():
    norm = nn.Sequential(nn.Conv2d(6, 6, 1), ShiftOnlyNorm2d(6, act=SignedHardswish()))
    x = values(2, 6, 4, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
        z = norm[0](x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    torch.testing.assert_close(norm[1].bias.grad, (z > 0).sum((0, 2, 3)).float(), rtol=1e-2, atol=1e-2)


def test_copies_pickles_and_state_dicts():
    norm = ShiftOnlyNorm2d.from_norm(trained_norm(), SignedHardswish("two_bit"))
    x = values(2, 6, 3, 3)
    other = ShiftOnlyNorm2d(6, act=SignedHardswish("two_bit"), dtype=torch.float64)
    other.load_state_dict(norm.state_dict())
    for same in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), other):
        assert torch.equal(same(x), norm(x))
    assert set(norm.state_dict()) == {"bias", "scale", "mean", "var"}


def test_options_of_the_norm():
    norm = ShiftOnlyNorm2d(4, 0.1, device="meta", dtype=torch.float16)
    assert {(t.device.type, t.dtype) for t in norm.state_dict().values()} == {("meta", torch.float16)}


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.GroupNorm(2, 4),
        nn.BatchNorm1d(4),
    ],
)
def test_a_norm_without_what_is_needed_is_refused(norm):
    with pytest.raises(ValueError, match="running statistics"):
        ShiftOnlyNorm2d.from_norm(norm)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(N, 4, H, W\)"):
        ShiftOnlyNorm2d(4)(torch.ones(2, 3, 5, 5))
