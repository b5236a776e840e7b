"""Cases in the layout of BraTS 2021, and simulated lesions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from paperworks.data.brain_tumours import CONTRASTS, FAR, BraTSVolumes, brats_regions, normalised, simulate_lesions
from paperworks.data.volumes import write_nifti

SIZE = (20, 24, 16)


def write_cases(root: Path, n: int, seg: bool = True, size: tuple[int, ...] = SIZE) -> None:
    """`n` cases in the true layout; a voxel's FLAIR value tells where it is."""
    generator = np.random.default_rng(0)
    for i in range(n):
        name = f"BraTS2021_{i:05d}"
        (root / name).mkdir(parents=True)
        for j, contrast in enumerate(("flair", "t1ce", "t1", "t2")):
            data = generator.integers(1, 1000, size).astype(np.int16) + 1000 * j
            data[:2] = 0
            write_nifti(root / name / f"{name}_{contrast}.nii.gz", data, np.diag([1.0, 1.0, 2.0, 1.0]))
        if seg:
            label = np.zeros(size, np.uint8)
            label[5:15, 5:15, 5:15], label[7:12, 7:12, 7:12], label[8:10, 8:10, 8:10] = 2, 1, 4
            write_nifti(root / name / f"{name}_seg.nii.gz", label)


def test_regions_contain_one_another() -> None:
    label = torch.tensor([[0, 1, 2, 4, 3]])
    tc, wt, et = brats_regions(label)[:, 0].int().tolist()
    assert (tc, wt, et) == ([0, 1, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1])
    assert brats_regions(torch.zeros(0, 2, 2, dtype=torch.long)).shape == (3, 0, 2, 2)
    with pytest.raises(ValueError, match="label: got values from 0 to 5"):
        brats_regions(torch.tensor([0, 5]))
    with pytest.raises(TypeError, match=r"label: got torch.float32"):
        brats_regions(torch.zeros(2))


def test_normalised_over_what_is_not_zero() -> None:
    image = torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0], [5.0, 5.0, 0.0]])
    assert torch.equal(normalised(image), torch.tensor([[0.0, -1.0, 1.0], [0, 0, 0], [0, 0, 0]]))


def test_a_case(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    write_cases(tmp_path, 2)
    cases = BraTSVolumes(tmp_path, "all", None, augment=False)
    item = cases[0]
    assert len(cases) == 2
    assert item["name"] == "BraTS2021_00000"
    assert item["spacing"] == (1.0, 1.0, 2.0)
    assert item["image"].shape == (4, *SIZE)
    assert item["image"].dtype == torch.float32
    assert item["label"].shape == (3, *SIZE)
    assert item["label"].dtype == torch.bool
    assert item["label"].flatten(1).sum(1).tolist() == [125, 1000, 8]
    inside = item["image"][:, 2:]
    assert (item["image"][:, :2] == 0).all()
    torch.testing.assert_close(inside.flatten(1).mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(inside.flatten(1).std(1, correction=0), torch.ones(4))


def test_channels_are_flair_t1ce_t1_t2(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    assert CONTRASTS == ("flair", "t1ce", "t1", "t2")
    folder = tmp_path / "a"
    folder.mkdir()
    for i, contrast in enumerate(CONTRASTS):
        data = np.zeros((4, 4, 4), np.float32)
        data[i, 0, 0], data[0, 1, 1] = 2, 1
        write_nifti(folder / f"a_{contrast}.nii", data)
    image = BraTSVolumes(tmp_path, "test", None, augment=False)[0]["image"]
    assert [int(channel[:, 0, 0].argmax()) for channel in image] == [0, 1, 2, 3]


def test_crops(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    write_cases(tmp_path, 1)
    whole = BraTSVolumes(tmp_path, "all", None, augment=False)[0]
    middle = BraTSVolumes(tmp_path, "all", (10, 8, 6), augment=False)[0]
    assert torch.equal(middle["image"], whole["image"][:, 5:15, 8:16, 5:11])
    assert torch.equal(middle["label"], whole["label"][:, 5:15, 8:16, 5:11])
    padded = BraTSVolumes(tmp_path, "all", (32, 32, 32), augment=False)[0]
    assert torch.equal(padded["image"][:, 6:26, 4:28, 8:24], whole["image"])
    assert padded["label"].sum() == whole["label"].sum()


def test_augmentation_is_drawn_from_the_generator_and_keeps_image_and_label_together(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    write_cases(tmp_path, 1)

    def drawn(seed: int) -> dict[str, torch.Tensor]:
        return BraTSVolumes(tmp_path, "all", (16, 16, 16), generator=torch.Generator().manual_seed(seed))[0]

    one, again = drawn(1), drawn(1)
    assert torch.equal(one["image"], again["image"])
    whole = BraTSVolumes(tmp_path, "all", None, augment=False)[0]
    seen = set()
    for seed in range(8):
        item = drawn(seed)
        # undo each channel's scale and shift by its values at ET, which no crop of 16 here can miss
        values = torch.stack([c[item["label"][2]] for c in item["image"]])
        wanted = torch.stack([c[whole["label"][2]] for c in whole["image"]])
        assert item["label"][2].sum() == 8
        for found, original in zip(values.sort(1).values, wanted.sort(1).values, strict=True):
            scale = (found[-1] - found[0]) / (original[-1] - original[0])
            shift = found[0] - scale * original[0]
            assert 0.9 <= scale <= 1.1
            assert -0.1001 <= shift <= 0.1001
            torch.testing.assert_close(found, scale * original + shift, rtol=1e-4, atol=1e-4)
        seen.add(tuple(item["label"][2].nonzero()[0].tolist()))
    assert len(seen) > 3


def test_splits(tmp_path: Path) -> None:
    write_cases(tmp_path, 11) if pytest.importorskip("nibabel") else None
    names = {}
    for fold in range(5):
        parts = [BraTSVolumes(tmp_path, split, None, fold=fold) for split in ("train", "val")]
        train, val = ({files[0].parent.name for files in part.cases} for part in parts)
        assert not train & val
        assert len(train | val) == 11
        names[fold] = val
    assert sum(map(len, names.values())) == 11


def test_folds_of_a_file(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    root = tmp_path / "TrainingData"
    write_cases(root, 3)

    def entry(i: int, fold: int) -> dict[str, object]:
        name = f"BraTS2021_{i:05d}"
        files = [f"TrainingData/{name}/{name}_{part}.nii.gz" for part in ("t2", "flair", "t1ce", "t1")]
        return {"fold": fold, "image": files, "label": f"TrainingData/{name}/{name}_seg.nii.gz"}

    listed = tmp_path / "folds.json"
    listed.write_text(json.dumps({"training": [entry(0, 0), entry(1, 0), entry(2, 3)]}))
    train = BraTSVolumes(root, "train", None, augment=False, folds=listed)
    assert [train[0]["name"], len(train)] == ["BraTS2021_00002", 1]
    wanted = BraTSVolumes(root, "all", None, augment=False)[2]
    assert torch.equal(train[0]["image"], wanted["image"])
    outside = {"fold": 0, "image": entry(0, 0)["image"], "label": "../../etc/passwd"}
    listed.write_text(json.dumps({"training": [outside]}))
    with pytest.raises(FileNotFoundError, match="is not below"):
        BraTSVolumes(root, "val", folds=listed)


def test_fewer_cases_than_folds_are_not_divided(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    write_cases(tmp_path, 4)
    for split in ("train", "val", "validation"):
        for fold in (0, 4):
            with pytest.raises(ValueError, match=r"root: got 4 cases in .*, wanted 5 or more.* in a file, folds"):
                BraTSVolumes(tmp_path, split, fold=fold)
    assert len(BraTSVolumes(tmp_path, "all")) == 4
    write_cases(tmp_path / "more", 5)
    assert [len(BraTSVolumes(tmp_path / "more", split)) for split in ("train", "val")] == [4, 1]


def test_cases_without_segmentation(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    write_cases(tmp_path, 1, seg=False)
    assert "label" not in BraTSVolumes(tmp_path, "test", (8, 8, 8))[0]
    with pytest.raises(FileNotFoundError, match="has no seg"):
        BraTSVolumes(tmp_path, "train")


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no folder"):
        BraTSVolumes(tmp_path / "none", "train")
    for options, message in (
        ({"split": "dev"}, "split: got 'dev'"),
        ({"split": "all"}, "which has none of 0 cases"),
        ({"split": "train", "crop": (8, 8)}, "crop: got"),
        ({"split": "train", "fold": 5}, "fold: got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            BraTSVolumes(tmp_path, **options)


@pytest.mark.parametrize("size", [(64, 64), (48, 56, 52)])
def test_lesions_are_nested_and_far_from_their_markers(size: tuple[int, ...]) -> None:
    found = simulate_lesions(4, size, torch.Generator().manual_seed(0))
    assert found.images.shape == (4, 4, *size)
    assert found.labels.shape == (4, 3, *size)
    tc, wt, et = found.labels.unbind(1)
    assert not (tc & ~wt).any()
    assert not (et & ~tc).any()
    assert wt.flatten(1).any(1).all()
    assert found.enhancing.tolist() == [False, True, False, True] == et.flatten(1).any(1).tolist()
    assert found.markers.shape == (4, 3, len(size))
    for label, markers in zip(wt, found.markers, strict=True):
        middle = label.nonzero().float().mean(0)
        assert (middle - markers).norm(dim=1).min() > FAR


def test_the_marker_tells_and_the_lesion_does_not() -> None:
    found = simulate_lesions(40, (64, 64), torch.Generator().manual_seed(0))
    places = found.markers[:, 1].round().long()
    value = torch.stack([image[1, a, b] for image, (a, b) in zip(found.images, places.tolist(), strict=True)])
    assert ((value > 0) == found.enhancing).all()
    wt = found.labels[:, 1]
    inside = torch.stack([image[1][mask].mean() for image, mask in zip(found.images, wt, strict=True)])
    assert abs(inside[found.enhancing].mean() - inside[~found.enhancing].mean()) < inside.std()
    places = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij"), -1).view(-1, 2)
    elsewhere = [(torch.cdist(places, markers) > 5).all(1).view(64, 64) for markers in found.markers]
    tissue = torch.stack(
        [image[1][away & (image[1] != 0)].mean() for image, away in zip(found.images, elsewhere, strict=True)]
    )
    assert abs(tissue[found.enhancing].mean() - tissue[~found.enhancing].mean()) < tissue.std()


def test_near_lesions_tell_themselves() -> None:
    found = simulate_lesions(40, (64, 64), torch.Generator().manual_seed(0), context="near")
    core = found.labels[:, 0]
    inside = torch.stack([image[1][mask].amax() for image, mask in zip(found.images, core, strict=True)])
    assert inside[found.enhancing].mean() > inside[~found.enhancing].mean() + 1


def test_simulation_is_seeded_and_checked() -> None:
    one, other = (simulate_lesions(2, (48, 48), torch.Generator().manual_seed(5)).images for _ in range(2))
    assert torch.equal(one, other)
    for call, message in (
        (lambda: simulate_lesions(1, (40, 64)), "size: got"),
        (lambda: simulate_lesions(0, (64, 64)), "n: got 0"),
        (lambda: simulate_lesions(1, (64, 64), context="none"), "context: got 'none'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
