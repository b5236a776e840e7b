"""Squeeze and excitation on someone's Swin, the recipe's model, and its groups."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paperworks.swin.backbone import SwinBackbone, SwinClassifier
from paperworks.swin.state_dicts import swin_state_dict
from paperworks.swin.swin_se_fer import (
    SqueezeExcite,
    add_squeeze_excite,
    build_fer_model,
    finetune_groups,
    remove_squeeze_excite,
)

SMALL = {"dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window": 4}


def small_swin(classes: int = 5) -> SwinClassifier:
    torch.manual_seed(0)
    return SwinClassifier(classes, **SMALL).eval()


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# --- the block ---


def test_equation() -> None:
    block = SqueezeExcite(32, 4)
    x = torch.randn(3, 5, 7, 32)
    s = x.mean((1, 2))
    e = torch.sigmoid(torch.relu(s @ block.fc1.weight.T + block.fc1.bias) @ block.fc2.weight.T + block.fc2.bias)
    torch.testing.assert_close(block(x), x * e[:, None, None])
    torch.testing.assert_close(block.gate(x), e)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(0, 3),
    places=st.lists(st.integers(1, 4), max_size=3),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_shapes_dtypes_and_both_layouts(batch: int, places: list[int], channels_last: bool, dtype: torch.dtype) -> None:
    last = SqueezeExcite(8, 2, dtype=dtype)
    first = SqueezeExcite(8, 2, channels_last=False, dtype=dtype)
    first.load_state_dict(last.state_dict())
    x = torch.randn(batch, *places, 8, dtype=dtype)
    other = x.movedim(-1, 1)  # not contiguous
    block, given_x = (last, x) if channels_last else (first, other)
    out = block(given_x)
    assert (out.shape, out.dtype) == (given_x.shape, dtype)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(last(x), first(other).movedim(1, -1), rtol=tolerance, atol=tolerance)


def test_the_same_gate_at_every_place_and_none_across_samples() -> None:
    block, x = SqueezeExcite(16), torch.rand(2, 6, 16) + 0.5
    ratio = block(x) / x
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    torch.testing.assert_close(block(x)[:1], block(x[:1]))


def test_before_the_mean_is_after_the_mean() -> None:
    block, x = SqueezeExcite(64), torch.randn(4, 9, 64)
    torch.testing.assert_close(block(x).mean(1), block(x.mean(1)))


def test_starts_as_almost_the_identity() -> None:
    block, x = SqueezeExcite(32, 2, residual_init=True), torch.randn(2, 5, 32)
    torch.testing.assert_close(block(x), x * torch.sigmoid(torch.tensor(4.0)))
    block(x).sum().backward()
    assert float(block.fc2.weight.grad.abs().sum()) > 0, "and it can leave that"


def test_gradients() -> None:
    block = SqueezeExcite(8, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(block, torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True))


def test_overhead_of_the_paper() -> None:
    block = SqueezeExcite(768, device="meta")
    assert sum(p.numel() for p in block.parameters()) == 2 * 768 * 48 + 48 + 768 == 74_544


@pytest.mark.parametrize(
    ("dim", "reduction", "error"), [(8, 9, ValueError), (0, 1, ValueError), (8, 0, ValueError), (8, 1.5, TypeError)]
)
def test_sizes_that_leave_nothing(dim: int, reduction: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"dim|reduction"):
        SqueezeExcite(dim, reduction)


def test_the_wrong_axis_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"wanted \(B, ..., 8\)"):
        SqueezeExcite(8, 2)(torch.zeros(1, 8, 3, 3))
    with pytest.raises(ValueError, match=r"wanted \(B, 8, ...\)"):
        SqueezeExcite(8, 2, channels_last=False)(torch.zeros(1, 3, 3, 8))


# --- on a network ---


@pytest.mark.parametrize("where", ["final", "stages", "norm"])
def test_own_weights_keep_their_names_and_removal_restores(where: str) -> None:
    model, x = small_swin(), images()
    before, names = model(x), set(model.state_dict())
    assert add_squeeze_excite(model, 4, where) is model
    assert {name for name in model.state_dict() if not name.startswith("se.")} == names
    assert not torch.allclose(model(x), before)
    assert remove_squeeze_excite(model) is model
    assert set(model.state_dict()) == names
    assert torch.equal(model(x), before)
    assert isinstance(add_squeeze_excite(model, 4).se, SqueezeExcite), "and it can be put in again"


def test_final_is_a_gate_of_the_pooled_vector() -> None:
    model, x = small_swin(), images()
    pooled = model.forward_features(x).flatten(1, 2).mean(1)
    add_squeeze_excite(model, 4)
    torch.testing.assert_close(model(x), model.head(model.se(pooled)))


def test_stages_are_gated_before_merging() -> None:
    model, x = small_swin(), images()
    first = model.backbone.stages[0](model.backbone.patch_embed(x))
    add_squeeze_excite(model, 4, "stages")
    assert [block.dim for block in model.se] == [16, 32]
    torch.testing.assert_close(model.backbone(x)[0], model.se[0](first))


@pytest.mark.parametrize("where", ["final", "stages"])
def test_copies_have_their_own_block(where: str) -> None:
    model, x = add_squeeze_excite(small_swin(), 4, where), images()
    expected = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), expected)
        for p in twin.se.parameters():
            nn.init.constant_(p, 3.0)
        assert torch.equal(model(x), expected)
        assert not torch.allclose(twin(x), expected)


def test_state_dict_round_trip_and_strictness() -> None:
    model, other = add_squeeze_excite(small_swin(), 4), add_squeeze_excite(SwinClassifier(5, **SMALL).eval(), 4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(images()), other(images()))


def test_functional_call_compile_and_autocast() -> None:
    model, x = add_squeeze_excite(small_swin(), 4), images()
    zeros = {name: torch.zeros_like(p) for name, p in model.se.named_parameters(prefix="se")}
    half = torch.func.functional_call(model, zeros, (x,))
    model_without = remove_squeeze_excite(copy.deepcopy(model))
    features = model_without.forward_features(x).flatten(1, 2).mean(1) / 2
    torch.testing.assert_close(half, model.head(features))
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(x)).all()


def test_device_dtype_and_mode_are_the_networks() -> None:
    model = add_squeeze_excite(small_swin().double(), 4)
    assert model.se.fc1.weight.dtype == torch.float64
    assert not model.se.training
    with torch.device("meta"):
        shapes = SwinClassifier(5, **SMALL)
    assert add_squeeze_excite(shapes, 4).se.fc1.weight.is_meta


def test_backbones_of_paperworks() -> None:
    model, x = SwinBackbone(out_norm="affine", **SMALL), images()
    plain = model(x)
    add_squeeze_excite(model, 4)
    torch.testing.assert_close(model(x)[-1], model.se(plain[-1]))
    torch.testing.assert_close(model(x)[0], plain[0])
    with pytest.raises(ValueError, match="out_norm"):
        add_squeeze_excite(SwinBackbone(**SMALL))


@pytest.mark.parametrize("version", ["Swin", "Swinv2"])
@pytest.mark.parametrize("where", ["final", "stages"])
def test_networks_of_transformers(version: str, where: str) -> None:
    transformers = pytest.importorskip("transformers", reason="its Swin is one of those that are known")
    config = getattr(transformers, f"{version}Config")(
        image_size=32, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4, num_labels=3
    )
    for kind in ("Model", "ForImageClassification"):
        torch.manual_seed(0)
        model, x = getattr(transformers, f"{version}{kind}")(config).eval(), images()
        names = set(model.state_dict())
        if kind == "Model" and where == "final":
            before = model(x).last_hidden_state
            add_squeeze_excite(model, 4, where)
            torch.testing.assert_close(model(x).last_hidden_state, model.se(before))
        else:
            before = model(x)[0]
            add_squeeze_excite(model, 4, where)
            assert not torch.allclose(model(x)[0], before)
            if where == "stages":
                assert [block.dim for block in model.se] == [16, 32]
        assert {name for name in model.state_dict() if not name.startswith("se.")} == names


class Stage(nn.Module):
    def __init__(self, dim: int, merges: bool) -> None:
        super().__init__()
        self.downsample = nn.Linear(dim // 2, dim) if merges else nn.Identity()
        self.blocks = nn.Sequential(nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class SwinTransformer(nn.Module):
    """The parts of a Swin that add_squeeze_excite looks for, as timm and torchvision name them."""

    def __init__(self, library: str) -> None:
        super().__init__()
        stages = [Stage(8, False), Stage(16, True)]
        if library == "timm":
            self.layers = nn.Sequential(*stages)
        else:
            self.features = nn.Sequential(nn.Linear(8, 8), stages[0].blocks, stages[1].downsample, stages[1].blocks)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm((self.layers if hasattr(self, "layers") else self.features)(x)).mean((1, 2))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_names_of_timm_and_torchvision(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SwinTransformer, "__module__", f"{library}.models.swin_transformer")
    x = torch.randn(2, 4, 4, 8)
    model = add_squeeze_excite(SwinTransformer(library), 4)
    assert model.se.dim == 16
    pooled = remove_squeeze_excite(copy.deepcopy(model))(x)
    torch.testing.assert_close(model(x), model.se(pooled))
    stages = add_squeeze_excite(SwinTransformer(library), 4, "stages")
    assert [block.dim for block in stages.se] == [8, 16]
    assert not torch.allclose(stages(x), remove_squeeze_excite(copy.deepcopy(stages))(x))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_networks_of_timm_and_torchvision(library: str) -> None:
    if library == "timm":
        timm = pytest.importorskip("timm", reason="its Swin is one of those that are known")
        model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=8)
    else:
        models = pytest.importorskip("torchvision.models", reason="its Swin is one of those that are known")
        model = models.swin_t(num_classes=8)
    x, before = torch.randn(1, 3, 224, 224), set(model.eval().state_dict())
    plain = model(x)
    add_squeeze_excite(model)
    assert set(model.state_dict()) - before == {f"se.fc{i}.{n}" for i in (1, 2) for n in ("weight", "bias")}
    assert not torch.allclose(model(x), plain)


def test_any_norm_by_its_path() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))
    for where in ("1", "2"):
        add_squeeze_excite(net, 4, where)
        assert net.se.channels_last is False
        assert net(images()).shape == (2, 8, 30, 30)
        remove_squeeze_excite(net)
    with pytest.raises(TypeError, match="wanted a layer, batch or group norm"):
        add_squeeze_excite(net, 4, "0")
    with pytest.raises(ValueError, match="where: got 'norm9'"):
        add_squeeze_excite(net, 4, "norm9")


def test_unknown_networks_and_second_blocks_are_refused() -> None:
    with pytest.raises(TypeError, match=r"timm's SwinTransformer.*transformers's SwinModel.*paperworks's"):
        add_squeeze_excite(nn.Linear(2, 2))
    model = add_squeeze_excite(small_swin(), 4)
    with pytest.raises(ValueError, match="has an attribute `se`"):
        add_squeeze_excite(model)
    with pytest.raises(ValueError, match="without squeeze-and-excitation"):
        remove_squeeze_excite(small_swin())
    with pytest.raises(ValueError, match="reduction"):
        add_squeeze_excite(small_swin(), 64)


# --- the model of the recipe ---


def test_published_counts() -> None:
    with torch.device("meta"):
        model = build_fer_model()
    count = sum(p.numel() for p in model.parameters())
    assert count == 27_525_506 + 74_544
    assert model.head.out_features == 8


def test_weights_from_files(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    from paperworks.swin.swin_se_fer import training

    monkeypatch.setitem(training.BACKBONES, "tiny", {"dim": 12, "depths": (1, 1), "num_heads": (2, 2)})
    source = SwinClassifier(7, dim=12, depths=(1, 1), num_heads=(2, 2))
    x = torch.randn(1, 3, 56, 56)
    expected = source.eval().forward_features(x).flatten(1, 2).mean(1)
    for layout in ("timm", "official", "transformers", "torchvision"):
        state = swin_state_dict(source, layout)
        pth, tensors = tmp_path / f"{layout}.pth", tmp_path / f"{layout}.safetensors"
        torch.save({"model": state} if layout == "official" else state, pth)
        save_file(state, tensors)
        for path in (pth, str(tensors)):
            model = build_fer_model("swin_tiny_patch4_window7_224.ms_in1k", 4, path).eval()
            torch.testing.assert_close(model(x), model.head(model.se(expected)))


def test_dropout_before_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    from paperworks.swin.swin_se_fer import training

    monkeypatch.setitem(training.BACKBONES, "tiny", {"dim": 12, "depths": (1, 1), "num_heads": (2, 2)})
    torch.manual_seed(0)
    model, x = build_fer_model(dropout=0.5, residual_init=True), torch.randn(1, 3, 56, 56)
    assert set(build_fer_model().state_dict()) == set(model.state_dict())
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_backbones_that_are_not_known() -> None:
    with pytest.raises(ValueError, match="num_classes"):
        build_fer_model(num_classes=0)
    with pytest.raises(ValueError, match="dropout"):
        build_fer_model(dropout=1.0)
    with pytest.raises(ValueError, match="got a file"):
        build_fer_model("swin_s3_tiny_224", pretrained="x.pth")


def test_groups_for_fine_tuning() -> None:
    model = add_squeeze_excite(small_swin(), 4)
    groups = finetune_groups(model, 1e-4, 1e-3, 0.05, 0.5)
    by_parameter = {id(p): group for group in groups for p in group["params"]}
    assert len(by_parameter) == len(list(model.parameters()))

    def of(name: str) -> tuple[float, float]:
        group = by_parameter[id(model.get_parameter(name))]
        return group["lr"], group["weight_decay"]

    assert of("se.fc1.weight") == of("head.weight") == (1e-3, 0.05)
    assert of("head.bias") == (1e-3, 0.0)
    assert of("norm.weight") == (1e-4, 0.0)
    assert of("backbone.stages.1.blocks.1.mlp.fc1.weight") == (1e-4, 0.05)
    assert of("backbone.stages.1.blocks.0.mlp.fc1.weight") == (0.5e-4, 0.05)
    assert of("backbone.merges.0.reduction.weight") == (0.25e-4, 0.05)
    assert of("backbone.stages.0.blocks.0.mlp.fc1.weight") == (0.125e-4, 0.05)
    assert of("backbone.patch_embed.proj.weight") == (1e-4 / 16, 0.05)
    assert of("backbone.stages.0.blocks.0.attn.bias.relative_position_bias_table")[1] == 0
    with pytest.raises(ValueError, match="layer_decay"):
        finetune_groups(model, layer_decay=0)
