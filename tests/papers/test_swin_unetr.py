"""The card of Swin UNETR: facts, exact claims that can be lost, needs, the protocol on both kinds of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paperworks.data.brain_tumours import simulate_lesions
from paperworks.data.volumes import write_nifti
from paperworks.lab.benchmark import find_cases
from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, at_tier, resolve
from paperworks.lab.registry import find
from paperworks.lab.trial import Trial
from paperworks.measure.parameters import count_parameters
from paperworks.papers.protocols import lesions_checks
from paperworks.papers.protocols.lesions import check_data, lesions
from paperworks.papers.protocols.lesions_networks import residual_unet, segresnet, voxelwise
from paperworks.papers.protocols.lesions_training import train_and_score
from paperworks.swin.swin_unetr import SwinUNETR

paper = find("swin-unetr")
SWIN = Arm("swin", "paperworks.swin.swin_unetr:SwinUNETR")
SLOW = {"parity-with-monai", "parity-at-full-width"}  # run in the smoke test of all papers
EXACT = [claim for claim in paper.claims if claim.kind == "exact" and claim.id not in SLOW]


def unmet(id: str) -> list[str]:
    found = dict(resolve(paper.claim(id).target)(Trial()))
    return [name for name, bound in paper.claim(id).bounds.items() if not bound.met(found[name])]


def settings(**given: Any) -> dict[str, Any]:
    return {s.name: at_tier(s.default, "smoke") for s in lesions.settings} | given


def test_facts() -> None:
    assert paper.arxiv == "2201.01266"


def test_the_usage_on_the_card_runs() -> None:
    small = SwinUNETR(4, 3, feature_size=12)
    code = paper.usage.replace("48", "12").replace("128", "64")
    scope = {"checkpoint": small.monai_state_dict(), "image": torch.zeros(4, 40, 40, 40)}
    exec(code, scope)
    assert scope["logits"].shape == (3, 40, 40, 40)


def test_every_measured_criterion_has_enough_seeds_and_something_to_lose_to() -> None:
    for claim in paper.claims:
        for criterion in claim.criteria:
            assert at_tier(criterion.seeds, "desk") >= MINIMUM_SEEDS
            assert criterion.margin >= 0 or criterion.control is not None, "a baseline would keep a negative margin"


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.id)
def test_exact_claims(claim: Any) -> None:
    for need in claim.needs:
        pytest.importorskip(need.name, reason="the reference")
    wrong = {"multiply-adds-at-full-size": ["at 128^3", "nearest of nine counts"]}
    assert unmet(claim.id) == wrong.get(claim.id, []), "the printed GFLOPs are met by no count"


def test_another_bias_of_clamped_windows_loses_parity() -> None:
    pytest.importorskip("monai", reason="the reference")

    def build(*args: Any, **options: Any) -> SwinUNETR:
        return SwinUNETR(*args, **options, clamped_bias="exact")

    flat = [case for case in lesions_checks.SMALL_CASES if case[0] == "2-D"]
    found = lesions_checks.parity(Trial(), build, flat)
    assert found["2-D: logits"] > 1e-3
    assert found["2-D: there and back"] == 0


@pytest.mark.parametrize("axes", [2, 3])
def test_the_networks_compared_have_equal_size(axes: int) -> None:
    with torch.device("meta"):
        swin = SwinUNETR(4, 3, 12, spatial_dims=axes)
        unet = residual_unet(4, 3, 12, axes)
        shape = (1, 4, *(64, 64, 32)[:axes])
        assert unet(torch.zeros(shape)).shape == voxelwise(4, 3, 12, axes)(torch.zeros(shape)).shape
    assert 0.9 < count_parameters(unet) / count_parameters(swin) < 1.1
    assert not any("attn" in name for name, _ in unet.named_parameters())


def test_segresnet_is_monais() -> None:
    pytest.importorskip("monai", reason="the peer")
    assert segresnet(4, 3, 12, 2)(torch.zeros(1, 4, 64, 64)).shape == (1, 3, 64, 64)


def test_a_trial_is_repeatable_and_keeps_its_pictures() -> None:
    first, again = (Trial(3, "smoke", settings=settings(steps=2, test_size=4)) for _ in range(2))
    one, other = train_and_score(first, SWIN), train_and_score(again, SWIN)
    assert one == other
    assert one.keys() == lesions.metrics.keys()
    assert first.curves == again.curves
    test = simulate_lesions(4, (64, 64), first.generator("test images"))
    assert first.curves["enhancing: truth"] == test.labels[1].sum(0).flatten().tolist()
    assert first.curves["enhancing: width"] == [64.0]


def test_training_lowers_the_loss() -> None:
    trial = Trial(0, "smoke", settings=settings(steps=12))
    train_and_score(trial, Arm("unet", "paperworks.papers.protocols.lesions_networks:residual_unet"))
    losses = trial.curves["loss"]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.02


def write_case(root: Path, i: int) -> None:
    found = simulate_lesions(1, (48, 48, 48), torch.Generator().manual_seed(i))
    name = f"BraTS2021_{i:05d}"
    (root / name).mkdir(parents=True)
    for contrast, image in zip(("flair", "t1ce", "t1", "t2"), found.images[0], strict=True):
        write_nifti(root / name / f"{name}_{contrast}.nii.gz", image[:32, :40, :24].numpy())
    tc, wt, et = found.labels[0, :, :32, :40, :24].int()
    write_nifti(root / name / f"{name}_seg.nii.gz", (2 * wt - tc + 3 * et).to(torch.uint8).numpy())


def test_the_protocol_on_cases_in_the_true_layout(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="reads NIfTI")
    for i in range(5):
        write_case(tmp_path / "cases", i)
    write_case(tmp_path / "held", 9)
    given = settings(data=f"brats:{tmp_path / 'cases'}", size=64, batch_size=1, steps=1, overlap=0.1)
    arm = Arm("v", "paperworks.papers.protocols.lesions_networks:voxelwise")
    for test in ("", str(tmp_path / "held")):
        trial = Trial(0, "smoke", settings=given | {"test": test})
        found = train_and_score(trial, arm)
        assert all(0 <= found[name] <= 1 for name in ("dice", "dice_tc", "dice_wt", "dice_et"))
        assert trial.curves["enhancing: width"] == [40.0]


def test_what_is_needed_is_said_and_met_by_what_the_user_gives(tmp_path: Path) -> None:
    def missing(id: str, **given: str) -> list[str]:
        return [need.name for need in paper.claim(id).needs if need.kind == "setting" and need.missing(given)]

    assert missing("cross-validated-dice") == ["data"]
    assert missing("cross-validated-dice", data="brats:x") == []
    assert missing("dice-on-the-validation-set", data="brats:x") == ["test"]
    check_data("simulated")
    check_data(f"brats:{tmp_path}")
    for wrong in ("brats:", "brats:/no/such/folder", "nifti:x"):
        with pytest.raises(ValueError, match="data: got"):
            check_data(wrong)


def test_benchmark_contenders_give_the_same_logits() -> None:
    pytest.importorskip("monai", reason="the peer")
    [case] = [case for case in find_cases("swin-unetr") if case.name.startswith("forward, 2-D")]
    logits = [prepare()() for prepare in case.contenders.values()]
    assert isinstance(logits[0], torch.Tensor)
    for other in logits[1:]:
        torch.testing.assert_close(logits[0], other, rtol=1e-3, atol=1e-3)
