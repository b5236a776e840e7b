"""Bones: phantoms, prepared pairs of X-rays, and CT volumes that are projected when read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paperworks.data.bones import (
    KINDS,
    TOTAL_SEGMENTATOR,
    XrayToShape,
    mirrored,
    read_total_segmentator,
    shifted,
    simulate_bones,
    to_ras,
)
from paperworks.data.radiographs import biplanar_pair, drr, to_radiograph
from paperworks.data.volumes import Volume, write_nifti


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_phantoms(kind: str) -> None:
    made = simulate_bones(2, (32, 32, 64), kind, generator())
    assert made.ct.shape == made.labels.shape == (2, 1, 32, 32, 64)
    assert made.ct.dtype == torch.float32
    assert made.spacing == (5.0, 5.0, 5.0)
    for ct, labels in zip(made.ct, made.labels, strict=True):
        assert torch.unique(labels).tolist() == list(range(len(KINDS[kind]) + 1))
        assert ct[labels > 0].min() > 200
        assert ct[labels == 0].max() < 200
        assert (ct < -900).any()
    again = simulate_bones(2, (32, 32, 64), kind, generator())
    assert torch.equal(made.ct, again.ct)
    assert not torch.equal(made.labels[0], made.labels[1])


def middle(labels: Tensor, label: int) -> Tensor:
    return (labels == label).nonzero().double().mean(0)


def test_phantoms_know_right_from_left_and_up_from_down() -> None:
    hip = simulate_bones(1, (32, 32, 64), "hip", generator(1)).labels[0, 0]
    right, left, femur_right = (
        middle(hip, KINDS["hip"].index(name) + 1) for name in ("hip right", "hip left", "femur right")
    )
    assert right[0] > left[0]
    assert femur_right[2] < right[2]
    spine = simulate_bones(1, (32, 32, 64), "spine", generator(1)).labels[0, 0]
    heights = [float(middle(spine, i + 1)[2]) for i in range(5)]
    assert heights == sorted(heights)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((1, 8), "size: got 8"),
        ((1, (32, 32)), "size: got"),
        ((0, 32), "n: got 0"),
        ((1, 32, "skull"), "kind: got 'skull'"),
    ],
)
def test_bad_phantoms(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        simulate_bones(*given)


def test_the_papers_54_labels() -> None:
    assert sorted(set(TOTAL_SEGMENTATOR.values())) == list(range(1, 55))
    assert TOTAL_SEGMENTATOR["vertebrae_C1"] == 1
    assert TOTAL_SEGMENTATOR["vertebrae_L6"] == 25
    assert TOTAL_SEGMENTATOR["rib_left_1"] == 26
    assert TOTAL_SEGMENTATOR["rib_right_12"] == 49
    assert TOTAL_SEGMENTATOR["sacrum"] == TOTAL_SEGMENTATOR["vertebrae_S1"] == 50


def test_turning_to_right_front_up() -> None:
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (5, 6, 7)
    straight = Volume(data, affine, (2.0, 3.0, 4.0))
    assert np.array_equal(to_ras(straight).data, data)
    # the same volume, stored with axes in another order and two of them the other way
    turned = np.transpose(data, (2, 0, 1))[::-1, :, ::-1]
    columns = np.zeros((4, 4))
    columns[3, 3] = 1
    columns[2, 0], columns[0, 1], columns[1, 2] = -4.0, 2.0, -3.0
    columns[:3, 3] = (5, 6 + 3 * 2, 7 + 4 * 3)
    back = to_ras(Volume(turned, columns, (4.0, 2.0, 3.0)))
    assert np.array_equal(back.data, data)
    assert back.spacing == (2.0, 3.0, 4.0)
    np.testing.assert_allclose(back.affine, affine)


def test_shifting_cuts_the_middle_and_fills_with_nothing() -> None:
    x = torch.arange(8)
    assert shifted(x, [0], [4]).tolist() == [2, 3, 4, 5]
    assert shifted(x, [2], [4]).tolist() == [4, 5, 6, 7]
    assert shifted(x, [4], [4]).tolist() == [6, 7, 0, 0]
    assert shifted(x, [-3], [4]).tolist() == [0, 0, 1, 2]
    assert shifted(x, [9], [4]).tolist() == [0, 0, 0, 0]
    assert shifted(x, [-9], [4]).tolist() == [0, 0, 0, 0]
    assert shifted(x, [0], [12]).tolist() == [0, 0, *range(8), 0, 0]
    assert shifted(torch.ones(3, 5, 6), (1, 0), (4, 4)).shape == (3, 4, 4)


def test_mirroring_is_a_half_turn_that_keeps_left_left() -> None:
    a, b, label = torch.rand(1, 4, 6), torch.rand(1, 4, 6), torch.randint(0, 3, (1, 4, 4, 6))
    turned = mirrored(a, b, label)
    assert torch.equal(turned[0], a.flip(1))
    assert torch.equal(turned[1], b.flip(1))
    assert torch.equal(turned[2][0, 0, 3], label[0, 3, 0])
    assert all(torch.equal(x, y) for x, y in zip(mirrored(*turned), (a, b, label), strict=True))


def write_prepared(folder: Path, cases: int, side: int = 32) -> None:
    """As the paper's code leaves them: images of both views at 20 angles each, labels, and a list."""
    entries = []
    for i in range(cases):
        made = simulate_bones(1, side, "hip", generator(i))
        turns = torch.arange(20) * 4.5
        images = [
            to_radiograph(
                drr(
                    made.ct.clamp(min=0),
                    made.spacing,
                    turns + view,
                    detector_shape=(side, side),
                    pixel_size=10.0,
                    step=20.0,
                )
            )
            for view in (0, 90)
        ]
        np.save(folder / f"s{i:04d}_image.npy", torch.stack(images)[:, :, 0].numpy())
        write_nifti(
            folder / f"s{i:04d}_label.nii.gz", made.labels[0, 0].numpy().astype(np.uint8), np.diag([10.0, 10, 10, 1])
        )
        entries.append({"img": f"s{i:04d}_image.npy", "seg": f"s{i:04d}_label.nii.gz"})
    (folder / "data_list.json").write_text(json.dumps({"training": entries[:-1], "test": entries[-1:]}))


def test_prepared_pairs(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="reads NIfTI")
    write_prepared(tmp_path, 2)
    data = XrayToShape(tmp_path, "training", (24, 24, 32))
    assert len(data) == 1
    assert len(XrayToShape(tmp_path / "data_list.json", "all", (24, 24, 32))) == 2
    item = data[0]
    assert item["a"].shape == item["b"].shape == (1, 24, 32)
    assert item["label"].shape == (1, 24, 24, 32)
    assert item["label"].dtype == torch.int64
    assert item["spacing"] == (10.0, 10.0, 10.0)
    images = np.load(tmp_path / "s0000_image.npy")
    assert np.array_equal(item["a"][0], images[0, 0, 4:-4])
    assert np.array_equal(item["b"][0], images[1, 0, 4:-4])
    several = XrayToShape(tmp_path, "training", (24, 24, 32), in_channels=4)[0]
    assert np.array_equal(several["b"], images[1, ::5, 4:-4])
    # the same at another size
    small = XrayToShape(tmp_path, "test", (16, 16, 16))[0]
    assert small["label"].shape == (1, 16, 16, 16)
    assert small["spacing"] == (20.0, 20.0, 20.0)


def test_augmentation_moves_images_and_labels_together(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="reads NIfTI")
    write_prepared(tmp_path, 2)
    plain = XrayToShape(tmp_path, "training", (24, 24, 32))[0]
    seen = set()
    for seed in range(12):
        item = XrayToShape(tmp_path, "training", (24, 24, 32), augment=True, generator=generator(seed))[0]
        again = XrayToShape(tmp_path, "training", (24, 24, 32), augment=True, generator=generator(seed))[0]
        assert torch.equal(item["a"], again["a"])
        # the least shift and turn of the labels that explains them is that of the images, but for their brightness
        full = XrayToShape(tmp_path, "training", (32, 32, 32))[0]
        for turned in (False, True):
            for dx in range(-4, 5):
                label = shifted(full["label"], (dx, 0, 0), (24, 24, 32))
                a = shifted(full["a"], (dx, 0), (24, 32))
                if turned:
                    a, _, label = mirrored(a, a, label)
                if torch.equal(label.sum((2, 3)), item["label"].sum((2, 3))):
                    match = torch.corrcoef(torch.stack([a.flatten(), item["a"].flatten()]))[0, 1]
                    seen.add((turned, dx))
                    assert match > 0.9
    assert {turned for turned, _ in seen} == {False, True}
    assert plain["a"].shape == (1, 24, 32)


def write_case(folder: Path, seed: int, affine: np.ndarray[Any, Any] | None = None) -> Any:
    made = simulate_bones(1, (32, 32, 64), "hip", generator(seed))
    (folder / "segmentations").mkdir(parents=True)
    given = np.diag([5.0, 5, 5, 1]) if affine is None else affine
    write_nifti(folder / "ct.nii.gz", made.ct[0, 0].numpy(), given)
    for name, label in (("hip_right", 1), ("hip_left", 2), ("femur_right", 3), ("femur_left", 4)):
        write_nifti(folder / "segmentations" / f"{name}.nii.gz", (made.labels[0, 0] == label).numpy(), given)
    write_nifti(folder / "segmentations" / "liver.nii.gz", torch.ones(32, 32, 64).numpy(), given)
    return made


def test_cases_of_total_segmentator_are_merged_and_projected(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="reads NIfTI")
    made = write_case(tmp_path / "s0000", 3)
    ct, labels = read_total_segmentator(tmp_path / "s0000")
    assert set(np.unique(labels)) == {0, 51, 52, 53, 54}
    assert ct.spacing == (5.0, 5.0, 5.0)
    item = XrayToShape(tmp_path, "all", (32, 32, 64), cache=tmp_path / "kept")[0]
    wanted = torch.tensor([0, 51, 52, 54, 53])[made.labels[0]]
    assert torch.equal(item["label"], wanted)
    a, b = biplanar_pair(made.ct, (5, 5, 5), detector_shape=(64, 64), pixel_size=5.0)
    torch.testing.assert_close(item["a"], a[0, :, 16:-16], rtol=0, atol=1e-5)
    torch.testing.assert_close(item["b"], b[0, :, 16:-16], rtol=0, atol=1e-5)
    [kept] = list((tmp_path / "kept").iterdir())
    again = XrayToShape(tmp_path, "all", (32, 32, 64), cache=tmp_path / "kept")[0]
    assert torch.equal(item["a"], again["a"])
    assert torch.equal(item["label"], again["label"])
    XrayToShape(tmp_path, "all", (32, 32, 64), in_channels=2, cache=tmp_path / "kept")[0]
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert kept.is_file()
    with pytest.raises(FileNotFoundError, match="none of 1 classes"):
        read_total_segmentator(tmp_path / "s0000", {"skull": 1})


def test_the_orientation_of_a_file_does_not_matter(tmp_path: Path) -> None:
    """Left-posterior-superior on disk: the same patient, so the same X-rays and labels."""
    pytest.importorskip("nibabel", reason="reads NIfTI")
    made = simulate_bones(1, (32, 32, 64), "hip", generator(5))
    straight, turned = np.diag([5.0, 5, 5, 1]), np.diag([-5.0, -5, 5, 1])
    for name, flip, affine in (("ras", (), straight), ("lps", (0, 1), turned)):
        (tmp_path / name).mkdir()
        for part, values in (("", made.ct), ("_seg", made.labels.to(torch.uint8))):
            write_nifti(tmp_path / name / f"x{part}.nii.gz", values[0, 0].flip(flip).numpy(), affine)
    one, two = (XrayToShape(tmp_path / name, "all", (32, 32, 64))[0] for name in ("ras", "lps"))
    assert torch.equal(one["label"], two["label"])
    torch.testing.assert_close(one["a"], two["a"])
    torch.testing.assert_close(one["b"], two["b"])


def test_splits(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="reads NIfTI")
    for i in range(6):
        folder = tmp_path / f"s{i:04d}"
        folder.mkdir()
        (folder / "ct.nii.gz").write_bytes(b"")
    sizes = [len(XrayToShape(tmp_path, split)) for split in ("training", "validation", "test", "all")]
    assert sizes == [5, 1, 1, 6]
    (tmp_path / "meta.csv").write_text("image_id;age;split\ns0000;1;train\ns0001;1;val\ns0002;1;test\ns0003;1;test\n")
    sizes = [len(XrayToShape(tmp_path, split)) for split in ("training", "validation", "test", "all")]
    assert sizes == [1, 1, 2, 6]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="reads NIfTI")
    with pytest.raises(FileNotFoundError, match="root: "):
        XrayToShape(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="split: got 'train'"):
        XrayToShape(tmp_path, "train")
    with pytest.raises(ValueError, match=r"of which .* has no case"):
        XrayToShape(tmp_path)
    (tmp_path / "x.nii.gz").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="has no x_seg"):
        XrayToShape(tmp_path)
    (tmp_path / "data_list.json").write_text(json.dumps({"training": [{"img": "../a.npy", "seg": "b.nii.gz"}]}))
    with pytest.raises(FileNotFoundError, match=r"a\.npy of data_list\.json is not below"):
        XrayToShape(tmp_path)
    np.save(tmp_path / "a.npy", np.zeros((3, 1, 4, 4), np.float32))
    write_nifti(tmp_path / "b.nii.gz", np.zeros((4, 4, 4), np.uint8))
    (tmp_path / "data_list.json").write_text(json.dumps({"training": [{"img": "a.npy", "seg": "b.nii.gz"}]}))
    with pytest.raises(ValueError, match=r"img: a\.npy has the shape"):
        XrayToShape(tmp_path, img_size=(4, 4, 4))[0]
