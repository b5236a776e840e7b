"""Which weights go: counts, rankings, groups, ties."""

import copy

import pytest
import torch
from efficiency.dimap.doubles import Mlp, TimmSwin, TorchvisionSwin, transformers_swin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from paperworks.efficiency.dimap import MODULES, dimap_masks, dimap_prune, find_modules, importance
from paperworks.efficiency.dimap.pruning import smallest_of_sorted


def model(seed: int = 0) -> TimmSwin:
    torch.manual_seed(seed)
    made = TimmSwin()
    for i, parameter in enumerate(made.parameters()):
        parameter.data *= 1 + i % 5
    return made


def scores_by_module(net: nn.Module) -> dict[str, torch.Tensor]:
    return {
        kind: torch.cat([importance(linear.weight).flatten() for _, linear in pairs])
        for kind, pairs in find_modules(net).items()
    }


def kept_by_module(net: nn.Module, masks) -> dict[str, torch.Tensor]:
    return {
        kind: torch.cat([masks[f"{name}.weight"].flatten() for name, _ in pairs])
        for kind, pairs in find_modules(net).items()
    }


@pytest.mark.parametrize("ratio", [0.15, 0.35, 0.55, 0.9])
def test_each_module_loses_its_smallest_scores_to_the_count(ratio):
    net = model()
    masks = dimap_masks(net, ratio)
    for kind, scores in scores_by_module(net).items():
        kept = kept_by_module(net, masks)[kind]
        assert int((~kept).sum()) == round(ratio * len(scores))
        assert scores[~kept].max() <= scores[kept].min()
        assert masks.thresholds[kind] == pytest.approx(scores[kept].min().item(), rel=1e-12)
    assert set(masks.thresholds) == set(MODULES)


def test_one_group_of_all_layers():
    net = model()
    masks = dimap_masks(net, 0.5, grouping="model")
    scores = torch.cat(list(scores_by_module(net).values()))
    kept = torch.cat(list(kept_by_module(net, masks).values()))
    assert scores[~kept].max() <= scores[kept].min()
    assert list(masks.thresholds) == ["model"]


def test_uniform_pruning_is_one_group_a_layer():
    net = model()
    masks = dimap_masks(net, 0.3, grouping="layer")
    for name, (kept, total) in masks.counts().items():
        assert total - kept == round(0.3 * total), name
    by_magnitude = dimap_masks(net, 0.3, grouping="layer", criterion="magnitude")
    assert all(torch.equal(masks[name], by_magnitude[name]) for name in masks)


def test_global_magnitude_is_that_of_torch():
    net = model()
    masks = dimap_masks(net, 0.6, grouping="model", criterion="magnitude")
    twin = copy.deepcopy(net)
    layers = [(linear, "weight") for pairs in find_modules(twin).values() for _, linear in pairs]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.6)
    for name, mask in masks.items():
        assert torch.equal(mask, twin.get_submodule(name.removesuffix(".weight")).weight_mask.bool())


def test_modules_of_a_stage():
    net = model()
    masks = dimap_masks(net, 0.4, grouping="stage")
    assert set(masks.thresholds) == {f"layers.{i} {kind}" for i in (0, 1) for kind in MODULES}
    for i in (0, 1):
        rows = [counts for name, counts in masks.counts().items() if name.startswith(f"layers.{i}") and "mlp" in name]
        kept, total = map(sum, zip(*rows, strict=True))
        assert total - kept == round(0.4 * total)


def test_the_model_is_left_as_it_is_and_scaling_a_layer_changes_nothing():
    net = model()
    before = copy.deepcopy(net.state_dict())
    masks = dimap_masks(net, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.layers[1].blocks[0].mlp.fc1.weight.data *= 4
    again = dimap_masks(net, 0.5)
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    magnitude = dimap_masks(net, 0.5, criterion="magnitude")
    name = "layers.1.blocks.0.mlp.fc1.weight"
    assert magnitude[name].sum() > again[name].sum()


@given(st.floats(0, 0.95), st.floats(0, 0.95), st.sampled_from(["module", "model", "layer", "stage"]))
@settings(max_examples=15, deadline=None)
def test_masks_are_nested(a, b, grouping):
    net = model()
    low, high = (dimap_masks(net, r, grouping=grouping) for r in sorted((a, b)))
    assert all((low[name] | ~high[name]).all() for name in low)


def test_pruning_in_two_steps_is_nested_and_ranks_zeros_first():
    net = model()
    first = dimap_prune(net, 0.3)
    second = dimap_prune(net, 0.6)
    assert all((first[name] | ~second[name]).all() for name in first)


def test_separate_query_key_and_value_are_scored_as_one_matrix():
    pytest.importorskip("transformers", reason="its Swin keeps them apart")
    torch.manual_seed(0)
    net = transformers_swin()
    fused = nn.Module()
    fused.blocks = nn.ModuleList()
    triples = [[linear for _, linear in find_modules(net)["qkv"][i : i + 3]] for i in range(0, 12, 3)]
    for triple in triples:
        block = nn.Module()
        block.attn = nn.Module()
        dim = triple[0].in_features
        block.attn.qkv = nn.Linear(dim, 3 * dim)
        block.attn.qkv.weight.data = torch.cat([linear.weight.data for linear in triple])
        fused.blocks.append(block)
    apart = dimap_masks(net, {"qkv": 0.4})
    together = dimap_masks(fused, {"qkv": 0.4})
    assert apart.thresholds["qkv"] == together.thresholds["qkv"]
    mine = [apart[f"{name}.weight"].flatten() for name, _ in find_modules(net)["qkv"]]
    assert torch.equal(torch.cat(mine), torch.cat([m.flatten() for m in together.values()]))


def test_a_ratio_a_module():
    net = model()
    masks = dimap_masks(net, {"qkv": 0.5, "mlp": 0.0})
    assert all(mask.all() for name, mask in masks.items() if "qkv" not in name)
    assert set(masks) == set(dimap_masks(net, 0.5))
    kept = torch.cat([m.flatten() for name, m in masks.items() if "qkv" in name])
    assert int((~kept).sum()) == round(0.5 * len(kept))


def test_ties_go_by_layer_and_place():
    net = nn.Sequential(nn.ModuleDict({"mlp": Mlp(4)}), nn.ModuleDict({"mlp": Mlp(4)}))
    for parameter in net.parameters():
        parameter.data.fill_(1.0)
    # magnitudes are all equal, 256 weights: the first 100 in order go
    masks = dimap_masks(net, 100 / 256, criterion="magnitude")
    flat = torch.cat([m.flatten() for m in masks.values()])
    assert not flat[:100].any()
    assert flat[100:].all()


def test_a_checkpoint_full_of_zeros_is_pruned_to_the_count():
    net = model()
    for parameter in net.parameters():
        parameter.data[parameter.abs() < parameter.abs().quantile(0.8)] = 0
    masks = dimap_masks(net, 0.5)
    for kept in kept_by_module(net, masks).values():
        assert int((~kept).sum()) == round(0.5 * len(kept))


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1e-310, 0.25, 0.5, 1.0]), max_size=6), min_size=1, max_size=4), st.data()
)
@settings(max_examples=100, deadline=None)
def test_the_search_over_sorted_lists_is_a_sort(values, data):
    lists = [torch.tensor(sorted(v), dtype=torch.float64) for v in values]
    flat = sorted((value, i) for i, v in enumerate(values) for value in v)
    k = data.draw(st.integers(0, len(flat)))
    removed, threshold = smallest_of_sorted(lists, k)
    assert removed == [sum(1 for _, i in flat[:k] if i == j) for j in range(len(values))]
    assert threshold == flat[k][0] if k < len(flat) else threshold != threshold


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types(dtype):
    net = model().to(dtype)
    assert sum(k for k, _ in dimap_masks(net, 0.5).counts().values()) == pytest.approx(
        sum(t for _, t in dimap_masks(net, 0.5).counts().values()) / 2, abs=2
    )


def test_strided_weights_keep_their_shape():
    net = model()
    fc1 = net.layers[0].blocks[0].mlp.fc1
    expected = dimap_masks(net, 0.5)
    fc1.weight = nn.Parameter(fc1.weight.detach().T.contiguous().T)
    assert not fc1.weight.is_contiguous()
    again = dimap_masks(net, 0.5)
    assert all(torch.equal(expected[name], again[name]) for name in expected)


# --- 2:4 ---


@pytest.mark.parametrize("ratio", [0.5, 0.7])
def test_two_of_four(ratio):
    net = model()
    masks = dimap_masks(net, ratio, semi_structured=(2, 4))
    for name, mask in masks.items():
        assert int(mask.reshape(-1, 4).sum(1).max()) <= 2
        if ratio == 0.5:
            assert int(mask.reshape(-1, 4).sum(1).min()) == 2
            weight = net.get_parameter(name).abs().reshape(-1, 4)
            kept = mask.reshape(-1, 4)
            assert (weight.masked_fill(kept, 0).amax(1) <= weight.masked_fill(~kept, torch.inf).amin(1)).all()
    for kept in kept_by_module(net, masks).values():
        assert int((~kept).sum()) == round(ratio * len(kept))


def test_two_of_four_is_compressed_without_loss():
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions", reason="torch's own packing")
    net = TimmSwin(dim=64, depths=(1,)).half()
    dimap_prune(net, 0.5, semi_structured=(2, 4), permanent=True)
    weight = net.layers[0].blocks[0].attn.qkv.weight.detach()
    packed, meta = conversions.sparse_semi_structured_from_dense_cutlass(weight)
    assert packed.numel() * 2 == weight.numel()
    assert torch.equal(conversions.sparse_semi_structured_to_dense_cutlass(packed, meta), weight)


@pytest.mark.gpu
def test_two_of_four_runs_on_sparse_tensor_cores():
    net = TimmSwin(dim=128, depths=(1,)).half().cuda()
    dimap_prune(net, 0.5, semi_structured=(2, 4), permanent=True)
    layer = net.layers[0].blocks[0].mlp.fc1
    x = torch.randn(256, 128, device="cuda", dtype=torch.float16)
    expected = layer(x)
    layer.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(layer.weight.detach()))
    torch.testing.assert_close(layer(x), expected, rtol=1e-2, atol=1e-2)


def test_two_of_four_needs_half_and_rows_of_four():
    with pytest.raises(ValueError, match=r"at least 0\.5"):
        dimap_masks(model(), 0.4, semi_structured=(2, 4))
    with pytest.raises(ValueError, match="does not divide"):
        dimap_masks(model(), 0.9, semi_structured=(1, 5))
    with pytest.raises(ValueError, match="0 < n < m"):
        dimap_masks(model(), 0.9, semi_structured=(4, 4))


# --- bad input ---


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1, float("nan"), {"qkv": 2.0}, {"heads": 0.5}])
def test_ratios_out_of_range(ratio):
    with pytest.raises(ValueError, match="ratio"):
        dimap_masks(model(), ratio)


def test_other_bad_input():
    with pytest.raises(ValueError, match="grouping='module'"):
        dimap_masks(model(), {"qkv": 0.5}, grouping="model")
    with pytest.raises(ValueError, match="grouping"):
        dimap_masks(model(), 0.5, grouping="block")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="criterion"):
        dimap_masks(model(), 0.5, criterion="gradient")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prunable layer"):
        dimap_masks(nn.Sequential(nn.Conv2d(3, 4, 2), nn.Linear(4, 2)), 0.5)
    with pytest.raises(TypeError, match="ratio"):
        dimap_masks(model(), "0.5")  # type: ignore[arg-type]


def test_weights_without_values_or_in_integers():
    with torch.device("meta"):
        nowhere = TimmSwin()
    with pytest.raises(TypeError, match="meta"):
        dimap_masks(nowhere, 0.5)
    quantized = torch.ao.quantization.quantize_dynamic(model(), {nn.Linear})
    with pytest.raises(TypeError, match="quantised"):
        dimap_masks(quantized, 0.5)


def test_torchvision_names_are_pruned():
    torch.manual_seed(0)
    net = TorchvisionSwin().eval()
    dimap_prune(net, 0.5)
    weight = net.features[1][0].attn.qkv.weight
    assert 0.2 < float((weight == 0).float().mean()) < 0.8
    assert net(torch.randn(2, 3, 16, 16)).shape == (2, 5)
