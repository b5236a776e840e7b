from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paperworks.data import cifar
from paperworks.data.images import load_images

Write = Callable[[object], bytes]
RNG = np.random.default_rng(0)
NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]


def ten(write: Write) -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    """CIFAR-10's files with 40 random images, in the layout of the published ones; the rows and labels in order."""
    rows, labels = RNG.integers(0, 256, (40, 3072), np.uint8), [i % 10 for i in range(40)]
    files = {}
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = slice(6 * k, 6 * k + 6) if k < 5 else slice(30, 40)
        names = [b"image_%d.png" % i for i in range(40)][part]
        label = b"testing batch 1 of 1" if k == 5 else b"training batch %d of 5" % (k + 1)
        batch = {b"batch_label": label, b"labels": labels[part], b"data": rows[part], b"filenames": names}
        files[name] = write(batch)
    files["batches.meta"] = write({b"num_cases_per_batch": 6, b"label_names": NAMES, b"num_vis": 3072})
    return files, rows, labels


def hundred(write: Write) -> dict[str, bytes]:
    files = {}
    for name, n in (("train", 30), ("test", 10)):
        rows = RNG.integers(0, 256, (n, 3072), np.uint8)
        fine = [(7 * i) % 100 for i in range(n)]
        files[name] = write({b"data": rows, b"fine_labels": fine, b"coarse_labels": [f // 5 for f in fine]})
    fine_names, coarse_names = [b"f%d" % i for i in range(100)], [b"c%d" % i for i in range(20)]
    files["meta"] = write({b"fine_label_names": fine_names, b"coarse_label_names": coarse_names})
    return files


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def tar(path: Path, files: dict[str, bytes], mode: str = "w:gz", folder: str = "cifar-10-batches-py/") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def check_ten(spec: str, rows: np.ndarray, labels: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_images(spec)
    assert data.name == "CIFAR-10"
    assert data.classes == [n.decode() for n in NAMES]
    assert data.labels.tolist() == labels
    # a row holds the red plane, then green, then blue, each row by row
    row = (data.images[7] * 255).round()
    assert int(row[0, 0, 1]) == rows[7, 1]
    assert int(row[1, 2, 3]) == rows[7, 1024 + 2 * 32 + 3]
    assert int(row[2, 31, 31]) == rows[7, 3071]
    train, test = data.split(0)
    assert (len(train), len(test)) == (30, 10)
    assert sorted(test.labels.tolist()) == sorted(labels[30:])


def test_cifar_10_folder_parent_and_archives(tmp_path: Path, python2_pickle: Write) -> None:
    files, rows, labels = ten(python2_pickle)
    put(tmp_path / "cifar-10-batches-py", files)
    tar(tmp_path / "c.tar.gz", files)
    tar(tmp_path / "c.tar", files, "w")
    for place in ("cifar-10-batches-py", "", "c.tar.gz", "c.tar"):
        check_ten(f"cifar:{tmp_path}/{place}", rows, labels)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("text_keys", [False, True])
def test_batches_written_by_python_3(tmp_path: Path, protocol: int, text_keys: bool) -> None:
    def write(value: Any) -> bytes:
        return pickle.dumps({k.decode() if text_keys else k: v for k, v in value.items()}, protocol)

    files, rows, labels = ten(write)
    put(tmp_path, files)
    check_ten(f"cifar:{tmp_path}", rows, labels)


def test_cifar_100_has_fine_and_coarse_labels(tmp_path: Path, python2_pickle: Write) -> None:
    put(tmp_path / "cifar-100-python", hundred(python2_pickle))
    fine = load_images(f"cifar:{tmp_path}")
    coarse = load_images(f"cifar:{tmp_path}?labels=coarse")
    assert (fine.name, fine.num_classes, coarse.num_classes) == ("CIFAR-100", 100, 20)
    assert (fine.classes[7], coarse.classes[1]) == ("f7", "c1")
    assert (fine.labels // 5).tolist() == coarse.labels.tolist()
    assert [len(p) for p in fine.split(3)] == [30, 10]


def test_missing_batches_are_named_in_one_warning(tmp_path: Path, python2_pickle: Write) -> None:
    files, _, labels = ten(python2_pickle)
    put(tmp_path, {k: files[k] for k in ("data_batch_1", "data_batch_3")})
    with pytest.warns(UserWarning, match="without data_batch_2, data_batch_4, data_batch_5, test_batch") as caught:
        data = load_images(f"cifar:{tmp_path}")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert data.labels.tolist() == labels[:6] + labels[12:18]
    assert data.held_out is None
    assert data.classes == [n.decode() for n in NAMES]  # known without batches.meta


ROWS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({b"data": ROWS[:, :100], b"labels": [0, 1]}, ["data uint8 (2, 100)", "uint8 (N, 3072)"]),
        ({b"data": ROWS.astype(">i4"), b"labels": [0, 1]}, ["data >i4 (2, 3072)"]),
        ({b"labels": [0, 1]}, ["data NoneType"]),
        ({b"data": ROWS, b"labels": [0]}, ["1 labels", "2 images"]),
        ({b"data": ROWS, b"fine_labels": [0, 1]}, ["no labels", "'fine_labels'"]),
        ({b"data": ROWS, b"labels": [0, 10]}, ["labels up to 10", "10 classes"]),
        ({b"data": ROWS, b"labels": [0, -1]}, ["labels from -1"]),
        ([1, 2], ["a list in test_batch", "a dict"]),
    ],
)
def test_wrong_batches_are_named(tmp_path: Path, python2_pickle: Write, batch: object, words: list[str]) -> None:
    put(tmp_path, {"test_batch": python2_pickle(batch)})
    with pytest.warns(UserWarning, match="without"), pytest.raises(ValueError) as caught:
        load_images(f"cifar:{tmp_path}")
    for word in [f"cifar:{tmp_path}", *words]:
        assert word in str(caught.value)


def test_wrong_names_and_options_are_named(tmp_path: Path, python2_pickle: Write) -> None:
    files, _, _ = ten(python2_pickle)
    files["batches.meta"] = python2_pickle({b"label_names": NAMES[:4]})
    put(tmp_path, files)
    with pytest.raises(ValueError, match=r"4 names of classes in batches\.meta; wanted a list of 10"):
        load_images(f"cifar:{tmp_path}")
    with pytest.raises(ValueError, match="only CIFAR-100"):
        load_images(f"cifar:{tmp_path}?labels=coarse")
    put(tmp_path, hundred(python2_pickle))
    with pytest.raises(ValueError, match="both CIFAR-10 and CIFAR-100"):
        load_images(f"cifar:{tmp_path}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no batch in"):
        load_images(f"cifar:{tmp_path}/empty")


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("attacked",)


def test_a_batch_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, {"test_batch": pickle.dumps({b"data": Attack()})})
    with pytest.warns(UserWarning, match="without"), pytest.raises(ValueError, match=r"test_batch: found .*mkdir;"):
        load_images(f"cifar:{tmp_path}")
    assert not (tmp_path / "attacked").exists()


def test_archives_are_read_in_place_and_links_in_them_are_nothing(tmp_path: Path, python2_pickle: Write) -> None:
    files, _, _ = ten(python2_pickle)
    place = tmp_path / "in"
    place.mkdir()
    with tarfile.open(place / "c.tar.gz", "w:gz") as archive:
        for name, content in {"../../escape/test_batch": files["test_batch"], "/etc/other": b"x"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    with pytest.warns(UserWarning, match="without data_batch_1,"):
        assert len(load_images(f"cifar:{place}/c.tar.gz")) == 10
    assert sorted(tmp_path.rglob("*")) == before


def test_archive_limits_and_broken_archives(
    tmp_path: Path, python2_pickle: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, _, _ = ten(python2_pickle)
    tar(tmp_path / "c.tar.gz", files)
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "c.tar.gz").read_bytes()[:-2000])
    (tmp_path / "none.tar").write_bytes(b"x" * 2000)
    (tmp_path / "none.tar.gz").write_bytes(gzip.compress(b"x" * 2000))
    tar(tmp_path / "twice.tar", files, "w")
    tar(tmp_path / "twice.tar", files, "a", folder="other/")
    for name, reason in {
        "cut.tar.gz": "cannot be read",
        "none.tar": "no readable archive",
        "none.tar.gz": "archive",
    }.items():
        with pytest.raises(ValueError, match=reason):
            load_images(f"cifar:{tmp_path}/{name}")
    with pytest.raises(ValueError, match="twice in the archive"):
        load_images(f"cifar:{tmp_path}/twice.tar")
    monkeypatch.setattr(cifar, "FILE_BYTES", 1000)
    with pytest.raises(ValueError, match="bytes in the archive; wanted each once, of at most 1,000"):
        load_images(f"cifar:{tmp_path}/c.tar.gz")
    monkeypatch.setattr(cifar, "ARCHIVE_BYTES", 50_000)
    with pytest.raises(ValueError, match="more than 50,000 bytes once inflated"):
        load_images(f"cifar:{tmp_path}/c.tar.gz")
