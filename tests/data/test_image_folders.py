from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from paperworks.data.images import ImageData, load_images

RNG = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB", **save: object) -> np.ndarray:
    """A random picture (width, height) saved at `path`; its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    Image.fromarray(pixels.squeeze(-1) if len(mode) == 1 else pixels, mode=None).save(path, **save)  # type: ignore[arg-type]
    return pixels


def load(spec: str) -> ImageData:
    """`load_images` where no warning is expected."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_images(spec)


def test_class_folders(tmp_path: Path) -> None:
    pixels = {n: picture(tmp_path / n) for n in ("dog/b.png", "cat/a.png", "cat/deep/er/c.bmp", "dog/d.PNG")}
    data = load(f"imagefolder:{tmp_path}")
    assert data.classes == ["cat", "dog"]
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.images.shape == (4, 3, 8, 8)
    expected = torch.from_numpy(pixels["cat/a.png"]).permute(2, 0, 1).float() / 255
    assert torch.equal(data.images[0], expected)
    assert data.held_out is None


@pytest.mark.parametrize(
    ("folders", "held"),
    [
        ({"train": 4, "val": 2}, {"val"}),
        ({"train": 4, "test": 2}, {"test"}),
        ({"Train": 4, "Validation": 2}, {"Validation"}),
        ({"train": 4, "val": 2, "test": 3}, {"test"}),
    ],
)
def test_parts_are_merged_and_publish_their_split(tmp_path: Path, folders: dict[str, int], held: set[str]) -> None:
    for folder, n in folders.items():
        for i in range(n):
            picture(tmp_path / folder / f"c{i % 2}" / f"{i}.png")
        (tmp_path / folder / "labels.csv").write_text("not a picture")
    data = load(f"imagefolder:{tmp_path}")
    assert data.classes == ["c0", "c1"]
    assert data.held_out is not None
    n_test = sum(n for folder, n in folders.items() if folder in held)
    assert [len(part) for part in data.split(0)] == [sum(folders.values()) - n_test, n_test]
    assert len(data.split(0, resplit=True)[0]) == sum(folders.values()) // 2


def test_train_alone_is_a_part_and_train_beside_other_classes_is_a_class(tmp_path: Path) -> None:
    picture(tmp_path / "one/train/cat/a.png")
    picture(tmp_path / "one/train/dog/a.png")
    assert load(f"imagefolder:{tmp_path}/one").classes == ["cat", "dog"]
    for name in ("train/a.png", "test/a.png", "bus/a.png"):
        picture(tmp_path / "two" / name)
    data = load(f"imagefolder:{tmp_path}/two")
    assert data.classes == ["bus", "test", "train"]
    assert data.held_out is None


def test_folders_beside_the_parts_and_stray_pictures_are_named(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "val/a/1.png", "test/unlabelled.png", "train/stray.jpg", "root.png"):
        picture(tmp_path / name)
    (tmp_path / "README.md").write_text("text")
    (tmp_path / "train" / "stray.jpg").unlink()
    with pytest.warns(UserWarning, match="test \\(1 files, no part of the split\\)") as caught:
        data = load_images(f"imagefolder:{tmp_path}")
    assert len(caught) == 1
    assert "2 files or folders left out: root.png (in no class folder)" in str(caught[0].message)
    assert len(data) == 2


def test_unreadable_files_are_counted_and_named_once(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "a" / f"{i}.png")
    picture(tmp_path / "a" / "cut.png", (64, 64))
    whole = (tmp_path / "a" / "cut.png").read_bytes()
    (tmp_path / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "notes.txt").write_text("hello")
    (tmp_path / "a" / "empty.jpg").write_bytes(b"")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.warns(UserWarning, match="left out") as caught:
        data = load_images(f"imagefolder:{tmp_path}")
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith(f"'imagefolder:{tmp_path}': 4 files or folders left out: ")
    for name in ("a/cut.png", "a/notes.txt", "a/empty.jpg", "gone/x.png"):
        assert name in message
    assert caught[0].filename == __file__
    assert (len(data), data.classes) == (3, ["a"])


def test_many_unreadable_files_are_shortened(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "ok.png")
    for i in range(9):
        (tmp_path / "a" / f"{i}.txt").write_text("")
    with pytest.warns(UserWarning, match="9 files or folders left out: .*a/4.txt.* and 4 more"):
        load_images(f"imagefolder:{tmp_path}")


def test_modes_are_handled(tmp_path: Path) -> None:
    gray = np.array([[0, 51], [102, 255]], np.uint8)
    folder = tmp_path / "a"
    folder.mkdir()
    Image.fromarray(gray).save(folder / "0_l.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "1_16bit.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "2_16bit.tif")
    Image.fromarray(gray.astype(np.float32) / 255).save(folder / "3_float.tif")
    Image.fromarray(np.stack([gray, np.full_like(gray, 255)], -1)).save(folder / "4_la.png")
    Image.fromarray(gray).save(folder / "5.pgm")
    data = load(f"imagefolder:{tmp_path}")
    assert data.in_channels == 1  # gray if all are
    expected = torch.from_numpy(gray).float().div(255).expand(6, 1, 2, 2)
    torch.testing.assert_close(data.images, expected, rtol=0, atol=1e-7)
    assert torch.equal(load(f"imagefolder:{tmp_path}?mode=rgb").images, data.images.expand(6, 3, 2, 2))


def test_palette_transparency_and_cmyk(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    red.quantize(4).save(folder / "0_palette.png")
    red.save(folder / "1.gif")
    clear = red.convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 0, 51))
    clear.save(folder / "2_alpha.png")
    red.save(folder / "3_trns.png", transparency=(255, 0, 0))
    red.convert("CMYK").save(folder / "4_cmyk.tif")
    one_bit = Image.new("1", (2, 2), 1)
    one_bit.save(folder / "5_bit.png")
    data = load(f"imagefolder:{tmp_path}")
    solid = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 2, 2)
    for i in (0, 1, 4):
        assert torch.equal(data.images[i], solid)
    assert data.images[2, :, 0, 0].tolist() == [1, 1, 1]  # what is transparent shows white
    assert data.images[2, :, 0, 1].tolist() == pytest.approx([0.8] * 3)
    assert torch.equal(data.images[2, :, 1], solid[:, 1])
    assert torch.equal(data.images[3], torch.ones(3, 2, 2))
    assert torch.equal(data.images[5], torch.ones(3, 2, 2))
    assert load(f"imagefolder:{tmp_path}?mode=gray").images[0, 0, 0, 0] == pytest.approx(0.299)


def test_gray_values_out_of_range_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    Image.fromarray(np.array([[0.0, 3.0]], np.float32)).save(folder / "x.tif")
    with pytest.raises(ValueError, match=r"a/x.tif \(gray values from 0.0 to 3.0, wanted 0 to 1\)"):
        load_images(f"imagefolder:{tmp_path}")


def test_exif_orientation_turns_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = picture(tmp_path / "a" / "x.png", (6, 4), exif=exif)
    data = load(f"imagefolder:{tmp_path}")
    assert data.images.shape == (1, 3, 6, 4)
    turned = np.rot90(pixels, k=-1).copy()
    assert torch.equal(data.images[0], torch.from_numpy(turned).permute(2, 0, 1).float() / 255)


def test_the_size_that_most_have_is_the_size(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "a" / f"{i}.png", (10, 6))
    picture(tmp_path / "a" / "3.png", (50, 20))
    assert load(f"imagefolder:{tmp_path}").images.shape == (4, 3, 6, 10)
    assert load(f"imagefolder:{tmp_path}?size=5").images.shape == (4, 3, 5, 5)
    assert load(f"imagefolder:{tmp_path}?size=5x7").images.shape == (4, 3, 5, 7)


def test_without_a_prevailing_size_the_median_side(tmp_path: Path) -> None:
    for i, size in enumerate([(10, 30), (14, 12), (40, 20)]):
        picture(tmp_path / "a" / f"{i}.png", size)
    assert load(f"imagefolder:{tmp_path}").images.shape == (3, 3, 12, 12)
    picture(tmp_path / "b" / "0.png", (300, 400))
    picture(tmp_path / "b" / "1.png", (500, 400))
    assert load(f"imagefolder:{tmp_path}/").image_size == 20
    for name in ("0", "1", "2"):
        (tmp_path / "a" / f"{name}.png").unlink()
    assert load(f"imagefolder:{tmp_path}").image_size == 224


def test_shorter_side_is_scaled_and_the_centre_kept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 255
    Image.fromarray(wide).save(tmp_path / "a" / "x.png")
    assert torch.equal(load(f"imagefolder:{tmp_path}?size=4").images, torch.ones(1, 3, 4, 4))


def test_jpeg_is_close_to_what_was_saved(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (16, 16), (10, 200, 60)).save(tmp_path / "a" / "x.jpg", quality=95)
    colour = load(f"imagefolder:{tmp_path}").images.mean(dim=(0, 2, 3)) * 255
    assert colour.tolist() == pytest.approx([10, 200, 60], abs=2)


def test_limit_is_stratified_and_always_the_same(tmp_path: Path) -> None:
    for part, n in (("train", 12), ("test", 6)):
        for i in range(n):
            picture(tmp_path / part / f"c{i % 3}" / f"{i}.png")
    data = load(f"imagefolder:{tmp_path}?limit=9")
    assert torch.bincount(data.labels).tolist() == [3, 3, 3]
    assert data.held_out is not None
    assert int(data.held_out.sum()) == 3
    assert torch.equal(load(f"imagefolder:{tmp_path}?limit=9").images, data.images)
    assert len(load(f"imagefolder:{tmp_path}?limit=99")) == 18


def test_links_out_of_the_folder_need_the_users_word(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "b.png")
    picture(tmp_path / "root" / "a" / "a.png")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    spec = f"imagefolder:{tmp_path}/root"
    with pytest.warns(UserWarning, match=r"b \(link out of the folder\)"):
        assert load_images(spec).classes == ["a"]
    assert load(f"{spec}?links=follow").classes == ["a", "b"]


def test_oversized_pictures_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a" / "small.png")
    picture(tmp_path / "a" / "large.png", (40, 30))
    monkeypatch.setattr("paperworks.data.image_folders.MAX_PIXELS", 1000)
    with pytest.warns(UserWarning, match=r"a/large.png \(40x30 pixels, wanted at most 1,000\)"):
        assert len(load_images(f"imagefolder:{tmp_path}")) == 1


def test_formats_that_start_programs_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(ValueError, match=r"none a picture in a class folder; left out: a/x\.png"):
        load_images(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize(
    ("files", "words"), [([], "0 files"), (["x.png"], "1 files in"), (["a/x.txt"], "left out: a/x.txt")]
)
def test_a_folder_without_pictures_says_what_it_has(tmp_path: Path, files: list[str], words: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=words) as caught:
        load_images(f"imagefolder:{tmp_path}")
    assert "wanted PATH/class/picture" in str(caught.value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    with pytest.raises(ValueError, match="found a file; wanted a folder"):
        load_images(f"imagefolder:{tmp_path}/x.png")
