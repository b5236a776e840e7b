"""PASCAL VOC 2012 as images with tags and masks, from the folders of its archive.

    VOC2012/JPEGImages/NAME.jpg  Annotations/NAME.xml  SegmentationClass/NAME.png  ImageSets/Segmentation/SPLIT.txt

The augmented training set (10,582 images) has masks in `SegmentationClassAug` and a list `train_aug.txt` (or
`trainaug.txt`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from paperworks.data.sources import read_file

__all__ = ["VOC_CLASSES", "VOCClassification", "VOCItem", "voc_folder"]

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Classes 1 to 20 of the masks; 0 is the background, 255 the border that does not count."""
BORDER = 255
MAX_XML = 2**20


class VOCItem(NamedTuple):
    """One image: float32 (3, H, W) in [0, 1], tags float32 (20,), mask int64 (H, W)."""

    image: Tensor
    labels: Tensor
    mask: Tensor


def voc_folder(root: str | Path) -> Path:
    """The folder that holds JPEGImages: `root`, or VOC2012 or VOCdevkit/VOC2012 in it. Raises ValueError for none."""
    root = Path(root).expanduser()
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "JPEGImages").is_dir():
            return folder
    raise ValueError(f"root: got {root}, without JPEGImages, wanted VOC2012, VOCdevkit, or the folder that holds it")


class VOCClassification(Dataset[VOCItem]):
    """Images of a split with their tags, and masks to measure seeds by.

    Args:
        root: VOC2012, VOCdevkit, or the folder that holds it.
        split: a list in ImageSets/Segmentation ("train", "val", "trainval", "train_aug").
        tags: where tags come from: ``"annotations"``, the names of the objects in the XML, difficult ones included;
            ``"masks"``, the classes in the mask.

    An image without a mask has one of 255. Raises ValueError for a folder, list or name that is not there, and, when an
    item is read, for files that do not fit.
    """

    def __init__(self, root: str | Path, split: str = "train", *, tags: str = "annotations") -> None:
        if tags not in ("annotations", "masks"):
            raise ValueError(f"tags: got {tags!r}, wanted 'annotations' or 'masks'")
        self.folder, self.tags = voc_folder(root), tags
        lists = self.folder / "ImageSets" / "Segmentation"
        spellings = dict.fromkeys(
            (split, split.replace("train_aug", "trainaug"), split.replace("trainaug", "train_aug"))
        )
        found = [lists / f"{name}.txt" for name in spellings if (lists / f"{name}.txt").is_file()]
        if not found or not re.fullmatch(r"\w+", split):
            known = ", ".join(sorted(path.stem for path in lists.glob("*.txt"))) or "none"
            raise ValueError(f"split: got {split!r}, wanted a list in {lists}: {known}")
        # lists of the augmented set name files: "/JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png"
        rows = [line.split() for line in read_file(found[0]).decode().splitlines() if line.strip()]
        self.names = [Path(row[0]).stem for row in rows]
        if not self.names or any(not re.fullmatch(r"[\w-]+", name) for name in self.names):
            raise ValueError(f"split: {found[0]} is empty or names no images, wanted one name a line")
        augmented = self.folder / "SegmentationClassAug"
        self.masks = augmented if augmented.is_dir() and "aug" in split else self.folder / "SegmentationClass"

    def __len__(self) -> int:
        return len(self.names)

    def labels_of(self, index: int) -> Tensor:
        """Tags of an image, float32 (20,), without reading the image."""
        if self.tags == "masks":
            return self._tags_of_mask(self._mask(index, None))
        path = self.folder / "Annotations" / f"{self.names[index]}.xml"
        text = read_file(path, limit=MAX_XML)
        if b"<!ENTITY" in text or b"<!DOCTYPE" in text:
            raise ValueError(f"{path}: found a document type, wanted an annotation")
        labels = torch.zeros(len(VOC_CLASSES))
        try:
            names = [element.findtext("name", "").strip() for element in ElementTree.fromstring(text).iter("object")]
        except ElementTree.ParseError as error:
            raise ValueError(f"{path}: found no XML ({error}), wanted an annotation") from error
        for name in names:
            if name not in VOC_CLASSES:
                raise ValueError(f"{path}: found the object {name!r}, wanted one of {', '.join(VOC_CLASSES)}")
            labels[VOC_CLASSES.index(name)] = 1
        return labels

    def _mask(self, index: int, size: tuple[int, int] | None) -> Tensor:
        path = self.masks / f"{self.names[index]}.png"
        if not path.is_file():
            if size is None:
                raise ValueError(f"tags: no mask {path}, wanted one for tags='masks'")
            return torch.full(size, BORDER)
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.mode not in ("P", "L"):
                raise ValueError(f"{path}: found the mode {picture.mode}, wanted a palette or grey numbers of classes")
            mask = torch.from_numpy(np.array(picture)).long()
        if bool(((mask > len(VOC_CLASSES)) & (mask != BORDER)).any()):
            raise ValueError(f"{path}: found classes up to {int(mask[mask != BORDER].max())}, wanted at most 20")
        return mask

    @staticmethod
    def _tags_of_mask(mask: Tensor) -> Tensor:
        return torch.bincount(mask[mask != BORDER].flatten(), minlength=len(VOC_CLASSES) + 1)[1:].gt(0).float()

    def __getitem__(self, index: int) -> VOCItem:
        path = self.folder / "JPEGImages" / f"{self.names[index]}.jpg"
        if not path.is_file():
            raise ValueError(f"{path}: found nothing, wanted the image that the list names")
        with Image.open(path, formats=("JPEG",)) as picture:
            image = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float().div_(255)
        mask = self._mask(index, (image.shape[1], image.shape[2]))
        if mask.shape != image.shape[1:]:
            raise ValueError(f"{self.names[index]}: got a mask of {tuple(mask.shape)}, wanted {tuple(image.shape[1:])}")
        return VOCItem(image, self._tags_of_mask(mask) if self.tags == "masks" else self.labels_of(index), mask)
