"""Blocks, merging and backbones: counts, the switches where references disagree, and what users do with modules."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from paperworks.swin.backbone import SwinBackbone, SwinClassifier
from paperworks.swin.blocks import DropPath, PatchEmbed, PatchMerging, WindowBlock, merge_offsets
from paperworks.swin.state_dicts import LAYOUTS, load_swin_state_dict, swin_state_dict

TINY: dict[str, Any] = {"dim": 8, "depths": (2, 2), "num_heads": (1, 2), "patch": 2, "window": 3}


def block(**options: Any) -> WindowBlock:
    torch.manual_seed(0)
    made = WindowBlock(8, 2, (4, 4), (2, 2), **options).double()
    assert made.attn.bias is not None
    with torch.no_grad():
        made.attn.bias.relative_position_bias_table.normal_()
    return made


def test_parameters_of_swin_t() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in SwinClassifier().parameters()) == 28_288_354


def test_a_network_that_was_first_built_on_the_meta_device_leaves_no_trace() -> None:
    with torch.device("meta"):
        model = SwinClassifier(3, dim=8, depths=(2,), num_heads=(1,), patch=2, window=5)
        for _ in range(2):
            assert model.eval()(torch.empty(1, 3, 22, 24)).shape == (1, 3)
    real = SwinClassifier(3, dim=8, depths=(2,), num_heads=(1,), patch=2, window=5)
    assert real(torch.zeros(1, 3, 22, 24)).isfinite().all()


def test_blocks_without_shift_commute_with_a_move_by_one_window() -> None:
    made = WindowBlock(8, 2, (4, 4), (0, 0)).double()
    x = torch.randn(1, 8, 12, 8, dtype=torch.double)
    torch.testing.assert_close(made(x.roll((4, -4), (1, 2))), made(x).roll((4, -4), (1, 2)))


def test_order_of_roll_and_pad_matters_where_a_map_is_no_multiple_of_its_window() -> None:
    one, other = block(order="pad-roll"), block(order="roll-pad")
    whole, odd = (torch.randn(1, *size, 8, dtype=torch.double) for size in ((8, 12), (9, 10)))
    torch.testing.assert_close(one(whole), other(whole))
    assert not torch.allclose(one(odd), other(odd))
    # rolled first, the map's own corner comes before the padding
    shifted = other.norm1(odd).roll((-2, -2), (1, 2))
    padded = torch.nn.functional.pad(shifted, (0, 0, 0, 2, 0, 3))
    from paperworks.swin.windows import shift_mask, window_partition, window_reverse

    windows = other.attn(window_partition(padded, (4, 4)), shift_mask((12, 12), (4, 4), (2, 2)))
    wanted = window_reverse(windows, (4, 4), (12, 12))[:, :9, :10].roll((2, 2), (1, 2))
    torch.testing.assert_close(other._attention(other.norm1(odd)), wanted)


def test_clamping_jointly_and_by_axis() -> None:
    x = torch.randn(1, 3, 8, 8, dtype=torch.double)
    by_axis, jointly = block(clamp="axis"), block(clamp="joint")
    assert not torch.allclose(by_axis(x), jointly(x))
    square = torch.randn(1, 3, 3, 8, dtype=torch.double)
    torch.testing.assert_close(by_axis(square), jointly(square))


def test_bias_of_a_clamped_window() -> None:
    cut, exact = block(clamped_bias="cut"), block(clamped_bias="exact")
    first = torch.randn(1, 2, 8, 8, dtype=torch.double)
    torch.testing.assert_close(cut(first)[:, :, :0], exact(first)[:, :, :0])
    second = torch.randn(1, 8, 2, 8, dtype=torch.double)
    assert not torch.allclose(cut(second), exact(second))


@pytest.mark.parametrize("order", ["pad-roll", "roll-pad"])
def test_masked_padding_has_no_influence(order: str) -> None:
    x = torch.randn(1, 6, 7, 8, dtype=torch.double)
    masked, open_ = block(order=order, mask_padding=True), block(order=order)
    assert not torch.allclose(masked(x), open_(x))
    with torch.no_grad():  # keys of padding are the biases of the projection
        before = masked(x)
        masked.attn.qkv.bias[8:].add_(5)
        moved = masked(x)
        masked.attn.proj.bias.sub_(masked.attn.proj.weight @ torch.full((8,), 5.0, dtype=torch.double))
    # all values moved alike, so what comes out moved by exactly that; a padded key would have weighed in otherwise
    assert not torch.allclose(before, moved)
    torch.testing.assert_close(masked(x), before)


def test_merging_orders() -> None:
    assert merge_offsets(2, (0, 1), "swin2d") == ((0, 0), (1, 0), (0, 1), (1, 1))
    assert merge_offsets(2, (0, 1), "product") == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert set(merge_offsets(3, (0, 1, 2), "monai")) == set(merge_offsets(3, (0, 1, 2), "product"))
    assert len(set(merge_offsets(3, (0, 1, 2), "monai-legacy"))) == 6
    assert merge_offsets(4, (0, 1, 2), "product")[1] == (0, 0, 1, 0)
    x = torch.arange(2 * 4 * 4.0).view(2, 4, 4, 1)
    merging = PatchMerging(2, 1, order="swin2d")
    merging.norm = torch.nn.Identity()  # type: ignore[assignment]
    merging.reduction = torch.nn.Identity()  # type: ignore[assignment]
    assert merging(x)[0, 0, 0].tolist() == [0, 4, 1, 5]
    assert PatchMerging(4, 2, axes=(0, 1, 2))(torch.zeros(1, 4, 3, 2, 5, 2)).shape == (1, 2, 2, 1, 5, 4)
    with pytest.raises(ValueError, match=r"x: got the sizes \(3, 4\), wanted even ones"):
        PatchMerging(2, 2, pad=False)(torch.zeros(1, 3, 4, 2))


def test_patches_of_four_axes_are_flattened_with_channels_fastest() -> None:
    embed = PatchEmbed(4, (2, 1, 1, 2), 3, 5)
    x = torch.randn(2, 3, 4, 2, 2, 4)
    patch = torch.stack([x[0, :, i, 0, 0, j] for i in range(2) for j in range(2)]).flatten()
    assert embed(x).shape == (2, 2, 2, 2, 2, 5)
    torch.testing.assert_close(embed(x)[0, 0, 0, 0, 0], embed.proj(patch))


@pytest.mark.parametrize("ndim", [1, 2, 3, 4])
def test_any_size_on_any_number_of_axes(ndim: int) -> None:
    backbone = SwinBackbone(ndim, 2, **TINY, out_norm="affine")
    size = (9, 7, 6, 5)[:ndim]
    found = backbone(torch.randn(2, 2, *size))
    halves = [tuple(-(-s // k) for s in size) for k in (2, 4)]
    assert [map.shape for map in found] == [(2, *halves[0], 8), (2, *halves[1], 16)]
    sum(map.sum() for map in found).backward()
    assert all(p.grad is not None for p in backbone.parameters())
    assert [map.shape[0] for map in backbone(torch.randn(0, 2, *size))] == [0, 0]


def test_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    plain = SwinClassifier(3, **TINY, in_chans=1)
    kept = SwinClassifier(3, **TINY, in_chans=1, checkpointing=True)
    kept.load_state_dict(plain.state_dict())
    x = torch.randn(2, 1, 12, 12)
    for model in (plain, kept):
        model(x).square().sum().backward()
    for one, other in zip(plain.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_drop_path_keeps_the_mean() -> None:
    drop = DropPath(0.25)
    x = torch.ones(4000, 2)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x)


def test_what_users_do_with_modules() -> None:
    model = SwinClassifier(3, **TINY, in_chans=1).eval()
    x = torch.randn(2, 1, 10, 12)
    wanted = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), wanted)
    again = SwinClassifier(3, **TINY, in_chans=1).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x).float(), wanted, rtol=0.1, atol=0.1)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), wanted)
    assert next(SwinClassifier(3, **TINY, dtype=torch.float64).parameters()).dtype == torch.float64
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), wanted)


def test_export_before_the_first_call_leaves_nothing_of_its_own_behind() -> None:
    model = SwinClassifier(3, dim=8, depths=(2,), num_heads=(1,), patch=2, window=5, in_chans=1).eval()
    x = torch.randn(1, 1, 26, 28)
    with torch.no_grad():
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_dicts_go_there_and_back(layout: str) -> None:
    one, other = SwinClassifier(3, **TINY), SwinClassifier(3, **TINY)
    weights = swin_state_dict(one, layout)
    weights["layers.1.blocks.1.attn.relative_position_index"] = torch.zeros(1)
    load_swin_state_dict(other, weights, layout)
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    load_swin_state_dict(other.backbone, weights, layout)
    del weights[next(iter(weights))]
    weights["surplus.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing: \S+; left over: surplus.weight"):
        load_swin_state_dict(other, weights, layout)


def test_names_of_timm_and_torchvision() -> None:
    with torch.device("meta"):
        model = SwinClassifier()
    timm, torchvision = (set(swin_state_dict(model, layout)) for layout in ("timm", "torchvision"))
    assert {"patch_embed.norm.bias", "layers.1.downsample.reduction.weight", "head.fc.weight"} <= timm
    assert {"layers.2.blocks.5.attn.relative_position_bias_table", "layers.3.blocks.1.mlp.fc2.bias"} <= timm
    assert {"features.0.0.weight", "features.0.2.bias", "features.2.norm.weight", "head.bias"} <= torchvision
    assert {"features.5.5.attn.relative_position_bias_table", "features.7.1.mlp.3.bias"} <= torchvision


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WindowBlock(8, 2, (4, 4), (4, 0)), "shift: got .4, 0., wanted less than the window"),
        (lambda: WindowBlock(8, 2, (4,), (2,), order="roll"), "order: got 'roll', wanted 'pad-roll' or 'roll-pad'"),
        (lambda: WindowBlock(8, 2, (4,), (2,))(torch.zeros(1, 4, 4, 8)), "x: got the shape"),
        (lambda: PatchMerging(2, 4, order="monai"), "order: got 'monai' on 2 of 2 axes"),
        (lambda: PatchMerging(2, 4, axes=(2,)), "axes: got .2,., wanted some of 0 to 1"),
        (lambda: SwinBackbone(merge="never"), "merge: got 'never'"),
        (lambda: SwinBackbone(num_heads=(3, 6)), "num_heads: got .3, 6., wanted one number a stage"),
        (lambda: PatchEmbed(2, 4, 3, 8)(torch.zeros(1, 1, 8, 8)), "x: got the shape"),
        (lambda: load_swin_state_dict(SwinClassifier(3, **TINY), {}, "jax"), "layout: got 'jax'"),
        (lambda: DropPath(1.0), "p: got 1.0"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
