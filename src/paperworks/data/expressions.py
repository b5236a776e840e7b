"""Faces with expressions: AffectNet, FER-2013, CK+, RAF-DB and class folders under one list of labels.

The order of labels is AffectNet's: neutral, happy, sad, surprise, fear, disgust, anger, contempt. Pictures are read
when they are asked for; listing a data set reads file names, tables and the small annotation files alone.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["EXPRESSIONS", "LAYOUTS", "FERDataset", "HybridFER"]

EXPRESSIONS = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
LAYOUTS = ("affectnet", "fer2013", "ckplus", "rafdb", "folder")
SPLITS = ("train", "val", "test")
FER2013_ORDER = ("anger", "disgust", "fear", "happy", "sad", "surprise", "neutral")
FER2013_USAGE = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}
CKPLUS_ORDER = ("neutral", "anger", "contempt", "disgust", "fear", "happy", "sad", "surprise")
RAFDB_ORDER = ("surprise", "fear", "disgust", "happy", "sad", "anger", "neutral")  # from 1
SYNONYMS = {
    "happiness": "happy", "sadness": "sad", "surprised": "surprise", "fearful": "fear", "afraid": "fear",
    "disgusted": "disgust", "angry": "anger", "contemptuous": "contempt", "joy": "happy",
}  # fmt: skip
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
MAX_PIXELS = 2**26
AFFECTNET_COLUMNS = (
    "subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks", "expression",
    "valence", "arousal",
)  # fmt: skip


@dataclass(frozen=True)
class Face:
    """One item: a file, with the face's box (left, top, right, bottom) in it, or pixels; its label, and who it is."""

    path: Path | None
    label: int
    box: tuple[int, int, int, int] | None = None
    pixels: Tensor | None = None
    subject: str = ""


class FERDataset(Dataset[tuple[Tensor, int]]):
    """Faces with expressions in one of the layouts in which they are published.

    Args:
        root: the data set's folder (for fer2013 also the file itself).
        layout: ``"affectnet"``: {train_set,val_set}/images/<id>.jpg with annotations/<id>_exp.npy, or the tables
            training.csv and validation.csv beside the pictures (expressions 8 to 10 are left out, faces cut out);
            ``"fer2013"``: fer2013.csv; ``"ckplus"``: cohn-kanade-images/<S>/<seq>/*.png with Emotion/<S>/<seq>/*.txt,
            of a labelled sequence the first frame is neutral and the last has the label; ``"rafdb"``: {train,test}/1
            to 7; ``"folder"``: {train,val,test}/<expression>, or <expression> where there is one part.
        split: ``"train"``, ``"val"`` or ``"test"``; fer2013's are Usage Training, PublicTest and PrivateTest. CK+ has
            train alone: divide it by `subjects`.
        transform: applied to the picture, a tensor (1 or 3, H, W) float32 in [0, 1].

    An item is (picture, label). `labels` has all labels, `subjects` who is seen (CK+ alone), `classes` the names.

    Raises ValueError that says what was found and what was wanted; FileNotFoundError for a root that is not there.
    """

    classes = EXPRESSIONS

    def __init__(
        self,
        root: str | Path,
        layout: str = "folder",
        split: str = "train",
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout: got {layout!r}, wanted one of {', '.join(LAYOUTS)}")
        if split not in SPLITS:
            raise ValueError(f"split: got {split!r}, wanted one of {', '.join(SPLITS)}")
        self.root, self.layout, self.split, self.transform = Path(root).expanduser(), layout, split, transform
        if not self.root.exists():
            raise FileNotFoundError(f"root: {self.root} is not there")
        readers: dict[str, Callable[[Path, str], Iterable[Face]]] = {
            "affectnet": _affectnet, "fer2013": _fer2013, "ckplus": _ckplus, "rafdb": _rafdb, "folder": _folders,
        }  # fmt: skip
        self.faces = list(readers[layout](self.root, split))
        if not self.faces:
            raise ValueError(f"root: found no labelled picture of {layout}, {split}, in {self.root}")
        self.labels = torch.tensor([face.label for face in self.faces])
        self.subjects = [face.subject for face in self.faces]

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        face = self.faces[index]
        image = face.pixels.float().div(255) if face.pixels is not None else _picture(face)
        return (image if self.transform is None else self.transform(image)), face.label


def _picture(face: Face) -> Tensor:
    assert face.path is not None
    with Image.open(face.path, formats=FORMATS) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"{face.path}: {opened.width}x{opened.height} pixels, wanted at most {MAX_PIXELS:,}")
        grey = opened.mode in ("1", "L", "LA", "I", "I;16", "F")
        if opened.mode.startswith("I"):  # 16 bits
            values = np.asarray(opened).astype(np.float32)[None] / 65535
        else:
            image = opened.convert("L" if grey else "RGB")
            if face.box is not None:
                image = image.crop(face.box)
            values = np.asarray(image, dtype=np.float32) / 255
            values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(values))


def _pictures(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _one_of(root: Path, split: str, wanted: dict[str, str]) -> Path:
    """The entry of `root` that holds a split."""
    if split not in wanted:
        raise ValueError(f"split: got {split!r}, this layout has {', '.join(wanted)}")
    path = root / wanted[split]
    if not path.exists():
        raise ValueError(f"root: found no {wanted[split]} in {root}")
    return path


# --- AffectNet ---


def _affectnet(root: Path, split: str) -> Iterator[Face]:
    if (root / "train_set").is_dir() or (root / "val_set").is_dir():
        folder = _one_of(root, split, {"train": "train_set", "val": "val_set"})
        for path in sorted((folder / "annotations").glob("*_exp.npy")):
            label = _annotation(path)
            image = folder / "images" / f"{path.name.removesuffix('_exp.npy')}.jpg"
            if not image.exists():
                raise ValueError(f"root: {path.name} has a label and no picture, wanted {image}")
            if label < len(EXPRESSIONS):
                yield Face(image, label)
        return
    name = {"train": "training.csv", "val": "validation.csv"}.get(split)
    if name is None:
        raise ValueError(f"split: got {split!r}, AffectNet publishes train and val")
    tables = [p for p in (root / name, *sorted(root.glob(f"*/{name}"))) if p.exists()]
    if not tables:
        raise ValueError(f"root: found neither train_set and val_set nor {name} in {root}")
    yield from _affectnet_table(root, tables[0])


def _annotation(path: Path) -> int:
    try:
        return int(str(np.load(path, allow_pickle=False).item()))
    except ValueError as error:
        raise ValueError(f"{path}: found no expression, wanted a whole number as text ({error})") from error


def _affectnet_table(root: Path, table: Path) -> Iterator[Face]:
    folders = [root, table.parent, *sorted(p for p in root.iterdir() if p.is_dir())]
    with table.open(newline="") as file:
        first = file.readline()
        file.seek(0)
        # the published validation table has been seen without its header
        rows = csv.DictReader(file, None if first.startswith(AFFECTNET_COLUMNS[0]) else AFFECTNET_COLUMNS)
        for number, row in enumerate(rows, 1):
            try:
                label, where = int(row["expression"]), row["subDirectory_filePath"]
                left, top, width, height = (
                    int(float(row[c])) for c in ("face_x", "face_y", "face_width", "face_height")
                )
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{table}, row {number}: found {row}, wanted {', '.join(AFFECTNET_COLUMNS)}"
                ) from error
            if label >= len(EXPRESSIONS):
                continue
            if Path(where).is_absolute() or ".." in Path(where).parts:
                raise ValueError(f"{table}, row {number}: found the path {where!r}, wanted one below the pictures")
            image = next((f / where for f in folders if (f / where).exists()), None)
            if image is None:
                raise ValueError(f"{table}, row {number}: found no picture {where!r} below {root}")
            yield Face(image, label, (left, top, left + width, top + height))


# --- FER-2013, CK+, RAF-DB, folders ---


def _fer2013(root: Path, split: str) -> Iterator[Face]:
    path = root / "fer2013.csv" if root.is_dir() else root
    if not path.exists():
        raise ValueError(f"root: found no fer2013.csv in {root}")
    with open(path, newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 1):
            try:
                if row["Usage"].strip() != FER2013_USAGE[split]:
                    continue
                label = EXPRESSIONS.index(FER2013_ORDER[int(row["emotion"])])
                pixels = torch.tensor([int(v) for v in row["pixels"].split()], dtype=torch.uint8).view(1, 48, 48)
            except (KeyError, IndexError, AttributeError, ValueError, RuntimeError, TypeError) as error:
                wanted = "emotion 0 to 6, 48 x 48 pixels 0 to 255, Usage"
                raise ValueError(f"{path}, row {number}: wanted {wanted} ({error})") from error
            yield Face(None, label, pixels=pixels)


def _ckplus(root: Path, split: str) -> Iterator[Face]:
    if split != "train":
        raise ValueError(f"split: got {split!r}, CK+ publishes none: take 'train' and divide it by `subjects`")
    for folder in ("cohn-kanade-images", "Emotion"):
        if not (root / folder).is_dir():
            raise ValueError(f"root: found no {folder} in {root}")
    for path in sorted((root / "Emotion").glob("*/*/*_emotion.txt")):
        subject, sequence = path.parts[-3:-1]
        try:
            name = CKPLUS_ORDER[int(float(path.read_text().split()[0]))]
        except (IndexError, ValueError) as error:
            raise ValueError(f"{path}: wanted a number from 0 to 7 ({error})") from error
        frames = list(_pictures(root / "cohn-kanade-images" / subject / sequence))
        if not frames:
            raise ValueError(f"{path}: found no frame of {subject}/{sequence}")
        if len(frames) > 1:
            yield Face(frames[0], EXPRESSIONS.index("neutral"), subject=subject)
        yield Face(frames[-1], EXPRESSIONS.index(name), subject=subject)


def _rafdb(root: Path, split: str) -> Iterator[Face]:
    folder = _one_of(root, split, {"train": "train", "test": "test"})
    for number, name in enumerate(RAFDB_ORDER, 1):
        for path in _pictures(folder / str(number)):
            yield Face(path, EXPRESSIONS.index(name))


def _folders(root: Path, split: str) -> Iterator[Face]:
    found = {p.name.lower(): p for p in root.iterdir() if p.is_dir()}
    parts = [name for name in SPLITS if name in found]
    if not parts and split != "train":
        raise ValueError(f"split: got {split!r}, {root} has one part, which is train")
    if parts and split not in found:
        raise ValueError(f"split: got {split!r}, {root} has {', '.join(parts)}")
    for folder in sorted(p for p in (found[split] if parts else root).iterdir() if p.is_dir()):
        name = folder.name.lower()
        name = SYNONYMS.get(name, name)
        if name not in EXPRESSIONS:
            hint = "; folders named by numbers are layout='rafdb'" if name.isdigit() else ""
            raise ValueError(f"root: found the class folder {folder.name!r}, wanted {', '.join(EXPRESSIONS)}{hint}")
        for path in _pictures(folder):
            yield Face(path, EXPRESSIONS.index(name))


class HybridFER(Dataset[tuple[Any, int]]):
    """Several face data sets in a row, under one list of labels.

    Args:
        datasets: `FERDataset` or whatever has `labels` (N,) in the shared order, a length and items; give them
            transforms that make pictures of one size.
    """

    classes = EXPRESSIONS

    def __init__(self, datasets: Sequence[Any]) -> None:
        if not datasets:
            raise ValueError("datasets: got none, wanted one or more")
        self.datasets = list(datasets)
        self.labels = torch.cat([torch.as_tensor(d.labels) for d in self.datasets])
        self._ends = np.cumsum([len(d) for d in self.datasets]).tolist()
        if len(self.labels) != self._ends[-1]:
            raise ValueError(f"datasets: got {len(self.labels)} labels of {self._ends[-1]} items, wanted one each")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: got {index}, wanted less than {len(self)}")
        index %= len(self)
        which = int(np.searchsorted(self._ends, index, side="right"))
        item: tuple[Any, int] = self.datasets[which][index - (self._ends[which - 1] if which else 0)]
        return item

    def counts(self) -> Tensor:
        """Items by data set and class, (sets, 8)."""
        k = len(EXPRESSIONS)
        return torch.stack([torch.bincount(torch.as_tensor(d.labels), minlength=k) for d in self.datasets])

    def weights(self) -> Tensor:
        """Weight of each class, (8,): n / (present classes x items of the class), so that classes count alike.

        For a loss; 0 for a class that no set has. Over all items the weights have the mean 1.
        """
        by_class = self.counts().sum(0)
        present = int((by_class > 0).sum())
        return torch.where(by_class > 0, len(self) / (present * by_class.clamp(min=1).float()), 0.0)

    def sample_weights(self) -> Tensor:
        """Weight of each item, (N,), for `torch.utils.data.WeightedRandomSampler`."""
        return self.weights()[self.labels]

    def report(self) -> list[dict[str, Any]]:
        """One row a class: its name, items by set, items in all, weight, and each set's share of it."""
        counts, weights = self.counts(), self.weights().tolist()
        rows = []
        for number, name in enumerate(EXPRESSIONS):
            column = counts[:, number]
            total = int(column.sum())
            shares = [round(int(c) / total, 4) if total else 0.0 for c in column]
            rows.append(
                {"class": name, "items": column.tolist(), "total": total, "weight": weights[number], "shares": shares}
            )
        return rows
