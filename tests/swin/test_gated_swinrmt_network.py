"""The backbone: published counts, windows at each input size, timm's methods; and the conversion of other Swins."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paperworks.measure.parameters import count_parameters
from paperworks.swin.backbone import SwinClassifier
from paperworks.swin.blocks import WindowBlock
from paperworks.swin.gated_swinrmt import (
    GatedRetention,
    GatedSwinRMT,
    ManhattanRetention,
    ShiftedRetention,
    convert_swin,
    effective_window_report,
    gated_swinrmt_retention,
    gated_swinrmt_swat,
    heal,
    load_rmt_state_dict,
    rmt_baseline,
)

KINDS = ("retention", "swat", "rmt")
TINY: dict[str, Any] = {"embed_dims": (8, 16), "depths": (2, 2), "num_heads": (2, 4), "mlp_ratios": (2, 2)}


def tiny(variant: str = "retention", **options: Any) -> GatedSwinRMT:
    torch.manual_seed(0)
    return GatedSwinRMT(variant, **{**TINY, "num_classes": 5, "projection": 16, **options}).eval()


@pytest.mark.parametrize(
    ("build", "count"),
    [(gated_swinrmt_swat, 78_707_364), (gated_swinrmt_retention, 78_707_364), (rmt_baseline, 73_291_684)],
)
def test_parameters_at_full_size(build, count: int) -> None:
    assert count_parameters(build(device="meta")) == count


def test_windows_on_images_of_either_size() -> None:
    model = gated_swinrmt_swat(device="meta")
    small, large = effective_window_report(model, 32), effective_window_report(model, 224)
    assert [s.window for s in small] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    assert [s.is_global for s in small] == [True] * 4
    assert [s.window for s in large] == [(7, 7)] * 4
    assert [s.is_global for s in large] == [False, False, False, True]
    assert [s.is_global for s in effective_window_report(rmt_baseline(device="meta"), (224, 99))] == [True] * 4
    assert effective_window_report(tiny(), (124, 99))[0].padding == (4, 0)


@pytest.mark.parametrize("variant", ["retention", "swat"])
def test_small_images_have_global_attention_and_large_ones_have_not(variant: str) -> None:
    windowed, whole = tiny(variant), tiny(variant, window_size=64)
    for p in windowed.stages.parameters():
        nn.init.normal_(p, std=0.3)
    whole.load_state_dict(windowed.state_dict())
    for size, same in ((32, True), (64, False)):
        x = torch.randn(2, 3, size, size)
        assert torch.allclose(windowed(x), whole(x), atol=1e-6) == same


@pytest.mark.parametrize("variant", KINDS)
def test_methods_of_a_backbone(variant: str) -> None:
    model, x = tiny(variant, depths=(1, 2)), torch.randn(2, 3, 36, 50)
    features = model.forward_features(x)
    assert features.shape == (2, 5, 7, model.num_features)
    torch.testing.assert_close(model(x), model.forward_head(features))
    assert model.forward_head(features, pre_logits=True).shape == (2, 16)
    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, features)
    assert [tuple(m.shape) for m in maps] == [(2, 8, 9, 13), (2, 16, 5, 7)]
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
    [first] = model.forward_intermediates(x, [0], stop_early=True, output_fmt="NHWC", intermediates_only=True)
    assert torch.equal(first, maps[0].permute(0, 2, 3, 1))
    [tail] = model.forward_intermediates(x, 1, intermediates_only=True)
    assert torch.equal(tail, maps[1])
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.get_classifier() is model.head
    model.reset_classifier(0)
    assert model(x).shape == (2, 16)


@pytest.mark.parametrize("variant", KINDS)
def test_training_steps_checkpointing_and_compilation(variant: str) -> None:
    model = tiny(variant, drop_path_rate=0.0).train()
    twin = tiny(variant, drop_path_rate=0.0, checkpointing=True).train()
    x = torch.randn(2, 3, 40, 40)
    for m in (model, twin):
        m(x).square().sum().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)
    model.eval()
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


def test_rmt_has_full_attention_in_its_last_stage_only() -> None:
    kinds = [m.decomposed for m in tiny("rmt").modules() if isinstance(m, ManhattanRetention)]
    assert kinds == [True, True, False, False]


def test_decay_may_differ_by_stage_and_weight_decay_spares_what_is_no_matrix() -> None:
    model = tiny(heads_range=(4, 6))
    found = [m.heads_range for m in model.modules() if isinstance(m, GatedRetention)]
    assert found == [4, 4, 6, 6]
    spared = model.no_weight_decay()
    assert {"stages.0.0.pos.weight", "stages.0.0.attn.lce.weight", "stages.0.0.norm1.weight", "head.bias"} <= spared
    assert not {"stem.0.weight", "stages.0.0.attn.gate.weight", "head.weight", "merges.0.reduction.weight"} & spared


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GatedSwinRMT("other"), "variant: got 'other'"),
        (lambda: GatedSwinRMT(depths=(2, 2)), "depths: got .2, 2., wanted one number for each of 4 stages"),
        (lambda: tiny(heads_range=(4, 6, 6)), "heads_range: got"),
        (lambda: tiny(window_size=0), "window_size: got 0"),
        (lambda: tiny()(torch.zeros(1, 1, 32, 32)), r"x: got the shape \(1, 1, 32, 32\)"),
        (lambda: tiny().train()(torch.zeros(1, 3, 4, 4)), "more than 1 value per channel when training"),
        (lambda: tiny().forward_intermediates(torch.zeros(1, 3, 32, 32), [2]), "indices: got"),
        (lambda: tiny().reset_classifier(3, "max"), "global_pool: got 'max'"),
        (lambda: effective_window_report(tiny(), 0), "size: got 0"),
    ],
)
def test_bad_input_is_named(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# --- checkpoints ---


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the official code, with its tables and a layer scale."""
    found = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "stem":
            parts[:1] = ["patch_embed", "proj"]
        elif parts[0] == "merges":
            parts[:2] = ["layers", parts[1], "downsample"]
        elif parts[0] == "stages":
            parts = ["layers", parts[1], "blocks", *parts[2:]]
        name = ".".join(parts)
        for ours, theirs in (
            *((".attn.lce.", ".retention.lepe.conv."), (".attn.", ".retention."), (".pos.", ".pos.conv.")),
            *((".norm1.", ".retention_layer_norm."), (".norm2.", ".final_layer_norm.")),
            *((".mlp.dwconv.", ".ffn.dwconv.conv."), (".mlp.", ".ffn.")),
        ):
            name = name.replace(ours, theirs)
        found[name] = value.clone()
    found["layers.0.Relpos.decay"] = torch.zeros(2)
    scale = torch.tensor([0.5, 2.0]).repeat(8)
    found["layers.1.blocks.0.gamma_2"] = scale.view(1, 1, 1, 16)
    for part in ("weight", "bias"):
        layer = found[f"layers.1.blocks.0.ffn.fc2.{part}"]
        found[f"layers.1.blocks.0.ffn.fc2.{part}"] = layer / scale.view(-1, *(1,) * (layer.ndim - 1))
    return found


def test_official_rmt_weights_give_the_same_network() -> None:
    donor, x = tiny("rmt"), torch.randn(2, 3, 32, 32)
    for p in donor.parameters():
        nn.init.normal_(p, std=0.2)
    state = official(donor.state_dict())
    model = tiny("rmt", num_classes=5)
    load_rmt_state_dict(model, state)
    torch.testing.assert_close(model(x), donor(x))
    gated = tiny("retention")
    with pytest.raises(ValueError, match=r"misses stages\.0\.0\.attn\.gate\.bias, .* and \d+ more"):
        load_rmt_state_dict(gated, state)
    load_rmt_state_dict(gated, state, start=True)
    torch.testing.assert_close(gated.stages[1][0].attn.v_proj.weight, donor.stages[1][0].attn.v_proj.weight)
    with pytest.raises(ValueError, match="has left over extra"):
        load_rmt_state_dict(model, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"has of another shape head\.bias"):
        load_rmt_state_dict(model, {**state, "head.bias": torch.zeros(1)})


# --- conversion ---


class ShiftedWindowAttention(nn.Module):
    """What torchvision's attention of that name holds."""

    def __init__(self, dim: int, window: list[int], shift: list[int], heads: int) -> None:
        super().__init__()
        self.window_size, self.shift_size, self.num_heads = window, shift, heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)


class TorchvisionBlock(nn.Module):
    """As torchvision's block calls it."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(16), ShiftedWindowAttention(16, [4, 4], [shift, shift], 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm1(x))


def converted(model: nn.Module) -> list[GatedRetention]:
    return [m for m in model.modules() if isinstance(m, GatedRetention)]


@pytest.mark.parametrize("variant", ["retention", "swat"])
def test_paperworks_swin_converts_with_its_weights(variant: str) -> None:
    torch.manual_seed(0)
    donor = SwinClassifier(5, dim=8, depths=(2, 2), num_heads=(2, 4), patch=2, window=4)
    model = convert_swin(copy.deepcopy(donor), variant)
    x = torch.randn(2, 3, 32, 24)
    assert model(x).shape == (2, 5)
    assert not torch.allclose(model(x), donor(x))
    [first, *others] = converted(model)
    assert len(others) == 3
    was = donor.backbone.stages[0].blocks[0].attn
    assert torch.equal(torch.cat([first.q_proj.weight, first.k_proj.weight, first.v_proj.weight]), was.qkv.weight)
    assert torch.equal(first.out_proj.bias, was.proj.bias)
    gate = first.gate if variant == "retention" else first.v_gate
    assert gate is not None
    opened = torch.sigmoid(gate.bias) if variant == "retention" else nn.functional.silu(gate.bias)
    torch.testing.assert_close(opened, torch.ones(8), rtol=0, atol=0.02)
    assert not bool(first.lce.weight.any())
    fresh = convert_swin(copy.deepcopy(donor), variant, copy_weights=False)
    assert not torch.equal(converted(fresh)[0].out_proj.weight, was.proj.weight)


def test_values_of_a_constant_map_pass_as_in_the_donor() -> None:
    """Where all values of a window are one, softmax averages them to that one with and without position or passes."""
    donor = WindowBlock(8, 2, (4, 4), (0, 0)).double()
    model = nn.ModuleDict({"block": copy.deepcopy(donor)})
    convert_swin(model)
    x = torch.randn(1, 1, 1, 8, dtype=torch.double).expand(1, 8, 8, 8)
    attn = model["block"].attn
    nn.init.constant_(attn.gate.bias, 50.0)
    torch.testing.assert_close(model["block"](x), donor(x))


def test_transformers_swin_converts_and_clamps() -> None:
    transformers = pytest.importorskip("transformers", reason="its Swin")
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, window_size=4, embed_dim=16, depths=[2, 2, 1], num_heads=[2, 4, 4], num_labels=5
    )
    model = transformers.SwinForImageClassification(config).eval()
    before = model.swin.encoder.layers[0].blocks[0].attention.q_proj.weight.detach().clone()
    assert convert_swin(model, "swat") is model
    assert len(converted(model)) == 5
    assert torch.equal(converted(model)[0].q_proj.weight, before)
    model(torch.randn(2, 3, 32, 32)).logits.sum().backward()
    small = model(torch.randn(2, 3, 12, 12), interpolate_pos_encoding=True).logits
    assert small.shape == (2, 5)


def test_monai_and_its_three_axes() -> None:
    monai = pytest.importorskip("monai.networks.nets", reason="its SwinUNETR")
    flat = monai.SwinUNETR(1, 2, feature_size=12, spatial_dims=2).eval()
    assert len(converted(convert_swin(flat))) == 8
    assert flat(torch.randn(1, 1, 64, 64)).shape == (1, 2, 64, 64)
    with pytest.raises(ValueError, match=r"windows of \(7, 7, 7\), wanted two axes"):
        convert_swin(monai.SwinUNETR(1, 2, feature_size=12, spatial_dims=3))


def test_torchvision_attention_cuts_its_own_windows() -> None:
    torch.manual_seed(0)
    model = convert_swin(nn.Sequential(TorchvisionBlock(0), TorchvisionBlock(2)))
    attentions = converted(model)
    assert [type(m) for m in attentions] == [ShiftedRetention] * 2
    x = torch.randn(2, 9, 8, 16)
    assert model(x).shape == x.shape
    moved = x.clone()
    moved[:, 0, 0] += 1
    changed = (attentions[1](moved) - attentions[1](x)).abs().amax((0, -1)) > 1e-6
    assert bool(changed[:2, :2].any())
    assert not bool(changed[2:, 2:].any()), "the first corner is a shifted window of its own"


def test_timm_swin_converts() -> None:
    timm = pytest.importorskip("timm", reason="its Swin")
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3).eval()
    assert len(converted(convert_swin(model))) == 12
    assert model(torch.randn(1, 3, 224, 224)).shape == (1, 3)


def test_healing_brings_a_converted_network_near_its_donor() -> None:
    torch.manual_seed(0)
    donor = SwinClassifier(5, dim=8, depths=(2,), num_heads=(2,), patch=2, window=4)
    for p in donor.parameters():
        nn.init.normal_(p, std=0.3)
    model = convert_swin(copy.deepcopy(donor)).train()
    kept = {name: p.clone() for name, p in model.named_parameters() if ".attn." not in name}
    losses = heal(model, donor, [torch.randn(8, 3, 16, 16) for _ in range(40)], lr=0.02)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert model.training
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters() if name in kept)
    with pytest.raises(ValueError, match="model: got SwinClassifier without gated retention"):
        heal(donor, donor, [])


def test_what_is_no_swin_is_refused() -> None:
    with pytest.raises(ValueError, match="model: got Linear without window attention"):
        convert_swin(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model: got int"):
        convert_swin(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="variant: got 'rmt'"):
        convert_swin(nn.Linear(2, 2), "rmt")  # type: ignore[arg-type]
    transformers = pytest.importorskip("transformers", reason="its SwinV2")
    config = transformers.Swinv2Config(
        image_size=16, patch_size=2, window_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4]
    )
    with pytest.raises(ValueError, match="without window attention, wanted a Swin"):
        convert_swin(transformers.Swinv2ForImageClassification(config))
