"""The card of Swin-X2S: facts, exact claims that can be lost, needs, the protocol on both kinds of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paperworks.data.bones import simulate_bones
from paperworks.data.volumes import write_nifti
from paperworks.lab.benchmark import find_cases
from paperworks.lab.nouns import Arm, at_tier, resolve
from paperworks.lab.registry import find
from paperworks.lab.trial import Trial
from paperworks.measure.parameters import count_parameters
from paperworks.papers.protocols.bones import bones, check_data
from paperworks.papers.protocols.bones_networks import one_view, repeated_views
from paperworks.papers.protocols.bones_training import area_under_curve, pictures, score, seen, train_and_score
from paperworks.swin.swin_x2s import CrossViewAttention, SwinX2S, swin_x2s

paper = find("swin-x2s")
X2S = Arm("x2s", "paperworks.swin.swin_x2s:SwinX2S")
ONE = Arm("one", "paperworks.papers.protocols.bones_networks:one_view")
REPEATED = Arm("repeated", "paperworks.papers.protocols.bones_networks:repeated_views")
# run in the smoke test of all papers
SLOW = {"shared-weights", "expansion-repeats", "exchange-is-symmetric", "four-sizes"}
EXACT = [claim for claim in paper.claims if claim.kind == "exact" and claim.id not in SLOW]


def unmet(id: str) -> list[str]:
    found = dict(resolve(paper.claim(id).target)(Trial()))
    return [name for name, bound in paper.claim(id).bounds.items() if not bound.met(found[name])]


def settings(**given: Any) -> dict[str, Any]:
    return {s.name: at_tier(s.default, "smoke") for s in bones.settings} | given


def test_facts() -> None:
    assert paper.arxiv == "2501.05961"


def test_the_usage_on_the_card_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(size: str, **options: Any) -> SwinX2S:
        return swin_x2s(size, **options, img_size=(32, 32, 64), feature_size=4, depths=(1, 1, 1, 1), num_heads=(1,) * 4)  # type: ignore[arg-type]

    monkeypatch.setattr("paperworks.swin.swin_x2s.swin_x2s", small)
    made = simulate_bones(1, (32, 32, 64), "hip", torch.Generator().manual_seed(0))
    scope: dict[str, Any] = {"ct": made.ct, "labels": made.labels}
    exec(paper.usage.replace("(128, 160)", "(32, 64)"), scope)
    assert scope["bones"].shape == (1, 32, 32, 64)
    assert torch.isfinite(scope["loss"])


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_exact_claims(claim: Any) -> None:
    assert unmet(claim.id) == []


def test_an_exchange_that_keeps_some_of_its_own_view_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = CrossViewAttention.forward
    monkeypatch.setattr(CrossViewAttention, "forward", lambda self, a, b: plain(self, a, b + 0.1 * a))
    assert unmet("nothing-of-its-own") == ["its own view, of a uniform other"]


def test_a_projector_of_parallel_rays_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    from paperworks.data.radiographs import drr
    from paperworks.papers.protocols import bones_checks

    monkeypatch.setattr(
        bones_checks, "drr", lambda *a, **o: drr(*a, **o, source_to_iso=1e7, source_to_detector=1.000001e7)
    )
    assert "magnification" in unmet("projector")


def test_the_networks_compared_have_equal_size() -> None:
    options: dict[str, Any] = {
        "img_size": (32, 32, 64), "in_channels": 1, "out_channels": 5, "feature_size": 8, "depths": (2, 2, 2, 2),
        "num_heads": (1, 2, 4, 8), "drop_path_rate": 0.0,
    }  # fmt: skip
    with torch.device("meta"):
        ours, repeated, one = SwinX2S(**options), repeated_views(**options), one_view(**options)
        view = torch.zeros(2, 1, 32, 64)
        assert repeated(view, view)[0].shape == ours(view, view)[0].shape == one(view, view)[1].shape
    assert 0.9 < count_parameters(repeated) / count_parameters(ours) < 1.1
    assert not any("attn" in name for name, _ in repeated.named_parameters())


def test_one_view_is_blind_to_the_other_and_repeated_views_see_both() -> None:
    options: dict[str, Any] = {
        "img_size": (32, 32, 64), "out_channels": 2, "feature_size": 4, "depths": (1, 1, 1, 1), "num_heads": (1,) * 4
    }  # fmt: skip
    one, both = one_view(**options).eval(), repeated_views(**options).eval()
    a, b, c = torch.randn(3, 1, 1, 32, 64)
    with torch.no_grad():
        assert torch.equal(one(a, b)[0], one(a, c)[0])
        assert not torch.equal(both(a, b)[0], both(a, c)[0])
        assert not torch.equal(both(a, b)[0], both(c, b)[0])


def test_a_trial_is_repeatable_and_keeps_its_pictures() -> None:
    first, again = (Trial(3, "smoke", settings=settings()) for _ in range(2))
    one, other = train_and_score(first, X2S), train_and_score(again, X2S)
    assert one == other
    assert one.keys() == bones.metrics.keys()
    assert first.curves == again.curves
    test = pictures(first)["test label"][0, 0]
    assert first.curves["a: truth"] == seen(test, 1).flatten().tolist()
    assert first.curves["width"] == [64.0]


@pytest.mark.parametrize("arm", [ONE, REPEATED], ids=lambda arm: arm.name)
def test_other_arms_run_and_do_not_disagree_with_themselves(arm: Arm) -> None:
    trial = Trial(0, "smoke", settings=settings(steps=1, test_size=1, labels="each"))
    found = train_and_score(trial, arm)
    assert found["disagreement_auc"] == 0.5
    assert max(trial.curves["a: disagreement"]) == 0


def test_training_lowers_the_loss() -> None:
    trial = Trial(0, "smoke", settings=settings(steps=10, test_size=1))
    train_and_score(trial, ONE)
    losses = trial.curves["loss"]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1


def test_scores_of_a_perfect_and_of_an_empty_result() -> None:
    label = simulate_bones(1, (32, 32, 64), "hip", torch.Generator().manual_seed(1)).labels[0, 0]
    logits = 20 * torch.nn.functional.one_hot(label, 5).movedim(-1, 0)[None].float()
    found, _ = score((logits, logits), label, (5.0, 5.0, 5.0), 5)
    assert found["dice"] == found["bone_dice"] == found["identified"] == found["shadow"] == 1
    assert found["off"] == found["hd95"] == 0
    nothing = torch.zeros_like(logits)
    nothing[:, 0] = 20
    found, _ = score((nothing, nothing), label, (5.0, 5.0, 5.0), 5)
    assert found["dice"] == found["identified"] == found["shadow"] == 0
    assert found["hd95"] == float("inf")


def test_area_under_the_curve() -> None:
    values, wrong = torch.tensor([0.1, 0.4, 0.35, 0.8, 0.4]), torch.tensor([False, False, True, True, True])
    # of six pairs of a wrong and a right one: 0.35 > 0.1, 0.8 > both, 0.4 > 0.1, and a tie
    assert area_under_curve(values, wrong) == pytest.approx(4.5 / 6)
    assert area_under_curve(torch.zeros(5), wrong) == 0.5
    assert area_under_curve(values, wrong | True) == 0.5


def test_the_first_label_met() -> None:
    label = torch.tensor([[[0, 2], [3, 0]], [[1, 5], [0, 0]]])
    assert seen(label, 0).tolist() == [[1, 2], [3, 0]]
    assert seen(label, 1).tolist() == [[3, 2], [1, 5]]


def write_case(folder: Path, seed: int) -> None:
    made = simulate_bones(1, (32, 32, 64), "hip", torch.Generator().manual_seed(seed))
    for part, values in (("", made.ct), ("_seg", made.labels.to(torch.uint8))):
        write_nifti(folder / f"s{seed:04d}{part}.nii.gz", values[0, 0].numpy(), np.diag([5.0, 5, 5, 1]))


def test_the_protocol_on_ct_volumes(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="reads NIfTI")
    (tmp_path / "cases").mkdir()
    for seed in range(5):
        write_case(tmp_path / "cases", seed)
    given = settings(data=f"xray:{tmp_path / 'cases'}", cache=str(tmp_path / "kept"), steps=2, classes=5)
    trial = Trial(0, "smoke", settings=given)
    found = train_and_score(trial, ONE)
    assert found.keys() == bones.metrics.keys()
    assert all(0 <= found[name] <= 1 for name in ("dice", "bone_dice", "identified", "shadow"))
    assert 1 <= len(list((tmp_path / "kept").iterdir())) <= 5
    assert max(trial.curves["a: truth"]) == 4


def test_what_is_needed_is_said_and_met_by_what_the_user_gives(tmp_path: Path) -> None:
    def missing(id: str, **given: str) -> list[str]:
        return [need.name for need in paper.claim(id).needs if need.kind == "setting" and need.missing(given)]

    assert missing("nine-data-sets") == ["data"]
    assert missing("nine-data-sets", data="xray:x") == []
    check_data("simulated")
    check_data(f"xray:{tmp_path}")
    for wrong in ("xray:", "xray:/no/such/folder", "nifti:x"):
        with pytest.raises(ValueError, match="data: got"):
            check_data(wrong)


def test_benchmark_contenders_give_the_same_x_ray() -> None:
    [case] = [case for case in find_cases("swin-x2s") if case.name == "X-ray and gradient, 64^3 -> 64 x 64"]
    ours, reference = (case.contenders[name]()() for name in ("drr", "grid_sample"))
    assert isinstance(ours, tuple)
    assert isinstance(reference, tuple)
    torch.testing.assert_close(ours[0], reference[0], rtol=1e-3, atol=1e-3 * float(reference[0].abs().max()))
