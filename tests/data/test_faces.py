"""Faces: drawings with every label, the published layouts written here with noise, and pairs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from paperworks.data.expressions import EXPRESSIONS
from paperworks.data.face_transforms import FaceTransform
from paperworks.data.faces import FaceTasks, face_geometry, read_pairs, read_picture, render_faces, task_name

NOISE = np.random.default_rng(0)
ATTRIBUTES = ("5_o_Clock_Shadow", "Male", "Smiling", "Young")


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(NOISE.integers(0, 255, (20, 16, 3), dtype=np.uint8)).save(path)
    return path


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- drawings ---


def test_drawings_have_their_labels() -> None:
    found = render_faces(60, 24, seeded(), identities=10)
    assert found.images.shape == (60, 3, 24, 24)
    assert found.images.dtype == torch.float32
    assert 0 <= found.images.min() < found.images.max() <= 1
    assert torch.bincount(found.targets["identity"]).tolist() == [6] * 10
    assert found.geometry.shape == (10, 16)
    assert set(found.targets["expression"].tolist()) == set(range(7))
    age = found.targets["age"]
    assert 5 <= age.min() < age.max() <= 80
    assert torch.equal(found.targets["young"] == 1, age < 35)
    assert torch.equal(found.targets["smiling"] == 1, found.targets["expression"] == 3)
    assert all(
        set(v.tolist()) <= {0, 1} for k, v in found.targets.items() if k not in ("age", "identity", "expression")
    )
    one = [set(found.targets["gender"][found.targets["identity"] == i].tolist()) for i in range(10)]
    assert all(len(s) == 1 for s in one), "gender is the person's"


def test_a_seed_makes_the_drawings() -> None:
    a, b, c = (render_faces(5, 20, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(a.images, b.images)
    assert not torch.equal(a.images, c.images)
    state = torch.get_rng_state()
    render_faces(2, 16, seeded())
    assert torch.equal(torch.get_rng_state(), state)


def test_people_can_be_drawn_again() -> None:
    people = face_geometry(3, seeded(4))
    found = render_faces(9, 32, seeded(), geometry=people)
    assert found.geometry is people
    assert torch.bincount(found.targets["identity"]).tolist() == [3, 3, 3]


def _faces(change: dict[str, float], **fixed: float) -> torch.Tensor:
    """A drawn face and one that differs in `change`, without noise, at one place in one light."""
    from paperworks.data import face_simulation as drawn

    shown = dict.fromkeys(
        ("eyeglasses", "wearing_hat", "bangs", "gray_hair", "no_beard", "wearing_lipstick", "wearing_necktie", "age"),
        0.0,
    )
    images = []
    for values in ({**shown, **fixed}, {**shown, **fixed, **change}):
        moves = torch.tensor(drawn.MOVES[int(values.pop("expression", drawn.NEUTRAL))])[None]
        labels = {k: torch.tensor([v]) for k, v in values.items()}
        images.append(drawn._draw(torch.zeros(1, 16), moves, labels, 64, seeded(3))[0])
    return torch.stack(images)


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"wearing_hat": 1.0}, (0, 22)), ({"eyeglasses": 1.0}, (20, 40)), ({"no_beard": 1.0}, (36, 64)),
        ({"wearing_necktie": 1.0}, (50, 64)), ({"expression": 3.0}, (16, 52)), ({"wearing_lipstick": 1.0}, (36, 56)),
    ],
)  # fmt: skip
def test_what_is_shown_is_where_it_belongs(change: dict[str, float], rows: tuple[int, int]) -> None:
    plain, changed = _faces(change, **({} if "no_beard" in change else {"no_beard": 1.0}))
    by_row = (plain - changed).abs().sum((0, 2))
    assert by_row.sum() > 1
    assert by_row[rows[0] : rows[1]].sum() > 0.95 * by_row.sum()


def test_age_is_fine_texture() -> None:
    young, old = _faces({"age": 80.0}, no_beard=1.0, age=5.0)
    fine = [float((x[:, 1:] - x[:, :-1])[:, 16:44, 24:40].abs().mean()) for x in (young, old)]
    assert fine[1] > 1.8 * fine[0]


def test_drawings_refuse() -> None:
    for n, size in ((0, 32), (3, 15)):
        with pytest.raises(ValueError, match=f"n, size: got {n} and {size}"):
            render_faces(n, size, seeded())
    with pytest.raises(ValueError, match=r"geometry: got the shape \(2, 3\)"):
        render_faces(2, 16, seeded(), geometry=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="identities: got 0"):
        render_faces(2, 16, seeded(), identities=0)
    with pytest.raises(ValueError, match="expression_strength"):
        render_faces(2, 16, seeded(), expression_strength=(1.0, 0.5))


# --- layouts ---


def celeba(root: Path, downloaded: bool = False) -> Path:
    folders = ("Img/img_align_celeba", "Anno", "Eval") if downloaded else ("img_align_celeba", ".", ".")
    images, attributes, partition = (root / f for f in folders)
    rows, parts = [], []
    for i in range(6):
        picture(images / f"{i:06d}.jpg")
        values = [1 if (i + k) % 2 else -1 for k in range(4)]
        rows.append(f"{i:06d}.jpg " + " ".join(f"{v:2d}" for v in values))
        parts.append(f"{i:06d}.jpg {0 if i < 3 else 1 if i < 5 else 2}")
    for folder in (attributes, partition):
        folder.mkdir(parents=True, exist_ok=True)
    (attributes / "list_attr_celeba.txt").write_text("\n".join(["6", " ".join(ATTRIBUTES), *rows]) + "\n")
    (partition / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return root


@pytest.mark.parametrize("downloaded", [False, True])
def test_celeba(tmp_path: Path, downloaded: bool) -> None:
    root = celeba(tmp_path, downloaded)
    train, val, test = (FaceTasks(root, "celeba", split) for split in ("train", "val", "test"))
    assert [len(d) for d in (train, val, test)] == [3, 2, 1]
    assert train.tasks == ("five_o_clock_shadow", "gender", "smiling", "young")
    assert train.targets["gender"].tolist() == [1, 0, 1]
    image, labels = train[0]
    assert (image.shape, image.dtype) == ((3, 20, 16), torch.float32)
    assert {k: int(v) for k, v in labels.items()} == {"five_o_clock_shadow": 0, "gender": 1, "smiling": 0, "young": 1}
    assert train.sample_weights("gender").tolist() == [0.5, 1.0, 0.5]


def test_celeba_is_checked(tmp_path: Path) -> None:
    root = celeba(tmp_path)
    lines = (root / "list_attr_celeba.txt").read_text()
    (root / "list_attr_celeba.txt").write_text(lines.replace("000001.jpg  1", "000001.jpg  0"))
    with pytest.raises(ValueError, match=r"line 4: found 4 values, wanted 4, each -1 or 1"):
        FaceTasks(root, "celeba")
    (root / "list_attr_celeba.txt").write_text(lines)
    (root / "img_align_celeba" / "000002.jpg").unlink()
    with pytest.raises(ValueError, match=r"found no picture '000002.jpg'"):
        FaceTasks(root, "celeba")
    (root / "list_eval_partition.txt").write_text("000000.jpg 0\n")
    with pytest.raises(ValueError, match=r"000001.jpg is in no part"):
        FaceTasks(root, "celeba")
    (root / "list_eval_partition.txt").unlink()
    with pytest.raises(ValueError, match=r"found none of list_eval_partition.txt, Eval/list_eval_partition.txt"):
        FaceTasks(root, "celeba")


def rafdb(root: Path, basic: bool = True) -> Path:
    base = root / "basic" if basic else root
    lines = []
    for part in ("train", "test"):
        for i, label in enumerate((5, 1, 7)):
            picture(base / "Image" / "aligned" / f"{part}_{i:05d}_aligned.jpg")
            lines.append(f"{part}_{i:05d}.jpg {label}")
    where = base / "EmoLabel" if basic else base
    where.mkdir(exist_ok=True)
    (where / "list_patition_label.txt").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("basic", [True, False])
def test_rafdb(tmp_path: Path, basic: bool) -> None:
    found = FaceTasks(rafdb(tmp_path, basic), "rafdb", "test")
    assert found.targets["expression"].tolist() == [4, 0, 6]
    assert [found.classes[k] for k in (4, 0, 6)] == ["sad", "surprise", "neutral"]
    assert all("test_" in str(face.path) for face in found.faces)
    with pytest.raises(ValueError, match="split: got 'val', RAF-DB publishes train and test"):
        FaceTasks(tmp_path, "rafdb", "val")
    table = next(tmp_path.rglob("list_patition_label.txt"))
    table.write_text("train_00000.jpg 8")
    with pytest.raises(ValueError, match=r"line 1: found 'train_00000.jpg 8'"):
        FaceTasks(tmp_path, "rafdb")


def test_affectnet_in_this_order(tmp_path: Path) -> None:
    for label in range(8):
        picture(tmp_path / "train_set" / "images" / f"{label}.jpg")
        (tmp_path / "train_set" / "annotations").mkdir(exist_ok=True)
        np.save(tmp_path / "train_set" / "annotations" / f"{label}_exp.npy", str(label))
    found = FaceTasks(tmp_path, "affectnet")
    names = [found.classes[k] for k in found.targets["expression"].tolist()]
    assert names == list(EXPRESSIONS[:7]), "contempt is left out"


def test_age_list(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / "faces of all" / f"{i}.jpg")
    rows = [
        ("0", "30", "1"),
        ("1", "nan", "0"),
        ("2", "41.5", "nan"),
        ("3", "7", "f"),
        ("4", "9", "M"),
        ("5", "1", "0.0"),
    ]
    (tmp_path / "train.txt").write_text("".join(f"faces of all/{n}.jpg {a} {g}\n" for n, a, g in rows))
    for root in (tmp_path, tmp_path / "train.txt"):
        found = FaceTasks(root, "age_list")
        assert found.targets["gender"].tolist() == [1, 0, -1, 0, 1, 0]
        ages = found.targets["age"]
        assert ages.dtype == torch.float32
        assert math.isnan(ages[1])
        assert ages[[0, 2, 3]].tolist() == [30, 41.5, 7]
    assert found.sample_weights("gender").tolist() == pytest.approx([0.5, 1 / 3, 0, 1 / 3, 0.5, 1 / 3])
    with pytest.raises(ValueError, match="task: got 'age', wanted one of classes: gender"):
        found.sample_weights("age")
    for wrong in ("faces of all/0.jpg old 1", "faces of all/0.jpg 30 x", "faces of all/0.jpg -3 1", "30 1"):
        (tmp_path / "val.txt").write_text(wrong)
        with pytest.raises(ValueError, match=r"val.txt, line 1: wanted a path, years or nan"):
            FaceTasks(tmp_path, "age_list", "val")
    picture(tmp_path.parent / "outside.jpg")
    (tmp_path / "test.txt").write_text("../outside.jpg 30 1")
    with pytest.raises(ValueError, match=r"wanted one below the pictures"):
        FaceTasks(tmp_path, "age_list", "test")


@pytest.mark.parametrize(
    "head", ["", "image,mean,std\n", "file_name,num_ratings,apparent_age_avg,apparent_age_std\n", ";"]
)
def test_clap(tmp_path: Path, head: str) -> None:
    rows = []
    for i in range(6):
        picture(tmp_path / "Train" / f"image_{i}.jpg")
        cells = [f"image_{i}.jpg", *(["38"] if "num" in head else []), f"{20 + i}", f"{3 + i / 2}"]
        rows.append((";" if head == ";" else ",").join(cells))
    (tmp_path / "gt_avg_train.csv").write_text(("" if head == ";" else head) + "\n".join(rows))
    found = FaceTasks(tmp_path, "clap")
    assert found.targets["age"].tolist() == [20, 21, 22, 23, 24, 25]
    assert found.targets["age_std"].tolist() == [3, 3.5, 4, 4.5, 5, 5.5]
    (tmp_path / "val.csv").write_text("image_0.jpg,30,0\n")
    with pytest.raises(ValueError, match=r"found a mean of 30.0 and a deviation of 0.0"):
        FaceTasks(tmp_path, "clap", "val")
    (tmp_path / "test.csv").write_text("image,years\nimage_0.jpg,30\n")
    with pytest.raises(ValueError, match="found the columns image, years, wanted image, mean and std"):
        FaceTasks(tmp_path, "clap", "test")


def people(root: Path) -> Path:
    for name, n in (("Ann_A", 3), ("Bob", 2), ("Cy", 1)):
        for i in range(n):
            picture(root / name / f"{name}_{i + 1:04d}.jpg")
    return root


def test_identities_in_folders(tmp_path: Path) -> None:
    found = FaceTasks(people(tmp_path), "folder_identities")
    assert found.classes == ("Ann_A", "Bob", "Cy")
    assert found.targets["identity"].tolist() == [0, 0, 0, 1, 1, 2]


def test_items_make_batches(tmp_path: Path) -> None:
    found = FaceTasks(people(tmp_path), "folder_identities", transform=FaceTransform(32))
    images, labels = next(iter(DataLoader(found, 6)))
    assert images.shape == (6, 3, 32, 32)
    assert images.min() < 0
    assert torch.equal(labels["identity"], found.targets["identity"])


def test_what_is_not_there_or_not_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout: got 'lfw', wanted one of celeba, rafdb"):
        FaceTasks(tmp_path, "lfw")
    with pytest.raises(ValueError, match="split: got 'all'"):
        FaceTasks(tmp_path, "celeba", "all")
    with pytest.raises(FileNotFoundError, match="root"):
        FaceTasks(tmp_path / "no", "celeba")
    with pytest.raises(ValueError, match="found no labelled picture of folder_identities"):
        FaceTasks(tmp_path, "folder_identities")


# --- pairs ---


def test_pairs_of_lfw(tmp_path: Path) -> None:
    root = people(tmp_path / "faces")
    path = tmp_path / "pairs.txt"
    path.write_text("1\t2\nAnn_A\t1\t3\nBob\t1\t2\nAnn_A\t2\tCy\t1\nBob\t2\tAnn_A\t1\n")
    found = read_pairs(path, root)
    assert [pair.same for pair in found] == [True, True, False, False]
    assert (found[0].first.name, found[0].second.name) == ("Ann_A_0001.jpg", "Ann_A_0003.jpg")
    assert found[2].second == root / "Cy" / "Cy_0001.jpg"
    assert read_picture(found[0].first).shape == (3, 20, 16)
    for wrong, match in (
        ("Ann_A 1 9", "line 1: found no picture Ann_A/Ann_A_0009"),
        ("Dee 1 2", "found no picture Dee/Dee_0001"),
        ("Ann_A 1", "line 1: found 'Ann_A 1', wanted 'name i j'"),
        (".. 1 2", "found '..', wanted the name of a folder"),
    ):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=match.replace(".", r"\.")):
            read_pairs(path, root)


def test_names_of_attributes() -> None:
    assert [task_name(name) for name in ATTRIBUTES] == ["five_o_clock_shadow", "gender", "smiling", "young"]
