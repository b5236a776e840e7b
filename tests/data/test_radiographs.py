"""X-rays by a cone of rays: chords, magnification, axes, derivatives, and the loops beside grid_sample."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paperworks import native
from paperworks.data import radiographs
from paperworks.data.radiographs import biplanar_pair, drr, to_radiograph

CONE: dict[str, Any] = {"detector_shape": (6, 5), "pixel_size": 2.0}


def places(shape: tuple[int, ...], spacing: tuple[float, ...]) -> list[Tensor]:
    axes = [(torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    return list(torch.meshgrid(*axes, indexing="ij"))


def sampled(volume: Tensor, spacing: tuple[float, ...], angle: float | Tensor, chunk: int | None = 7) -> Tensor:
    """The reference path."""
    cone = radiographs._cone(volume, spacing, angle, CONE["detector_shape"], CONE["pixel_size"], 1800, 2000, None)
    return radiographs._sampled(volume.expand(len(cone.views), -1, -1, -1, -1), cone, chunk)


@pytest.mark.parametrize("angle", [0.0, 90.0, 33.0])
def test_a_spheres_chord(angle: float) -> None:
    shape, spacing, radius = (49, 49, 49), (1.0, 1.0, 1.0), 20.0
    x, y, z = places(shape, spacing)
    # a voxel at the surface holds its share, so that the sampled sphere has the sphere's size
    ball = (radius + 0.5 - (x**2 + y**2 + z**2).sqrt()).clamp(0, 1)
    found = drr(ball[None, None], spacing, angle, detector_shape=(31, 31), pixel_size=0.8)[0, 0]
    u = 0.8 * (torch.arange(31, dtype=torch.float64) - 15)
    pixel = (u[:, None] ** 2 + u**2).sqrt()
    off = 1800 * torch.sin(torch.atan(pixel / 2000))  # distance of the ray from the middle
    chord = 2 * (radius**2 - off**2).sqrt()
    torch.testing.assert_close(found, chord, rtol=0.01, atol=0)


@pytest.mark.parametrize("height", [-40.0, 0.0, 40.0])
def test_a_cone_magnifies_by_the_distances(height: float) -> None:
    """Two rods along y's normal, seen at 0 degrees: their shadows are SDD / (distance from the source) apart."""
    volume = torch.zeros(1, 1, 81, 81, 3)
    volume[0, 0, 20, int(40 + height / 2), :] = 1
    volume[0, 0, 60, int(40 + height / 2), :] = 1
    shadow = drr(volume, (2.0, 2.0, 2.0), 0.0, detector_shape=(401, 1), pixel_size=0.5, step=0.5)[0, 0, :, 0]
    u = (torch.arange(401) - 200) * 0.5
    left, right = (shadow * (u < 0), shadow * (u > 0))
    apart = float((right * u).sum() / right.sum() - (left * u).sum() / left.sum())
    assert apart == pytest.approx(80 * 2000 / (1800 + height), rel=5e-3)


def test_axes_and_the_sense_of_turning() -> None:
    """A bright voxel at (+x, +y, +z): where it appears at 0, 90 and 45 degrees."""
    volume = torch.zeros(1, 1, 41, 41, 41, dtype=torch.float64)
    x, y, z = 12.0, 5.0, 9.0
    volume[0, 0, 20 + 12, 20 + 5, 20 + 9] = 1
    for angle in (0.0, 90.0, 45.0, -30.0):
        shadow = drr(volume, (1, 1, 1), angle, detector_shape=(81, 81), pixel_size=0.5)[0, 0]
        at = shadow.nonzero().double().mul(shadow[shadow > 0].unsqueeze(1)).sum(0) / shadow.sum()
        turn = math.radians(angle)
        across = x * math.cos(turn) + y * math.sin(turn)
        depth = 1800 - x * math.sin(turn) + y * math.cos(turn)
        wanted = torch.tensor([across, z]).double() * 2000 / depth / 0.5 + 40
        torch.testing.assert_close(at, wanted, rtol=0, atol=0.1)


@settings(max_examples=8, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 3)] * 3),
    angles=st.lists(st.floats(-200, 200), min_size=1, max_size=2),
    chunk=st.integers(1, 40),
)
def test_the_loops_and_grid_sample_agree(
    shape: tuple[int, ...], spacing: tuple[float, ...], angles: list[float], chunk: int
) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    volume = torch.randn(len(angles), 1, *reversed(shape), generator=generator, dtype=torch.float64)
    volume = volume.transpose(-1, -3).requires_grad_()
    angle = torch.tensor(angles)
    found, wanted = drr(volume, spacing, angle, **CONE), sampled(volume, spacing, angle, chunk)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)
    weight = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    [one] = torch.autograd.grad(found, volume, weight)
    [two] = torch.autograd.grad(wanted, volume, weight)
    torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-7)
    single = drr(volume.detach().float(), spacing, angle, **CONE)
    torch.testing.assert_close(single.double(), found.detach(), rtol=1e-4, atol=1e-4)


def test_derivatives_of_first_and_second_order() -> None:
    volume = torch.rand(1, 1, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: drr(v, (1, 2, 1.5), 20.0, **CONE), (volume,))
    assert torch.autograd.gradgradcheck(lambda v: drr(v, (1, 2, 1.5), 20.0, **CONE).square(), (volume,))
    smooth = torch.ones(1, 1, 9, 9, 9, dtype=torch.float64)
    angle = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
    x, y, z = places((9, 9, 9), (1, 1, 1))
    smooth = torch.exp(-(x**2 / 8 + (y - 1) ** 2 / 4 + z**2 / 6))[None, None]
    [slope] = torch.autograd.grad(drr(smooth, (1, 1, 1), angle, **CONE)[0, 0, 1, 2], angle)
    up, down = (float(drr(smooth, (1, 1, 1), 10.0 + d, **CONE)[0, 0, 1, 2]) for d in (1e-3, -1e-3))
    assert float(slope) == pytest.approx((up - down) / 2e-3, rel=0.05)


def test_the_gradient_does_not_depend_on_the_threads() -> None:
    volume = torch.rand(2, 1, 9, 8, 11, requires_grad=True)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = drr(volume, (1, 1, 1), torch.tensor([0.0, 50.0]), **CONE)
            found.append(torch.autograd.grad(out.square().sum(), volume)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_it_is_linear_and_counts_the_length_in_mm() -> None:
    one, two = torch.rand(2, 1, 1, 5, 6, 7, dtype=torch.float64)
    project = lambda v, scale=1.0: drr(v, (scale,) * 3, 40.0, detector_shape=(6, 5), pixel_size=scale)  # noqa: E731
    torch.testing.assert_close(project(2 * one - two), 2 * project(one) - project(two))
    slab = torch.ones(1, 1, 101, 20, 101, dtype=torch.float64)
    through = drr(slab, (1.0, 3.0, 1.0), 0.0, detector_shape=(1, 1), pixel_size=1.0, step=0.1)
    assert float(through) == pytest.approx(60.0, rel=2e-3)


def test_one_volume_from_many_angles() -> None:
    volume, angles = torch.rand(1, 1, 5, 6, 7), torch.tensor([0.0, 45.0, 90.0])
    found = drr(volume, (1, 1, 1), angles, **CONE)
    for one, angle in zip(found, angles.tolist(), strict=True):
        torch.testing.assert_close(one[None], drr(volume, (1, 1, 1), angle, **CONE))


def test_without_a_compiler_in_half_precision_and_under_transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = torch.rand(1, 1, 5, 6, 7)
    wanted = drr(volume, (1, 1, 1), 30.0, **CONE)
    half = drr(volume.half(), (1, 1, 1), 30.0, **CONE)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), wanted, rtol=5e-3, atol=5e-3)
    many = torch.func.vmap(lambda v: drr(v, (1, 1, 1), 30.0, **CONE))(volume[None].expand(2, -1, -1, -1, -1, -1))
    torch.testing.assert_close(many[1], wanted, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(native, "load", lambda *_: None)
    torch.testing.assert_close(drr(volume, (1, 1, 1), 30.0, **CONE), wanted, rtol=1e-4, atol=1e-4)


def test_radiographs() -> None:
    line = torch.tensor([[[[0.0, 50.0], [100.0, 25.0]]], [[[2.0, 2.0], [2.0, 2.0]]]])
    found = to_radiograph(line)
    assert found[0].flatten().tolist() == [0, 0.5, 1, 0.25]
    assert found[1].count_nonzero() == 0
    beer = to_radiograph(line, "beer", 0.02)
    torch.testing.assert_close(beer, 1 - torch.exp(-0.02 * line))
    with pytest.raises(ValueError, match="mode: got 'log'"):
        to_radiograph(line, "log")
    with pytest.raises(ValueError, match="line_integrals: got the shape"):
        to_radiograph(line[:0])


def test_a_pair_leaves_out_air_and_shows_two_planes() -> None:
    ct = torch.full((1, 1, 21, 21, 21), -1000.0)
    ct[0, 0, 14, 5, 17] = 500
    pair = biplanar_pair(ct, (1, 1, 1), detector_shape=(21, 21), pixel_size=1.11)
    for view, across in zip(pair, (14, 5), strict=True):
        assert view.min() == 0
        assert view.max() == 1
        assert divmod(int(view.argmax()), 21) == (across, 17)


def test_a_half_turn_is_the_mirrored_pair_of_a_distant_source() -> None:
    volume = torch.rand(1, 1, 12, 12, 9, dtype=torch.float64)
    far: dict[str, Any] = {
        "detector_shape": (12, 9),
        "pixel_size": 1.0,
        "source_to_iso": 1e7,
        "source_to_detector": 1.1e7,
    }
    far["pixel_size"] = 1.1
    for angle in (0.0, 90.0):
        turned = drr(volume.flip(2, 3), (1, 1, 1), angle, **far)
        torch.testing.assert_close(turned, drr(volume, (1, 1, 1), angle, **far).flip(-2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"volume": torch.rand(1, 2, 3, 3, 3)}, ValueError, "volume: got the shape"),
        ({"volume": torch.rand(0, 1, 3, 3, 3)}, ValueError, "volume: got the shape"),
        ({"volume": torch.ones(1, 1, 3, 3, 3).long()}, TypeError, "volume: got torch.int64"),
        ({"spacing": (1, 1)}, ValueError, "spacing: got"),
        ({"spacing": (1, 1, 0)}, ValueError, "spacing: got"),
        ({"detector_shape": (0, 3)}, ValueError, "detector_shape: got"),
        ({"detector_shape": (3,)}, ValueError, "detector_shape: got"),
        ({"pixel_size": -1.0}, ValueError, "pixel_size: got"),
        ({"source_to_detector": 1800.0}, ValueError, "source_to_detector: got 1800"),
        ({"source_to_iso": 0.0}, ValueError, "source_to_iso: got"),
        ({"step": 0.0}, ValueError, "step: got"),
        ({"chunk": 0}, ValueError, "chunk: got"),
        ({"angle_deg": torch.zeros(2)}, ValueError, "angle_deg: got"),
    ],
)
def test_bad_input(changed: dict[str, Any], error: type[Exception], words: str) -> None:
    given_all: dict[str, Any] = {"volume": torch.rand(3, 1, 3, 3, 3), "spacing": (1, 1, 1), "angle_deg": 0.0, **CONE}
    drr(**copy.copy(given_all))
    with pytest.raises(error, match=words):
        drr(**(given_all | changed))
