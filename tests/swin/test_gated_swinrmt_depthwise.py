"""Depthwise convolutions in loops against PyTorch's, with derivatives of both orders, and where no loop may run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.swin.gated_swinrmt import GatedRetention, GatedSwinRMT, ManhattanRetention, SwinRMTBlock, depthwise
from paperworks.swin.gated_swinrmt.depthwise import add_depthwise, convolved, gelu_depthwise

needs_loops = pytest.mark.skipif(depthwise._library() is None, reason="no C compiler")


def layers(channels: int, kernel: int, seed: int = 0, hidden: int | None = None) -> tuple[nn.Linear, nn.Conv2d]:
    hidden = channels if hidden is None else hidden
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Linear(channels, hidden), nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def same_values_and_gradients(first: Tensor, second: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    weights = torch.randn(first.shape, generator=torch.Generator().manual_seed(9))
    for one, two in zip(
        torch.autograd.grad(first, inputs, weights), torch.autograd.grad(second, inputs, weights), strict=True
    ):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


@needs_loops
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 8, 31, 32, 33, 70]),
    st.sampled_from([1, 3, 5, 7]), st.booleans(),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_sums_with_a_convolution(batch: int, h: int, w: int, channels: int, kernel: int, apart: bool) -> None:
    _, layer = layers(channels, kernel)
    x = drawn(batch, h, w, channels)
    base = drawn(batch, h, w, channels, seed=2) if apart else None
    inputs = [x, layer.weight, layer.bias, *([] if base is None else [base])]
    wanted = (x if base is None else base) + convolved(layer, x)
    same_values_and_gradients(add_depthwise(layer, x, base), wanted, inputs)


@needs_loops
@given(st.integers(1, 2), st.integers(1, 8), st.integers(1, 8), st.sampled_from([3, 32, 40]))
@settings(max_examples=15, deadline=None)
def test_behind_gelu(batch: int, h: int, w: int, hidden: int) -> None:
    fc, layer = layers(6, 3, hidden=hidden)
    x = drawn(batch, h, w, 6)
    u = F.gelu(fc(x))
    inputs = [x, fc.weight, fc.bias, layer.weight, layer.bias]
    same_values_and_gradients(gelu_depthwise(fc, layer, x), u + convolved(layer, u), inputs)
    with torch.no_grad():
        torch.testing.assert_close(gelu_depthwise(fc, layer, x), u + convolved(layer, u), atol=1e-5, rtol=1e-5)


@needs_loops
def test_maps_in_another_layout_and_of_several_threads() -> None:
    _, layer = layers(64, 5)
    x = torch.randn(3, 64, 7, 6).permute(0, 2, 3, 1)
    wanted = x + convolved(layer, x)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(add_depthwise(layer, x.clone().requires_grad_()))
        gradient = torch.autograd.grad(found[-1].square().sum(), layer.weight)[0]
        found.append(gradient)
    torch.set_num_threads(before)
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[0], found[2]), "the number of threads changes nothing"
    assert torch.equal(found[1], found[3])


@needs_loops
def test_second_derivatives() -> None:
    fc, layer = layers(4, 3)
    x = drawn(1, 3, 4, 4)

    def curvature(out: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    torch.testing.assert_close(
        curvature(add_depthwise(layer, x)), curvature(x + convolved(layer, x)), atol=1e-3, rtol=1e-3
    )
    u = F.gelu(fc(x))
    torch.testing.assert_close(
        curvature(gelu_depthwise(fc, layer, x)), curvature(u + convolved(layer, u)), atol=1e-3, rtol=1e-3
    )


def test_layers_that_somebody_watches_or_replaces_are_called() -> None:
    fc, layer = layers(8, 3)
    x, seen = torch.randn(1, 4, 4, 8), []
    for module in (fc, layer):
        module.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    gelu_depthwise(fc, layer, x)
    add_depthwise(layer, x)
    assert seen == ["Linear", "Conv2d", "Conv2d"]

    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    other = Doubled(8, 8, 3, padding=1, groups=8)
    torch.testing.assert_close(add_depthwise(other, x), x + convolved(other, x))
    assert add_depthwise(layer.double(), x.double()).dtype == torch.float64


def test_loops_do_not_follow_the_default_dtype() -> None:
    block = SwinRMTBlock(16, 2, 4, shift=True).eval()
    x = torch.randn(1, 8, 8, 16)
    wanted = block(x)
    torch.set_default_dtype(torch.float64)
    try:
        found = block(x.clone().requires_grad_())
        found.sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, wanted)


def small(**options) -> GatedSwinRMT:
    sizes = {"embed_dims": (8, 16), "depths": (1, 1), "num_heads": (1, 2), "mlp_ratios": (2, 2)}
    return GatedSwinRMT("retention", num_classes=5, projection=8, **sizes, **options)


def test_an_empty_batch_has_no_logits() -> None:
    assert small().eval()(torch.empty(0, 3, 32, 32)).shape == (0, 5)
    assert SwinRMTBlock(16, 2, 4, shift=True)(torch.empty(0, 8, 8, 16)).shape == (0, 8, 8, 16)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: small()(torch.zeros(1, 3, 32, 32, dtype=torch.long)), "x"),
        (lambda: small()(torch.zeros(1, 3, 32, 32, dtype=torch.float64)), "x"),
        (lambda: GatedRetention(16, 2)(torch.zeros(1, 49, 16, dtype=torch.float64)), "x"),
        (lambda: ManhattanRetention(16, 2)(torch.zeros(1, 4, 4, 16, dtype=torch.float16)), "x"),
        (lambda: GatedRetention(16, 2)(torch.zeros(1, 49, 16), torch.ones(1, 49, 49, dtype=torch.long)), "mask"),
    ],
)
def test_another_dtype_is_refused(call, named: str) -> None:
    with pytest.raises(TypeError, match=rf"^{named}"):
        call()


def test_autocast_takes_what_it_makes_one() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = SwinRMTBlock(16, 2, 4)(torch.randn(1, 8, 8, 16).bfloat16())
    assert bool(torch.isfinite(found).all())
