"""The card of SwinFace: exact claims, checks that can fail, the protocols on drawn and on published layouts, figure."""

from __future__ import annotations

import csv
import importlib.util
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import Here
from PIL import Image

from paperworks.data.face_pairs import FIVE_POINTS
from paperworks.lab.benchmark import find_cases
from paperworks.lab.nouns import Arm, at_tier, resolve
from paperworks.lab.registry import find
from paperworks.lab.report import collect
from paperworks.lab.report.figures import draw_all
from paperworks.lab.runner import run
from paperworks.lab.store import open_store
from paperworks.lab.trial import Trial
from paperworks.measure.parameters import count_parameters
from paperworks.papers.protocols import faces_checks, faces_published
from paperworks.papers.protocols.faces_arms import FaceRecipe, recipe
from paperworks.papers.protocols.faces_calls import attention_call
from paperworks.papers.protocols.faces_patches import face_or_not
from paperworks.papers.protocols.faces_published import published_ages, published_attributes, published_expressions
from paperworks.papers.protocols.faces_tasks import face_tasks
from paperworks.papers.protocols.faces_training import GROUPS, PARTS, batches, build, drawn_faces, widened
from paperworks.papers.protocols.faces_verification import published_pairs, published_templates
from paperworks.swin.swinface import MLCA, SwinFace, TaskGroup
from paperworks.swin.swinface.branches import GroupedMLCA

paper = find("swinface")
SLOW = {"one-pass-is-the-loop", "one-network-for-all-tasks"}  # run in the smoke test of all papers
CHECKS = [claim for claim in paper.claims if claim.kind == "exact" and claim.id not in SLOW]
RECIPE = "paperworks.papers.protocols.faces_arms:recipe"
COMPARED = "paperworks.papers.protocols.faces_verification:compared_by"
SAID = "paperworks.papers.protocols.faces_published:said"


def unmet(id: str) -> list[str]:
    found = dict(resolve(paper.claim(id).target)(Trial()))
    return [name for name, bound in paper.claim(id).bounds.items() if not bound.met(found[name])]


def settings_of(protocol: Any, **changed: Any) -> dict[str, Any]:
    return {**{s.name: at_tier(s.default, "smoke") for s in protocol.settings}, **changed}


def test_facts() -> None:
    assert (paper.arxiv, paper.n_authors, paper.area) == ("2308.11509", 7, "swin")


# --- exact claims ---


@pytest.mark.parametrize("claim", CHECKS, ids=lambda claim: claim.id)
def test_what_is_exact_holds(claim: Any) -> None:
    assert unmet(claim.id) == []


class Deaf(MLCA):
    """Does not hear its first level."""

    def _joined(self, levels: Any) -> torch.Tensor:
        x = super()._joined(levels)
        return torch.cat([0 * x[:, : self.widths[0]], x[:, self.widths[0] :]], 1)


class Signed(MLCA):
    """Its gate may be negative."""

    def _gate(self, x: torch.Tensor) -> torch.Tensor:
        return super()._gate(x) - 0.5


class Swapped(GroupedMLCA):
    """Branches in another order."""

    def forward(self, levels: Any, at: Any = None) -> torch.Tensor:
        return super().forward(levels, at).flip(1)


def _small_module(**options: Any) -> MLCA:
    return MLCA((192, 384, 768, 768), 511)


BROKEN = {
    "a level that is not heard": ("all-levels-are-heard", "MLCA", Deaf),
    "a gate of both signs": ("all-levels-are-heard", "MLCA", Signed),
    "a gate of both signs, on what was pooled": ("gate-scales-what-was-pooled", "MLCA", Signed),
    "another number of channels": ("levels-in-proportion", "MLCA", _small_module),
    "branches in another order": ("one-pass-is-the-loop", "GroupedMLCA", Swapped),
    "squares to the end": (
        "age-loss-changes-its-shape",
        "age_loss",
        lambda pred, target, progress: ((pred - target) ** 2).mean() / 2,
    ),
    "a margin on all": ("sampled-identities", "cosface_logits", lambda cos, labels: 64 * (cos - 0.4)),
    "fewer groups": ("parameters-at-full-size", "SwinFace", lambda: SwinFace(GROUPS)),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_method_loses_its_exact_claim(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    id, name, instead = broken
    monkeypatch.setattr(faces_checks, name, instead)
    monkeypatch.setattr(faces_checks, "BRANCHES", 2)
    assert unmet(id)


# --- measured ---


def test_arms_see_the_same_faces_and_are_of_one_size() -> None:
    trial = Trial(settings=settings_of(face_tasks))
    faces = drawn_faces(trial)
    whole = next(batches(trial, faces, PARTS, 1))
    for number, part in enumerate(PARTS):
        images, batch = next(batches(trial, faces, (part,), 1))
        assert torch.equal(images, whole[0][4 * number : 4 * number + 4]), "apart as together"
        assert all(torch.equal(batch[task].target, whole[1][task].target) for task in batch)
    together = count_parameters(build(trial, FaceRecipe()))
    last = FaceRecipe(levels="last")
    alone = count_parameters(build(trial, last, task_width=widened(trial, last)))
    assert abs(alone / together - 1) < 0.03
    assert count_parameters(build(trial, FaceRecipe(alike=True))) >= together
    with pytest.raises(ValueError, match="levels: got 'first'"):
        recipe("first")


def test_a_trial_repeats_and_keeps_what_the_figure_shows() -> None:
    found, trials = {}, {}
    for name, options in (("method", {}), ("again", {}), ("apart", {"joint": False}), ("alike", {"alike": True})):
        trials[name] = Trial(1, settings=settings_of(face_tasks, steps=1, identities=name != "alike"))
        found[name] = face_tasks.function(trials[name], Arm(name, RECIPE, options))
        assert found[name].keys() == face_tasks.metrics.keys()
    assert found["again"] == found["method"]
    assert found["method"]["score"] == pytest.approx(sum(found["method"][part] for part in PARTS) / 4)
    assert found["alike"]["score"] == pytest.approx(sum(found["alike"][part] for part in PARTS[:-1]) / 3)
    assert found["apart"]["parameters"] > 2 * found["method"]["parameters"]
    assert len(trials["method"].curves["faces"]) == 8 * 3 * 32 * 32
    assert sum(trials["alike"].curves["levels: age"]) == pytest.approx(1)
    assert "levels: age" not in trials["apart"].curves


def test_real_pictures_are_told_by_networks_of_one_size() -> None:
    pytest.importorskip("skimage", reason="its pictures")
    found = {}
    for name, options in (("all", {}), ("again", {}), ("last", {"levels": "last"})):
        trial = Trial(settings=settings_of(face_or_not))
        found[name] = face_or_not.function(trial, Arm(name, RECIPE, options))
        assert found[name].keys() == face_or_not.metrics.keys()
        assert len(trial.curves["loss"]) == 2
    assert found["all"] == found["again"]
    assert abs(found["last"]["parameters"] / found["all"]["parameters"] - 1) < 0.03


def test_what_is_timed_is_the_same_work() -> None:
    one, loop = (attention_call(Trial(), grouped)() for grouped in (True, False))
    assert isinstance(one, torch.Tensor)
    torch.testing.assert_close(one, loop, rtol=1e-4, atol=1e-5)


# --- needs ---


def write_faces(root: Path, n: int, name: str) -> list[str]:
    noise, names = np.random.default_rng(0), []
    for i in range(n):
        names.append(name.format(i))
        (root / names[-1]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(root / names[-1])
    return names


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = SwinFace(embed_dim=24)
    parts: dict[str, Any] = {}
    for name, value in model.official_state_dict().items():
        part, _, rest = name.partition(".")
        parts.setdefault(f"state_dict_{part}", {})[rest] = value
    path = tmp_path_factory.mktemp("weights") / "checkpoint.pt"
    torch.save(parts | {"global_step": 3}, path)
    return path


def test_expressions_in_the_layout_of_rafdb(tmp_path: Path, checkpoint: Path) -> None:
    lines = []
    for part in ("train", "test"):
        names = write_faces(tmp_path, 6, f"Image/aligned/{part}_{{:05d}}_aligned.jpg")
        lines += [f"{Path(n).name.replace('_aligned', '')} {i % 3 + 1}" for i, n in enumerate(names)]
    (tmp_path / "list_patition_label.txt").write_text("\n".join(lines))
    given = {"rafdb": str(tmp_path), "weights": str(checkpoint), "width": 24}
    found = {}
    for name, changed, options in (("as is", {}, {}), ("tuned", {"steps": 1}, {}), ("guess", {}, {"guess": True})):
        trial = Trial(0, settings=settings_of(published_expressions, **given, **changed))
        found[name] = published_expressions.function(trial, Arm(name, SAID, options))
        assert 0 <= found[name]["balanced"] <= 1
    assert found["guess"]["balanced"] == pytest.approx(1 / 3)


def test_attributes_in_the_layout_of_celeba(tmp_path: Path, checkpoint: Path) -> None:
    names = write_faces(tmp_path, 6, "img_align_celeba/{:06d}.jpg")
    rows = [f"{Path(n).name} {'1' if i % 3 else '-1'} 1" for i, n in enumerate(names)]
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(["6", "Male Young", *rows]))
    parts = "\n".join(f"{Path(n).name} {0 if i < 3 else 2}" for i, n in enumerate(names))
    (tmp_path / "list_eval_partition.txt").write_text(parts)
    given = {"celeba": str(tmp_path), "weights": str(checkpoint), "width": 24}
    found = {}
    for name, options in (("weights", {}), ("guess", {"guess": True})):
        trial = Trial(3, settings=settings_of(published_attributes, **given))
        found[name] = published_attributes.function(trial, Arm(name, SAID, options))
    drawn = torch.randint(0, 3, (3,), generator=Trial(3).generator("test faces"))
    assert found["guess"]["accuracy"] == pytest.approx((float((drawn % 3 != 0).double().mean()) + 1) / 2)
    assert 0 <= found["weights"]["balanced"] <= 1


def jpeg(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG")
    return file.getvalue()


def test_pairs_as_they_are_packed(tmp_path: Path, checkpoint: Path) -> None:
    noise, pictures, answers = np.random.default_rng(0), [], []
    for i in range(40):
        first, other = noise.integers(0, 255, (2, 8, 8, 3), dtype=np.uint8).repeat(14, 1).repeat(14, 2)
        pictures += [jpeg(first), jpeg(first if i % 2 else other)]
        answers.append(bool(i % 2))
    (tmp_path / "agedb_30.bin").write_bytes(pickle.dumps((pictures, answers)))
    given = {"pairs": str(tmp_path), "set": "agedb_30", "weights": str(checkpoint), "width": 24}
    for options in ({}, {"pixels": True}):
        trial = Trial(0, settings=settings_of(published_pairs, **given))
        found = published_pairs.function(trial, Arm("x", COMPARED, options))
        assert found["auc"] == 1, "one person is one picture here"
        assert found["accuracy"] >= 0.9
    with pytest.raises(ValueError, match="got 'megaface', wanted one of lfw"):
        next(s for s in published_pairs.settings if s.name == "set").check("megaface")


def test_templates_in_the_layout_of_ijbc(tmp_path: Path, checkpoint: Path) -> None:
    noise = np.random.default_rng(0)
    people = noise.integers(0, 255, (3, 8, 8, 3), dtype=np.uint8).repeat(14, 1).repeat(14, 2)
    (tmp_path / "loose_crop").mkdir()
    (tmp_path / "meta").mkdir()
    faces, points = [], []
    landmarks = " ".join(f"{v}" for place in FIVE_POINTS for v in place)
    for i in range(12):  # two templates a person, of a picture and a video of one frame
        (tmp_path / "loose_crop" / f"{i}.jpg").write_bytes(jpeg(people[i // 4]))
        faces.append(f"{i}.jpg {100 + i // 2} {i}")
        points.append(f"{i}.jpg {landmarks} 0.{9 - i % 2}")
    pairs = [(a, b) for a in range(100, 106) for b in range(a + 1, 106)]
    lines = [f"{a} {b} {int((a - 100) // 2 == (b - 100) // 2)}" for a, b in pairs]
    for name, rows in (("face_tid_mid", faces), ("name_5pts_score", points), ("template_pair_label", lines)):
        (tmp_path / "meta" / f"ijbc_{name}.txt").write_text("\n".join(rows) + "\n")
    given = {"ijbc": str(tmp_path), "weights": str(checkpoint), "width": 24}
    for options in ({}, {"pixels": True}):
        trial = Trial(0, settings=settings_of(published_templates, **given))
        found = published_templates.function(trial, Arm("x", COMPARED, options))
        assert found == {"accepted": 1.0}, "one person is one picture here"


def test_ages_in_the_layout_of_clap(tmp_path: Path, checkpoint: Path) -> None:
    for part in ("train", "test"):
        names = write_faces(tmp_path, 5, f"{part}_{{}}.jpg")
        with (tmp_path / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["image", "mean", "std"], *([n, 20 + i, 3] for i, n in enumerate(names))])
    given = {"clap": str(tmp_path), "weights": str(checkpoint), "width": 24}
    for options in ({}, {"guess": True}):
        trial = Trial(0, settings=settings_of(published_ages, **given))
        found = published_ages.function(trial, Arm("x", SAID, options))
        assert 0 <= found["epsilon"] <= 1
    assert found["mae"] <= 2
    before = faces_published.files_listing(str(tmp_path))
    (tmp_path / "test_0.jpg").unlink()
    assert faces_published.files_listing(str(tmp_path)) != before
    assert faces_published.files_listing(str(checkpoint)).startswith("checkpoint.pt ")
    assert faces_published.files_listing("") == ""


def test_what_is_needed_is_said() -> None:
    def missing(id: str, **given: str) -> list[str]:
        return [need.name for need in paper.claim(id).needs if need.kind == "setting" and need.missing(given)]

    assert missing("expressions-on-rafdb") == ["rafdb", "weights"]
    assert missing("expressions-on-rafdb", rafdb="x", weights="y") == []
    assert missing("ages-on-clap", weights="y") == ["clap"]
    for id in ("lfw", "cfp-fp", "agedb-30", "calfw", "cplfw"):
        assert missing(f"identities-on-{id}") == ["pairs", "weights"]
    assert missing("identities-on-ijb-c", weights="y") == ["ijbc"]
    assert missing("attributes-on-celeba", weights="y") == ["celeba"]
    assert [need.kind for need in paper.claim("one-pass-is-much-faster-on-a-gpu").needs] == ["gpu"]


# --- a run, the figure, the benchmark ---


def test_the_figure_is_drawn_and_two_seeds_decide_nothing(tmp_path: Path) -> None:
    claims = [c.id for c in paper.claims if c.protocol is face_tasks]
    with open_store(tmp_path / "lab.sqlite") as store:
        verdicts = run([paper], store, Here(), tier="smoke", claims=claims)
        assert {verdict.status for verdict in verdicts} == {"inconclusive"}, [v.reason for v in verdicts]
        [drawn] = draw_all(collect(store, [paper]))["swinface"]
    assert not drawn.missing
    for words in ("better than guessing", "together, last level", "level, fine to coarse", "expression"):
        assert words in drawn.svg


@pytest.mark.slow
def test_contenders_of_the_benchmark_say_the_same() -> None:
    [case] = [case for case in find_cases("swinface") if case.name.startswith("all tasks, 1 face,")]
    wanted = case.contenders[case.method]()()
    for name in ("module after module", "transformers, module after module"):
        if name.startswith("transformers"):
            pytest.importorskip("transformers", reason="the peer")
        for task, value in case.contenders[name]()().items():
            torch.testing.assert_close(value, wanted[task], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["insightface", "timm"])
def test_a_peer_that_is_not_installed_is_an_import_error(name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    [case] = [case for case in find_cases("swinface") if case.name.startswith("all tasks, 1 face,")]
    [prepare] = [prepare for peer, prepare in case.contenders.items() if peer.startswith(name)]
    with pytest.raises(ImportError):
        prepare()


def test_the_usage_on_the_card_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    code = paper.usage.replace("SwinFace()", "SwinFace(embed_dim=12, num_heads=(1, 2, 4, 8), task_width=64)")
    torch.manual_seed(0)
    weights = SwinFace(embed_dim=12, num_heads=(1, 2, 4, 8), task_width=64).official_state_dict()
    said: list[Any] = []
    scope = {"checkpoint": weights, "faces": torch.zeros(2, 3, 112, 112), "print": said.append}
    with torch.no_grad():
        exec(code, scope)
    assert set(scope["found"]) == {"age", "recognition"}
    assert len(said[0]) == 11
    assert scope["model"].groups[-1] == TaskGroup("mask", {"mask": 2})
