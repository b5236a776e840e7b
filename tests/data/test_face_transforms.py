"""RandAugment on tensors: its operations beside Pillow's, their zeros and ends, its draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from paperworks.data.face_transforms import OPERATIONS, FaceTransform, RandAugment, augmented

PLAIN = {"autocontrast", "equalize", "invert", "posterize"}
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
GREY = (128, 128, 128)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bytes_of(height: int = 24, width: int = 30) -> np.ndarray:
    """A picture of 8 bits with smooth and noisy channels."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(20, 230, (height, width))
    return np.stack([40 + 6 * x, noise, 200 - 3 * y - 2 * x], 2).astype(np.uint8)


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.transpose(2, 0, 1).copy()).float() / 255


PICTURE = tensor(bytes_of())


@pytest.mark.parametrize("name", OPERATIONS)
def test_shape_type_and_range(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        for magnitude in (-10, -3.3, 0, 9, 10):
            x = PICTURE.to(dtype)
            found = augmented(x, name, magnitude)
            assert (found.shape, found.dtype) == (x.shape, dtype)
            assert 0 <= found.min() <= found.max() <= 1
            assert torch.equal(x, PICTURE.to(dtype)), "the picture is left as it is"


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in PLAIN])
def test_no_magnitude_is_no_change(name: str) -> None:
    torch.testing.assert_close(augmented(PICTURE, name, 0.0), PICTURE, atol=1e-4, rtol=0)
    assert float((augmented(PICTURE, name, 9.0) - PICTURE).abs().max()) > 0.1


def theirs(name: str, sign: int) -> Any:
    """Pillow's operation at magnitude 9 of 10."""
    enhance = {
        "color": ImageEnhance.Color, "contrast": ImageEnhance.Contrast, "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }  # fmt: skip
    if name in enhance:
        return lambda x: enhance[name](x).enhance(1 + sign * 0.81)
    simple = {
        "autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "invert": ImageOps.invert,
        "posterize": lambda x: ImageOps.posterize(x, 1),
        "solarize": lambda x: ImageOps.solarize(x, 256 - 230),
        "solarize_add": lambda x: x.point(([min(255, i + 99) if i < 128 else i for i in range(256)]) * 3),
    }  # fmt: skip
    return simple[name]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in MOVES])
def test_values_beside_pillow(name: str, sign: int) -> None:
    expected = tensor(np.asarray(theirs(name, sign)(Image.fromarray(bytes_of()))))
    # Pillow rounds to whole numbers, also on the way
    exact = name in ("equalize", "invert", "posterize", "solarize", "solarize_add")
    allowed = 1e-6 if exact else 2.5 / 255
    torch.testing.assert_close(augmented(PICTURE, name, sign * 9.0), expected, atol=allowed, rtol=0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", MOVES)
def test_moves_beside_pillow(name: str, sign: int) -> None:
    y, x = np.mgrid[:40, :48]
    values = np.stack([100 + 2 * x, 90 + 3 * y, 60 + x + 2 * y], 2).astype(np.uint8)
    share = sign * 0.9
    picture = Image.fromarray(values)
    matrix = {
        "shear_x": (1, 0.3 * share, 0, 0, 1, 0), "shear_y": (1, 0, 0, 0.3 * share, 1, 0),
        "translate_x": (1, 0, 0.45 * share * 48, 0, 1, 0), "translate_y": (1, 0, 0, 0, 1, 0.45 * share * 40),
    }  # fmt: skip
    kind = Image.Resampling.BICUBIC
    if name == "rotate":
        moved = picture.rotate(30 * share, kind, fillcolor=GREY)
    else:
        moved = picture.transform(picture.size, Image.Transform.AFFINE, matrix[name], kind, fillcolor=GREY)
    expected, found = tensor(np.asarray(moved)), augmented(tensor(values), name, sign * 9.0)
    apart = ((found - expected).abs().amax(0) > 2.5 / 255).float()
    assert apart.mean() < 0.12, "but for the edges of what was moved"
    assert apart[18:22, 22:26].sum() == 0


def test_the_ends_of_the_ranges() -> None:
    assert float(augmented(PICTURE, "posterize", 10.0).max()) == 0
    torch.testing.assert_close(augmented(PICTURE, "solarize", 10.0), 1 - PICTURE)
    torch.testing.assert_close(augmented(PICTURE, "brightness", -10.0), 0.1 * PICTURE)
    one = torch.full((3, 8, 8), 100 / 255)
    for name in ("autocontrast", "equalize", "contrast"):
        torch.testing.assert_close(augmented(one, name, 9.0), one, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image": torch.zeros(1, 4, 4)}, r"image: got \(1, 4, 4\)"),
        ({"image": torch.zeros(3, 4, 4, dtype=torch.uint8)}, "image: got .*uint8"),
        ({"image": torch.zeros(3, 0, 4)}, "image: got"),
        ({"name": "cutout"}, "name: got 'cutout', wanted one of autocontrast"),
        ({"magnitude": 10.5}, "magnitude: got 10.5, wanted -10 to 10"),
        ({"magnitude": math.nan}, "magnitude: got nan"),
    ],
)
def test_an_operation_refuses(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        augmented(**{"image": PICTURE, "name": "rotate", "magnitude": 1.0, **change})


def test_a_generator_makes_the_changes() -> None:
    one, two = (RandAugment(generator=seeded(5)) for _ in range(2))
    for _ in range(20):
        assert torch.equal(one(PICTURE), two(PICTURE))
    state = torch.get_rng_state()
    one(PICTURE)
    assert torch.equal(torch.get_rng_state(), state)


def test_how_often_and_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    from paperworks.data import face_transforms

    drawn: list[tuple[str, float]] = []

    def noted(image: torch.Tensor, name: str, magnitude: float) -> torch.Tensor:
        drawn.append((name, magnitude))
        return image

    monkeypatch.setattr(face_transforms, "augmented", noted)
    change = RandAugment(generator=seeded())
    for _ in range(2000):
        change(PICTURE)
    assert len(drawn) == pytest.approx(2000, rel=0.06), "two operations, each with probability 1/2"
    assert {name for name, _ in drawn} == set(OPERATIONS)
    sizes = torch.tensor([abs(m) for _, m in drawn])
    assert float(sizes.max()) <= 10
    assert float(sizes.mean()) == pytest.approx(9, abs=0.05)
    assert float(sizes.std()) == pytest.approx(0.5, abs=0.04)
    assert sum(m > 0 for _, m in drawn) / len(drawn) == pytest.approx(0.5, abs=0.04)


def test_never_and_nothing() -> None:
    for options in ({"operations": 0}, {"probability": 0.0}):
        assert torch.equal(RandAugment(**options)(PICTURE), PICTURE)
    for options, match in (
        ({"magnitude": 11}, "magnitude: got 11"),
        ({"deviation": -1}, "deviation: got -1"),
        ({"operations": -1}, "operations: got -1"),
        ({"probability": 1.5}, "probability: got 1.5"),
    ):
        with pytest.raises(ValueError, match=match):
            RandAugment(**options)


def test_as_a_part_of_the_transform() -> None:
    still = {"flip": 0.0, "rotation": 0.0, "autocontrast": 0.0}
    plain = FaceTransform(24)(PICTURE)
    inverted = FaceTransform(24, True, augment=lambda x: 1 - x, **still)(PICTURE)
    torch.testing.assert_close(inverted, -plain, atol=1e-6, rtol=0)
    assert torch.equal(FaceTransform(24, False, augment=lambda x: 1 - x)(PICTURE), plain)
    grey = FaceTransform(24, True, augment=RandAugment(generator=seeded()), **still)(PICTURE[:1])
    assert grey.shape == (3, 24, 24)
