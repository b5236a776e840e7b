"""The card of Swin with squeeze-and-excitation: exact claims, checks that can fail, AffectNet's layout, the figure."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import Here
from PIL import Image

import paperworks.swin.swin_se_fer as method
from paperworks.lab.benchmark import find_cases
from paperworks.lab.nouns import Arm, Need, at_tier, resolve
from paperworks.lab.registry import find
from paperworks.lab.report import collect
from paperworks.lab.report.figures import draw_all
from paperworks.lab.runner import run
from paperworks.lab.store import open_store
from paperworks.lab.trial import Trial
from paperworks.papers.protocols import sharpness_checks
from paperworks.papers.protocols.sharpness_expressions import expression_recognition
from paperworks.papers.protocols.sharpness_tasks import face_patches, few_images
from paperworks.swin.swin_se_fer import training

paper = find("swin-se-fer")
CHECKS = [claim for claim in paper.claims if claim.kind == "exact"]
RECIPE = "paperworks.papers.protocols.sharpness_arms:recipe"


def unmet(id: str) -> list[str]:
    found = dict(resolve(paper.claim(id).target)(Trial()))
    return [name for name, bound in paper.claim(id).bounds.items() if not bound.met(found[name])]


def settings_of(protocol, tier: str = "smoke", **changed) -> dict:
    return {**{s.name: at_tier(s.default, tier) for s in protocol.settings}, **changed}


def test_facts() -> None:
    assert (paper.arxiv, paper.n_authors, paper.area) == ("2301.10906", 2, "swin")


# --- exact claims ---


@pytest.mark.parametrize("claim", CHECKS, ids=lambda claim: claim.id)
def test_what_is_exact_holds(claim) -> None:
    assert unmet(claim.id) == []


class ByTensor(method.SAM):
    """Climbs by rho in every tensor."""

    def first_step(self, zero_grad: bool = False) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        for g in gradients:
            g.div_(g.norm() + 1e-12)
        super().first_step(zero_grad)


class Forgetful(method.SAM):
    """Stays at w + e."""

    def restore(self) -> None:
        self._saved = None


BROKEN = {
    "a norm by tensor": ("climb-of-the-whole-network", "SAM", ByTensor),
    "no way back": ("weights-come-back", "SAM", Forgetful),
    "a step without a climb": ("passes-of-a-step", "SAM", lambda p, base, every=1, **o: base(p, **o)),
    "a wider block": ("cost-of-squeeze", "build_fer_model", lambda: method.build_fer_model(reduction=8)),
    "a gate of places": (
        "squeeze-is-a-gate-of-the-pooled-vector",
        "SqueezeExcite",
        lambda _: torch.nn.Softmax(1),
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_method_loses_its_exact_claim(broken, monkeypatch: pytest.MonkeyPatch) -> None:
    id, name, instead = broken
    monkeypatch.setattr(sharpness_checks, name, instead)
    assert unmet(id)


# --- measured ---


def test_arms_of_a_seed_start_alike_and_differ_in_what_they_are() -> None:
    found, losses = {}, {}
    for name, options in (
        ("method", {}),
        ("plain", {"sam": False}),
        ("longer", {"sam": False, "times": 2}),
        ("second", {"every": 2}),
        ("no block", {"squeeze": False}),
    ):
        trial = Trial(settings=settings_of(few_images, epochs=2))
        found[name] = few_images.function(trial, Arm(name, RECIPE, options))
        losses[name] = trial.curves["training loss"]
        assert 0 <= found[name]["macro_f1"] <= 1
    assert {name: values["passes"] for name, values in found.items()} == {
        "method": 8, "plain": 4, "longer": 8, "second": 6, "no block": 8,
    }  # fmt: skip
    assert losses["plain"][0] == losses["longer"][0], "the same weights and batches"
    assert len(losses["longer"]) == 4
    assert losses["method"] != losses["no block"]


def test_faces_stop_at_the_target_and_keep_what_the_figure_shows() -> None:
    pytest.importorskip("skimage", reason="its patches")
    trial = Trial(settings=settings_of(face_patches, target_loss=0.9))
    found = face_patches.function(trial, Arm("SAM", RECIPE))
    assert found["epochs"] == 1
    assert found["train_loss"] <= 0.9
    rise = dict(zip(trial.curves["radius"], trial.curves["loss along the climb"], strict=True))
    assert rise[0.05] - rise[0.0] == pytest.approx(found["sharpness"], abs=1e-5)
    assert len(trial.curves["patches"]) == 625 * len(trial.curves["probability of a face"])
    with pytest.raises(ValueError, match="train_size"):
        face_patches.function(Trial(settings=settings_of(face_patches, train_size=400)), Arm("SAM", RECIPE))


def test_steps_that_are_timed() -> None:
    from paperworks.papers.protocols.sharpness_calls import training_step

    calls = {"sam": {}, "sgd": {"sam": False}, "three": {"extra": True}}
    for options in calls.values():
        call = training_step(Trial(), **options)
        first = call().item()
        assert call().item() != first, "it trains"


# --- needs ---


def write_affectnet(root: Path) -> Path:
    noise = np.random.default_rng(0)
    for part in ("train_set", "val_set"):
        (root / part / "images").mkdir(parents=True)
        (root / part / "annotations").mkdir()
        for label in range(8):
            pixels = noise.integers(0, 255, (30, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / part / "images" / f"{label}.jpg")
            np.save(root / part / "annotations" / f"{label}_exp.npy", str(label))
    return root


@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
def test_fine_tuning_on_the_layout_of_affectnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    small = {"dim": 8, "depths": (1, 1), "num_heads": (2, 2)}
    monkeypatch.setitem(training.BACKBONES, "tiny", small)
    weights = tmp_path / "swin.pth"
    from paperworks.swin.backbone import SwinClassifier
    from paperworks.swin.state_dicts import swin_state_dict

    torch.save(swin_state_dict(SwinClassifier(5, **small)), weights)
    root = write_affectnet(tmp_path / "affectnet")
    (tmp_path / "fer2013").mkdir()
    rows = [f"{k},{' '.join(['7'] * 2304)},Training" for k in range(7)]
    (tmp_path / "fer2013" / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]))
    given = {
        "affectnet": str(root), "fer2013": str(tmp_path / "fer2013"), "weights": str(weights), "recipe": recipe,
        "size": 28, "epochs": 2,
    }  # fmt: skip
    for options in ({}, {"sam": False, "squeeze": False}):
        trial = Trial(settings=settings_of(expression_recognition, **given))
        found = expression_recognition.function(trial, Arm("x", RECIPE, options))
        assert found["macro_f1"] == max(trial.curves["macro F1"])
        assert len(trial.curves["macro F1"]) == 2
        low, high = (trial.curves[f"F1 by expression, {end}"] for end in ("low", "high"))
        assert all(a <= b for a, b in zip(low, high, strict=True))
        again = expression_recognition.function(
            Trial(settings=settings_of(expression_recognition, **given)), Arm("x", RECIPE, options)
        )
        assert again == found, "a seed makes a trial"


def test_what_is_needed_is_said_and_signed(tmp_path: Path) -> None:
    needs: tuple[Need, ...] = paper.claim("f1-on-affectnet").needs
    assert [n.name for n in needs if n.kind == "setting" and n.missing({})] == ["affectnet", "weights"]
    assert not [n for n in needs if n.kind == "setting" and n.missing({"affectnet": "x", "weights": "imagenet"})]
    signatures = {s.name: resolve(s.signature) for s in expression_recognition.settings if s.signature}
    root = write_affectnet(tmp_path / "a")
    before = signatures["affectnet"](str(root))
    (root / "train_set" / "images" / "0.jpg").unlink()
    assert signatures["affectnet"](str(root)) != before
    assert signatures["affectnet"]("") == ""
    (tmp_path / "w.pth").write_bytes(b"1")
    assert signatures["weights"](str(tmp_path / "w.pth")).startswith("w.pth 1 ")
    assert signatures["weights"]("imagenet") == "imagenet"


# --- a run, the figure, the benchmark ---


def test_the_figure_is_drawn_and_two_seeds_decide_nothing(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="its patches")
    claims = [c.id for c in paper.claims if c.protocol in (few_images, face_patches)]
    with open_store(tmp_path / "lab.sqlite") as store:
        verdicts = run([paper], store, Here(), tier="smoke", claims=claims)
        assert {verdict.status for verdict in verdicts} == {"inconclusive"}, [v.reason for v in verdicts]
        [drawn] = draw_all(collect(store, [paper]))["swin-se-fer"]
    assert not drawn.missing
    for words in ("face ", "distance along the gradient", "macro F1, 100 digits", "AdamW", "every 2nd"):
        assert words in drawn.svg


def test_what_is_timed_is_the_same_work() -> None:
    cases = {case.name.split(",")[0]: case for case in reversed(find_cases("swin-se-fer"))}
    block = cases["squeeze and excitation"]
    torch.manual_seed(0)
    ours = block.contenders[block.method]()()
    assert ours.shape == (8, 7, 7, 768)
    monai = pytest.importorskip("monai.networks.blocks", reason="its block is a peer")
    peer, own = monai.ChannelSELayer(2, 768, r=16), method.SqueezeExcite(768)
    own.load_state_dict(dict(zip(own.state_dict(), peer.state_dict().values(), strict=True)))
    x = torch.randn(2, 7, 7, 768)
    torch.testing.assert_close(own(x), peer(x.movedim(-1, 1)).movedim(1, -1), rtol=1e-5, atol=1e-6)
    beyond = cases["beyond the two passes"]
    for name in (beyond.method, "one tensor after another"):
        beyond.contenders[name]()()


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_peer_that_is_not_installed_is_an_import_error() -> None:
    case = next(case for case in find_cases("swin-se-fer") if case.name.startswith("squeeze"))
    with pytest.raises(ImportError):
        case.contenders["timm"]()


def test_the_usage_on_the_card_runs() -> None:
    from paperworks.swin.backbone import SwinClassifier

    torch.manual_seed(0)
    model = SwinClassifier(3, dim=16, depths=(1, 1), num_heads=(2, 2), window=4)
    loader, said = [(torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]))], []
    exec(paper.usage, {"model": model, "loader": loader, "print": said.append})
    assert isinstance(said[0], float)
