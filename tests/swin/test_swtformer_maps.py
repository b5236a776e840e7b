"""Class maps, seeds, prototypes and the losses on them: the equations, and their limit cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from paperworks.swin.swtformer import (
    class_contrast_loss,
    class_prototypes,
    gsc_loss,
    maps,
    normalize_cam,
    prototype_cam,
    structure_seeds,
    with_background,
)


def example(seed: int, batch: int = 2, classes: int = 3, width: int = 5, grid: tuple[int, int] = (4, 3)):
    g = torch.Generator().manual_seed(seed)
    labels = (torch.rand(batch, classes, generator=g) < 0.6).double()
    m = with_background(normalize_cam(torch.randn(batch, classes, *grid, generator=g, dtype=torch.float64)), labels)
    return m, torch.randn(batch, width, *grid, generator=g, dtype=torch.float64), labels


@given(st.integers(0, 1000), st.sampled_from([torch.float32, torch.float64]), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_normalised_maps_lie_in_the_unit_interval(seed: int, dtype: torch.dtype, classes: int) -> None:
    cam = torch.randn(2, 5, 4, classes, generator=torch.Generator().manual_seed(seed), dtype=dtype).permute(0, 3, 1, 2)
    found = normalize_cam(cam)
    assert found.dtype == dtype
    assert float(found.min()) >= 0
    assert float(found.max()) < 1
    peak = cam.amax((2, 3)).clamp_min(0)
    torch.testing.assert_close(found.amax((2, 3)), peak / (peak + 1e-5))


def test_an_all_negative_map_is_zero_and_the_background_takes_the_rest() -> None:
    cam = -torch.ones(1, 2, 2, 2)
    assert torch.equal(normalize_cam(cam), torch.zeros(1, 2, 2, 2))
    found = with_background(torch.tensor([0.2, 0.7]).view(1, 2, 1, 1), torch.tensor([[1, 0]]))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.3, 0.2, 0.0]))


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_seeds_are_those_of_the_equation_written_out(seed: int) -> None:
    m, x, labels = example(seed)
    seeds = structure_seeds(m, x, labels)
    unit = (x / (x.norm(dim=1, keepdim=True) + 1e-5)).flatten(2)
    for b in range(len(m)):
        r = (unit[b].T @ unit[b]).relu()
        for i in range(r.shape[0]):
            iou = []
            for k in range(m.shape[1]):
                mk = m[b, k].flatten()
                inter = sum(r[i, j] * mk[j] for j in range(len(mk)))
                iou.append(float(inter / (r[i].sum() + mk.sum() - inter)) * (0.5 if k == 0 else 1.0))
                if k and not labels[b, k - 1]:
                    iou[-1] = -1.0
            assert int(seeds[b].flatten(1)[:, i].argmax()) == max(range(len(iou)), key=iou.__getitem__)
    assert torch.equal(seeds.sum(1), torch.ones_like(seeds[:, 0]))


def test_rows_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    m, x, labels = example(1, grid=(7, 9))
    whole = structure_seeds(m, x, labels)
    monkeypatch.setattr(maps, "ROWS", 10)
    assert torch.equal(structure_seeds(m, x, labels), whole)


def test_seeds_give_absent_classes_nothing_even_on_ties_and_have_no_gradient() -> None:
    m = torch.zeros(1, 4, 3, 3, requires_grad=True)
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    seeds = structure_seeds(m, x, torch.tensor([[0, 1, 0]]))
    assert not seeds.requires_grad
    assert float(seeds[:, [1, 3]].sum()) == 0
    assert float(seeds.sum()) == 9


def test_the_weight_of_the_background_decides() -> None:
    m, x, labels = torch.rand(1, 2, 4, 4), torch.randn(1, 3, 4, 4), torch.ones(1, 1)
    assert float(structure_seeds(m, x, labels, background_weight=0.0)[:, 0].sum()) == 0
    assert float(structure_seeds(m, x, labels, background_weight=1e6)[:, 0].sum()) == 16


def test_two_regions_of_different_features_get_their_own_class() -> None:
    """One hot pixel in each region is enough: the seed fills what looks like it."""
    x = torch.zeros(1, 2, 4, 4)
    x[:, 0, :, :2], x[:, 1, :, 2:] = 1, 1
    m = torch.zeros(1, 3, 4, 4)
    m[0, 1, 0, 0], m[0, 2, 3, 3] = 1, 1
    seeds = structure_seeds(m, x, torch.ones(1, 2))
    assert torch.equal(seeds[0, 1], (torch.arange(4) < 2).float().expand(4, 4))
    assert torch.equal(seeds[0, 2], (torch.arange(4) >= 2).float().expand(4, 4))


@given(st.integers(0, 1000), st.floats(0.1, 50))
@settings(max_examples=15, deadline=None)
def test_prototypes_are_means_and_their_scale_does_not_matter(seed: int, scale: float) -> None:
    m, x, labels = example(seed)
    seeds = structure_seeds(m, x, labels)
    prototypes = class_prototypes(seeds, x)
    torch.testing.assert_close(prototypes, torch.einsum("bkij,bcij->bkc", seeds, x) / 12)
    found = prototype_cam(prototypes, x)
    torch.testing.assert_close(found, prototype_cam(scale * prototypes, x))
    wanted = F.cosine_similarity(prototypes[:, :, :, None, None], x[:, None], dim=2).relu()
    torch.testing.assert_close(found, wanted)
    assert float(found[:, 1:][labels == 0].abs().sum()) == 0


def test_consistency_is_zero_where_the_maps_agree_and_pulls_both() -> None:
    i = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(gsc_loss(i / (i.amax((2, 3), keepdim=True) + 1e-5), i), torch.tensor(0.0))
    torch.testing.assert_close(gsc_loss(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)), torch.tensor(1.0))
    m, i = torch.rand(1, 2, 3, 3, requires_grad=True), torch.rand(1, 2, 3, 3, requires_grad=True)
    gsc_loss(m, i).backward()
    for grad in (m.grad, i.grad):
        assert grad is not None
        assert float(grad.abs().sum()) > 0


def test_contrast_is_the_cross_entropy_over_the_classes_in_the_image() -> None:
    m, x, _ = example(3, batch=1)
    labels = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    seeds = torch.zeros_like(m)
    seeds[0, 0, :2], seeds[0, 3, 2:] = 1, 1  # class 1 is labelled and has no seed, class 2 has no label
    prototypes = torch.randn(1, 4, 5, dtype=torch.float64)
    found = class_contrast_loss(x, seeds, prototypes, labels, tau=0.2)
    cosine = F.cosine_similarity(prototypes[0, [0, 3]][:, :, None], x[0].flatten(1)[None], dim=1) / 0.2
    torch.testing.assert_close(found, F.cross_entropy(cosine.T, seeds[0, 3].flatten().long()))


def test_contrast_of_one_class_or_of_no_seed_is_zero() -> None:
    x, prototypes = torch.randn(1, 5, 2, 2, requires_grad=True), torch.randn(1, 3, 5)
    seeds = torch.zeros(1, 3, 2, 2)
    loss = class_contrast_loss(x, seeds, prototypes, torch.ones(1, 2))
    loss.backward()
    assert float(loss.detach()) == 0
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
    seeds[:, 0] = 1
    assert float(class_contrast_loss(x, seeds, prototypes, torch.ones(1, 2))) == pytest.approx(0, abs=1e-6)


def test_gradients_of_the_losses() -> None:
    m, x, labels = example(5)
    seeds = structure_seeds(m, x, labels)

    def both(x, m):
        p = class_prototypes(seeds, x)
        return gsc_loss(m, prototype_cam(p, x)) + class_contrast_loss(x, seeds, p, labels, 0.5)

    assert torch.autograd.gradcheck(both, (x.requires_grad_(), m.clone().requires_grad_()))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: normalize_cam(torch.rand(2, 3, 4)), "cam"),
        (lambda: with_background(torch.rand(2, 3, 4, 4), torch.ones(2, 4)), "labels"),
        (lambda: with_background(torch.rand(2, 3, 4, 4), torch.full((2, 3), 0.5)), "labels"),
        (lambda: structure_seeds(torch.rand(1, 3, 4, 4), torch.rand(1, 5, 4, 3), torch.ones(1, 2)), "maps"),
        (lambda: structure_seeds(torch.rand(1, 3, 4, 4), torch.rand(1, 5, 4, 4), torch.ones(1, 3)), "labels"),
        (lambda: class_prototypes(torch.rand(1, 3, 4, 4), torch.rand(2, 5, 4, 4)), "seeds"),
        (lambda: prototype_cam(torch.rand(1, 3, 4), torch.rand(1, 5, 4, 4)), "prototypes"),
        (lambda: gsc_loss(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 2, 2)), "prototype_map"),
        (
            lambda: class_contrast_loss(
                torch.rand(1, 5, 4, 4), torch.rand(1, 3, 4, 4), torch.rand(1, 3, 5), torch.ones(1, 2), tau=0
            ),
            "tau",
        ),
    ],
)
def test_bad_input_names_the_argument(call, named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}"):
        call()


def test_empty_batches() -> None:
    m, x, labels = torch.rand(0, 3, 4, 4), torch.rand(0, 5, 4, 4), torch.rand(0, 2)
    seeds = structure_seeds(m, x, labels)
    assert seeds.shape == (0, 3, 4, 4)
    assert class_prototypes(seeds, x).shape == (0, 3, 5)
    assert not math.isnan(float(class_contrast_loss(x, seeds, torch.rand(0, 3, 5), labels)))


def test_half_precision_counts_in_full() -> None:
    m, x, labels = example(7, grid=(24, 24))
    low = structure_seeds(m.half(), x.half(), labels)
    assert low.dtype == torch.float16
    same = (low.double() == structure_seeds(m.half().double(), x.half().double(), labels)).double().mean()
    assert float(same) > 0.999


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_absent_classes_and_many_pixels_in_half_precision(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(3)
    x, labels = torch.randn(24, 4, 48, 48, generator=g).to(dtype), torch.tensor([[1.0, 0.0]]).expand(24, 2)
    seeds = torch.zeros(24, 3, 48, 48, dtype=dtype)
    seeds[:, 0, :24], seeds[:, 1, 24:] = 1, 1
    prototypes = class_prototypes(seeds, x)
    found = prototype_cam(prototypes, x)
    assert found.dtype == dtype
    assert bool(torch.isfinite(found).all())
    assert float(found[:, 2].abs().max()) == 0
    loss = class_contrast_loss(x, seeds, prototypes, labels)
    wanted = class_contrast_loss(x.double(), seeds.double(), prototypes.double(), labels)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-3)
