"""Faces to be verified: packed pairs and pairs in folders, and the templates of IJB; alignment by five landmarks."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from paperworks.data import pickles
from paperworks.data.faces import read_pairs, read_picture

__all__ = ["FIVE_POINTS", "FacePairs", "IJBTemplates", "align_face"]

FIVE_POINTS = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
"""Where eyes, nose and corners of the mouth (x, y) are in an aligned face of 112 pixels."""
SIDE = 112
FORMATS = ("PNG", "JPEG", "BMP")
MAX_PIXELS = 2**24


def align_face(image: Tensor, landmarks: Tensor, size: int = SIDE) -> Tensor:
    """A picture (C, H, W) moved, turned and scaled so that its landmarks come nearest to `FIVE_POINTS`.

    Args:
        image: the picture; what lies beyond it is black.
        landmarks: (5, 2), x and y in pixels: eyes, nose, corners of the mouth, left to right as seen.
        size: side of the result (C, size, size).
    """
    if image.dim() != 3 or not image.is_floating_point() or image.numel() == 0:
        raise ValueError(f"image: got {tuple(image.shape)}, {image.dtype}, wanted a floating tensor (C, H, W)")
    if landmarks.shape != (5, 2) or size < 1:
        raise ValueError(f"landmarks, size: got {tuple(landmarks.shape)} and {size}, wanted (5, 2) and 1 or more")
    found = torch.complex(*landmarks.double().T)
    wanted = torch.complex(*(torch.tensor(FIVE_POINTS).double() * (size / SIDE)).T)
    centred = found - found.mean()
    if not float(centred.abs().sum()) > 0:  # NaN too
        raise ValueError(f"landmarks: got {landmarks.tolist()}, wanted five places that differ")
    turn = (centred.conj() * (wanted - wanted.mean())).sum() / (centred.abs() ** 2).sum()  # least squares: w = turn z
    if turn == 0:
        raise ValueError(f"landmarks: got {landmarks.tolist()}, wanted those of a face")
    rows, columns = torch.meshgrid(*[torch.arange(size).double()] * 2, indexing="ij")
    source = (torch.complex(columns, rows) - wanted.mean()) / turn + found.mean()
    height, width = image.shape[1:]
    grid = torch.stack([(2 * source.real + 1) / width - 1, (2 * source.imag + 1) / height - 1], -1)
    return F.grid_sample(image[None], grid[None].to(image.dtype), mode="bilinear", align_corners=False)[0]


def _decoded(data: bytes, said: str) -> Tensor:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{said}: {opened.width}x{opened.height} pixels, wanted at most {MAX_PIXELS:,}")
            values = np.asarray(opened.convert("RGB"), dtype=np.float32) / 255
    except OSError as error:
        raise ValueError(f"{said}: found no picture ({error})") from error
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


class FacePairs(Dataset[Any]):
    """The pictures of pairs of aligned faces, two by two: 2 i and 2 i + 1 are pair i, `same[i]` whether of one person.

    Args:
        root: a folder with <name>.bin, the packed pairs that training sets of faces come with (a pickle of encoded
            pictures and answers, read without running anything), or <name>/pairs.txt in LFW's format beside
            <name>/<person>/<person>_<number>.*.
        name: of the set: "lfw", "cfp_fp", "agedb_30", "calfw", "cplfw".
        transform: applied to the picture, a tensor (1 or 3, H, W) float32 in [0, 1].

    Raises ValueError that says what was found and what was wanted; FileNotFoundError for a root that is not there.
    """

    def __init__(self, root: str | Path, name: str, transform: Callable[[Tensor], Any] | None = None) -> None:
        root = Path(root).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"root: {root} is not there")
        if Path(name).name != name or not name:
            raise ValueError(f"name: got {name!r}, wanted that of a file or folder in {root}")
        self.name, self.transform = name, transform
        packed, folder = root / f"{name}.bin", root / name
        self.pictures: Sequence[bytes | Path]
        if packed.is_file():
            self.pictures, answers = _unpacked(packed)
        elif (folder / "pairs.txt").is_file():
            pairs = read_pairs(folder / "pairs.txt", folder)
            self.pictures = [path for pair in pairs for path in (pair.first, pair.second)]
            answers = [pair.same for pair in pairs]
        else:
            raise ValueError(f"root: found neither {name}.bin nor {name}/pairs.txt in {root}")
        self.same = torch.tensor(answers, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        entry = self.pictures[index]
        image = read_picture(entry) if isinstance(entry, Path) else _decoded(entry, f"{self.name}, picture {index}")
        return image if self.transform is None else self.transform(image)


def _unpacked(path: Path) -> tuple[list[bytes], list[bool]]:
    found = pickles.load(path)
    if not (isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(part, list) for part in found)):
        raise ValueError(f"{path}: found a {type(found).__name__}, wanted a list of pictures and a list of answers")
    pictures, answers = found
    if len(pictures) != 2 * len(answers) or not answers:
        raise ValueError(f"{path}: found {len(pictures)} pictures and {len(answers)} answers, wanted two to one")
    if not all(isinstance(p, bytes) or (isinstance(p, np.ndarray) and p.dtype == np.uint8) for p in pictures):
        kinds = sorted({type(p).__name__ for p in pictures})
        raise ValueError(f"{path}: found pictures as {', '.join(kinds)}, wanted bytes")
    if not all(isinstance(a, bool | int | np.bool_) for a in answers):
        raise ValueError(f"{path}: found answers such as {answers[0]!r}, wanted true or false")
    return [bytes(p) for p in pictures], [bool(a) for a in answers]


class IJBTemplates(Dataset[Any]):
    """The faces of IJB-B or IJB-C, aligned: what is compared are templates, sets of pictures and videos of a person.

    Args:
        root: the folder with loose_crop/ and, in meta/, <name>_face_tid_mid.txt (picture, template, medium),
            <name>_template_pair_label.txt (template, template, 1 for one person) and <name>_name_5pts_score.txt
            (picture, five landmarks x y, the detector's score).
        name: ``"ijbc"`` or ``"ijbb"``.
        transform: applied to the aligned face, a tensor (3, 112, 112) float32 in [0, 1].

    `templates`, `media` and `detected` are columns (N,) over the faces; `pairs` (P, 2) are templates, `same` (P,)
    whether they are of one person.

    Raises ValueError that says what was found and what was wanted; FileNotFoundError for a root that is not there.
    """

    def __init__(self, root: str | Path, name: str = "ijbc", transform: Callable[[Tensor], Any] | None = None) -> None:
        if name not in ("ijbc", "ijbb"):
            raise ValueError(f"name: got {name!r}, wanted 'ijbc' or 'ijbb'")
        self.root, self.transform = Path(root).expanduser(), transform
        if not self.root.is_dir():
            raise FileNotFoundError(f"root: {self.root} is not there")
        meta = self.root / "meta"
        faces, self.names = _table(meta / f"{name}_face_tid_mid.txt", 3, named=True)
        points, names = _table(meta / f"{name}_name_5pts_score.txt", 12, named=True)
        pairs, _ = _table(meta / f"{name}_template_pair_label.txt", 3)
        if self.names != names:
            raise ValueError(f"root: {meta} has {len(self.names)} faces and {len(names)} with landmarks, not the same")
        for where in names:
            if Path(where).is_absolute() or ".." in Path(where).parts:
                raise ValueError(f"root: found the path {where!r} in {meta}, wanted one below the pictures")
        self.templates, self.media = faces.long().T
        self.landmarks, self.detected = points[:, :10].view(-1, 5, 2), points[:, 10]
        self.pairs, self.same = pairs[:, :2].long(), pairs[:, 2] == 1
        if not bool(torch.isin(self.pairs, self.templates).all()):
            raise ValueError(f"root: {meta} has pairs of templates without a face")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        image = read_picture(self.root / "loose_crop" / self.names[index])
        image = align_face(image.expand(3, -1, -1), self.landmarks[index])
        return image if self.transform is None else self.transform(image)


def _table(path: Path, columns: int, named: bool = False) -> tuple[Tensor, list[str]]:
    """The numbers of lines of so many columns, and the names in their first column."""
    if not path.is_file():
        raise ValueError(f"root: found no {path.name} in {path.parent}")
    try:
        numbers = np.loadtxt(path, usecols=range(int(named), columns), ndmin=2)
        names = [line.split(maxsplit=1)[0] for line in path.open() if line.strip()] if named else []
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: wanted lines of {columns} columns ({error})") from error
    if not len(numbers):
        raise ValueError(f"{path}: found no line, wanted one or more of {columns} columns")
    return torch.from_numpy(numbers), names
