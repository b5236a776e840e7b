"""MLCA against its published steps, on pyramids and joined maps; and all branches in one pass against the loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from paperworks.swin.swinface import MLCA, level_widths, pool_levels
from paperworks.swin.swinface.branches import GroupedMLCA, runs

# --- attention over levels ---


def test_widths_are_in_proportion() -> None:
    assert level_widths((192, 384, 768, 768), 512) == (47, 93, 186, 186)
    assert level_widths((5,), 7) == (7,)
    for wrong in ((), (3, 0)):
        with pytest.raises(ValueError, match="in_channels"):
            level_widths(wrong, 8)
    with pytest.raises(ValueError, match="out_channels: got 2"):
        level_widths((1, 100), 2)


@given(st.lists(st.integers(1, 900), min_size=1, max_size=5), st.integers(100, 600))
def test_widths_sum_up(channels: list[int], out: int) -> None:
    try:
        widths = level_widths(channels, out)
    except ValueError:
        assert min(out * c / sum(channels) for c in channels) < 1
        return
    assert sum(widths) == out
    assert all(abs(w - out * c / sum(channels)) < 1 for w, c in zip(widths, channels, strict=True))


def published_steps(module: MLCA, x: torch.Tensor) -> torch.Tensor:
    """As its code has them."""
    x = torch.cat([conv(p) for conv, p in zip(module.convs, x.split(module.in_channels, 1), strict=True)], 1)
    pooled = (F.adaptive_avg_pool2d(x, 1).flatten(1), F.adaptive_max_pool2d(x, 1).flatten(1))
    gate = torch.sigmoid(sum(module.fc2(F.relu(module.fc1(p))) for p in pooled))
    x = F.relu(x * gate[:, :, None, None])
    pool = F.adaptive_max_pool2d if module.pool == "max" else F.adaptive_avg_pool2d
    return module.norm(pool(x, 1).flatten(1))


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("train", [True, False])
def test_attention_is_its_published_steps(pool: str, train: bool) -> None:
    torch.manual_seed(0)
    module = MLCA((6, 10, 16), 32, reduction=4, pool=pool).double().train(train)
    x = torch.randn(4, 32, 5, 5, dtype=torch.float64, requires_grad=True)
    one, other = module(x), published_steps(module, x)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(one)
    slopes = [torch.autograd.grad((y * weight).sum(), [x, *module.parameters()]) for y in (one, other)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_pyramid_and_its_joined_maps_are_one() -> None:
    torch.manual_seed(0)
    module = MLCA((4, 8), 16, reduction=2).eval()
    levels = [torch.randn(2, 4, 12, 8), torch.randn(2, 8, 6, 4)]
    joined = torch.cat([F.avg_pool2d(levels[0], 2), levels[1]], 1)
    torch.testing.assert_close(module(levels), module(joined))
    gate = module.gate(levels)
    assert gate.shape == (2, 16)
    assert 0 < gate.min() < gate.max() < 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kernel_size": 2}, "kernel_size: got 2"),
        ({"reduction": 0}, "reduction: got 0"),
        ({"reduction": 64}, "reduction: got 64"),
        ({"pool": "mean"}, "pool: got 'mean'"),
    ],
)
def test_attention_refuses_options(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        MLCA((4, 8), 16, **{"reduction": 2, **options})


def test_attention_refuses_maps() -> None:
    module = MLCA((4, 8), 16, reduction=2).eval()
    for wrong in (
        torch.zeros(2, 11, 4, 4),
        [torch.zeros(2, 4, 4, 4)],
        [torch.zeros(2, 8, 4, 4), torch.zeros(2, 4, 4, 4)],
    ):
        with pytest.raises(ValueError, match="levels: got the shape"):
            module(wrong)
    with pytest.raises(ValueError, match=r"levels: got a grid of \(6, 6\), wanted a multiple"):
        module([torch.zeros(2, 4, 6, 6), torch.zeros(2, 8, 4, 4)])
    with pytest.raises(ValueError, match="levels"):
        pool_levels([])
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module.train()(torch.zeros(1, 12, 4, 4))


# --- branches in one pass ---


def test_runs() -> None:
    assert runs([3, 0, 1, 5, 3]) == [(0, 2), (3, 4), (5, 6)]
    assert runs([]) == []


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 4), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 3), st.integers(1, 5),
    st.sampled_from([torch.float32, torch.float64]), st.sampled_from(["max", "avg"]), st.booleans(),
)  # fmt: skip
def test_one_pass_is_the_loop(branches, channels, batch, side, dtype, pool, graph) -> None:
    torch.manual_seed(0)
    module = GroupedMLCA(branches, channels, 32, reduction=4, pool=pool, dtype=dtype).eval()
    x = torch.randn(batch, side, side, sum(channels), dtype=dtype).movedim(-1, 1)  # not contiguous
    with torch.set_grad_enabled(graph):
        whole = module(x)
        each = torch.stack([module.branch(g)(x) for g in range(branches)], 1)
    assert whole.shape == (batch, branches, 32)
    torch.testing.assert_close(whole, each, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-5)


def test_training_moves_the_statistics_of_the_branches_that_ran() -> None:
    torch.manual_seed(0)
    module, x = GroupedMLCA(3, (4, 8), 16, reduction=2), torch.randn(5, 12, 4, 4)
    before = module.norm.running_mean.clone()
    alone = module.branch(1)
    module(x, (1, 2))
    alone(x)
    torch.testing.assert_close(module.norm.running_mean[16:32], alone.norm.running_mean)
    torch.testing.assert_close(module.norm.running_var[16:32], alone.norm.running_var)
    assert torch.equal(module.norm.running_mean[:16], before[:16])
    assert torch.equal(module.norm.running_mean[32:], before[32:])


def test_a_branch_goes_in_and_out() -> None:
    module, other = GroupedMLCA(3, (4, 8), 16, reduction=2).eval(), MLCA((4, 8), 16, reduction=2).eval()
    module.copy_branch(2, other)
    x = torch.randn(2, 12, 4, 4)
    torch.testing.assert_close(module(x)[:, 2], other(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="number: got 3, wanted 0 to 2"):
        module.branch(3)
