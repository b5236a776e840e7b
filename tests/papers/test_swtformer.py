"""The card of SWTformer: exact claims, checks that can fail, mosaics and VOC, figure and benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import Here
from PIL import Image
from torch import nn

import paperworks.swin.swtformer as method
from paperworks.data.voc import VOC_CLASSES
from paperworks.lab.benchmark import find_cases
from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Need, at_tier, resolve
from paperworks.lab.registry import find
from paperworks.lab.report import collect
from paperworks.lab.report.figures import draw_all
from paperworks.lab.runner import run
from paperworks.lab.store import open_store
from paperworks.lab.trial import Trial
from paperworks.papers.protocols import mosaics_networks
from paperworks.papers.protocols.mosaics_networks import cnn_backbone, swin_backbone, voc_swin
from paperworks.papers.protocols.mosaics_seeds import seeds_from_tags
from paperworks.papers.protocols.mosaics_training import _recall
from paperworks.papers.protocols.mosaics_voc import seeds_on_voc, voc_signature
from paperworks.papers.protocols.mosaics_voc_training import augmented

paper = find("swtformer")
CHECKS = [claim for claim in paper.claims if claim.kind == "exact"]
BUILD = "paperworks.papers.protocols.mosaics_networks"


def unmet(id: str) -> list[str]:
    found = dict(resolve(paper.claim(id).target)(Trial()))
    return [name for name, bound in paper.claim(id).bounds.items() if not bound.met(found[name])]


def settings_of(protocol, **given) -> dict[str, object]:
    return {**{s.name: at_tier(s.default, "smoke") for s in protocol.settings}, **given}


def test_facts() -> None:
    assert (paper.arxiv, paper.n_authors, paper.area) == ("2401.17828", 2, "swin")
    for claim in paper.claims:
        for criterion in claim.criteria:
            assert at_tier(criterion.seeds, "desk") >= MINIMUM_SEEDS
            assert criterion.baseline is not None or criterion.control is not None


@pytest.mark.parametrize("claim", CHECKS, ids=lambda claim: claim.id)
def test_exact_claims(claim) -> None:
    assert not unmet(claim.id)


class Biased(method.SWTformer):
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.head = nn.Conv2d(self.head.in_channels, self.num_classes, 1, device=options.get("device"))


class Attached(method.SWTformer):
    def _fused(self, maps, grid):
        sides = [side(found.movedim(-1, 1)) for side, found in zip(self.sides, maps, strict=True)]
        return torch.cat([nn.functional.interpolate(side, tuple(grid)) for side in sides], 1)


BROKEN = {
    "a head with a bias": ("class-maps-without-class-token", "SWTformer", Biased),
    "narrow sides": (
        "side-convolutions",
        "SWTformer",
        lambda **kw: method.SWTformer(side_channels=(8, 8, 8, 8), **kw),
    ),
    "stages that are not detached": ("prototypes-leave-the-backbone-alone", "SWTformer", Attached),
    "a background of the labelled classes": (
        "absent-classes-lower-the-background",
        "with_background",
        lambda cam, labels: torch.cat(
            [1 - (cam * labels[:, :, None, None]).amax(1, keepdim=True), cam * labels[:, :, None, None]], 1
        ),
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_method_loses_its_exact_claim(broken, monkeypatch: pytest.MonkeyPatch) -> None:
    id, name, instead = broken
    original = getattr(method, name)
    monkeypatch.setattr(method, name, instead)
    if id == "side-convolutions":
        monkeypatch.setattr(method, name, lambda **kw: original(side_channels=(8, 8, 8, 8), **kw))
    assert unmet(id)


# --- mosaics ---


def test_the_cnn_has_the_stride_and_the_weights_of_the_swin() -> None:
    for tier in ("desk", "gpu"):
        settings = {s.name: at_tier(s.default, tier) for s in seeds_from_tags.settings}
        with torch.device("meta"):
            swin, cnn = swin_backbone(settings), cnn_backbone(settings)
        counts = [sum(p.numel() for p in model.parameters()) for model in (swin, cnn)]
        assert abs(counts[1] / counts[0] - 1) < 0.02
        assert method.SWTformer(swin, 2, 1).stride == method.SWTformer(cnn, 2, 1).stride


def test_arms_of_a_seed_share_images_and_classifier() -> None:
    pytest.importorskip("skimage", reason="its pictures")
    images, found = [], {}
    for name, options in (("swin_cam", {"version": 1}), ("swin_cam", {"version": 2}), ("cnn_cam", {})):
        trial = Trial(settings=settings_of(seeds_from_tags))
        scores = seeds_from_tags.function(trial, Arm(name, f"{BUILD}:{name}", options))
        assert set(scores) == set(seeds_from_tags.metrics)
        assert all(0 <= score <= 1 for score in scores.values())
        images.append(trial.curves["images"])
        found[name, options.get("version")] = scores
        assert len(trial.curves["seeds"]) == len(trial.curves["masks"]) == 3 * 32 * 32
    assert images[0] == images[1] == images[2]
    for scores in (found["swin_cam", 1], found["cnn_cam", None]):
        assert scores["miou"] == scores["miou_constant"], "version 1 has no background map of its own"


def test_recall_counts_the_pixels_of_objects() -> None:
    maps = torch.tensor([[[0.5, 0.5, 0.5, 0.5]], [[0.9, 0.2, 0.9, 0.9]], [[1.0, 1.0, 1.0, 1.0]]])
    masks, labels = torch.tensor([[1, 1, 0, 1]]), torch.tensor([1, 0])
    assert _recall([maps], masks[None], labels[None], None) == pytest.approx(2 / 3)
    assert _recall([maps], masks[None], labels[None], 0.1) == 1


def test_weights_of_another_network_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage", reason="its pictures")
    built = []

    def changing(settings, classes, version):
        built.append(version)
        return method.SWTformer(
            swin_backbone({**settings, "stages": 2 + len(built) % 2}), classes, version, (4,) * (2 + len(built) % 2)
        )

    monkeypatch.setattr(mosaics_networks, "swin_cam", changing)
    with pytest.raises((ValueError, RuntimeError), match=r"arm|size mismatch"):
        seeds_from_tags.function(
            Trial(settings=settings_of(seeds_from_tags)), Arm("x", f"{BUILD}:swin_cam", {"version": 2})
        )


# --- VOC ---


def write_voc(root: Path) -> str:
    folder = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    g = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(g.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(folder / "JPEGImages" / f"{i}.jpg")
        (folder / "Annotations" / f"{i}.xml").write_text(
            f"<annotation><object><name>{VOC_CLASSES[i]}</name></object></annotation>"
        )
        mask = np.zeros((40, 56), dtype=np.uint8)
        mask[5:20, 5:30] = i + 1
        Image.fromarray(mask).save(folder / "SegmentationClass" / f"{i}.png")
    for split, names in (("train", "0\n1\n"), ("val", "2\n3\n"), ("train_aug", "0\n1\n2\n")):
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(names)
    return str(root)


def test_needs_are_said_and_met_by_what_the_user_gives() -> None:
    def missing(id: str, **given: str) -> list[str]:
        needs: tuple[Need, ...] = paper.claim(id).needs
        return [need.name for need in needs if need.kind == "setting" and need.missing(given)]

    assert missing("v1-on-voc") == ["data", "weights", "peer_weights"]
    assert missing("v2-on-voc", data="x", weights="timm") == []


def test_both_versions_train_on_voc_in_its_layout(tmp_path: Path) -> None:
    data = write_voc(tmp_path)
    for version in (1, 2):
        trial = Trial(settings=settings_of(seeds_on_voc, data=data))
        found = seeds_on_voc.function(trial, Arm("x", f"{BUILD}:voc_swin", {"version": version}))
        assert all(0 <= found[name] <= 1 for name in ("miou", "map"))
        assert len(trial.curves["loss"]) == 1
    before = voc_signature(data)
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("2\n")
    assert voc_signature(data) != before


def test_the_peer_reads_patch_tokens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="its DeiT")
    config = transformers.DeiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    transformers.DeiTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "deit")
    trial = Trial(settings=settings_of(seeds_on_voc, data=write_voc(tmp_path), peer_weights=str(tmp_path / "deit")))
    found = seeds_on_voc.function(trial, Arm("DeiT-S", f"{BUILD}:deit_cam"))
    assert 0 <= found["miou"] <= 1


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_from_a_file_in_timms_layout(tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    from paperworks.swin.backbone import SwinClassifier
    from paperworks.swin.state_dicts import swin_state_dict

    source = SwinClassifier(5, dim=16, num_heads=(1, 2, 4, 8))
    weights = {name: value.clone() for name, value in swin_state_dict(source, "timm").items()}
    path = tmp_path / f"swin.{suffix}"
    if suffix == "pth":
        torch.save({"model": weights}, path)
    else:
        save_file(weights, path)
    model = voc_swin({"weights": str(path), "width": 16}, 20, 2)
    assert torch.equal(model.backbone.norm.weight, source.norm.weight)
    assert torch.equal(next(model.backbone.parameters()), next(source.parameters()))


def test_crops_are_seeded_and_filled_up() -> None:
    image = torch.rand(3, 20, 60)
    first, again, other = (augmented(image, 64, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.shape == (3, 64, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first[:, -1].abs().max()) == 0, "below a flat image there is the mean colour"


# --- figure and benchmark ---


def test_the_figure_is_drawn_and_two_seeds_decide_nothing(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="its pictures")
    claims = [claim.id for claim in paper.claims if claim.kind == "measured"]
    with open_store(tmp_path / "lab.sqlite") as store:
        verdicts = run([paper], store, Here(), tier="smoke", claims=claims)
        assert {verdict.status for verdict in verdicts} == {"inconclusive"}
        [drawn] = draw_all(collect(store, [paper]))["swtformer"]
    assert not drawn.missing
    for words in ("truth", "CNN", "V1", "V2", "mean IoU", "best constant background"):
        assert words in drawn.svg


def test_contenders_make_maps_of_the_same_shape() -> None:
    for case in find_cases("swtformer"):
        assert case.method in case.contenders
        assert case.floor
        if "seeds" not in case.name:
            continue
        shapes = {tuple(prepare()().shape) for prepare in case.contenders.values()}
        assert len(shapes) == 1


def test_the_usage_on_the_card_runs() -> None:
    images, tags = torch.randn(1, 3, 32, 32), torch.zeros(1, 20)
    tags[0, 4] = 1
    scope = {"images": images, "tags": tags}
    exec(paper.usage.replace("images[0], tags[0])", "images[0], tags[0], scales=(1,))"), scope)
    assert scope["maps"].shape == (21, 32, 32)
    assert {prompt.label for prompt in scope["prompts"]} <= {4}
