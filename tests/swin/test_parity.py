"""The core computes what transformers' Swin and MONAI's Swin UNETR encoder compute, values and gradients."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from paperworks.swin.backbone import SwinBackbone, SwinClassifier
from paperworks.swin.state_dicts import load_swin_state_dict, swin_state_dict

transformers = pytest.importorskip("transformers")
monai = pytest.importorskip("monai")

SMALL = {"dim": 12, "depths": (2, 2, 2), "num_heads": (2, 3, 4), "patch": 2, "window": 4}


def spread(model: nn.Module) -> nn.Module:
    """Weights far enough from their start that every one matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + 0.1)
    return model.eval()


def compare(
    theirs: nn.Module, ours: nn.Module, wanted: list[torch.Tensor], found: list[torch.Tensor], layout: str
) -> None:
    """Maps, and the gradients of all weights, are equal."""
    assert len(wanted) == len(found)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for maps in (wanted, found):
        torch.stack([(map * torch.linspace(-1, 1, map.numel()).view_as(map)).sum() for map in maps]).sum().backward()
    gradients = deepcopy(ours)
    gradients.load_state_dict({name: p.grad for name, p in ours.named_parameters()})
    expected = dict(theirs.named_parameters())
    for name, gradient in swin_state_dict(gradients, layout).items():
        torch.testing.assert_close(
            gradient, expected[name].grad, rtol=1e-7, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("size", [(64, 64), (66, 74), (50, 46), (64, 38)])
def test_transformers(size: tuple[int, int]) -> None:
    config = transformers.SwinConfig(
        image_size=size, patch_size=2, embed_dim=12, depths=[2, 2, 2], num_heads=[2, 3, 4], window_size=4
    )
    theirs = spread(transformers.SwinModel(config, add_pooling_layer=False)).double()
    ours = SwinClassifier(0, **SMALL, clamp="joint").eval().double()
    load_swin_state_dict(ours, theirs.state_dict(), "transformers")
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    compare(theirs, ours, [theirs(x).last_hidden_state], [ours.forward_features(x).flatten(1, 2)], "transformers")


@pytest.mark.parametrize("size", [(16, 16, 16), (18, 14, 10), (10, 22, 12)])
@pytest.mark.parametrize("merge", ["merging", "mergingv2"])
def test_monai_in_three_dimensions(size: tuple[int, int, int], merge: str) -> None:
    from monai.networks.nets.swin_unetr import SwinTransformer

    theirs = spread(
        SwinTransformer(
            in_chans=2, embed_dim=12, window_size=(4, 4, 4), patch_size=(2, 2, 2), depths=(2, 2), num_heads=(2, 3),
            downsample=merge,
        )
    ).double()  # fmt: skip
    ours = SwinBackbone(
        3, 2, 2, 12, (2, 2), (2, 3), 4, merge="each", taps="after", out_norm="plain", patch_norm=False,
        merge_order="monai" if merge == "merging" else "product",
    ).double()  # fmt: skip
    load_swin_state_dict(ours, theirs.state_dict(), "monai")
    x = torch.randn(2, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first = theirs.layers1[0](theirs.patch_embed(x).contiguous())
    both = [theirs.proj_out(map, True) for map in (first, theirs.layers2[0](first.contiguous()))]
    compare(theirs, ours, both, [map.movedim(-1, 1) for map in ours(x)], "monai")


@pytest.mark.parametrize("size", [(64, 64), (72, 40)])
def test_monai_in_two_dimensions(size: tuple[int, int]) -> None:
    from monai.networks.nets.swin_unetr import SwinTransformer

    options = {"depths": (2, 2, 2, 2), "num_heads": (1, 2, 3, 4)}
    theirs = SwinTransformer(in_chans=1, embed_dim=12, window_size=(7, 7), patch_size=(2, 2), spatial_dims=2, **options)
    theirs = spread(theirs).double()
    ours = SwinBackbone(
        2, 1, 2, 12, window=7, merge="each", taps="after", out_norm="plain", patch_norm=False, **options
    ).double()  # fmt: skip
    load_swin_state_dict(ours, theirs.state_dict(), "monai")
    x = torch.randn(2, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    compare(theirs, ours, theirs(x, True)[1:], [map.movedim(-1, 1) for map in ours(x)], "monai")
