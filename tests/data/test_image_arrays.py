from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paperworks.data import image_arrays
from paperworks.data.images import load_images

RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def write_idx(
    folder: Path, part: str, n: int, *, packed: bool = False, dot: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    images, labels = RNG.integers(0, 256, (n, 5, 4), np.uint8), RNG.integers(0, 10, n, np.uint8)
    for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
        name = name.replace("-idx", ".idx") if dot else name
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return images, labels


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dot", [False, True])
def test_idx_files_as_mnist_has_them(tmp_path: Path, packed: bool, dot: bool) -> None:
    train, test = (
        write_idx(tmp_path, "train", 20, packed=packed, dot=dot),
        write_idx(tmp_path, "t10k", 8, packed=packed, dot=dot),
    )
    data = load_images(f"idx:{tmp_path}")
    assert data.images.shape == (28, 1, 5, 4)
    np.testing.assert_array_equal((data.images[:, 0] * 255).round().byte().numpy(), np.concatenate([train[0], test[0]]))
    np.testing.assert_array_equal(data.labels.numpy(), np.concatenate([train[1], test[1]]))
    assert data.held_out is not None
    assert data.held_out.tolist() == [False] * 20 + [True] * 8
    assert [len(part) for part in data.split(0)] == [20, 8]


def test_idx_one_part_or_one_file_has_no_published_split(tmp_path: Path) -> None:
    _, labels = write_idx(tmp_path, "t10k", 8)
    assert load_images(f"idx:{tmp_path}").held_out is None
    write_idx(tmp_path, "train", 20)
    data = load_images(f"idx:{tmp_path}/t10k-images-idx3-ubyte")
    assert (len(data), data.held_out) == (8, None)
    assert data.labels.tolist() == labels.tolist()


def test_idx_labels_keep_their_numbers_where_classes_are_missing(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((2, 3, 3), np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array([7, 2], np.uint8)))
    data = load_images(f"idx:{tmp_path}")
    assert data.labels.tolist() == [7, 2]
    assert data.classes == [str(i) for i in range(8)]


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["no such file", "train-images-idx3-ubyte"]),
        ({IMAGES: idx(np.zeros((2, 3, 3), np.uint8))}, ["without labels", LABELS]),
        ({IMAGES: b"\0\0\x08\x01" + b"\0" * 20, LABELS: b""}, ["starting with 00 00 08 01", "00 00 08 03"]),
        ({IMAGES: idx(np.zeros((2, 3, 3), np.uint8))[:-1], LABELS: b""}, ["17 values", "(2, 3, 3)"]),
        ({IMAGES: idx(np.zeros((2, 3, 3), np.uint8)) + b"\0", LABELS: b""}, ["19 values"]),
        ({IMAGES: b"\0\0\x08\x03\x7f\xff\xff\xff\x7f\xff\xff\xff\x7f\xff\xff\xff", LABELS: b""}, ["0 values"]),
        ({IMAGES: b"\0\0\x08\x03\0", LABELS: b""}, ["0 values"]),
        (
            {IMAGES: idx(np.zeros((2, 3, 3), np.uint8)), LABELS: idx(np.zeros(3, np.uint8))},
            ["2 images in train-images-idx3-ubyte and 3 labels"],
        ),
        ({f"a-{IMAGES}": b"", f"b-{IMAGES}": b""}, ["'a-', 'b-'", "one images file"]),
        ({f"{IMAGES}.gz": gzip.compress(b"x" * 100)[:-9], LABELS: b""}, ["cannot be read"]),
    ],
)
def test_wrong_idx_files_are_named(tmp_path: Path, files: dict[str, bytes], words: list[str]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_images(f"idx:{tmp_path}")
    for word in [f"idx:{tmp_path}", *words]:
        assert word in str(caught.value)


def test_idx_bombs_stop_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path, "train", 20, packed=True)
    monkeypatch.setattr("paperworks.data.sources.MAX_BYTES", 100)
    with pytest.raises(ValueError, match="more than 100 bytes once inflated"):
        load_images(f"idx:{tmp_path}")


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path / "d.npz", **arrays)
    return f"npz:{path}/d.npz"


X = RNG.integers(0, 256, (12, 6, 5, 3), np.uint8)
Y = np.arange(12) % 3


@pytest.mark.parametrize(
    ("x", "spec"),
    [
        (X, ""),
        (np.ascontiguousarray(X.transpose(0, 3, 1, 2)), ""),
        (np.asfortranarray(X), ""),
        (X, "?layout=nhwc"),
        (X.astype(np.float32) / 255, ""),
        (X.astype(np.float64), "?scale=255"),
        (X.astype(np.int64), "?scale=255"),
        (X.astype(np.uint16) * 257, ""),
    ],
)
def test_npz_layouts_and_dtypes_give_the_same_images(tmp_path: Path, x: np.ndarray, spec: str) -> None:
    data = load_images(npz(tmp_path, x=x, y=Y) + spec)
    expected = torch.from_numpy(X.transpose(0, 3, 1, 2).copy()).float() / 255
    torch.testing.assert_close(data.images, expected, rtol=0, atol=1e-6)
    assert data.labels.tolist() == Y.tolist()


def test_parts_of_different_sizes_are_named(tmp_path: Path) -> None:
    spec = npz(tmp_path, x_train=X, y_train=Y, x_test=X[:, :5], y_test=Y)
    with pytest.raises(ValueError, match=r"shapes \[\(3, 5, 5\), \(3, 6, 5\)\]; wanted one shape"):
        load_images(spec)


def test_npz_without_channels_is_gray(tmp_path: Path) -> None:
    assert load_images(npz(tmp_path, images=X[..., 0], labels=Y)).images.shape == (12, 1, 6, 5)


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
)
def test_npz_with_a_test_part_publishes_its_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    arrays = dict(zip(names, (X[:8], Y[:8], X[8:], Y[8:]), strict=True))
    data = load_images(npz(tmp_path, **arrays))
    assert data.held_out is not None
    assert data.held_out.tolist() == [False] * 8 + [True] * 4


@pytest.mark.parametrize(
    ("y", "labels", "classes"),
    [
        (Y[:, None], Y.tolist(), ["0", "1", "2"]),
        (np.eye(3)[Y], Y.tolist(), ["0", "1", "2"]),
        (Y.astype(np.float32), Y.tolist(), ["0", "1", "2"]),
        (np.array(["b", "a", "c"])[Y], [(1, 0, 2)[i] for i in Y], ["a", "b", "c"]),
        (np.array([-5, 10**9, 4])[Y], [(0, 2, 1)[i] for i in Y], ["-5", "4", "1000000000"]),
    ],
)
def test_npz_labels(tmp_path: Path, y: np.ndarray, labels: list[int], classes: list[str]) -> None:
    data = load_images(npz(tmp_path, x=X, y=y))
    assert data.labels.tolist() == labels
    assert data.classes == classes


def test_npz_may_name_its_classes(tmp_path: Path) -> None:
    for names in (np.array(["ape", "bee", "cat"]), np.array([b"ape", b"bee", b"cat"])):
        assert load_images(npz(tmp_path, x=X, y=Y, classes=names)).classes == ["ape", "bee", "cat"]
    with pytest.raises(ValueError, match="labels up to 2; wanted an index into 2 classes"):
        load_images(npz(tmp_path, x=X, y=Y, classes=np.array(["ape", "bee"])))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": X, "b": Y}, ["the arrays a, b", "x/y"]),
        ({"x": X}, ["the arrays x"]),
        ({"x": X[..., :2], "y": Y}, ["channels in no place", "?layout=nhwc"]),
        ({"x": X[:, :3], "y": Y}, ["channels in either place"]),
        ({"x": X[0], "y": Y}, ["6 images with 12 labels"]),
        ({"x": X.reshape(12, -1), "y": Y}, ["x of shape (12, 90)"]),
        ({"x": X.astype(float), "y": Y}, ["values from 0.0 to 255.0", "?scale=255"]),
        ({"x": X.astype(float) * np.nan, "y": Y}, ["nan"]),
        ({"x": X.astype(np.int64), "y": Y}, ["int64", "?scale="]),
        ({"x": X.astype("S3"), "y": Y}, ["dtype |S3"]),
        ({"x": X, "y": Y + 0.5}, ["labels of dtype float64"]),
        ({"x": X, "y": np.stack([Y, Y], 1)}, ["y of shape (12, 2)"]),
        ({"x": X, "y": np.array([None] * 12)}, ["no objects"]),
        ({"x": X, "y": Y[:5]}, ["12 images with 5 labels"]),
        ({"x": X[:0], "y": Y[:0]}, ["no value in x.npy"]),
    ],
)
def test_wrong_npz_arrays_are_named(tmp_path: Path, arrays: dict[str, Any], words: list[str]) -> None:
    spec = npz(tmp_path, **arrays)
    with pytest.raises(ValueError) as caught:
        load_images(spec)
    for word in [spec, *words]:
        assert word in str(caught.value)


def test_npz_headers_that_claim_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8)})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", stream.getvalue() + b"\0" * 64)
        archive.writestr("y.npy", b"no array")
    with pytest.raises(ValueError, match=r"64 bytes in x\.npy for uint8"):
        load_images(f"npz:{tmp_path}/d.npz")
    monkeypatch.setattr(image_arrays, "MAX_BYTES", 50)
    with pytest.raises(ValueError, match="bytes once inflated; wanted at most 50"):
        load_images(f"npz:{tmp_path}/d.npz")


def test_npz_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"no zip archive .*; wanted a \.npz file"):
        load_images(f"npz:{tmp_path}/d.npz")
    with pytest.raises(ValueError, match="no zip archive"):
        load_images(f"npz:{tmp_path}")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", b"no array")
        archive.writestr("y.npy", b"")
    with pytest.raises(ValueError, match=r"an unreadable array x\.npy"):
        load_images(f"npz:{tmp_path}/d.npz")


def test_images_that_do_not_fit_in_memory_are_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    with pytest.raises(ValueError, match="GiB that are free"):
        load_images(npz(tmp_path, x=X, y=Y))
