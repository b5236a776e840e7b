"""The fused loops compute what the tensor code computes: values, first and second derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paperworks.swin import windows_cpu
from paperworks.swin.blocks import Mlp, WindowBlock

pytestmark = pytest.mark.skipif(windows_cpu._library() is None, reason="no C compiler")

CASES: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((9, 10), (4, 4), (2, 2), {}),
    ((9, 10), (4, 4), (2, 2), {"order": "roll-pad", "mask_padding": True}),
    ((5, 6, 7), (3, 3, 3), (1, 1, 1), {}),
    ((4, 3, 5, 2), (2, 2, 2, 2), (1, 1, 1, 1), {}),
    ((3, 8), (4, 4), (2, 2), {"clamped_bias": "exact"}),
    ((8,), (4,), (2,), {"bias": None, "qkv_bias": False}),
    ((14, 7), (7, 7), (3, 3), {"clamp": "joint"}),
]


@pytest.mark.parametrize(("space", "window", "shift", "options"), CASES)
def test_blocks_with_and_without_the_loops(
    space: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    block = WindowBlock(12, 3, window, shift, **options)
    x = torch.randn(2, *space, 12, requires_grad=True)
    assert block.attn.fits_loops(x)
    weights = torch.randn_like(x)
    found = []
    for backend in ("sdpa", "eager"):
        block.attn.backend = backend
        block.zero_grad()
        x.grad = None
        y = block(x)
        (y * weights).sum().backward()
        assert x.grad is not None
        found.append([y.detach(), x.grad.clone(), *(p.grad.clone() for p in block.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)


def test_second_derivatives() -> None:
    torch.manual_seed(0)
    block = WindowBlock(8, 2, (3, 3), (1, 1))
    x = torch.randn(1, 4, 5, 8, requires_grad=True)
    found = []
    for backend in ("sdpa", "eager"):
        block.attn.backend = backend
        (first,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, *block.parameters()], allow_unused=True))
    for one, other in zip(*found, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_the_mlp_keeps_only_the_product_of_its_first_layer() -> None:
    torch.manual_seed(0)
    mlp = Mlp(6, 24)
    x = torch.randn(5, 6) * 4
    reference = mlp.fc2(torch.nn.functional.gelu(mlp.fc1(x)))
    torch.testing.assert_close(mlp(x), reference, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), reference, rtol=1e-5, atol=1e-5)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        mlp(x)
    assert sizes.count(5 * 24) == 1


def test_gelu_is_exact_enough_everywhere() -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e30, 1e30, 0.0])]).view(-1, 1)
    found = windows_cpu.gelu(x, torch.zeros(1), torch.empty_like(x))
    wanted = torch.nn.functional.gelu(x.double())
    assert (found.double() - wanted).abs().div(wanted.abs().clamp_min(1)).max() < 5e-7
    assert windows_cpu.gelu(torch.full((1, 1), torch.nan), torch.zeros(1), torch.empty(1, 1)).isnan().all()


def test_nan_stays_in_its_window() -> None:
    block = WindowBlock(4, 1, (2, 2), (0, 0))
    x = torch.randn(1, 4, 4, 4)
    x[0, 0, 0, 0] = torch.nan
    with torch.no_grad():
        bad = block(x).isnan().any(-1)[0]
    assert bad[:2, :2].all()
    assert bad.sum() == 4


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_threads(threads: int) -> None:
    torch.manual_seed(0)
    block = WindowBlock(8, 2, (3, 3), (1, 1))
    x = torch.randn(2, 7, 8, 8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = torch.autograd.grad(block(x).square().sum(), list(block.parameters()))
        torch.set_num_threads(threads)
        found = torch.autograd.grad(block(x).square().sum(), list(block.parameters()))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
