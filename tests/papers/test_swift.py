"""SwiFT's card: its protocols on tiny simulated and on-disk data, its arms, its benchmark and its figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paperworks.lab.benchmark import find_cases
from paperworks.lab.nouns import Arm, Protocol, at_tier
from paperworks.lab.trial import Trial
from paperworks.papers.protocols import fmri_attribution, fmri_checks
from paperworks.papers.protocols.fmri import attribution, subject_classification, subject_regression
from paperworks.papers.protocols.fmri_arms import VolumeCNN, network
from paperworks.papers.protocols.fmri_data import data_signature, load_task, pair_of
from paperworks.papers.swift import paper

ARMS = "paperworks.papers.protocols.fmri_arms:"
TINY = {"train_subjects": 6, "validation_subjects": 3, "test_subjects": 5, "frames": 4, "stride": 4, "run_frames": 8}


def trial(protocol: Protocol, seed: int = 0, **settings: object) -> Trial:
    chosen = {s.name: at_tier(s.default, "smoke") for s in protocol.settings}
    return Trial(seed, "smoke", settings=chosen | TINY | settings)


def run(protocol: Protocol, arm: str, options: dict | None = None, seed: int = 0, **settings: object) -> dict:
    assert protocol.function is not None
    target = arm if ":" in arm else f"{ARMS}{arm}"
    return protocol.function(trial(protocol, seed, **settings), Arm(arm, target, options or {}))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Eight subjects as NIfTI with a table, two of them without one or the other."""
    pytest.importorskip("nibabel", reason="the runs are NIfTI files")
    from paperworks.data.volumes import write_nifti

    root = tmp_path_factory.mktemp("study")
    rows = ["Subject,Gender,Age"]
    for i in range(10):
        data = np.zeros((14, 12, 13, 8), np.float32)
        data[2:-2, 2:-2, 2:-2] = np.random.default_rng(i).normal(100 + 10 * (i % 2), 5, (10, 8, 9, 8))
        if i != 9:
            write_nifti(root / f"{100000 + i}.nii.gz", data, seconds=0.72)
        rows.append(f"{100000 + i},{'MF'[i % 2]},{20 + i}" if i != 8 else f"{100000 + i},,")
    (root / "table.csv").write_text("\n".join(rows))
    return {"data": f"fmri:{root}", "labels": str(root / "table.csv")}


def test_arms_of_a_seed_share_runs_and_start() -> None:
    one, other = (load_task(trial(subject_classification, 3)) for _ in range(2))
    assert torch.equal(one.runs.images, other.runs.images)
    names = [{*part.subjects} for part in (one.train, one.validation, one.test)]
    assert [len(n) for n in names] == [6, 3, 5]
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2], "no subject twice"
    assert not torch.equal(one.runs.images, load_task(trial(subject_classification, 4)).runs.images)


@pytest.mark.parametrize(
    ("arm", "options"),
    [
        ("swift", {}),
        ("swift", {"positions": "relative"}),
        ("swift", {"pretraining": True}),
        ("region_correlations", {}),
        ("volume_cnn", {}),
    ],
)
def test_every_arm_classifies_simulated_subjects_repeatably(arm: str, options: dict) -> None:
    settings = {"unlabelled": 4, "pretraining_steps": 1}
    found = run(subject_classification, arm, options, **settings)
    assert set(found) == set(subject_classification.metrics)
    assert all(0 <= value <= 1 for value in found.values())
    assert found == run(subject_classification, arm, options, **settings)


@pytest.mark.parametrize("arm", ["swift", "region_correlations", "volume_cnn"])
def test_a_users_study_is_read_split_and_predicted(study: dict, arm: str) -> None:
    sizes = {"space": 16, "epochs": 1, **study}
    assert 0 <= run(subject_classification, arm, seed=1, **sizes)["auroc"] <= 1
    found = run(subject_regression, arm, target="Age", **sizes)
    assert set(found) == {"pearson", "mae", "mse"}
    assert found["mae"] ** 2 <= found["mse"] * (1 + 1e-9)
    assert found["mae"] < 30, "in years"


def test_a_users_study_pre_trains_on_its_training_subjects(study: dict) -> None:
    chosen = trial(subject_classification, space=16, epochs=1, pretraining_steps=1, **study)
    task = load_task(chosen)
    assert {*task.unlabelled.subjects} == {*task.train.subjects}
    assert len({*task.train.subjects, *task.validation.subjects, *task.test.subjects}) == 8
    item = task.unlabelled[0]
    assert item["image"].shape == item["other"].shape == (1, 16, 16, 16, 4)
    arm = Arm("pre-trained", f"{ARMS}swift", {"pretraining": True})
    assert 0 <= subject_classification.function(chosen, arm)["auroc"] <= 1


def test_pairs_of_simulated_clips_share_no_frame() -> None:
    task = load_task(trial(subject_classification, run_frames=12, unlabelled=3))
    first, second = pair_of(task.unlabelled, [0, 4], torch.Generator().manual_seed(0), "cpu")
    subject, start = task.unlabelled.clips[4]
    whole = task.runs.images[subject]
    assert torch.equal(first[1], whole[..., start : start + 4])
    starts = [s for s in range(9) if torch.equal(second[1], whole[..., s : s + 4])]
    assert len(starts) == 1
    assert abs(starts[0] - start) >= 4
    with pytest.raises(ValueError, match="wanted room for two clips"):
        pair_of(load_task(trial(subject_classification, run_frames=7)).train, [0], torch.Generator(), "cpu")


def test_the_signature_follows_the_files(tmp_path: Path) -> None:
    assert data_signature("antiphase") == "antiphase"
    (tmp_path / "a.nii").write_bytes(b"1")
    before = data_signature(f"fmri:{tmp_path}")
    assert before == data_signature(f"fmri:{tmp_path}")
    (tmp_path / "a.nii").write_bytes(b"12")
    assert data_signature(f"fmri:{tmp_path}") != before


@pytest.mark.parametrize("settings", [{"data": "phase"}, {"data": "imagefolder:x"}])
def test_unknown_data_is_refused(settings: dict) -> None:
    check = subject_classification.setting("data").check
    with pytest.raises(ValueError, match=r"wanted antiphase, correlation, none or fmri:PATH"):
        check(settings["data"])


def test_attribution_is_compared_with_what_was_planted() -> None:
    module = "paperworks.papers.protocols.fmri_attribution"
    chosen = trial(attribution, maps=2, ig_steps=6)
    found = attribution.function(chosen, Arm("untrained", f"{module}:untrained"))
    assert set(found) == {"enrichment", "completeness_gap"}
    assert found["completeness_gap"] < 0.5
    assert {len(curve) for curve in chosen.curves.values()} == {256}
    region = torch.zeros(10, 10, 10, dtype=torch.bool)
    region[:2, :5, :5] = True
    mask = torch.ones_like(region)
    assert fmri_attribution.enrichment(region.float(), region, mask) == pytest.approx(20)
    assert fmri_attribution.enrichment(-region.float(), region, mask) == 0


def test_the_network_grows_with_the_grid() -> None:
    sizes = {}
    for edge, frames in ((16, 8), (32, 20), (96, 20)):
        task = load_task(trial(subject_classification))
        with torch.device("meta"):
            sizes[edge] = sum(
                p.numel() for p in network(type(task)(*[None] * 4, (edge, edge, edge, frames))).parameters()
            )
    assert sizes[96] == 4_314_925
    assert sizes[16] < sizes[32] < sizes[96]
    assert VolumeCNN()(torch.zeros(2, 1, 16, 16, 16, 3)).shape == (2, 1)


def test_the_closed_formula_by_hand_of_one_stage() -> None:
    attention, other = fmri_checks.closed_formula(20)
    tokens = 81_920
    first_stage = 2 * 2 * tokens * 256 * 36
    assert attention > first_stage
    assert attention + other == 11_407_196_160
    assert (
        fmri_checks.closed_formula(40, whole_brain=True)[0] == 4 * fmri_checks.closed_formula(20, whole_brain=True)[0]
    )


def test_every_row_of_the_claims_is_there() -> None:
    kinds = {claim.id: claim.kind for claim in paper.claims}
    assert sum(kind == "exact" for kind in kinds.values()) == 9
    assert sum(kind == "measured" for kind in kinds.values()) == 6
    assert {id for id, kind in kinds.items() if kind == "needs"} == {
        "sex-in-hcp", "age-in-hcp", "intelligence-in-hcp", "sex-in-abcd", "intelligence-in-abcd", "sex-in-ukb",
        "age-in-ukb", "intelligence-in-ukb", "pre-training-helps-in-hcp",
    }  # fmt: skip
    assert {id for finding in paper.findings for id in finding.shown_by} <= set(kinds)


def test_benchmark_contenders_that_should_agree_do(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = find_cases("swift")
    assert [case.name.split(",")[0] for case in cases] == ["forward", "forward and backward"] * 2
    build = cases[0].contenders["published computation"].args[0]
    module = build.__globals__
    monkeypatch.setitem(module, "EDGE", 48)
    x = module["clip"](4)
    with torch.no_grad():
        wanted = module["published"](4).eval()(x)
        torch.testing.assert_close(module["swift"](4).eval()(x), wanted, rtol=1e-4, atol=1e-5)


def test_the_figure_draws() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    from paperworks.papers.swift import draw

    class Results:
        def curves(self, claim: str, arm: str, name: str) -> list:
            paper.claim(claim)
            return [(0, list(np.random.default_rng(0).random(256)))]

        def metric(self, claim: str, arm: str, metric: str) -> dict:
            names = {a.name for c in paper.claim(claim).criteria for a in (c.method, c.baseline) if a}
            assert arm in names
            return {0: 0.5, 1: 0.9}

    figure = Figure((8, 3))
    draw(figure, Results())
    assert len(figure.axes) == 3
