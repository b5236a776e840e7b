"""The Dice loss and score, the surface distance, and whole volumes by windows."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paperworks.swin.swin_unetr import dice_score, hd95, importance_map, predict_volume, soft_dice_loss


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_loss_is_its_equation() -> None:
    logits = torch.tensor([[[0.0, 2.0, -1.0]]], dtype=torch.float64)
    target = torch.tensor([[[1, 1, 0]]])
    y = torch.sigmoid(logits)[0, 0]
    squared = 1 - (2 * (y[0] + y[1]) + 1e-5) / (2 + y.square().sum() + 1e-5)
    plain = 1 - (2 * (y[0] + y[1]) + 0.5) / (2 + y.sum() + 0.5)
    torch.testing.assert_close(soft_dice_loss(logits, target), squared)
    torch.testing.assert_close(soft_dice_loss(logits, target, squared=False, smooth=0.5), plain)


@pytest.mark.parametrize("squared", [True, False])
def test_monai_loss(squared: bool) -> None:
    losses = pytest.importorskip("monai.losses", reason="the reference")
    logits, target = drawn(2, 3, 4, 5, 6), drawn(2, 3, 4, 5, 6) > 0.4
    reference = losses.DiceLoss(sigmoid=True, squared_pred=squared, smooth_nr=0.1, smooth_dr=0.1)
    torch.testing.assert_close(
        soft_dice_loss(logits, target, squared=squared, smooth=0.1), reference(logits, target.double())
    )


def test_the_loss_of_each_channel_and_its_gradient() -> None:
    logits, target = drawn(2, 3, 4).requires_grad_(), drawn(2, 3, 4) > 0
    each = soft_dice_loss(logits, target, reduction="none")
    assert each.shape == (2, 3)
    torch.testing.assert_close(each.mean(), soft_dice_loss(logits, target))
    assert torch.autograd.gradcheck(lambda x: soft_dice_loss(x, target), logits)


def test_a_perfect_segmentation_loses_nothing_and_an_empty_one_with_smoothing_neither() -> None:
    target = drawn(1, 2, 8) > 0
    assert soft_dice_loss(torch.where(target, 40.0, -40.0), target) < 1e-6
    nothing = torch.zeros(1, 2, 8)
    assert soft_dice_loss(nothing - 40, nothing) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    logits, target = torch.full((1, 1, 64, 64, 64), 5.0), torch.ones(1, 1, 64, 64, 64, dtype=torch.bool)
    found = soft_dice_loss(logits.to(dtype), target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, soft_dice_loss(logits, target))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_dice_counts(pairs: list[tuple[bool, bool]]) -> None:
    p, g = torch.tensor(pairs).t()
    [found] = dice_score(p.unsqueeze(0), g.unsqueeze(0)).tolist()
    size = int(p.sum() + g.sum())
    both = 2 * sum(a and b for a, b in pairs)
    assert (found == both / size) if size else found != found
    assert size == 0 or found == dice_score(g.unsqueeze(0), p.unsqueeze(0)).item()


def ball(at: tuple[int, ...], radius: float, size: tuple[int, ...] = (20, 20, 20)) -> Tensor:
    grid = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"))
    return (grid - torch.tensor(at).view(-1, *(1,) * len(size))).square().sum(0) <= radius**2


def test_distances_by_hand() -> None:
    p, g = torch.zeros(2, 1, 9, 9, dtype=torch.bool)
    p[0, 4, 2], g[0, 4, 5] = True, True
    assert hd95(p, g, (1.0, 1.0)).item() == 3.0
    assert hd95(p, g, (1.0, 0.5)).item() == 1.5
    assert hd95(p, g, 2.0).item() == 6.0
    assert hd95(p, p, (1.0, 1.0)).item() == 0.0


def test_distances_of_all_pairs_of_surface_voxels() -> None:
    p, g = ball((9, 9, 9), 5), ball((10, 8, 11), 6)
    spacing = torch.tensor([1.0, 0.7, 2.0], dtype=torch.float64)

    def surface(mask: Tensor) -> Tensor:
        padded = nn.functional.pad(mask, (1,) * 6)
        neighbours = [padded.roll(by, axis) for axis, by in itertools.product(range(3), (-1, 1))]
        inner = torch.stack(neighbours).all(0)[1:-1, 1:-1, 1:-1]
        return (mask & ~inner).nonzero() * spacing

    distances = torch.cdist(surface(p), surface(g))
    both = torch.cat([distances.amin(1), distances.amin(0)])
    torch.testing.assert_close(hd95(p[None], g[None], spacing.tolist())[0], both.quantile(0.95))


def test_distances_of_empty_masks_and_at_the_edge() -> None:
    full, empty = torch.ones(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)
    assert hd95(empty, empty, (1, 1)).isnan().all()
    assert hd95(full, empty, (1, 1)).isinf().all()
    assert hd95(full, full, (1, 1)).item() == 0
    assert dice_score(empty, empty).isnan().all()
    assert dice_score(full, empty).item() == 0


class Count(nn.Module):
    """The input twice, and a count of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.calls.append(tuple(x.shape))
        return torch.cat([x, 2 * x], 1)


@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("size", [(20, 13, 9), (5, 30, 8), (8, 8, 8)])
def test_a_pointwise_model_is_applied_pointwise(size: tuple[int, ...], flips: bool, mode: str) -> None:
    image = drawn(1, *size).float()
    model = Count().train()
    found = predict_volume(model, image, (8, 8, 8), 0.6, mode, flips, batch=3)
    torch.testing.assert_close(found, torch.cat([image, 2 * image]), rtol=1e-5, atol=1e-5)
    assert model.training
    assert all(shape[2:] == (8, 8, 8) and shape[0] <= 3 for shape in model.calls)


@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize("size", [(20, 13), (6, 17), (16, 16)])
def test_monai_inferer(size: tuple[int, int], mode: str) -> None:
    inferers = pytest.importorskip("monai.inferers", reason="the reference")
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 5, padding=2)
    image = torch.randn(2, *size)
    for overlap in (0.25, 0.7):
        wanted = inferers.sliding_window_inference(image[None], (8, 8), 2, model, overlap=overlap, mode=mode)[0]
        found = predict_volume(model, image, (8, 8), overlap, mode, batch=2)
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-5)


def test_windows_come_in_the_type_of_the_weights_and_one_number_is_a_cube() -> None:
    model = nn.Conv2d(1, 2, 3, padding=1).bfloat16()
    image = torch.randint(0, 9, (1, 10, 12), generator=torch.Generator().manual_seed(0))
    found = predict_volume(model, image, 8)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, predict_volume(model.float(), image, (8, 8)), rtol=0.05, atol=0.1)


def test_flips_average_over_all_eight() -> None:
    torch.manual_seed(0)
    model = nn.Conv3d(1, 1, 3, padding=1)
    image = torch.randn(1, 8, 8, 8)
    every = [axes for n in range(4) for axes in itertools.combinations((1, 2, 3), n)]
    wanted = torch.stack([model(image.flip(axes)[None])[0].flip(axes) for axes in every]).mean(0)
    torch.testing.assert_close(predict_volume(model, image, (8, 8, 8), tta_flips=True), wanted.detach())


def test_weights_are_largest_in_the_middle_and_positive_in_corners() -> None:
    weight = importance_map((128, 128, 32))
    assert weight.argmax() == weight.flatten().argmax()
    assert weight.min() > 0
    assert weight[64, 64, 16] > 0.99
    assert torch.equal(weight, weight.flip(0, 1, 2))


def test_bad_input() -> None:
    x, mask = torch.zeros(1, 2, 4), torch.zeros(2, 4, dtype=torch.bool)
    for call, error, message in (
        (lambda: soft_dice_loss(x, x[:, :1]), ValueError, "target: got the shape"),
        (lambda: soft_dice_loss(x, x, reduction="sum"), ValueError, "reduction: got 'sum'"),
        (lambda: soft_dice_loss(x.long(), x), TypeError, "logits: got torch.int64"),
        (lambda: soft_dice_loss(x[:0], x[:0]), ValueError, "logits: got the shape"),
        (lambda: soft_dice_loss(x, x, smooth=-1.0), ValueError, "smooth: got -1.0"),
        (lambda: predict_volume(Count(), x[..., :0], (4, 4)), ValueError, "image: got the shape"),
        (lambda: dice_score(x[0], mask), TypeError, "wanted bool"),
        (lambda: dice_score(mask, mask[:1]), ValueError, "target: got the shape"),
        (lambda: hd95(mask, mask, (1, 1)), ValueError, "spacing: got"),
        (lambda: predict_volume(Count(), torch.zeros(1, 4, 4)), ValueError, "roi: got"),
        (lambda: predict_volume(Count(), torch.zeros(1, 4, 4), (4, 4), 1.0), ValueError, "overlap: got 1.0"),
        (lambda: predict_volume(Count(), torch.zeros(1, 4, 4), (4, 4), batch=0), ValueError, "batch: got 0"),
        (lambda: predict_volume(Count(), torch.zeros(1, 4, 4), (4, 4), mode="flat"), ValueError, "mode: got 'flat'"),
        (lambda: predict_volume(lambda w: w[..., 1:], torch.zeros(1, 4, 4), (4, 4)), ValueError, "model: got logits"),
    ):
        with pytest.raises(error, match=message):
            call()
