"""Runs of functional MRI as NIfTI or as one file a frame: where they lie, how they are normalised, and back.

Layouts, below a root: ``<subject>.nii`` or ``<subject>.nii.gz`` with axes (H, W, D, T), registered to one space; or
``img/<subject>/frame_<i>.pt`` (also without ``img``), half-precision tensors (H, W, D, 1), as `preprocess_nifti` and
the authors' script of SwiFT (arXiv 2307.05916) write them. A run is normalised as a whole by the mean and deviation of
the brain, the voxels that are not exactly 0; the background becomes the smallest value of the brain.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.data.volumes import SUFFIXES, Volume, read_nifti

__all__ = [
    "SCALINGS",
    "Scale",
    "Space",
    "count_frames",
    "find_runs",
    "from_grid",
    "preprocess_nifti",
    "read_run",
    "read_space",
    "read_targets",
    "scale_of",
    "to_grid",
]

FRAME = re.compile(r"frame_(\d+)\.pt")
NAMES = ("{}", "sub-{}", "{}_20227_2_0")
"""A subject's name in file names: as it is (HCP), in BIDS (ABCD), and in the UK Biobank's field of resting state."""
SCALINGS = ("z-norm", "minmax")


@dataclass(frozen=True)
class Space:
    """Where a run lies: the size of its volume, what was kept of it, the affine of the volume, seconds a frame."""

    shape: tuple[int, int, int]
    crop: tuple[tuple[int, int], ...]
    affine: npt.NDArray[np.float64]
    seconds: float | None = None


def read_space(like: str | Path) -> Space:
    """The space of a NIfTI file, or of a folder of frames that `preprocess_nifti` wrote.

    Raises FileNotFoundError for a folder of frames without it.
    """
    path = Path(like)
    if path.is_dir():
        found = json.loads((path / "space.json").read_text(encoding="utf-8"))
        shape, crop = tuple(found["shape"]), tuple((a, b) for a, b in found["crop"])
        return Space(shape, crop, np.array(found["affine"], np.float64), found["seconds"])
    volume = read_nifti(path)
    shape = volume.data.shape[:3]
    seconds = volume.spacing[3] if len(volume.spacing) > 3 else None
    return Space(shape, tuple((0, size) for size in shape), volume.affine, seconds)


def _shifts(sizes: Sequence[int], wanted: Sequence[int]) -> list[tuple[int, int]]:
    """What goes before and after each axis to centre it, the larger half before; negative where it is cut."""
    found = []
    for size, want in zip(sizes, wanted, strict=True):
        more = abs(want - size)
        before, after = more - more // 2, more // 2
        found.append((before, after) if want >= size else (-before, -after))
    return found


def to_grid(clip: Tensor, grid: Sequence[int], value: float) -> Tensor:
    """Bring (H, W, D, T) to the sizes `grid`, centred, with `value` around it.

    Raises ValueError where an axis is longer and what would be cut is not all `value`: cut it when preprocessing.
    """
    shifts = _shifts(clip.shape[:3], grid)
    for axis, (before, after) in enumerate(shifts):
        if before < 0:
            size = clip.shape[axis]
            cut = (clip.narrow(axis, 0, -before), clip.narrow(axis, size + after, -after))
            if any(bool((part != value).any()) for part in cut):
                wanted = f"at most {grid[axis]} around the brain, see crop= of preprocess_nifti"
                raise ValueError(
                    f"pad_to: got {size} voxels on axis {axis}, which would cut the brain; wanted {wanted}"
                )
    return F.pad(clip, (0, 0, *(n for pair in reversed(shifts) for n in pair)), value=value)


def from_grid(values: Tensor, space: Space) -> Tensor:
    """Bring (H, W, D) or (H, W, D, T) back from a padded grid to the volume of `space`, zero where it was cut."""
    inner = [stop - start for start, stop in space.crop]
    shifts = [(0, 0)] * (values.dim() - 3) + _shifts(values.shape[:3], inner)[::-1]
    kept = F.pad(values, [n for pair in shifts for n in pair])
    outer = [(start, size - stop) for (start, stop), size in zip(space.crop, space.shape, strict=True)]
    around = [(0, 0)] * (values.dim() - 3) + outer[::-1]
    return F.pad(kept, [n for pair in around for n in pair])


class Scale(NamedTuple):
    """How the values of a run are normalised: (v - shift) / width in the brain, `background` outside."""

    shift: float
    width: float
    background: float

    def __call__(self, data: Tensor) -> Tensor:
        found = (data - self.shift) / self.width
        return found.masked_fill_(data == 0, self.background)


def scale_of(data: Tensor, scaling: str, name: str) -> Scale:
    """How to normalise the run `data` (H, W, D, T) read from the file `name`."""
    brain = data[data != 0].double()
    low, high = (float(brain.min()), float(brain.max())) if brain.numel() else (0.0, 0.0)
    if not low < high:
        raise ValueError(f"path: got {name!r}, whose voxels that are not 0 are all the same; wanted a brain")
    shift, width = (float(brain.mean()), float(brain.std())) if scaling == "z-norm" else (low, high - low)
    return Scale(shift, width, (low - shift) / width)


def check_scaling(scaling: str | None, known: Sequence[str | None]) -> None:
    """Raises ValueError for another one."""
    if scaling not in known:
        raise ValueError(f"scaling: got {scaling!r}, wanted one of {', '.join(map(repr, known))}")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def read_run(path: Path) -> tuple[Tensor, Volume]:
    """A run as NIfTI: (H, W, D, T) and what `read_nifti` gives."""
    volume = read_nifti(path)
    if volume.data.ndim != 4:
        raise ValueError(f"path: got {path.name!r} with {volume.data.ndim} axes, wanted 4: (H, W, D, T)")
    return torch.from_numpy(np.ascontiguousarray(volume.data)), volume


def preprocess_nifti(
    path: str | Path,
    out_dir: str | Path,
    scaling: str = "z-norm",
    *,
    crop: Sequence[tuple[int, int]] | None = None,
) -> Path:
    """Normalise a run and write each frame to ``<out_dir>/<subject>/frame_<i>.pt``, float16 (H, W, D, 1).

    Args:
        path: ``<subject>.nii`` or ``<subject>.nii.gz`` with axes (H, W, D, T); 0 is background.
        out_dir: made if missing.
        scaling: ``"z-norm"``, by mean and deviation of the brain over the whole run, or ``"minmax"``.
        crop: what to keep of each spatial axis, as (start, stop), negative ones from the end; the same for all subjects
            of a data set, so that they stay aligned (the authors cut ``(14, -7)`` off the second axis of theirs).

    Returns the folder. It also holds ``space.json``, with which `attribution_to_nifti` finds the way back. Raises
    ValueError for a file that is no 4-D NIfTI, holds no brain, or is cut to nothing.
    """
    check_scaling(scaling, SCALINGS)
    source = Path(path)
    data, volume = read_run(source)
    sizes = tuple(data.shape[:3])
    asked = [(0, size) for size in sizes] if crop is None else list(crop)
    kept = [slice(*pair).indices(size)[:2] for pair, size in zip(asked, sizes, strict=False)]
    if len(asked) != 3 or any(start >= stop for start, stop in kept):
        raise ValueError(f"crop: got {crop} for the size {sizes}, wanted three (start, stop) that keep some of it")
    inside = data[tuple(slice(*pair) for pair in kept)]
    frames = scale_of(inside, scaling, source.name)(inside).half()
    folder = Path(out_dir) / _stem(source)
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(frames.split(1, 3)):
        torch.save(frame.clone(), folder / f"frame_{i}.pt")
    for i, old in _frames(folder).items():
        if i >= frames.shape[3]:
            old.unlink()
    seconds = volume.spacing[3] if len(volume.spacing) > 3 else None
    space = {
        "shape": list(sizes), "crop": [list(pair) for pair in kept], "affine": volume.affine.tolist(),
        "seconds": seconds, "scaling": scaling,
    }  # fmt: skip
    (folder / "space.json").write_text(json.dumps(space), encoding="utf-8")
    return folder


def _frames(folder: Path) -> dict[int, Path]:
    """The frames of a folder by their number; other files, such as voxel_mean.pt, are passed over."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := FRAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def find_runs(root: str | Path, subjects: Sequence[str]) -> dict[str, Path]:
    """The NIfTI file or folder of frames of each subject that has one below `root`."""
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"root: got {str(root)!r}, wanted a folder")
    there: dict[str, Path] = {}
    for folder in (root, root / "img"):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_dir() and path != root / "img":
                there.setdefault(path.name, path)
            elif path.name.endswith(SUFFIXES):
                there.setdefault(_stem(path), path)
    found = {}
    for subject in subjects:
        name = next((form.format(subject) for form in NAMES if form.format(subject) in there), None)
        if name is not None:
            found[subject] = there[name]
    return found


def read_targets(path: str | Path, target: str, subject: str = "Subject") -> dict[str, float]:
    """The column `target` of a CSV file by subject; M and F of a sex are 1 and 0. Empty cells are passed over.

    Raises ValueError for a column that is not there, a cell that is no number, or a subject with two values.
    """
    found: dict[str, float] = {}
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for column in (subject, target):
            if column not in (reader.fieldnames or ()):
                known = ", ".join(reader.fieldnames or ())
                raise ValueError(f"target: got the column {column!r}, {Path(path).name} has {known}")
        for row in reader:
            name, cell = (row[subject] or "").strip(), (row[target] or "").strip()
            if not name or cell.lower() in ("", "na", "nan", "n/a"):
                continue
            try:
                value = {"M": 1.0, "F": 0.0}.get(cell.upper()) if cell.isalpha() else float(cell)
            except ValueError:
                value = None
            if value is None or found.get(name, value) != value:
                raise ValueError(f"target: got {cell!r} of the subject {name}, wanted one number, or M or F")
            found[name] = value
    return found


def count_frames(path: Path) -> int:
    """Frames of a run."""
    if path.is_dir():
        numbers = list(_frames(path))
        if numbers != list(range(len(numbers))):
            gap = next(i for i, number in enumerate(numbers) if i != number)
            raise ValueError(f"root: {path.name} has no frame_{gap}.pt, but later ones")
        return len(numbers)
    import nibabel

    shape: tuple[int, ...] = nibabel.load(path).shape  # type: ignore[attr-defined]
    if len(shape) != 4:
        raise ValueError(f"root: got {path.name!r} with {len(shape)} axes, wanted 4: (H, W, D, T)")
    return shape[3]
