"""Counts of parameters and multiply-adds against the arithmetic of the layers."""

import pytest
import torch
from efficiency.dimap.doubles import TimmSwin, TorchvisionSwin, transformers_swin
from torch import nn

from paperworks.efficiency.dimap import Masks, dimap_masks, dimap_prune, sparse_flops


def test_a_small_swin_by_hand():
    net = TimmSwin(dim=8, depths=(1, 1), window=4, classes=5)
    report = sparse_flops(net, 16)
    rows = {name: macs for name, macs, _ in report.rows}
    # 8x8 tokens of width 8, four windows of 16 tokens; then 4x4 tokens of width 16, one window
    assert rows["patch_embed.proj"] == 64 * 8 * 3 * 4
    assert rows["layers.0.blocks.0.attn.qkv"] == 64 * 8 * 24
    assert rows["layers.0.blocks.0.attn"] == 2 * 4 * 16**2 * 8
    assert rows["layers.1.blocks.0.attn"] == 2 * 1 * 16**2 * 16
    assert rows["layers.0.blocks.0.mlp.fc2"] == 64 * 8 * 32
    assert rows["layers.1.downsample.reduction"] == 16 * 32 * 16
    assert rows["head.fc"] == 16 * 5
    assert report.macs == report.macs_pruned == sum(rows.values())
    assert report.params == report.nonzero == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("attached", [True, False])
def test_removed_weights_count_by_the_tokens_of_their_layer(attached):
    net = TimmSwin()
    masks = dimap_prune(net, 0.5, permanent=not attached)
    report = sparse_flops(net, 16, masks)
    removed = {name.removesuffix(".weight"): n - k for name, (k, n) in masks.counts().items()}
    for name, macs, pruned in report.rows:
        tokens = 64 if name.startswith("layers.0") else 16
        assert macs - pruned == tokens * removed.get(name, 0), name
    assert report.params - report.nonzero == sum(removed.values())
    assert sparse_flops(net, 16) == report, "zeros in the weights are the same masks"


def test_meta_and_real_devices_agree_and_the_mode_is_kept():
    net = TimmSwin()
    masks = dimap_masks(net, 0.5)
    expected = sparse_flops(net, 16, masks)
    with torch.device("meta"):
        nowhere = TimmSwin()
    assert sparse_flops(nowhere, 16, masks) == expected
    assert net.training
    assert nowhere.training


def test_one_module_of_each_stage_removes_the_same_part_of_the_multiply_adds():
    net = TimmSwin(dim=16)
    masks = dimap_masks(net, 0.5, grouping="stage")
    prunable = {name.removesuffix(".weight") for name in masks}
    rows = [row for row in sparse_flops(net, 16, masks).rows if row[0] in prunable]
    assert sum(r[2] for r in rows) == 0.5 * sum(r[1] for r in rows)


def test_layers_whose_weights_the_attention_takes_itself():
    net = TorchvisionSwin()
    masks = dimap_masks(net, 0.5)
    report = sparse_flops(net, 16, masks)
    rows = {name: (macs, pruned) for name, macs, pruned in report.rows}
    assert rows["features.1.0.attn.qkv"] == (16 * 8 * 24, 16 * masks.counts()["features.1.0.attn.qkv.weight"][0])
    assert rows["features.1.0.attn.proj"][0] == 16 * 8 * 8
    assert rows["features.1.0.attn"] == (2 * 16**2 * 8, 2 * 16**2 * 8)
    assert report.macs == sparse_flops(net, 16, {}).macs


def test_transformers_swin_counts_as_the_same_network_with_fused_weights():
    pytest.importorskip("transformers", reason="its Swin")
    apart = sparse_flops(transformers_swin(embed_dim=8, depths=[1, 1]), 16)
    fused = sparse_flops(TimmSwin(dim=8, depths=(1, 1)), 16)
    assert apart.macs == fused.macs


def test_bad_input():
    with pytest.raises(ValueError, match="input_size"):
        sparse_flops(TimmSwin(), 0)
    with pytest.raises(ValueError, match="Conv2d"):
        sparse_flops(nn.Linear(2, 2), 16)
    with pytest.raises(ValueError, match="masks"):
        sparse_flops(TimmSwin(), 16, Masks({"nowhere.weight": torch.ones(2, 2, dtype=torch.bool)}))
