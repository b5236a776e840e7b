"""Finding attention projections and MLPs in networks named as timm, torchvision and transformers name them."""

import pytest
import torch
from efficiency.dimap.doubles import Mlp, TimmSwin, TorchvisionSwin, transformers_swin
from torch import nn

from paperworks.surgery.swin_parts import MODULES, find_attentions, find_mlps, find_modules, stage_of


def names(model: nn.Module, kind: str) -> list[str]:
    return [name for name, _ in find_modules(model)[kind]]


def test_timm_names():
    model = TimmSwin(depths=(1, 2))
    blocks = ["layers.0.blocks.0", "layers.1.blocks.0", "layers.1.blocks.1"]
    assert tuple(find_modules(model)) == MODULES
    assert names(model, "qkv") == [f"{b}.attn.qkv" for b in blocks]
    assert names(model, "proj") == [f"{b}.attn.proj" for b in blocks]
    assert names(model, "mlp") == [f"{b}.mlp.fc{i}" for b in blocks for i in (1, 2)]


def test_torchvision_names():
    model = TorchvisionSwin()
    assert names(model, "qkv") == [f"features.{i}.attn.qkv" for i in ("1.0", "1.1", "3.0")]
    assert names(model, "mlp") == [f"features.{i}.mlp.{j}" for i in ("1.0", "1.1", "3.0") for j in (0, 3)]


def test_transformers_swin_has_three_input_layers_an_attention():
    pytest.importorskip("transformers", reason="its Swin")
    model = transformers_swin()
    found = find_modules(model)
    assert [len(found[kind]) for kind in MODULES] == [12, 4, 8]
    first, second, third = (name.rpartition(".")[2] for name, _ in found["qkv"][:3])
    assert (first, second, third) == ("q_proj", "k_proj", "v_proj")
    # the names are those of the model itself
    assert all(model.get_submodule(name) is layer for pairs in found.values() for name, layer in pairs)


def test_transformers_swinv2_without_its_position_mlp():
    transformers = pytest.importorskip("transformers", reason="its SwinV2")
    config = transformers.Swinv2Config(
        image_size=16, patch_size=2, window_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4]
    )
    model = transformers.Swinv2ForImageClassification(config)
    found = find_modules(model)
    assert [len(found[kind]) for kind in MODULES] == [6, 2, 4]
    assert not any("position" in name for pairs in found.values() for name, _ in pairs)
    assert [a.proj[0].endswith("attention.output.dense") for a in find_attentions(model)] == [True, True]
    assert all(mlp.activation is not None for mlp in find_mlps(model))


def test_a_plain_vit_of_transformers_is_found_too():
    transformers = pytest.importorskip("transformers", reason="its ViT")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4
    )
    found = find_modules(transformers.ViTForImageClassification(config))
    assert [len(found[kind]) for kind in MODULES] == [6, 2, 4]


class Positions(nn.Module):
    """timm's SwinV2: an MLP for position biases whose name contains "mlp"."""

    def __init__(self) -> None:
        super().__init__()
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, 4, bias=False))
        self.qkv, self.proj = nn.Linear(8, 24, bias=False), nn.Linear(8, 8)


def test_what_is_never_pruned_is_never_found():
    swinv2 = nn.ModuleDict({"attn": Positions(), "mlp": Mlp(8)})
    model = nn.ModuleDict({"layers": nn.ModuleList([swinv2]), "swin": TimmSwin()})
    found = [name for pairs in find_modules(model).values() for name, _ in pairs]
    assert "layers.0.attn.qkv" in found
    assert "layers.0.mlp.fc1" in found
    for name in found:
        assert not any(part in name for part in ("cpb_mlp", "reduction", "patch_embed", "head"))


def test_patterns_replace_the_names_of_one_module():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "mlp": Mlp(2)})
    found = find_modules(model, {"qkv": r"^a$", "proj": [r"^b$"]})
    assert {kind: [n for n, _ in pairs] for kind, pairs in found.items()} == {
        "qkv": ["a"],
        "proj": ["b"],
        "mlp": ["mlp.fc1", "mlp.fc2"],
    }


@pytest.mark.parametrize(
    ("patterns", "message"),
    [({"heads": "x"}, "heads"), ({"qkv": "("}, "regular"), ({"qkv": "fc1"}, "matches qkv and mlp")],
)
def test_patterns_that_make_no_sense(patterns, message):
    with pytest.raises(ValueError, match=message):
        find_modules(TimmSwin(), patterns)


def test_no_module_is_a_type_error():
    with pytest.raises(TypeError, match="model"):
        find_modules(torch.zeros(2))  # type: ignore[arg-type]


def test_stages():
    assert stage_of("swin.encoder.layers.1.blocks.0.mlp.fc1") == "swin.encoder.layers.1"
    assert stage_of("features.3.0.attn.qkv") == "features.3"
    assert stage_of("mlp.fc1") == ""


def test_an_mlp_is_a_pair_with_the_activation_between():
    mlps = find_mlps(TimmSwin(depths=(1, 1)))
    assert [(m.fc1[0], m.fc2[0]) for m in mlps] == [
        (f"layers.{i}.blocks.0.mlp.fc1", f"layers.{i}.blocks.0.mlp.fc2") for i in (0, 1)
    ]
    assert all(isinstance(m.activation, nn.GELU) for m in mlps)
    assert isinstance(find_mlps(TorchvisionSwin())[0].activation, nn.GELU)


def test_an_attention_has_its_inputs_and_its_output():
    [first, *_] = find_attentions(TimmSwin(depths=(1, 1)))
    assert first.name == "layers.0.blocks.0.attn"
    assert [name for name, _ in first.qkv] == ["layers.0.blocks.0.attn.qkv"]
    assert first.proj[0] == "layers.0.blocks.0.attn.proj"


def test_pyramid_transformers_keep_keys_and_values_together():
    block = nn.ModuleDict(
        {"attn": nn.ModuleDict({"q": nn.Linear(8, 8), "kv": nn.Linear(8, 16), "proj": nn.Linear(8, 8)})}
    )
    block["attn"]["sr"] = nn.Conv2d(8, 8, 2, 2)
    block["mlp"] = nn.ModuleDict({"dense1": nn.Linear(8, 32), "dense2": nn.Linear(32, 8)})
    model = nn.ModuleDict({"stages": nn.ModuleList([block])})
    [attention] = find_attentions(model)
    assert [name for name, _ in attention.qkv] == ["stages.0.attn.q", "stages.0.attn.kv"]
    assert names(model, "mlp") == ["stages.0.mlp.dense1", "stages.0.mlp.dense2"]
