"""The finders on the real networks of timm and torchvision, where those are installed.

torchvision's own operators are compiled for CUDA builds of torch; over another build it can be imported only when two
of them are declared first.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

from paperworks.efficiency.dimap import dimap_masks, find_modules
from paperworks.efficiency.mobiletl import mobiletl
from paperworks.surgery.inverted_residuals import find_inverted_residuals


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip("timm and torchvision are not installed")
    declared = torch.library.Library("torchvision", "FRAGMENT")
    with suppress(RuntimeError):  # already there: torchvision brought its own
        declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    yield timm
    del declared  # the declarations last as long as this object


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("mobilenetv2_100", 17), ("mobilenetv3_small_100", 11), ("mobilenetv3_large_100", 15), ("efficientnet_lite0", 16)],
)
def test_inverted_residuals_of_timm_are_found_converted_and_given_back(timm: Any, name: str, blocks: int) -> None:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=3).eval()
    assert len(find_inverted_residuals(model)) == blocks
    keys, x = list(model.state_dict()), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        handle = mobiletl(model, 5)
        assert torch.allclose(model(x), before, rtol=1e-4, atol=1e-5)
    assert len(handle.block_names) == 5
    assert list(handle.unwrap().state_dict()) == keys


@pytest.mark.parametrize("model", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_inverted_residuals_of_torchvision_are_found(timm: Any, model: str) -> None:
    import torchvision

    with torch.device("meta"):
        found = find_inverted_residuals(getattr(torchvision.models, model)())
    assert len(found) == {"mobilenet_v2": 17, "mobilenet_v3_small": 11, "mobilenet_v3_large": 15}[model]


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_swin_modules_of_timm_are_those_of_the_published_counts(timm: Any, name: str) -> None:
    with torch.device("meta"):
        modules = find_modules(timm.create_model(name))
    weights = {key: sum(layer.weight.numel() for _, layer in layers) for key, layers in modules.items()}
    assert weights == {"qkv": 6_469_632, "proj": 2_156_544, "mlp": 17_252_352}
    assert [len(layers) for layers in modules.values()] == [12, 12, 24]


def test_a_small_timm_swin_is_pruned_under_its_own_names(timm: Any) -> None:
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 2), num_classes=3
    )
    masks = dimap_masks(model, 0.5)
    assert "layers.0.blocks.0.attn.qkv.weight" in masks
    kept = sum(kept for kept, _ in masks.counts().values())
    assert kept == sum(total for _, total in masks.counts().values()) // 2
