"""Faces to be verified: packed pairs, pairs in folders, templates of IJB, alignment by landmarks."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from paperworks.data.face_pairs import FIVE_POINTS, FacePairs, IJBTemplates, align_face
from paperworks.data.face_transforms import FaceTransform

POINTS = torch.tensor(FIVE_POINTS)


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (10, 12), (shade, 0, 255)).save(file, "PNG")
    return file.getvalue()


# --- pairs ---


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_packed_pairs(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps(([png(i) for i in range(4)], [True, False]), protocol))
    found = FacePairs(tmp_path, "lfw")
    assert found.same.tolist() == [True, False]
    assert len(found) == 4
    assert found[3].shape == (3, 12, 10)
    assert found[3][:, 0, 0].tolist() == pytest.approx([3 / 255, 0, 1])
    assert FacePairs(tmp_path, "lfw", FaceTransform(8))[0].shape == (3, 8, 8)


def test_packed_as_arrays(tmp_path: Path) -> None:
    pictures = [np.frombuffer(png(i), np.uint8).copy() for i in range(2)]
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((pictures, [np.bool_(True)])))
    found = FacePairs(tmp_path, "lfw")
    assert found.same.tolist() == [True]
    assert found[1].shape == (3, 12, 10)


def test_pairs_in_folders(tmp_path: Path) -> None:
    for name, shade in (("Ann", 1), ("Bob", 2)):
        for number in (1, 2):
            path = tmp_path / "lfw" / name / f"{name}_{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(10 * shade + number))
    (tmp_path / "lfw" / "pairs.txt").write_text("1 1\nAnn 1 2\nAnn 2 Bob 1\n")
    found = FacePairs(tmp_path, "lfw")
    assert found.same.tolist() == [True, False]
    assert [round(float(found[i][0, 0, 0] * 255)) for i in range(4)] == [11, 12, 12, 21]


class Call:
    def __reduce__(self) -> Any:
        return print, ("run",)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([png(0)], "found a list, wanted a list of pictures and a list of answers"),
        (([png(0)], [True]), "found 1 pictures and 1 answers, wanted two to one"),
        (([], []), "found 0 pictures and 0 answers"),
        ((["a", "b"], [True]), "found pictures as str, wanted bytes"),
        (([png(0), png(1)], ["yes"]), "found answers such as 'yes'"),
        (([Call(), png(1)], [True]), r"found (__builtin__|builtins)\.print; wanted only"),
    ],
)
def test_what_is_no_packed_pairs(tmp_path: Path, value: Any, match: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match=match):
        FacePairs(tmp_path, "lfw")
    assert capsys.readouterr().out == ""


def test_pairs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="root"):
        FacePairs(tmp_path / "no", "lfw")
    with pytest.raises(ValueError, match=r"found neither lfw\.bin nor lfw/pairs\.txt"):
        FacePairs(tmp_path, "lfw")
    with pytest.raises(ValueError, match=r"name: got '\.\./lfw'"):
        FacePairs(tmp_path, "../lfw")
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps(([b"no", b"picture"], [True])))
    with pytest.raises(ValueError, match="lfw, picture 1: found no picture"):
        FacePairs(tmp_path, "lfw")[1]


# --- alignment ---


def smooth(size: int = 112) -> torch.Tensor:
    y, x = torch.meshgrid(*[torch.arange(size).double()] * 2, indexing="ij")
    return torch.stack([x, y, x + y]) / (2 * size)


def test_an_aligned_face_stays() -> None:
    image = torch.rand(3, 112, 112, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(align_face(image, POINTS), image, atol=1e-4, rtol=0)


def test_a_face_is_moved_turned_and_scaled_into_place() -> None:
    angle, scale = math.radians(25), 1.7
    turn = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    landmarks = POINTS @ turn.T + torch.tensor([70.0, -12.0])
    found = align_face(smooth(300), landmarks)
    rows, columns = torch.tensor([[40, 60, 70], [45, 56, 80]])
    places = torch.stack([columns, rows], 1).double() @ turn.T.double() + torch.tensor([70.0, -12.0]).double()
    expected = torch.stack([places[:, 0], places[:, 1], places.sum(1)]) / 600
    torch.testing.assert_close(found[:, rows, columns], expected, atol=1e-5, rtol=0)


def test_alignment_is_the_similarity_of_scikit_image() -> None:
    transform = pytest.importorskip("skimage.transform", reason="the peer")
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).double()
    landmarks = POINTS.double() * 1.3 + 20 + 4 * noise
    theirs = transform.SimilarityTransform.from_estimate(landmarks.numpy(), POINTS.double().numpy())
    expected = transform.warp(smooth(200)[0].numpy(), theirs.inverse, output_shape=(112, 112), order=1)
    found = align_face(smooth(200)[:1], landmarks)[0]
    inside = slice(5, -5)
    torch.testing.assert_close(found[inside, inside], torch.from_numpy(expected)[inside, inside], atol=1e-6, rtol=0)


def test_another_size_is_the_same_face() -> None:
    small = align_face(smooth(), POINTS, 56)
    assert small.shape == (3, 56, 56)
    torch.testing.assert_close(small[:, 10:40, 10:40], smooth()[:, 20:80:2, 20:80:2], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("image", "landmarks", "match"),
    [
        (torch.zeros(3, 4), POINTS, r"image: got \(3, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), POINTS, "image: got .*uint8"),
        (torch.zeros(3, 4, 4), POINTS[:4], r"landmarks, size: got \(4, 2\)"),
        (torch.zeros(3, 4, 4), torch.ones(5, 2), "wanted five places that differ"),
        (torch.zeros(3, 4, 4), POINTS * math.nan, "wanted five places that differ"),
    ],
)
def test_alignment_refuses(image: torch.Tensor, landmarks: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        align_face(image, landmarks)


# --- templates ---


def ijb(root: Path, **changed: list[str]) -> Path:
    landmarks = " ".join(f"{v}" for place in FIVE_POINTS for v in place)
    tables = {
        "face_tid_mid": [f"{i}.png {10 + i // 2} {i}" for i in range(4)],
        "name_5pts_score": [f"{i}.png {landmarks} 0.{i + 1}" for i in range(4)],
        "template_pair_label": ["10 11 0", "11 11 1"],
    } | changed
    (root / "meta").mkdir(exist_ok=True)
    (root / "loose_crop").mkdir(exist_ok=True)
    for i in range(4):
        (root / "loose_crop" / f"{i}.png").write_bytes(png(i))
    for name, rows in tables.items():
        (root / "meta" / f"ijbc_{name}.txt").write_text("\n".join(rows))
    return root


def test_templates(tmp_path: Path) -> None:
    found = IJBTemplates(ijb(tmp_path))
    assert found.templates.tolist() == [10, 10, 11, 11]
    assert found.media.tolist() == [0, 1, 2, 3]
    assert found.detected.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert found.pairs.tolist() == [[10, 11], [11, 11]]
    assert found.same.tolist() == [False, True]
    torch.testing.assert_close(found.landmarks[2].float(), POINTS)
    assert found[1].shape == (3, 112, 112)
    assert found[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"face_tid_mid": ["0.png 10 0"]}, "has 1 faces and 4 with landmarks"),
        ({"face_tid_mid": ["0.png 10"]}, "wanted lines of 3 columns"),
        ({"template_pair_label": ["10 12 0"]}, "pairs of templates without a face"),
        ({"template_pair_label": ["10 x 0"]}, "wanted lines of 3 columns"),
        ({"template_pair_label": []}, "found no line"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_templates_refuse(tmp_path: Path, changed: dict[str, list[str]], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        IJBTemplates(ijb(tmp_path, **changed))


def test_templates_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="root"):
        IJBTemplates(tmp_path / "no")
    with pytest.raises(ValueError, match="name: got 'ijba'"):
        IJBTemplates(tmp_path, "ijba")
    with pytest.raises(ValueError, match=r"found no ijbc_face_tid_mid\.txt"):
        IJBTemplates(tmp_path)
    names = ["../0.png 10 0"]
    points = ["../0.png " + " ".join("1" * 10) + " 1"]
    with pytest.raises(ValueError, match="wanted one below the pictures"):
        IJBTemplates(ijb(tmp_path, face_tid_mid=names, name_5pts_score=points, template_pair_label=["10 10 1"]))
