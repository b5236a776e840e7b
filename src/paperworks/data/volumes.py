"""Volumes as NIfTI files, with their place in the world: an affine from voxel indices to millimetres."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["SUFFIXES", "Volume", "read_nifti", "write_nifti"]

SUFFIXES = (".nii", ".nii.gz")


class Volume(NamedTuple):
    """Values (X, Y, Z) or (X, Y, Z, T), the affine (4, 4), and the spacing of the axes in millimetres and seconds."""

    data: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    spacing: tuple[float, ...]


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(f"NIfTI needs nibabel ({error}): pip install 'paperworks[swin]'", name="nibabel") from error
    return nibabel


def read_nifti(path: str | Path, dtype: npt.DTypeLike = np.float32) -> Volume:
    """The volume in a ``.nii`` or ``.nii.gz`` file; scaled values, as `dtype`.

    Raises FileNotFoundError where there is none, ValueError for another kind of file.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"path: got {path.name!r}, wanted a file that ends in .nii or .nii.gz")
    nibabel = _nibabel()
    try:
        image = nibabel.load(path)
    except nibabel.filebasedimages.ImageFileError as error:
        raise ValueError(f"path: got {path.name!r}, which is not NIfTI: {error}") from error
    data = np.asarray(image.dataobj).astype(dtype, copy=False)
    return Volume(data, np.asarray(image.affine, np.float64), tuple(float(z) for z in image.header.get_zooms()))


def write_nifti(
    path: str | Path, data: npt.ArrayLike, affine: npt.ArrayLike | None = None, seconds: float | None = None
) -> None:
    """Write a volume (X, Y, Z) or (X, Y, Z, T).

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        data: values; bool is written as uint8, int64 as int32, which have to hold them.
        affine: (4, 4); the identity if None.
        seconds: between two frames of a 4-D volume.

    Raises ValueError for another suffix, rank or shape, or whole numbers that 32 bits do not hold.
    """
    path, values = Path(path), np.asarray(data)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"path: got {path.name!r}, wanted a file that ends in .nii or .nii.gz")
    if values.ndim not in (3, 4):
        raise ValueError(f"data: got {values.ndim} axes, wanted 3 or 4")
    placed = np.eye(4) if affine is None else np.asarray(affine, np.float64)
    if placed.shape != (4, 4):
        raise ValueError(f"affine: got the shape {placed.shape}, wanted (4, 4)")
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif values.dtype == np.int64:
        if values.size and not np.iinfo(np.int32).min <= values.min() <= values.max() <= np.iinfo(np.int32).max:
            raise ValueError("data: got whole numbers that 32 bits do not hold")
        values = values.astype(np.int32)
    nibabel = _nibabel()
    image = nibabel.Nifti1Image(values, placed)
    if seconds is not None and values.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], seconds))
    nibabel.save(image, path)
