"""Faces with identities, expressions, ages and attributes: one class for the published layouts, pairs, and drawings.

Pictures are read when they are asked for; a data set is indexed once, from its lists and file names. What is not known
of a face is the class -1, or the age NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from paperworks.data.expressions import Face, _picture, _pictures
from paperworks.data.face_lists import SPLITS, UNKNOWN, read_layout, task_name
from paperworks.data.face_simulation import RenderedFaces, face_geometry, render_faces

__all__ = [
    "LAYOUTS", "UNKNOWN", "FaceTasks", "Pair", "RenderedFaces", "face_geometry", "read_pairs", "read_picture",
    "render_faces", "task_name",
]  # fmt: skip

LAYOUTS = ("celeba", "rafdb", "affectnet", "age_list", "clap", "folder_identities")
YEARS = ("age", "age_std")


class FaceTasks(Dataset[tuple[Any, dict[str, Tensor]]]):
    """Faces with the targets of their tasks, in one of the layouts in which they are published.

    Args:
        root: the data set's folder; of age_list and clap also the list itself.
        layout: ``"celeba"``: img_align_celeba/*.jpg, list_attr_celeba.txt and list_eval_partition.txt, as downloaded
            (Img, Anno, Eval) or side by side: forty attributes; ``"rafdb"``: Image/aligned/*_aligned.jpg and
            list_patition_label.txt: expressions; ``"affectnet"``: see `FERDataset`, without contempt; ``"age_list"``:
            lines ``path age gender`` of {train,val,test}.txt, nan where unknown; ``"clap"``: a table image, mean, std
            ({train,val,test}.csv, also gt_avg_*.csv of APPA-REAL): ages with their spread; ``"folder_identities"``:
            <person>/*.jpg, without splits.
        split: ``"train"``, ``"val"`` or ``"test"``.
        transform: applied to the picture, a tensor (1 or 3, H, W) float32 in [0, 1]: `FaceTransform` makes it what the
            network takes.

    An item is (picture, {task: target}). `targets` has whole columns by task: int64 classes (-1 unknown), float32 years
    (NaN unknown). `classes` names expressions or people where there are any.

    Raises ValueError that says what was found and what was wanted; FileNotFoundError for a root that is not there.
    """

    def __init__(
        self,
        root: str | Path,
        layout: str,
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
        rows, self.classes = read_layout(self.root, layout, split)
        if not rows:
            raise ValueError(f"root: found no labelled picture of {layout}, {split}, in {self.root}")
        self.faces = [face for face, _ in rows]
        self.targets = {
            task: torch.tensor([labels[task] for _, labels in rows]).to(torch.float if task in YEARS else torch.long)
            for task in rows[0][1]
        }

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the targets."""
        return tuple(self.targets)

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Tensor]]:
        image = _picture(self.faces[index])
        labels = {task: column[index] for task, column in self.targets.items()}
        return (image if self.transform is None else self.transform(image)), labels

    def sample_weights(self, task: str) -> Tensor:
        """Weight of each face, (N,), so that the classes of a task come equally often; 0 where it is unknown."""
        if task not in self.targets or task in YEARS:
            known = [t for t in self.targets if t not in YEARS]
            raise ValueError(f"task: got {task!r}, wanted one of classes: {', '.join(known)}")
        labels = self.targets[task]
        counts = torch.bincount(labels[labels != UNKNOWN]).clamp_min(1)
        return torch.where(labels == UNKNOWN, 0.0, 1.0 / counts[labels.clamp_min(0)])


class Pair(NamedTuple):
    """Two pictures, and whether they show one person."""

    first: Path
    second: Path
    same: bool


def read_pairs(path: str | Path, root: str | Path) -> list[Pair]:
    """The pairs of a file in the format of LFW's pairs.txt, of pictures <root>/<person>/<person>_<number>.*.

    A first line of numbers (folds, pairs) is passed over; then ``name i j`` is a pair of one person, ``name i other j``
    of two. Raises ValueError that names the line where it is neither, or a picture is missing.
    """
    root, found = Path(root).expanduser(), []
    people: dict[str, dict[str, Path]] = {}

    def picture(name: str, number: str, said: str) -> Path:
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise ValueError(f"{said}: found {name!r}, wanted the name of a folder in {root}")
        if name not in people:
            folder = root / name
            people[name] = {p.stem: p for p in _pictures(folder)} if folder.is_dir() else {}
        wanted = f"{name}_{int(number):04d}"
        if wanted not in people[name]:
            raise ValueError(f"{said}: found no picture {name}/{wanted} in {root}")
        return people[name][wanted]

    for number, line in enumerate(Path(path).expanduser().read_text().splitlines(), 1):
        parts, said = line.split(), f"{path}, line {number}"
        if not parts or (number == 1 and all(p.isdigit() for p in parts)):
            continue
        if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit():
            found.append(Pair(picture(parts[0], parts[1], said), picture(parts[0], parts[2], said), True))
        elif len(parts) == 4 and parts[1].isdigit() and parts[3].isdigit():
            found.append(Pair(picture(parts[0], parts[1], said), picture(parts[2], parts[3], said), False))
        else:
            raise ValueError(f"{said}: found {line!r}, wanted 'name i j' or 'name i other j'")
    return found


def read_picture(path: str | Path) -> Tensor:
    """A picture (1 or 3, H, W), float32 in [0, 1]."""
    return _picture(Face(Path(path), UNKNOWN))
