"""PASCAL VOC as its archive lays it out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from paperworks.data.voc import VOC_CLASSES, VOCClassification, voc_folder

NAMES = ("2007_000032", "2007_000039", "2008_000008", "2008_000015")
OBJECTS = (("aeroplane", "person"), ("tvmonitor",), ("horse", "person", "person"), ("bottle",))


def write_voc(root: Path, size: tuple[int, int] = (40, 56), augmented: bool = True) -> Path:
    folder = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    g = np.random.default_rng(0)
    for i, (name, objects) in enumerate(zip(NAMES, OBJECTS, strict=True)):
        Image.fromarray(g.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
        found = "".join(
            f"<object><name>{one}</name><difficult>{i % 2}</difficult><part><name>head</name></part></object>"
            for one in objects
        )
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{found}</annotation>")
        mask = np.zeros(size, dtype=np.uint8)
        for j, one in enumerate(dict.fromkeys(objects)):
            mask[2 + 12 * j : 12 + 12 * j, 3:20] = VOC_CLASSES.index(one) + 1
        mask[:, 30] = 255
        picture = Image.fromarray(mask).convert("P")
        picture.putdata(mask.flatten().tolist())
        for kind in ("SegmentationClass", "SegmentationClassAug")[: 2 if augmented else 1]:
            picture.save(folder / kind / f"{name}.png")
    lists = folder / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("\n".join(NAMES[:2]) + "\n")
    (lists / "val.txt").write_text("\n".join(NAMES[2:]) + "\n")
    rows = (f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in NAMES)
    (lists / "train_aug.txt").write_text("\n".join(rows))
    return folder


def test_every_way_to_name_the_folder(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    assert voc_folder(tmp_path) == voc_folder(folder) == voc_folder(folder.parent) == folder
    with pytest.raises(ValueError, match=r"^root"):
        voc_folder(tmp_path / "elsewhere")


@pytest.mark.parametrize("tags", ["annotations", "masks"])
def test_images_tags_and_masks(tmp_path: Path, tags: str) -> None:
    data = VOCClassification(write_voc(tmp_path), "val", tags=tags)
    assert len(data) == 2
    image, labels, mask = data[0]
    assert image.shape == (3, 40, 56)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
    assert {VOC_CLASSES[i] for i in labels.nonzero().flatten()} == {"horse", "person"}
    assert set(mask.unique().tolist()) == {0, 13, 15, 255}
    assert torch.equal(data.labels_of(0), labels)


def test_the_augmented_list_names_files(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    for split in ("train_aug", "trainaug"):
        data = VOCClassification(folder, split)
        assert len(data) == 4
        assert data.masks.name == "SegmentationClassAug"


def test_an_image_without_a_mask_counts_nowhere(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    (folder / "SegmentationClass" / f"{NAMES[0]}.png").unlink()
    assert bool((VOCClassification(folder)[0].mask == 255).all())
    with pytest.raises(ValueError, match=r"^tags"):
        VOCClassification(folder, tags="masks").labels_of(0)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    with pytest.raises(ValueError, match=r"^split.*train, train_aug, val"):
        VOCClassification(folder, "test")
    with pytest.raises(ValueError, match=r"^split"):
        VOCClassification(folder, "../Segmentation/train")
    with pytest.raises(ValueError, match=r"^tags"):
        VOCClassification(folder, tags="boxes")
    (folder / "Annotations" / f"{NAMES[0]}.xml").write_text(
        "<annotation><object><name>unicorn</name></object></annotation>"
    )
    with pytest.raises(ValueError, match="unicorn"):
        VOCClassification(folder)[0]
    (folder / "Annotations" / f"{NAMES[0]}.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
    with pytest.raises(ValueError, match="document type"):
        VOCClassification(folder)[0]
    (folder / "Annotations" / f"{NAMES[0]}.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match="no XML"):
        VOCClassification(folder)[0]
    (folder / "JPEGImages" / f"{NAMES[1]}.jpg").unlink()
    with pytest.raises(ValueError, match="found nothing"):
        VOCClassification(folder)[1]
