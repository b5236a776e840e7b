"""The card of Gated-SwinRMT: exact claims, checks that can fail, real data in its layouts, figure and benchmark."""

from __future__ import annotations

import importlib.util
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import Here
from PIL import Image
from torch import nn

import paperworks.swin.gated_swinrmt as method
from paperworks.lab.benchmark import find_cases
from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Need, at_tier, resolve
from paperworks.lab.registry import find
from paperworks.lab.report import collect
from paperworks.lab.report.figures import draw_all
from paperworks.lab.runner import run
from paperworks.lab.store import open_store
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.gated_crops import picture_classification
from paperworks.papers.protocols.gated_pictures import NAMES, altered, parts_of, rand_augmented
from paperworks.papers.protocols.gated_recipe import whole_recipe

paper = find("gated-swinrmt")
CHECKS = [claim for claim in paper.claims if claim.kind == "exact"]
FAILS = {"heads-that-favour-distance"}
ARMS = ("gated_swinrmt_swat", "gated_swinrmt_retention", "rmt_baseline")


def unmet(id: str) -> list[str]:
    found = dict(resolve(paper.claim(id).target)(Trial()))
    return [name for name, bound in paper.claim(id).bounds.items() if not bound.met(found[name])]


def test_facts() -> None:
    assert (paper.arxiv, paper.n_authors, paper.area) == ("2604.06014", 3, "swin")
    for claim in paper.claims:
        for criterion in claim.criteria:
            assert at_tier(criterion.seeds, "desk") >= MINIMUM_SEEDS
            assert criterion.baseline is not None or criterion.control is not None


@pytest.mark.parametrize("claim", CHECKS, ids=lambda claim: claim.id)
def test_exact_claims(claim) -> None:
    assert bool(unmet(claim.id)) == (claim.id in FAILS)


class Ungated(method.GatedRetention):
    def __init__(self, *args, gate=True, **options) -> None:
        super().__init__(*args, gate=False, **options)


class OnePass(method.GatedRetention):
    def attention_map(self, x, mask=None):
        q, k = self._queries_and_keys(x.view(-1, 7, 7, self.dim))
        rows, _ = self._row_and_column_weights(q, k, None)
        return torch.einsum("bhxij,hy->bxhiyj", rows, torch.eye(7, dtype=x.dtype)).flatten(2, 3).flatten(3)


BROKEN = {
    "no gate": ("rank-of-the-output", "GatedRetention", Ungated),
    "one pass": ("decay-is-manhattan", "GatedRetention", OnePass),
    "a parent without rotation": (
        "small-images-leave-only-the-gate",
        "rmt_baseline",
        lambda **kw: method.GatedSwinRMT("rmt", rotary=False, **kw),
    ),
    "half the blocks": (
        "parameters-at-full-size",
        "gated_swinrmt_swat",
        lambda **kw: method.GatedSwinRMT("swat", depths=(2, 2, 6, 2), **kw),
    ),
    "wide parents": (
        "parameters-of-the-parents",
        "rmt_baseline",
        lambda classes, mlp_ratios, **kw: method.GatedSwinRMT("rmt", num_classes=classes, mlp_ratios=(4,) * 4, **kw),
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_method_loses_its_exact_claim(broken, monkeypatch: pytest.MonkeyPatch) -> None:
    id, name, instead = broken
    monkeypatch.setattr(method, name, instead)
    assert unmet(id)


def test_needs_are_said_and_met_by_what_the_user_gives() -> None:
    def missing(id: str, data: str) -> list[str]:
        needs: tuple[Need, ...] = paper.claim(id).needs
        return [need.name for need in needs if need.kind == "setting" and need.missing({"data": data})]

    assert missing("accuracies-on-mini-imagenet", "") == ["data"]
    assert missing("accuracies-on-mini-imagenet", "cifar:x") == ["data"]
    assert missing("accuracies-on-mini-imagenet", "miniimagenet:x") == []
    assert missing("gain-on-cifar", "cifar:x") == []


# --- training ---


def settings_of(protocol, **given) -> dict[str, object]:
    return {**{s.name: at_tier(s.default, "smoke") for s in protocol.settings}, **given}


def write_mini_imagenet(root: Path) -> str:
    numbers = np.random.default_rng(0)
    for part, classes in (("train", ("n01", "n02")), ("val", ("n03",)), ("test", ("n04",))):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(5):
                pixels = np.full((40, 36, 3), numbers.integers(0, 256, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.jpg")
    return f"miniimagenet:{root}"


def write_cifar(root: Path) -> str:
    numbers = np.random.default_rng(0)
    for name, count in (("data_batch_1", 16), ("test_batch", 6)):
        batch = {
            b"data": numbers.integers(0, 256, (count, 3072), dtype=np.uint8),
            b"labels": [int(n) for n in numbers.integers(0, 10, count)],
        }
        (root / name).write_bytes(pickle.dumps(batch))
    return f"cifar:{root}"


@pytest.mark.parametrize("write", [write_mini_imagenet, write_cifar])
def test_the_whole_recipe_runs_on_the_real_layouts(write, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # batches of CIFAR-10 that the fixture leaves out
        data = write(tmp_path)
        trial = Trial(settings=settings_of(whole_recipe, data=data, epochs=2, warmup=1))
        found = whole_recipe.function(
            trial, Arm("SWAT", f"{paper.method}:gated_swinrmt_swat", {"depths": (1, 1, 1, 1)})
        )
    assert 0 <= found["top1"] <= found["top5"] <= 100
    assert len(trial.curves["loss"]) == 2


def test_mini_imagenet_is_read_at_any_size_with_seeded_augmentation(tmp_path: Path) -> None:
    train, test = parts_of(write_mini_imagenet(tmp_path), 24)
    assert (len(train), len(test), len(train.classes)) == (16, 4, 4)
    assert test[0][0].shape == (3, 24, 24)
    first, again, other = train[3, 1][0], train[3, 1][0], train[3, 2][0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_operations_of_randaugment() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(30, 200, (16, 20, 3), dtype=np.uint8))
    for name in NAMES:
        changed = altered(picture, name, 0.9)
        assert (changed.size, changed.mode) == (picture.size, "RGB")
        assert changed.tobytes() != picture.tobytes()
    moved = np.asarray(altered(picture, "moved along x", 0.5))
    assert np.array_equal(moved[:, :15], np.asarray(picture)[:, 4:19]) or moved.shape == (16, 20, 3)
    one, two = (rand_augmented(picture, torch.Generator().manual_seed(s)).tobytes() for s in (3, 3))
    assert one == two


def test_arms_of_a_seed_train_on_the_same_images_and_keep_what_the_figure_shows() -> None:
    pytest.importorskip("skimage", reason="its pictures")
    images = []
    for arm in ARMS:
        trial = Trial(settings=settings_of(picture_classification))
        found = picture_classification.function(trial, Arm(arm, f"{paper.method}:{arm}"))
        assert found["windowed_minus_one_window"] == found["accuracy"] - found["accuracy_one_window"]
        images.append(trial.curves["test image"])
        weights = torch.tensor(trial.curves["attention"]).view(8, 8)
        seen = weights > 0
        assert bool(seen[4:, 4:].all())
        assert int(seen.sum()) == (64 if arm == "rmt_baseline" else 16), "the whole map, or one window of four"
    assert images[0] == images[1] == images[2]


def test_crops_of_the_users_images(tmp_path: Path) -> None:
    spec = write_mini_imagenet(tmp_path).replace("miniimagenet", "imagefolder")
    trial = Trial(settings=settings_of(picture_classification, data=spec, batch_size=5))
    found = picture_classification.function(trial, Arm("RMT", f"{paper.method}:rmt_baseline"))
    assert 0 <= found["accuracy"] <= 1


def test_the_figure_is_drawn_and_two_seeds_decide_nothing(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="its pictures")
    claims = ["swat-beats-rmt", "retention-beats-rmt"]
    with open_store(tmp_path / "lab.sqlite") as store:
        verdicts = run([paper], store, Here(), tier="smoke", claims=claims)
        assert {verdict.status for verdict in verdicts} == {"inconclusive"}
        [drawn] = draw_all(collect(store, [paper]))["gated-swinrmt"]
    assert not drawn.missing
    for words in ("test image", "RMT", "Retention", "SWAT", "maps of one window"):
        assert words in drawn.svg


# --- the benchmark ---


def test_every_contender_that_is_installed_runs() -> None:
    cases = {case.name.split(",")[0]: case for case in find_cases("gated-swinrmt") if "windows" in case.name}
    assert set(cases) == {"attention"}
    for case in find_cases("gated-swinrmt"):
        assert case.method in case.contenders
        assert case.floor
        if "windows" not in case.name or "backward" in case.name:
            continue
        for prepare in case.contenders.values():
            try:
                call = prepare()
            except ImportError:
                continue
            assert call().shape == (64, 49, 128)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_peer_that_is_not_installed_is_an_import_error() -> None:
    case = next(case for case in find_cases("gated-swinrmt") if case.name.startswith("forward, 1"))
    with pytest.raises(ImportError):
        case.contenders["Swin-B, timm"]()


def test_the_usage_on_the_card_runs() -> None:
    from paperworks.swin.backbone import SwinClassifier

    code = paper.usage.replace("num_classes=100", "num_classes=100, depths=(1, 1, 1, 1)")
    swin = SwinClassifier(3, dim=8, depths=(1, 1), num_heads=(2, 2))
    exec(code, {"swin": swin, "print": lambda *_: None})
    assert any(isinstance(m, method.GatedRetention) for m in swin.modules() if isinstance(m, nn.Module))
