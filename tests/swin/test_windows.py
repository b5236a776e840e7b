"""Windows, shifts, masks and bias over 1 to 4 axes, and attention inside windows."""

from __future__ import annotations

import copy
import pickle
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperworks.swin.windows import (
    RelativePositionBias,
    WindowAttention,
    cyclic_shift,
    fit_window,
    pad_to_window,
    relative_position_index,
    shift_mask,
    shift_regions,
    window_partition,
    window_reverse,
)

axes = st.integers(1, 4).flatmap(
    lambda n: st.tuples(
        st.tuples(*[st.integers(1, 4)] * n), st.tuples(*[st.integers(1, 3)] * n), st.tuples(*[st.integers(0, 3)] * n)
    )
)


@given(axes, st.integers(0, 2), st.booleans())
def test_partition_and_reverse(drawn: tuple[tuple[int, ...], ...], batch: int, strided: bool) -> None:
    window, grid, _ = drawn
    space = tuple(w * g for w, g in zip(window, grid, strict=True))
    x = torch.arange(batch * prod(space) * 3.0).view(batch, *space, 3)
    x = x.transpose(0, -1).contiguous().transpose(0, -1) if strided else x
    windows = window_partition(x, window)
    assert windows.shape == (batch * prod(grid), prod(window), 3)
    assert torch.equal(window_reverse(windows, window, space), x)
    if batch:  # the first window is the corner of the first map
        assert torch.equal(windows[0], x[(0, *(slice(w) for w in window))].reshape(-1, 3))


@given(axes)
def test_a_mask_keeps_apart_what_a_roll_brings_together(drawn: tuple[tuple[int, ...], ...]) -> None:
    window, grid, shift = drawn
    space = tuple(w * g for w, g in zip(window, grid, strict=True))
    shift = tuple(s % w for s, w in zip(shift, window, strict=True))
    mask = shift_mask(space, window, shift)
    if not any(shift):
        assert mask is None
        return
    assert mask is not None
    # two tokens of a window may attend to each other exactly where they lie to each other as they did before the roll
    places = torch.stack(torch.meshgrid(*(torch.arange(s) for s in space), indexing="ij"), -1).unsqueeze(0)
    now, before = window_partition(places, window), window_partition(cyclic_shift(places, shift), window)
    kept = (now.unsqueeze(1) - now.unsqueeze(2)) == (before.unsqueeze(1) - before.unsqueeze(2))
    assert torch.equal(mask, kept.all(-1))
    assert shift_regions(space, window, shift).shape == (prod(grid), prod(window))
    assert shift_mask(space, window, shift) is mask


def test_masks_of_monai() -> None:
    swin_unetr = pytest.importorskip("monai.networks.nets.swin_unetr")
    for space, window, shift in (((8, 12), (4, 4), (2, 2)), ((6, 4, 8), (3, 4, 2), (1, 0, 1))):
        mine = shift_mask(space, window, shift)
        if 0 not in shift:  # where an axis is not shifted its compute_mask has no last region either way
            theirs = swin_unetr.compute_mask(list(space), window, shift, torch.device("cpu"))
            assert mine is not None
            assert torch.equal(mine, theirs == 0)


def test_clamping_by_axis_and_jointly() -> None:
    assert fit_window((14, 5), (7, 7), (3, 3)) == ((7, 5), (3, 0))
    assert fit_window((14, 7), (7, 7), (3, 3)) == ((7, 7), (3, 0))
    assert fit_window((14, 5), (7, 7), (3, 3), "joint") == ((5, 5), (0, 0))
    assert fit_window((14, 8), (7, 7), (3, 3), "joint") == ((7, 7), (3, 3))


def test_padding_is_at_the_end_and_zero() -> None:
    x = torch.ones(1, 5, 6, 2)
    padded, crop = pad_to_window(x, (4, 3))
    assert padded.shape == (1, 8, 6, 2)
    assert crop == (5, 6)
    assert torch.equal(padded[:, :5], x)
    assert padded[:, 5:].count_nonzero() == 0


def test_bias_depends_on_the_offset_alone() -> None:
    bias = RelativePositionBias((3, 4), 2)
    found = bias()
    index = relative_position_index((3, 4))
    assert index.unique().numel() == 5 * 7
    assert torch.equal(found[:, 0, 5], found[:, 6, 11])  # both one row down, one to the right
    # of a clamped window the first rows of the index are other offsets; the exact ones are those of the tokens
    exact = bias(exact=(3, 2))
    assert torch.equal(exact[:, 0, 2], found[:, 0, 4])
    assert not torch.equal(bias(6), exact)
    assert torch.equal(bias(8), bias(exact=(2, 4)))  # the first axis clamped: both agree


def test_a_kept_bias_notices_every_change() -> None:
    bias = RelativePositionBias((2, 2), 1)
    with torch.no_grad():
        first = bias()
        assert bias() is first
        bias.relative_position_bias_table.data.add_(1)  # raises no version counter
        assert torch.equal(bias(), first + 1)
        bias.load_state_dict({"relative_position_bias_table": torch.zeros(9, 1)})
        assert bias().count_nonzero() == 0
        assert torch.equal(copy.deepcopy(bias)(), bias())
        assert torch.equal(pickle.loads(pickle.dumps(bias))(), bias())
    assert bias().requires_grad


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("images", [1, 3])
def test_fused_and_eager_attention_agree(additive: bool, images: int) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(12, 3, (3, 4)).double()
    mask = shift_mask((6, 8), (3, 4), (1, 2))
    assert mask is not None
    given_mask = torch.where(mask, 0.0, -100.0).double() if additive else mask
    found = []
    for backend in ("eager", "sdpa"):
        attention.backend = backend  # type: ignore[assignment]
        x = torch.randn(images * 4, 12, 12, dtype=torch.double, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        attention.zero_grad()
        y = attention(x, given_mask)
        y.square().sum().backward()
        assert x.grad is not None
        found.append([y.detach(), x.grad, *(p.grad for p in attention.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        x = x.detach().float()
        attention.float()
        attention.backend = "flex"
        torch.testing.assert_close(attention(x, mask), found[0][0].float(), rtol=1e-4, atol=1e-4)


def test_a_window_as_large_as_the_map_is_global_attention() -> None:
    attention = WindowAttention(8, 2, (4, 4)).eval()
    x = torch.randn(2, 4, 4, 8)
    windows = attention(window_partition(x, (4, 4)))
    bias = attention.bias
    assert bias is not None
    q, k, v = attention.qkv(x.view(2, 16, 8)).view(2, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
    wanted = (q @ k.transpose(-1, -2) / 2 + bias()).softmax(-1) @ v
    torch.testing.assert_close(windows, attention.proj(wanted.transpose(1, 2).reshape(2, 16, 8)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: window_partition(torch.zeros(1, 5, 4, 1), (2, 2)), "window: got .2, 2., wanted sizes that divide"),
        (lambda: window_partition(torch.zeros(1, 4, 4, 1), (2,)), "window: got .2,., wanted 2 numbers"),
        (lambda: window_reverse(torch.zeros(3, 4, 1), (2, 2), (4, 4)), "windows: got the shape"),
        (lambda: shift_mask((4, 4), (2, 2), (2, 0)), "shift: got .2, 0., wanted less than the window"),
        (lambda: shift_mask((5, 4), (2, 2), (1, 0)), "space_padded: got .5, 4., wanted multiples"),
        (lambda: fit_window((4,), (2,), (1,), "both"), "clamp: got 'both', wanted 'axis' or 'joint'"),
        (lambda: WindowAttention(10, 3, (2,)), "dim: got 10, wanted a multiple of num_heads=3"),
        (lambda: WindowAttention(8, 2), "window: got None"),
        (lambda: WindowAttention(8, 2, (2,), backend="fast"), "backend: got 'fast'"),  # type: ignore[arg-type]
        (
            lambda: WindowAttention(8, 2, (2, 2))(torch.zeros(3, 4, 8), torch.ones(2, 4, 4).bool()),
            "mask: got the shape",
        ),
        (lambda: WindowAttention(8, 2, (2, 2))(torch.zeros(3, 5, 8)), "x: got 5 tokens a window, wanted at most 4"),
        (lambda: RelativePositionBias((2, 2), 1)(n=5), "n: got 5, wanted 1 to 4"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
