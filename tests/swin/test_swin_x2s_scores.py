"""Swin-X2S: its loss, its scores, and what a reconstruction is checked by."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.swin.swin_unetr import dice_score, hd95
from paperworks.swin.swin_x2s import (
    chamfer_and_hd95,
    disagreement,
    drr,
    identification_rate,
    label_dice,
    reprojection_loss,
    silhouette,
    silhouette_overlap,
    two_view_loss,
)

CONE: dict[str, Any] = {"detector_shape": (12, 12), "pixel_size": 1.1}


def example(classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2, classes, 3, 4, 5, generator=generator, dtype=torch.float64)
    return a, b, torch.randint(0, classes, (2, 1, 3, 4, 5), generator=generator)


def test_loss_is_dice_and_cross_entropy_of_each_view_and_their_divergence() -> None:
    a, b, target = example()
    truth = F.one_hot(target[:, 0], 4).movedim(-1, 1).double()
    parts = []
    for logits in (a, b):
        p = logits.softmax(1)
        overlap, size = (p * truth).flatten(2).sum(-1), (p + truth).flatten(2).sum(-1)
        parts.append((1 - (2 * overlap + 1e-5) / (size + 1e-5)).mean() + F.cross_entropy(logits, target[:, 0]))
    for reduction in ("mean", "none"):
        kl = [F.kl_div(x.log_softmax(1), y.softmax(1), reduction=reduction) for x, y in ((a, b), (b, a))]
        divergence = sum(kl) / 2 if reduction == "mean" else sum(k.sum(1).mean() for k in kl) / 2
        named = {"mean": "mean", "none": "voxel"}[reduction]
        found = two_view_loss(a, b, target, kl_weight=0.5, kl_reduction=named)  # type: ignore[arg-type]
        torch.testing.assert_close(found["dice_ce"], sum(parts) / 2)
        torch.testing.assert_close(found["kl"], divergence)
        torch.testing.assert_close(found["total"], found["dice_ce"] + 0.5 * found["kl"])


def test_the_loss_against_monais() -> None:
    losses = pytest.importorskip("monai.losses", reason="the reference")
    a, b, target = example()
    theirs = losses.DiceCELoss(to_onehot_y=True, softmax=True)
    wanted = (theirs(a, target) + theirs(b, target)) / 2
    torch.testing.assert_close(two_view_loss(a, b, target)["dice_ce"], wanted)


def test_the_divergence_pulls_both_views_and_vanishes_where_they_agree() -> None:
    a, b, target = example()
    a, b = a.requires_grad_(), b.requires_grad_()
    few = [t[:1, ..., :1, :2, :2].detach().requires_grad_() for t in (a, b)]
    assert torch.autograd.gradcheck(lambda x, y: two_view_loss(x, y, target[:1, ..., :1, :2, :2])["total"], few)
    pulls = torch.autograd.grad(two_view_loss(a, b, target)["kl"], (a, b))
    assert all(float(pull.abs().max()) > 1e-5 for pull in pulls)
    assert float(two_view_loss(a, a, target)["kl"].detach()) == 0
    less, many = two_view_loss(a, b, target)["kl"], two_view_loss(a, b, target, kl_reduction="voxel")["kl"]
    torch.testing.assert_close(4 * less, many)
    half = two_view_loss(a.detach().bfloat16(), b.detach().bfloat16(), target)["total"]
    assert half.dtype == torch.float32


def test_bad_losses() -> None:
    a, b, target = example()
    for given, error, words in (
        ((a, b[:1], target), ValueError, "logits_a, logits_b: got"),
        ((a, b, target[:, 0]), ValueError, "target: got the shape"),
        ((a, b, target.float()), TypeError, "target: got torch.float32"),
        ((a[:0], b[:0], target[:0]), ValueError, "not empty"),
    ):
        with pytest.raises(error, match=words):
            two_view_loss(*given)
    with pytest.raises(ValueError, match="kl_reduction: got 'sum'"):
        two_view_loss(a, b, target, kl_reduction="sum")  # type: ignore[arg-type]


def ball(at: tuple[float, float, float], radius: float = 4.0, size: int = 16) -> Tensor:
    axes = torch.meshgrid(*[torch.arange(size, dtype=torch.float32)] * 3, indexing="ij")
    return sum((axis - place) ** 2 for axis, place in zip(axes, at, strict=True)) <= radius**2


def test_distances_of_surfaces() -> None:
    one, moved = torch.zeros(2, 9, 9, 9, dtype=torch.bool)
    one[2, 4, 4] = moved[5, 4, 4] = True
    assert chamfer_and_hd95(one, moved, (2.0, 1.0, 1.0)) == (6.0, 6.0)
    assert chamfer_and_hd95(one, one, (2.0, 1.0, 1.0)) == (0.0, 0.0)
    a, b = ball((7, 7, 7)), ball((8, 7, 9), 5)
    spacing = (1.0, 0.5, 2.0)
    chamfer, distance = chamfer_and_hd95(a, b, spacing)
    assert (chamfer, distance) == pytest.approx(chamfer_and_hd95(b, a, spacing))
    assert distance == float(hd95(a[None], b[None], spacing))
    assert 0 < chamfer < distance
    empty = torch.zeros_like(a)
    assert all(math.isnan(v) for v in chamfer_and_hd95(empty, empty, spacing))
    assert chamfer_and_hd95(a, empty, spacing) == (math.inf, math.inf)
    assert chamfer_and_hd95(~empty, ~empty, spacing) == (0.0, 0.0)
    for given, error, words in (
        ((a, b[:5], spacing), ValueError, "pred, target: got the shapes"),
        ((a.int(), b.int(), spacing), TypeError, "pred, target: got torch.int32"),
        ((a, b, (1.0, 1.0)), ValueError, "spacing: got"),
    ):
        with pytest.raises(error, match=words):
            chamfer_and_hd95(*given)


def test_bones_found_under_their_own_label() -> None:
    target = torch.zeros(20, 20, 20, dtype=torch.int64)
    target[2:4, 2:4, 2:4], target[10:12, 2:4, 2:4], target[2:4, 14:16, 14:16] = 1, 2, 5
    moved = torch.roll(target, 3, 0)
    assert identification_rate(target, target, (1, 1, 1)) == (0.0, 1.0)
    assert identification_rate(moved, target, (2, 1, 1)) == (6.0, 1.0)
    assert identification_rate(moved, target, (2, 1, 1), tol_mm=5) == (6.0, 0.0)
    named = target.clone()
    named[target == 1], named[target == 2] = 2, 1  # labels exchanged: in the wrong place, both
    distance, rate = identification_rate(named, target, (1, 1, 1), tol_mm=4)
    assert (distance, rate) == pytest.approx((16 / 3, 1 / 3))
    lost = torch.where(target == 5, 0, target)
    assert identification_rate(lost, target, (1, 1, 1)) == (0.0, pytest.approx(2 / 3))
    assert all(math.isnan(v) for v in identification_rate(target, torch.zeros_like(target), (1, 1, 1)))
    distance, rate = identification_rate(torch.zeros_like(target), target, (1, 1, 1))
    assert math.isnan(distance)
    assert rate == 0
    with pytest.raises(TypeError, match=r"pred: got torch\.float32"):
        identification_rate(target.float(), target, (1, 1, 1))


def test_dice_of_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    p, g = torch.randint(0, 4, (2, 6, 6, 6), generator=generator)
    wanted = dice_score(*(torch.stack([x == k for k in range(1, 5)]) for x in (p, g)))
    torch.testing.assert_close(label_dice(p, g, 5), wanted, equal_nan=True)


def test_shadows() -> None:
    one, two = ball((7, 7, 7)), ball((7, 10, 7))
    spacing = (1.0, 1.0, 1.0)
    # moved along the ray at 0 degrees: the shadow hardly changes; at 90 degrees it moves
    near, aside = (float(silhouette_overlap(one[None], two[None], spacing, angle, **CONE)) for angle in (0.0, 90.0))
    assert near > 0.97
    assert aside < 0.75
    assert float(silhouette_overlap(one[None], one[None], spacing, 30.0, **CONE)) == 1
    soft = silhouette(one[None, None].double().requires_grad_(), spacing, 0.0, **CONE)
    assert soft.min() >= 0
    assert soft.max() <= 1
    assert soft.requires_grad
    with pytest.raises(TypeError, match="pred, target: got"):
        silhouette_overlap(one[None].int(), two[None].int(), spacing, 0.0, **CONE)
    with pytest.raises(ValueError, match="softness: got 0"):
        silhouette(one[None, None].float(), spacing, 0.0, softness=0, **CONE)


def test_reprojection_loss_knows_the_right_shape_and_leads_to_it() -> None:
    truth, spacing = torch.stack([~ball((7, 7, 7)), ball((7, 7, 7))]).double()[None], (1.0, 1.0, 1.0)
    cone, attenuation = {"pixel_size": 1.1}, torch.tensor([0.0, 1.0])
    seen = [3 * drr(truth[:, 1:], spacing, angle, detector_shape=(18, 18), **cone) + 5 for angle in (0.0, 90.0)]
    right, wrong = 20 * (truth - 0.5), 20 * (truth.roll(4, 2) - 0.5)
    assert float(reprojection_loss(right, seen, attenuation, spacing, **cone)) < 1e-6
    assert float(reprojection_loss(wrong, seen, attenuation, spacing, **cone)) > 0.1
    logits = torch.zeros_like(truth).requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.2)
    for _ in range(8):
        optimizer.zero_grad()
        reprojection_loss(logits, seen, attenuation, spacing, **cone).backward()
        optimizer.step()
    inside = (logits.detach().softmax(1) * truth)[:, 1].sum() / truth[:, 1].sum()
    assert float(inside) > 0.85
    with pytest.raises(ValueError, match="radiographs: got 1 for 2 angles"):
        reprojection_loss(right, seen[:1], attenuation, spacing, **cone)
    with pytest.raises(ValueError, match="logits, attenuation: got"):
        reprojection_loss(right, seen, torch.zeros(3), spacing, **cone)


def test_disagreement_is_between_0_and_1() -> None:
    a, b, _ = example()
    found = disagreement(a, b)
    assert found.shape == (2, 3, 4, 5)
    torch.testing.assert_close(found, disagreement(b, a))
    assert disagreement(a, a).abs().max() == 0
    assert disagreement(a.float(), a.float()).abs().max() == 0
    sure = torch.zeros(1, 2, 1, 1, 1, dtype=torch.float64)
    sure[0, 0] = 60
    assert float(disagreement(sure, sure.flip(1))) == pytest.approx(1)
    p, q = a.softmax(1), b.softmax(1)
    m = (p + q) / 2
    wanted = ((p * (p / m).log2()).sum(1) + (q * (q / m).log2()).sum(1)) / 2
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match="logits_a, logits_b: got"):
        disagreement(a, b[:1])
