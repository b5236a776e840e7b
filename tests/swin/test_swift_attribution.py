"""Integrated gradients: completeness, linear and quadratic cases, noise, and the way back to NIfTI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from paperworks.swin.swift import (
    SwiFT,
    attribution_to_nifti,
    integrated_gradients,
    subject_scores,
    youden_threshold,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(**options: object) -> SwiFT:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return SwiFT(
            (8, 8, 8, 4), 1, 8, (4, 4, 4, 1), (2, 2, 2, 2), depths=(2,), num_heads=(2,), num_outputs=2, **options
        ).double()


def test_a_linear_function_is_attributed_by_its_weights() -> None:
    w, x = draw(4, 5), draw(3, 4, 5, seed=1)
    found = integrated_gradients(lambda t: (t * w).sum((1, 2)), x, baseline=0.5, steps=1)
    torch.testing.assert_close(found, (x - 0.5) * w)
    torch.testing.assert_close(found.residual, torch.zeros(3, dtype=torch.float64))


def test_a_product_is_shared_alike() -> None:
    """f = x y from 0: each has half of it."""
    x = draw(4, 2)
    found = integrated_gradients(lambda t: t[:, 0] * t[:, 1], x, baseline=0.0, steps=2)
    torch.testing.assert_close(found, (x.prod(1) / 2).unsqueeze(1).expand(-1, 2))


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_completeness_on_the_network(at_once: int) -> None:
    model, x = network(), draw(2, 1, 8, 8, 8, 3)
    found = integrated_gradients(model, x, steps=40, target=1, internal_batch=at_once)
    assert found.shape == x.shape
    start = x[:, :1, :1, :1, :1, :1].expand_as(x)
    change = (model(x) - model(start))[:, 1]
    torch.testing.assert_close(found.flatten(1).sum(1) + found.residual, change)
    assert (found.residual / change).abs().max() < 1e-6
    assert found[:, 0, 0, 0, 0, 0].abs().max() == 0, "the voxel that is the baseline has no part"
    torch.testing.assert_close(found, integrated_gradients(model, x, steps=40, target=1, internal_batch=5))


def test_the_baseline_broadcasts_and_samples_do_not_mix() -> None:
    model, x = network(), draw(2, 1, 8, 8, 8, 3)
    mean = x.mean((2, 3, 4), keepdim=True)
    both = integrated_gradients(model, x, baseline=mean, steps=8)
    for i in range(2):
        one = integrated_gradients(model, x[i : i + 1], baseline=mean[i : i + 1].expand(1, 1, 8, 8, 8, 3), steps=8)
        torch.testing.assert_close(both[i : i + 1], one)
        torch.testing.assert_close(both.residual[i : i + 1], one.residual)


def test_noise_is_averaged_as_it_is_or_squared() -> None:
    w, x = draw(6), draw(2, 6, seed=1)

    def mean(sigma: float, squared: bool, copies: int = 800) -> torch.Tensor:
        return integrated_gradients(
            lambda t: (t * w).sum(1), x, baseline=0.0, steps=1, smooth=copies, sigma=sigma, squared=squared,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    torch.testing.assert_close(mean(0.0, False, 3), x * w)
    torch.testing.assert_close(mean(0.0, True, 3), (x * w) ** 2)
    torch.testing.assert_close(mean(0.5, False), x * w, rtol=0, atol=0.15)
    torch.testing.assert_close(mean(0.5, True), w**2 * (x**2 + 0.25), rtol=0.3, atol=0.1)
    assert torch.equal(mean(0.5, True, 2), mean(0.5, True, 2)), "the generator decides"


def test_a_module_is_in_eval_mode_meanwhile_and_as_before_after() -> None:
    model, x = network(drop_rate=0.5).train(), draw(1, 1, 8, 8, 8, 2)
    model.stages[0].blocks[0].eval()
    first = integrated_gradients(model, x, steps=2)
    assert torch.equal(first, integrated_gradients(model, x, steps=2))
    assert model.training
    assert not model.stages[0].blocks[0].training
    assert all(p.grad is None for p in model.parameters())


def test_bad_input() -> None:
    x = draw(2, 3)
    model = nn.Linear(3, 2).double()
    for options, message in (
        ({"steps": 0}, "steps: got 0"),
        ({"smooth": -1}, "smooth: got -1"),
        ({"internal_batch": 0}, "internal_batch: got 0"),
        ({"sigma": -1.0}, "sigma: got -1"),
        ({"squared": True}, "squared: got True without noise"),
        ({"target": 2}, r"target: got 2 for an output of the shape \(1, 2\)"),
        ({"baseline": torch.zeros(4)}, r"baseline: got the shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            integrated_gradients(model, x, **options)
    with pytest.raises(ValueError, match=r"x: got the shape \(0, 3\), which is empty"):
        integrated_gradients(model, x[:0])
    with pytest.raises(TypeError, match=r"x: got torch\.int64"):
        integrated_gradients(model, torch.ones(2, 3, dtype=torch.long))


def test_written_with_the_affine_of_the_input(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    from paperworks.data.volumes import read_nifti, write_nifti

    place = np.diag([2.0, 2.0, 3.0, 1.0])
    place[:3, 3] = (-90, -126, -72)
    write_nifti(tmp_path / "a.nii.gz", np.ones((5, 7, 8, 3), np.float32), place, seconds=0.72)
    attr = torch.zeros(1, 1, 8, 8, 6, 3)  # padded by (2, 1) and (1, 0), cut by (1, 1)
    attr[0, 0, 2 + 3, 1 + 5, 4, 2] = 9
    attribution_to_nifti(attr, tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    found = read_nifti(tmp_path / "b.nii.gz")
    assert found.data.shape == (5, 7, 8, 3)
    assert np.argwhere(found.data).tolist() == [[3, 5, 4 + 1, 2]]
    assert np.array_equal(found.affine, place)
    assert found.spacing == pytest.approx((2, 2, 3, 0.72))
    attribution_to_nifti(attr.mean(-1)[0, 0], tmp_path / "a.nii.gz", tmp_path / "c.nii")
    assert read_nifti(tmp_path / "c.nii").data.shape == (5, 7, 8)
    with pytest.raises(ValueError, match="attr: got the shape"):
        attribution_to_nifti(torch.zeros(2, 1, 5, 7, 8, 3), tmp_path / "a.nii.gz", tmp_path / "d.nii")


def test_subject_scores_are_means_over_clips() -> None:
    names, scores = subject_scores(torch.tensor([1.0, 5.0, 3.0, -1.0]), ["b", "a", "b", "a"])
    assert names == ["b", "a"]
    torch.testing.assert_close(scores, torch.tensor([2.0, 2.0]))
    assert subject_scores(torch.zeros(0), []) == ([], pytest.approx(torch.zeros(0)))
    with pytest.raises(ValueError, match="for 2 subjects"):
        subject_scores(torch.zeros(3), ["a", "b"])


def test_the_youden_threshold_is_the_best_of_all() -> None:
    score = draw(40)
    y = ((score + draw(40, seed=1)) > 0.4).long()

    def index(threshold: float) -> float:
        called = score >= threshold
        return float(called[y == 1].double().mean() - called[y == 0].double().mean())

    found = youden_threshold(score, y)
    assert index(found) == max(index(t) for t in score.tolist())
    assert youden_threshold([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1]) == 2.0
    with pytest.raises(ValueError, match="wanted both 0 and 1"):
        youden_threshold([0.0, 1.0], [1, 1])
    with pytest.raises(ValueError, match="y: got the shape"):
        youden_threshold([0.0, 1.0], [1, 0, 1])
    with pytest.raises(ValueError, match="scores: got NaN"):
        youden_threshold([0.0, float("nan")], [1, 0])
