"""What a voxel depends on, against gradients; and strides for thick slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from paperworks.swin.swin_unetr import SwinEncoder, SwinUNETR, explain_receptive_field, thick_slice_strides

FLAT: dict[str, Any] = {"feature_size": 12, "spatial_dims": 2}


def reached(gradient: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    at = (gradient[0] != 0).any(0).nonzero()
    return tuple(at.amin(0).tolist()), tuple(at.amax(0).tolist()), len(at)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({**FLAT, "window_size": 3}, (96, 160)),
        ({**FLAT, "window_size": (4, 5), "depths": (1, 2, 3, 2)}, (100, 132)),
        ({**FLAT, "merge_strides": ((2, 1), (1, 2), (2, 2), (2, 1)), "patch_size": (1, 2), "window_size": 4}, (40, 96)),
        ({"feature_size": 12, "window_size": 2}, (40, 48, 33)),
    ],
    ids=["2-D", "other depths and odd sizes", "other strides", "3-D"],
)
def test_the_encoders_gradients_are_where_it_says(options: dict[str, Any], size: tuple[int, ...]) -> None:
    encoder = SwinEncoder(1, **options).double().eval()
    generator = torch.Generator().manual_seed(2)
    for at in (None, tuple(s - 1 for s in size), tuple(s // 3 for s in size)):
        x = torch.randn(1, 1, *size, dtype=torch.float64, generator=generator).requires_grad_()
        found = explain_receptive_field(encoder, size, at)
        assert [reach.name for reach in found] == ["h0", "h1", "h2", "h3", "h4"]
        for reach, map in zip(found, encoder(x), strict=True):
            weight = torch.randn(map.shape[1], dtype=torch.float64, generator=generator)
            [gradient] = torch.autograd.grad((map[(0, slice(None), *reach.at)] * weight).sum(), x, retain_graph=True)
            assert reached(gradient) == (reach.first, reach.last, reach.voxels)
            assert reach.share == reach.voxels / x.numel()


def test_the_logits_gradients_with_the_norms_means_held_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (192, 256)
    network = SwinUNETR(1, 1, **FLAT, window_size=2).double().eval()
    x = torch.randn(1, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    [everywhere] = torch.autograd.grad(network(x)[0, 0, 0, 5], x)
    assert (everywhere != 0).all(), "through the means of the norms"
    monkeypatch.setattr(F, "instance_norm", lambda x, **_: x)
    reach = explain_receptive_field(network, size, (0, 5))[-1]
    [gradient] = torch.autograd.grad(network(x)[0, 0, 0, 5], x)
    assert reached(gradient) == (reach.first, reach.last, reach.voxels)
    assert reach.name == "logits"
    assert reach.share < 1


def test_convolutions_before_the_stages_widen_it() -> None:
    plain, wide = (SwinEncoder(1, **FLAT, window_size=2, use_v2=v2, device="meta") for v2 in (False, True))
    for one, other in zip(*(explain_receptive_field(e, (512, 512), (256, 256)) for e in (plain, wide)), strict=True):
        assert (one.voxels < other.voxels) == (one.name != "h0")


def test_what_it_cannot_follow_is_named() -> None:
    network = SwinUNETR(1, 1, **FLAT, device="meta")
    for size, at, message in (((64,), None, "size: got"), ((64, 0), None, "size: got"), ((64, 64), (64, 0), "at: got")):
        with pytest.raises(ValueError, match=message):
            explain_receptive_field(network, size, at)


def test_strides_follow_the_spacing() -> None:
    same = thick_slice_strides((1.0, 1.0, 1.0), (128, 128, 128))
    assert same == {"patch_size": (2, 2, 2), "merge_strides": ((2, 2, 2),) * 4}
    found = thick_slice_strides((5.0, 1.0, 1.0), (40, 128, 128))
    # voxels of 5 mm wait until the others are more than 2.5 mm long; below two windows of 7 they are kept
    assert found["patch_size"] == (1, 2, 2)
    assert found["merge_strides"] == ((1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    few = thick_slice_strides((1.0, 1.0, 5.0), (128, 128, 13))
    assert all(steps[2] == 1 for steps in (few["patch_size"], *few["merge_strides"]))
    assert thick_slice_strides((1.0, 1.9), (64, 64))["patch_size"] == (2, 2)
    for spacing, size, message in (
        ((1.0,), (64,), "spacing: got"),
        ((1.0, 0.0), (64, 64), "spacing: got"),
        ((1.0, 1.0), (64,), "size: got"),
    ):
        with pytest.raises(ValueError, match=message):
            thick_slice_strides(spacing, size)


def test_a_network_for_thick_slices() -> None:
    strides = thick_slice_strides((5.0, 1.0, 1.0), (10, 64, 64))
    model = SwinUNETR(2, 3, 12, **strides).eval()
    x = torch.randn(1, 2, 10, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert [tuple(m.shape[2:]) for m in model.encode(x)] == [(10, 64 >> i, 64 >> i) for i in range(1, 6)]
        found = model(x)
        model.load_monai_state_dict(model.monai_state_dict())
        assert torch.equal(model(x), found)
    assert found.shape == (1, 3, 10, 64, 64)
    assert model.decoder1.transp_conv.conv.kernel_size == (1, 2, 2)
    with pytest.raises(ValueError, match=r"those of the axes \[3\] are no multiples of \(1, 32, 32\)"):
        model(torch.zeros(1, 2, 10, 60, 64))
    with pytest.raises(ValueError, match=r"wanted at least \(2, 64, 64\) on one axis"):
        model(torch.zeros(1, 2, 1, 32, 32))
    model.pad_input = True
    assert model(torch.zeros(1, 2, 1, 32, 20)).shape == (1, 3, 1, 32, 20)


def test_all_strides_of_two_are_the_network_itself() -> None:
    model = SwinUNETR(2, 3, **FLAT).eval()
    other = SwinUNETR(2, 3, **FLAT, patch_size=(2, 2), merge_strides=((2, 2),) * 4).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 2, 64, 96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("strides", [((2, 2),) * 3, ((2,),) * 4, ((1, 1), *((2, 2),) * 3), ((3, 2), *((2, 2),) * 3)])
def test_strides_that_are_refused(strides: Any) -> None:
    with pytest.raises(ValueError, match="merge_strides: got"):
        SwinUNETR(2, 3, **FLAT, merge_strides=strides)
