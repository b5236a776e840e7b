"""NIfTI there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paperworks.data.volumes import read_nifti, write_nifti

pytest.importorskip("nibabel")
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.int64, bool])
def test_there_and_back(tmp_path: Path, suffix: str, dtype: type) -> None:
    data = (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
    write_nifti(tmp_path / f"a{suffix}", data, AFFINE)
    found = read_nifti(tmp_path / f"a{suffix}", dtype)
    assert found.data.dtype == dtype
    assert np.array_equal(found.data, data)
    assert np.array_equal(found.affine, AFFINE)
    assert found.spacing == (2.0, 3.0, 4.0)


def test_four_axes_keep_their_time(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", np.zeros((2, 2, 2, 5), np.float32), AFFINE, seconds=0.72)
    assert read_nifti(tmp_path / "a.nii").spacing == pytest.approx((2.0, 3.0, 4.0, 0.72))


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "b.nii").write_bytes(b"no volume")
    for call, message in (
        (lambda: read_nifti(tmp_path / "b.nii"), "b.nii'"),
        (lambda: read_nifti(tmp_path / "b.png"), "wanted a file that ends in .nii"),
        (lambda: write_nifti(tmp_path / "c.nii", np.zeros(3)), "data: got 1 axes"),
        (lambda: write_nifti(tmp_path / "c.nii", np.zeros((1, 1, 1)), np.eye(3)), "affine: got the shape"),
        (lambda: write_nifti(tmp_path / "c.nii", np.full((1, 1, 1), 2**40)), "32 bits do not hold"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(FileNotFoundError):
        read_nifti(tmp_path / "none.nii.gz")
