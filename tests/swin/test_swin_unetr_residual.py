"""The fused residual and up blocks compute what their parts do one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import native
from paperworks.swin.swin_unetr import residual_cpu
from paperworks.swin.swin_unetr.residual_cpu import FusedResidualBlock, FusedUpBlock, normed_sum
from paperworks.swin.unet_parts import ResidualBlock, UpBlock

pytestmark = pytest.mark.skipif(residual_cpu._library() is None, reason="no C compiler")


def step_by_step(a: Tensor, b: Tensor | None, normed: bool) -> Tensor:
    z = F.instance_norm(a, eps=1e-5)
    if b is not None:
        z = z + (F.instance_norm(b, eps=1e-5) if normed else b)
    return F.leaky_relu(z, 0.01)


@given(
    st.integers(1, 3), st.integers(1, 37), st.lists(st.integers(1, 9), min_size=2, max_size=3),
    st.sampled_from([(False, False), (True, False), (True, True)]), st.integers(1, 3), st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_values_and_gradients(
    batch: int, channels: int, size: list[int], how: tuple[bool, bool], threads: int, last: bool
) -> None:
    size[0] += 1  # more than one voxel
    generator = torch.Generator().manual_seed(channels)
    added, normed = how
    form: Any = {2: torch.channels_last, 3: torch.channels_last_3d}[len(size)]
    maps = [3 * torch.randn(batch, channels, *size, generator=generator) + 5 for _ in range(1 + added)]
    weight = torch.randn(batch, channels, *size, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = [(m.contiguous(memory_format=form) if last else m.clone()).requires_grad_() for m in maps]
        found = normed_sum(*ours, normed=normed)
        gradients = torch.autograd.grad((found * weight).sum(), ours)
    finally:
        torch.set_num_threads(before)
    theirs = [m.double().requires_grad_() for m in maps]
    wanted = step_by_step(theirs[0], theirs[1] if added else None, normed)
    assert found.is_contiguous(memory_format=form)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-4)
    away = (wanted.abs() > 1e-3).all()  # at the kink either slope is right
    for one, other in zip(gradients, torch.autograd.grad((wanted * weight).sum(), theirs), strict=True):
        if away:
            torch.testing.assert_close(one.double(), other, rtol=2e-3, atol=2e-3)


def test_a_large_mean_costs_no_precision() -> None:
    x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)) + 1000
    wanted = step_by_step(x.double(), None, False)
    torch.testing.assert_close(normed_sum(x).double(), wanted, rtol=1e-3, atol=1e-3)


def test_second_derivatives() -> None:
    a, b = (torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(i), requires_grad=True) for i in (1, 2))
    for normed in (False, True):
        found = []
        for call in (normed_sum, step_by_step):
            [d_a, d_b] = torch.autograd.grad(call(a, b, normed).pow(2).sum(), [a, b], create_graph=True)
            found.append(torch.autograd.grad((d_a.sin() + d_b.cos()).sum(), [a, b]))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("axes", "size"), [(2, (6, 5)), (3, (4, 3, 6))])
@pytest.mark.parametrize("widths", [(3, 8), (6, 6)])
def test_residual_block(axes: int, size: tuple[int, ...], widths: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    plain, fused = ResidualBlock(axes, *widths), FusedResidualBlock(axes, *widths)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, widths[0], *size, generator=generator)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused(x[:, :2], x[:, 2:]), plain(x), rtol=1e-4, atol=1e-5)
    wanted, found = (torch.autograd.grad(m(x).square().sum(), list(m.parameters())) for m in (plain, fused))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("axes", "size"), [(2, (5, 4)), (3, (2, 4, 3))])
def test_up_block(axes: int, size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    plain, fused = UpBlock(axes, 12, 6), FusedUpBlock(axes, 12, 6)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, 12, *size, generator=generator)
    skip = torch.randn(2, 6, *(2 * s for s in size), generator=generator)
    torch.testing.assert_close(fused(x, skip), plain(x, skip), rtol=1e-4, atol=1e-5)


def test_what_the_loops_cannot_take_goes_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    block = FusedResidualBlock(2, 2, 4)
    x = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    wanted = block(x)

    def none(*_: object) -> None:
        raise AssertionError("the loops were called")

    monkeypatch.setattr(residual_cpu, "normed_sum", none)
    torch.testing.assert_close(block.double()(x.double()).float(), wanted, rtol=1e-4, atol=1e-5)
    block.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x).shape == wanted.shape
    assert torch.func.vmap(block)(x.unsqueeze(0)).shape == (1, *wanted.shape)
    exported = torch.export.export(block, (x,))
    torch.testing.assert_close(exported.module()(x), wanted, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(native, "load", lambda *_: None)
    torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-5)


def test_a_single_voxel_is_refused_and_channels_are_counted() -> None:
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        FusedResidualBlock(2, 2, 2)(torch.zeros(1, 2, 1, 1))
    with pytest.raises(ValueError, match="x: got 3 channels, wanted 2"):
        FusedResidualBlock(2, 2, 2)(torch.zeros(1, 3, 4, 4))
    assert isinstance(FusedUpBlock(2, 4, 2).conv_block, nn.Module)
