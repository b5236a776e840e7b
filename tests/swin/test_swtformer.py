"""The network: counts, the backbones it takes, what trains what, localisation at several scales."""

from __future__ import annotations

import copy
import pickle
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paperworks.measure.parameters import count_parameters
from paperworks.swin.backbone import SwinClassifier
from paperworks.swin.state_dicts import load_swin_state_dict
from paperworks.swin.swtformer import SWTformer, localize, normalize_cam, swtformer_loss, with_background

SMALL = {"dim": 8, "depths": (1, 2, 1), "num_heads": (1, 2, 4), "window": 4, "order": "roll-pad"}


def small(version: int = 2, classes: int = 3, seed: int = 0, **options) -> SWTformer:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return SWTformer(SwinClassifier(0, **SMALL), classes, version, **options)


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_swin_t_gets_one_matrix_and_four_side_convolutions() -> None:
    backbone = count_parameters(SwinClassifier(0, device="meta"))
    first, second = (SWTformer(version=v, device="meta") for v in (1, 2))
    assert count_parameters(first) - backbone == 20 * 768 == 15_360
    assert count_parameters(second) - count_parameters(first) == 331_776
    assert [tuple(side.weight.shape[:2]) for side in second.sides] == [(128, 96), (128, 192), (256, 384), (256, 768)]
    assert second.head.bias is None
    assert all(side.bias is None for side in second.sides)


@pytest.mark.parametrize("version", [1, 2])
def test_shapes_and_the_mean_of_a_map_is_its_logit(version: int) -> None:
    model, x = small(version).eval(), images(2, 3, 64, 32)
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    out = model(x, labels)
    assert out.cam.shape == (2, 3, 4, 2)
    torch.testing.assert_close(out.logits, out.cam.mean((2, 3)), rtol=0, atol=1e-6)
    if version == 1:
        torch.testing.assert_close(out.norm_cam, with_background(normalize_cam(out.cam), labels))
        assert (out.seeds, out.prototypes, out.prototype_map, out.features) == (None,) * 4
    else:
        assert out.norm_cam.shape == out.seeds.shape == out.prototype_map.shape == (2, 4, 8, 4)
        assert out.prototypes.shape == (2, 4, 640)
        assert out.features.shape == (2, 640, 8, 4)
        m = F.interpolate(with_background(normalize_cam(out.cam), labels), (8, 4), mode="bilinear", align_corners=True)
        torch.testing.assert_close(out.norm_cam, m)
        assert float(out.prototype_map[0, 2].abs().sum()) == 0, "an absent class has no map"
        assert float(out.prototype_map[:, 0].max()) > 0, "the background has one"


def test_fused_features_are_unit_where_they_were_not_resized() -> None:
    out = small()(images(1, 3, 32, 32), torch.ones(1, 3))
    torch.testing.assert_close(out.features[:, 128:384].norm(dim=1), torch.ones(1, 4, 4), atol=1e-3, rtol=0)


def test_without_labels_the_network_says_what_it_sees() -> None:
    model = small().eval()
    out = model(images(4, 3, 32, 32))
    predicted = out.logits.sigmoid() > 0.5
    predicted.scatter_(1, out.logits.argmax(1, keepdim=True), True)
    assert torch.equal(out.norm_cam, model(images(4, 3, 32, 32), predicted).norm_cam)
    with pytest.raises(ValueError, match=r"^labels"):
        model.train()(images(1, 3, 32, 32))
    small(1).train()(images(1, 3, 32, 32))


def test_the_prototype_branch_does_not_train_the_backbone() -> None:
    model = small()
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    out = model(images(1, 3, 32, 32), labels)
    (out.prototype_map.sum() + out.features.sum()).backward(retain_graph=True)
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(side.weight.grad is not None for side in model.sides)
    swtformer_loss(out, labels)["gsc"].backward()
    assert any(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in model.backbone.parameters())


def test_the_loss_is_its_terms() -> None:
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    out = small()(images(2, 3, 32, 32), labels)
    found = swtformer_loss(out, labels, gsc=0.5, ccl=0.3)
    assert set(found) == {"total", "cls", "gsc", "ccl"}
    torch.testing.assert_close(found["total"], found["cls"] + 0.5 * found["gsc"] + 0.3 * found["ccl"])
    torch.testing.assert_close(found["cls"], F.binary_cross_entropy_with_logits(out.logits, labels))
    first = swtformer_loss(small(1)(images(2, 3, 32, 32), labels), labels)
    assert float(first["gsc"]) == float(first["ccl"]) == 0
    torch.testing.assert_close(first["total"], first["cls"])


def test_training_lowers_the_loss_and_every_weight_moves() -> None:
    model, labels = small(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, losses = images(2, 3, 32, 32), []
    for _ in range(15):
        optimizer.zero_grad()
        loss = swtformer_loss(model(x, labels), labels)["total"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None for p in model.parameters())


def test_transformers_swin_gives_the_same_maps() -> None:
    transformers = pytest.importorskip("transformers", reason="its Swin")
    config = transformers.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 2, 1], num_heads=[1, 2, 4], window_size=4, hidden_dropout_prob=0.0
    )
    torch.manual_seed(0)
    theirs = transformers.SwinModel(config, add_pooling_layer=False).eval()
    ours = SwinClassifier(0, **{**SMALL, "order": "pad-roll"}).eval()
    load_swin_state_dict(ours, theirs.state_dict(), "transformers")
    first = SWTformer(ours, 3).eval()
    second = SWTformer(theirs, 3).eval()
    second.head.load_state_dict(first.head.state_dict())
    second.sides.load_state_dict(first.sides.state_dict())
    for size in (64, 80):
        x, labels = images(2, 3, size, size), torch.ones(2, 3)
        one, two = first(x, labels), second(x, labels)
        torch.testing.assert_close(one.cam, two.cam, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.features, two.features, atol=1e-5, rtol=1e-4)
    classifier = transformers.SwinForImageClassification(config)
    assert SWTformer(classifier, 3).stride == 16


def test_timm_swin_at_another_size_than_it_was_built_for() -> None:
    timm = pytest.importorskip("timm", reason="its Swin")
    model = SWTformer(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)).eval()
    assert model(images(1, 3, 320, 256), torch.ones(1, 20)).prototype_map.shape == (1, 21, 20, 16)


class TimmStage(nn.Module):
    def __init__(self, downsample: nn.Module | None, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.downsample, self.blocks = downsample, blocks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class TimmLike(nn.Module):
    """The parts of timm's Swin that are read: stages that merge at their start, channels last."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        own = SwinClassifier(0, **SMALL).backbone
        first = None if late else nn.Identity()
        self.patch_embed, self.norm, self.own = own.patch_embed, nn.LayerNorm(32), [own]
        self.layers = nn.Sequential(
            *(TimmStage(own.merges[i - 1] if i else first, stage.blocks) for i, stage in enumerate(own.stages))
        )
        self.feature_info = [{"num_chs": 8 * 2**i, "reduction": 4 * 2**i} for i in range(3)]


def test_the_stages_of_timm_are_read_before_they_merge() -> None:
    backbone = TimmLike()
    model = SWTformer(backbone, 3, 2).eval()
    assert model.stride == 16
    assert backbone.patch_embed.strict_img_size is False
    x = images(1, 3, 32, 32)
    maps, last = model._stages.maps(backbone, x)
    for one, two in zip(maps, backbone.own[0](x), strict=True):
        torch.testing.assert_close(one, two)
    torch.testing.assert_close(last, backbone.norm(maps[-1]))
    with pytest.raises(TypeError, match=r"before 0\.9"):
        SWTformer(TimmLike(late=True), 3)


def test_what_is_no_backbone_is_refused() -> None:
    with pytest.raises(TypeError, match="timm's SwinTransformer, transformers' SwinModel"):
        SWTformer(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"name or an nn\.Module"):
        SWTformer(3)  # type: ignore[arg-type]
    merged = SwinClassifier(0, merge="each", taps="after", dim=8, depths=(1, 1), num_heads=(1, 1), window=4)
    with pytest.raises(TypeError, match="merges after each"):
        SWTformer(merged)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"version": 3}, "version"),
        ({"num_classes": 0}, "num_classes"),
        ({"side_channels": (4, 4)}, "side_channels"),
        ({"side_channels": (4, 4, 0)}, "side_channels"),
        ({"pretrained": True}, "pretrained"),
    ],
)
def test_bad_options_are_named(options, named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}"):
        SWTformer(SwinClassifier(0, **SMALL), **options)


def test_bad_inputs_are_named() -> None:
    with pytest.raises(ValueError, match=r"^image"):
        small()(images(1, 3, 32, 40), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"^labels"):
        small()(images(1, 3, 32, 32), torch.ones(1, 2))


def test_an_unknown_name_wants_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    for name, pretrained in (("swin_tiny_patch4_window7_224", True), ("swinv2_tiny_window8_256", False)):
        with pytest.raises(ImportError, match="pip install timm"):
            SWTformer(name, pretrained=pretrained)


def test_weights_of_timm_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from paperworks.swin.state_dicts import swin_state_dict

    source = SwinClassifier(0, order="roll-pad")
    stand_in = types.SimpleNamespace(
        create_model=lambda name, **_: types.SimpleNamespace(state_dict=lambda: swin_state_dict(source, "timm"))
    )
    monkeypatch.setitem(__import__("sys").modules, "timm", stand_in)
    model = SWTformer(pretrained=True)
    for one, two in zip(model.backbone.parameters(), source.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("version", [1, 2])
def test_copies_and_state_dicts(version: int) -> None:
    model, x, labels = small(version).eval(), images(1, 3, 32, 32), torch.ones(1, 3)
    wanted = model(x, labels).norm_cam
    other = small(version, seed=5).eval()
    other.load_state_dict(model.state_dict())
    for again in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x, labels).norm_cam, wanted)
    assert {name.split(".")[0] for name in model.state_dict()} == {"head", "backbone"} | (
        {"sides"} if version == 2 else set()
    )
    assert model.double()(x.double(), labels).logits.dtype == torch.float64


def test_localisation_mirrors_back_and_keeps_labelled_classes() -> None:
    model, image, labels = small().train(), images(3, 40, 56), torch.tensor([1, 0, 1])
    found = localize(model, image, labels, scales=(1, 1.5))
    assert model.training
    assert found.shape == (4, 40, 56)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert float(found[2].abs().sum()) == 0
    mirrored = localize(model, image.flip(-1), labels, scales=(1, 1.5))
    torch.testing.assert_close(mirrored.flip(-1), found, atol=1e-5, rtol=1e-4)
    single = localize(model, image, labels, scales=(1,), flip=False)
    assert not torch.allclose(single, found, atol=1e-3)


def test_localisation_of_version_1_is_its_normalised_map() -> None:
    model, image, labels = small(1).eval(), images(3, 32, 32), torch.tensor([1, 1, 1])
    found = localize(model, image, labels, scales=(1,), flip=False)
    m = F.interpolate(model(image[None], labels[None]).norm_cam, (32, 32), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, m / (m.amax((1, 2), keepdim=True) + 1e-5))


def test_compiled_forward_agrees() -> None:
    model, x, labels = small().eval(), images(1, 3, 32, 32), torch.ones(1, 3)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, labels).norm_cam, model(x, labels).norm_cam, atol=1e-5, rtol=1e-4)


def test_autocast() -> None:
    model, x, labels = small(), images(2, 3, 32, 32), torch.ones(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = swtformer_loss(model(x, labels), labels)["total"]
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())
