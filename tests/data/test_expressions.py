"""Face data sets in their published layouts, written here with noise, under one list of labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from paperworks.data.expressions import (
    AFFECTNET_COLUMNS,
    CKPLUS_ORDER,
    EXPRESSIONS,
    FER2013_ORDER,
    RAFDB_ORDER,
    FERDataset,
    HybridFER,
)
from paperworks.data.face_transforms import FaceTransform

NOISE = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int] = (20, 16), grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if grey else (*size, 3)
    Image.fromarray(NOISE.integers(0, 255, shape, dtype=np.uint8)).save(path)


def affectnet(root: Path) -> Path:
    for part, n in (("train_set", 2), ("val_set", 1)):
        for label in range(8):
            for i in range(n):
                picture(root / part / "images" / f"{10 * label + i}.jpg")
                (root / part / "annotations").mkdir(exist_ok=True)
                np.save(root / part / "annotations" / f"{10 * label + i}_exp.npy", str(label))
                np.save(root / part / "annotations" / f"{10 * label + i}_val.npy", "0.1")
    return root


def affectnet_tables(root: Path, header: bool = True) -> Path:
    for name in ("training.csv", "validation.csv"):
        rows = [[f"{k}/face{k}.png", 2, 3, 5, 4, "1;2", k, 0.0, 0.0] for k in range(11)]
        for row in rows:
            picture(root / "Manually_Annotated_Images" / str(row[0]))
        with (root / name).open("w", newline="") as file:
            csv.writer(file).writerows([list(AFFECTNET_COLUMNS), *rows] if header else rows)
    return root


def fer2013(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with (root / "fer2013.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        for usage, n in (("Training", 3), ("PublicTest", 2), ("PrivateTest", 1)):
            for emotion in range(7):
                for _ in range(n):
                    writer.writerow([emotion, " ".join(map(str, NOISE.integers(0, 256, 48 * 48))), usage])
    return root


def ckplus(root: Path) -> Path:
    for number in range(1, 8):
        subject = f"S{number:03d}"
        for sequence in ("001", "002"):
            for frame in (1, 2, 3):
                name = f"{subject}_{sequence}_{frame:08d}.png"
                picture(root / "cohn-kanade-images" / subject / sequence / name, grey=number % 2 == 0)
        folder = root / "Emotion" / subject / "001"  # the second sequence has no label
        folder.mkdir(parents=True)
        (folder / f"{subject}_001_00000003_emotion.txt").write_text(f"   {number}.0000000e+00\n")
        (root / "Emotion" / subject / "002").mkdir()
    return root


def counts(dataset: FERDataset) -> list[int]:
    return torch.bincount(dataset.labels, minlength=8).tolist()


def test_affectnet_in_folders(tmp_path: Path) -> None:
    root = affectnet(tmp_path)
    train, val = FERDataset(root, "affectnet"), FERDataset(root, "affectnet", "val")
    assert counts(train) == [2] * 8
    assert counts(val) == [1] * 8
    image, label = train[0]
    assert (image.shape, image.dtype, label) == ((3, 20, 16), torch.float32, 0)
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert train.classes == EXPRESSIONS
    with pytest.raises(ValueError, match="split: got 'test', this layout has train, val"):
        FERDataset(root, "affectnet", "test")
    (root / "val_set" / "images" / "0.jpg").unlink()
    with pytest.raises(ValueError, match=r"0_exp.npy has a label and no picture"):
        FERDataset(root, "affectnet", "val")


def test_affectnet_labels_are_never_unpickled(tmp_path: Path) -> None:
    root = affectnet(tmp_path)
    np.save(root / "val_set" / "annotations" / "0_exp.npy", np.array({"a": 1}, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"0_exp.npy: found no expression"):
        FERDataset(root, "affectnet", "val")


@pytest.mark.parametrize("header", [True, False])
def test_affectnet_in_tables(tmp_path: Path, header: bool) -> None:
    train = FERDataset(affectnet_tables(tmp_path, header), "affectnet", "train")
    assert counts(train) == [1] * 8, "what is no expression is left out"
    image, label = train[3]
    whole = np.asarray(Image.open(tmp_path / "Manually_Annotated_Images" / "3" / "face3.png"))
    assert label == 3
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), whole[3:7, 2:7] / 255, atol=1e-6)


def test_affectnet_tables_stay_below_their_root(tmp_path: Path) -> None:
    root = affectnet_tables(tmp_path / "in")
    picture(tmp_path / "secret.png")
    (root / "training.csv").write_text(f"{','.join(AFFECTNET_COLUMNS)}\n../secret.png,0,0,4,4,,1,0,0\n")
    with pytest.raises(ValueError, match="row 1: found the path"):
        FERDataset(root, "affectnet")
    (root / "training.csv").write_text(f"{','.join(AFFECTNET_COLUMNS)}\n1/gone.png,0,0,4,4,,1,0,0\n")
    with pytest.raises(ValueError, match=r"found no picture '1/gone.png'"):
        FERDataset(root, "affectnet")
    (root / "training.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"training.csv, row 1"):
        FERDataset(root, "affectnet")


def test_fer2013(tmp_path: Path) -> None:
    root = fer2013(tmp_path)
    for split, n in (("train", 3), ("val", 2), ("test", 1)):
        dataset = FERDataset(root, "fer2013", split)
        assert counts(dataset) == [n] * 7 + [0], "it has no contempt"
    assert FERDataset(root / "fer2013.csv", "fer2013").faces[0].label == EXPRESSIONS.index(FER2013_ORDER[0])
    image, _ = FERDataset(root, "fer2013")[-1]
    assert image.shape == (1, 48, 48)
    (root / "fer2013.csv").write_text("emotion,pixels,Usage\n1,1 2 3,Training\n")
    with pytest.raises(ValueError, match=r"fer2013.csv, row 1: wanted emotion 0 to 6"):
        FERDataset(root, "fer2013")


def test_ckplus_has_the_last_frame_of_a_sequence_and_a_neutral_first_one(tmp_path: Path) -> None:
    dataset = FERDataset(ckplus(tmp_path), "ckplus")
    assert counts(dataset) == [7, 1, 1, 1, 1, 1, 1, 1]
    first, last = dataset.faces[:2]
    assert (first.path.name, first.label) == ("S001_001_00000001.png", 0)
    assert (last.path.name, EXPRESSIONS[last.label]) == ("S001_001_00000003.png", CKPLUS_ORDER[1])
    assert dataset.subjects[:4] == ["S001", "S001", "S002", "S002"]
    assert dataset[2][0].shape == (1, 20, 16)
    with pytest.raises(ValueError, match="subjects"):
        FERDataset(tmp_path, "ckplus", "val")


def test_rafdb_and_folders_by_name(tmp_path: Path) -> None:
    for number, name in enumerate(RAFDB_ORDER, 1):
        picture(tmp_path / "raf" / "train" / str(number) / "a.jpg")
        picture(tmp_path / "named" / "test" / name.upper() / "a.png")
        picture(tmp_path / "flat" / {"happy": "happiness", "anger": "Angry"}.get(name, name) / "a.png")
    raf = FERDataset(tmp_path / "raf", "rafdb")
    assert [EXPRESSIONS[k] for k in raf.labels] == list(RAFDB_ORDER)
    assert counts(FERDataset(tmp_path / "named", "folder", "test")) == [1] * 7 + [0]
    assert counts(FERDataset(tmp_path / "flat")) == [1] * 7 + [0]
    for root, split, message in (
        ("named", "train", "has test"), ("flat", "val", "one part"), ("raf", "train", "layout='rafdb'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            FERDataset(tmp_path / root, "folder", split)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        FERDataset(tmp_path / "gone")
    with pytest.raises(ValueError, match="layout: got 'vggface'"):
        FERDataset(tmp_path, "vggface")
    with pytest.raises(ValueError, match="split: got 'dev'"):
        FERDataset(tmp_path, "folder", "dev")
    for layout, wanted in (("affectnet", "train_set"), ("fer2013", "fer2013.csv"), ("ckplus", "cohn-kanade-images")):
        with pytest.raises(ValueError, match=wanted):
            FERDataset(tmp_path, layout)
    with pytest.raises(ValueError, match="no labelled picture"):
        FERDataset(tmp_path)


def test_a_mixture_has_one_list_of_labels_and_weights(tmp_path: Path) -> None:
    transform = FaceTransform(24)
    sets = [
        FERDataset(affectnet(tmp_path / "a"), "affectnet", "train", transform),
        FERDataset(fer2013(tmp_path / "f"), "fer2013", "train", transform),
        FERDataset(ckplus(tmp_path / "c"), "ckplus", "train", transform),
    ]
    mixture = HybridFER(sets)
    assert len(mixture) == 16 + 21 + 14
    assert mixture.counts().tolist() == [counts(s) for s in sets]
    for index in (0, 15, 16, 36, 37, 50, -1):
        image, label = mixture[index]
        assert image.shape == (3, 24, 24)
        assert label == int(mixture.labels[index])
    with pytest.raises(IndexError):
        mixture[51]
    per_class = torch.bincount(mixture.labels, minlength=8)
    torch.testing.assert_close(mixture.weights() * per_class, torch.full((8,), 51 / 8))
    assert float(mixture.sample_weights().mean()) == pytest.approx(1)
    contempt = mixture.report()[7]
    assert (contempt["class"], contempt["items"], contempt["total"]) == ("contempt", [2, 0, 1], 3)
    assert contempt["shares"] == [0.6667, 0.0, 0.3333]
    assert float(HybridFER([sets[1]]).weights()[7]) == 0
    images, labels = next(iter(DataLoader(mixture, 51)))
    assert torch.equal(labels, mixture.labels)
    assert images.shape == (51, 3, 24, 24)
    with pytest.raises(ValueError, match="datasets"):
        HybridFER([])


def test_transforms() -> None:
    x = torch.rand(1, 40, 30, generator=torch.Generator().manual_seed(0))
    out = FaceTransform(32)(x)
    assert out.shape == (3, 32, 32)
    assert torch.equal(out, FaceTransform(32)(x))
    assert float(out.min()) >= -1
    assert float(out.max()) <= 1
    still = {"flip": 0.0, "rotation": 0.0, "autocontrast": 0.0}
    assert torch.equal(FaceTransform(32, True, **still)(x), out)
    torch.testing.assert_close(FaceTransform(32, True, **{**still, "flip": 1.0})(x), out.flip(-1))
    stretched = FaceTransform(32, True, **{**still, "autocontrast": 1.0})(x / 2)
    assert (float(stretched.min()), float(stretched.max())) == pytest.approx((-1, 1))
    erased = FaceTransform(32, True, **still, erasing=1.0, generator=torch.Generator().manual_seed(1))(x)
    share = float((erased != out).float().mean())
    assert 0.01 < share < 0.3
    every = {"jitter": 0.3, "erasing": 0.5}
    one, two = (FaceTransform(32, True, **every, generator=torch.Generator().manual_seed(2))(x) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, out)
    with pytest.raises(ValueError, match="rotation"):
        FaceTransform(32, rotation=-1)
    with pytest.raises(ValueError, match="size"):
        FaceTransform(0)


def test_sixteen_bits_and_palettes(tmp_path: Path) -> None:
    folder = tmp_path / "happy"
    folder.mkdir()
    deep = NOISE.integers(0, 65535, (6, 5), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(NOISE.integers(0, 255, (6, 5, 3), dtype=np.uint8)).quantize(8).save(folder / "palette.png")
    dataset = FERDataset(tmp_path)
    np.testing.assert_allclose(dataset[0][0][0].numpy(), deep / 65535, atol=1e-6)
    assert dataset[1][0].shape == (3, 6, 5)
