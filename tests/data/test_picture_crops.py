"""Crops of scikit-image's pictures, and mini-ImageNet in both of its layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from paperworks.data.picture_crops import (
    listing_signature,
    picture_crops,
    read_mini_imagenet,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crops_are_standardised_balanced_and_seeded() -> None:
    pytest.importorskip("skimage", reason="its pictures")
    crops = picture_crops(30, 16, seeded())
    assert crops.images.shape == (30, 1, 16, 16)
    assert sorted(crops.labels.bincount(minlength=14).tolist()) == [2] * 12 + [3] * 2
    deviation, mean = torch.std_mean(crops.images, (1, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(deviation, torch.ones(30), atol=1e-4, rtol=0)
    again = picture_crops(30, 16, seeded())
    assert torch.equal(again.images, crops.images)
    assert torch.equal(again.labels, crops.labels)
    assert not torch.equal(picture_crops(30, 16, seeded(1)).images, crops.images)


def test_training_squares_come_from_the_left_and_test_squares_from_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    place = torch.arange(200) % 2
    striped = torch.where(torch.arange(200) < 120, place.float(), torch.nan).expand(200, 200).clone()
    striped[:, 130:] = place.float()[:, None]
    monkeypatch.setattr("paperworks.data.picture_crops.grey_picture", lambda name: striped)
    left, right = (picture_crops(28, 24, seeded(3), held_out=part).images for part in (False, True))
    assert torch.equal(left, left[:, :, :1].expand_as(left)), "stripes down the columns, nothing of the gap"
    assert torch.equal(right, right[..., :1].expand_as(right)), "stripes along the rows"


def test_bad_sizes_are_named() -> None:
    pytest.importorskip("skimage", reason="its pictures")
    with pytest.raises(ValueError, match="n: got 0"):
        picture_crops(0, 16, seeded())
    with pytest.raises(ValueError, match=r"size: got 200, wanted 1 to \d+ pixels, of"):
        picture_crops(14, 200, seeded(), held_out=True)


def picture(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), colour).save(path)


def folders(root: Path, parts: dict[str, tuple[str, ...]]) -> None:
    for part, classes in parts.items():
        for number, name in enumerate(classes):
            for i in range(5):
                picture(root / part / name / f"{name}_{i}.jpg", (40 * number, 20 * i, 90))


def test_the_few_shot_split_is_pooled_and_divided_by_class(tmp_path: Path) -> None:
    folders(tmp_path, {"train": ("n1", "n2"), "val": ("n3",), "test": ("n4",)})
    found = read_mini_imagenet(tmp_path, test_share=0.2)
    assert found.classes == ("n1", "n2", "n3", "n4")
    assert sorted(label for _, label in found.test) == [0, 1, 2, 3]
    assert len(found.train) == 16
    assert not {path for path, _ in found.train} & {path for path, _ in found.test}
    assert all(path.parent.name == found.classes[label] for path, label in found.train + found.test)
    assert read_mini_imagenet(tmp_path, 0.2) == found
    assert read_mini_imagenet(tmp_path, 0.2, seed=1) != found


def test_a_split_within_classes_is_kept(tmp_path: Path) -> None:
    folders(tmp_path, {"train": ("a", "b"), "test": ("a", "b")})
    found = read_mini_imagenet(tmp_path)
    assert {path.parent.parent.name for path, _ in found.test} == {"test"}
    assert len(found.train) == len(found.test) == 10


def test_tables_and_images(tmp_path: Path) -> None:
    for part, classes in (("train", ("n1", "n2")), ("test", ("n3",))):
        rows = ["filename,label"]
        for name in classes:
            for i in range(5):
                picture(tmp_path / "images" / f"{name}{i}.jpg", (10 * i, 0, 0))
                rows.append(f"{name}{i}.jpg,{name}")
        (tmp_path / f"{part}.csv").write_text("\n".join(rows))
    found = read_mini_imagenet(tmp_path)
    assert found.classes == ("n1", "n2", "n3")
    assert len(found.test) == 3
    assert len(found.train) == 12
    (tmp_path / "val.csv").write_text("filename,label\n../../etc/passwd,n9")
    with pytest.raises(ValueError, match=r"names '\.\./\.\./etc/passwd', wanted a picture in"):
        read_mini_imagenet(tmp_path)
    (tmp_path / "val.csv").write_text("file,class\na.jpg,n9")
    with pytest.raises(ValueError, match="has the columns file, class, wanted filename,label"):
        read_mini_imagenet(tmp_path)


def test_what_is_no_mini_imagenet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without pictures in either layout"):
        read_mini_imagenet(tmp_path)
    picture(tmp_path / "train" / "alone" / "x.png", (0, 0, 0))
    with pytest.raises(ValueError, match="one picture of the class 'alone'"):
        read_mini_imagenet(tmp_path)
    with pytest.raises(ValueError, match="test_share: got 1"):
        read_mini_imagenet(tmp_path, test_share=1)


def test_the_signature_changes_with_the_files(tmp_path: Path) -> None:
    folders(tmp_path, {"train": ("a",)})
    before = listing_signature(tmp_path)
    assert listing_signature(tmp_path) == before
    picture(tmp_path / "train" / "a" / "new.jpg", (0, 0, 0))
    assert listing_signature(tmp_path) != before
    with pytest.raises(ValueError, match="wanted a folder"):
        listing_signature(tmp_path / "nothing")
