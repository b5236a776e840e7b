"""Digit mosaics: a few handwritten digits on a photographed texture, with tags and masks. Offline, seeded.

Backgrounds are crops of grey textures that scikit-image carries; digits are scikit-learn's, scaled up and blended in,
lighter or darker than what is behind them. Tags say which digits are there, masks where their ink is. Training and test
mosaics share neither digits nor background: digits are divided inside their classes, textures at 60 and 65 % of their
width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.data.picture_crops import LEFT, RIGHT, grey_picture

__all__ = ["TEXTURES", "Mosaics", "digit_mosaics"]

TEXTURES = ("brick", "coins", "grass", "gravel", "immunohistochemistry", "moon")
CLASSES = 10
INK = 0.3
"""Pixels of a digit with more ink (0 to 1) than this count as the digit, and those beside them."""
TRIES = 50
TEST_SHARE = 0.3


@dataclass(frozen=True, eq=False)
class Mosaics:
    """Images with tags and masks.

    Attributes:
        images: float32 (N, 3, size, size), grey in three channels, each image of mean 0 and deviation 1.
        labels: float32 (N, K), 1 for a digit that is in the image.
        masks: int64 (N, size, size): 0 for the background, the number of the label + 1 on ink.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.images)


@cache
def _digits(held_out: bool) -> tuple[Tensor, Tensor]:
    """(n, 8, 8) ink in [0, 1] and (n,) digits of one of the two parts, always the same ones."""
    from sklearn.datasets import load_digits

    data = load_digits()
    ink, label = torch.from_numpy(data.images).float() / 16, torch.from_numpy(data.target).long()
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(0))
    chosen = []
    for digit in range(CLASSES):
        own = order[label[order] == digit]
        first = round(len(own) * TEST_SHARE)
        chosen.append(own[:first] if held_out else own[first:])
    rows = torch.cat(chosen)
    return ink[rows], label[rows]


Draws = Iterator[float]


def _uniform(generator: torch.Generator) -> Draws:
    """Numbers in [0, 1), drawn many at a time: one call for each would take longer than the pictures."""
    while True:
        yield from torch.rand(512, generator=generator).tolist()


def _below(n: int, draws: Draws) -> int:
    return int(next(draws) * n)


def _places(size: int, sides: list[int], draws: Draws) -> list[tuple[int, int, int]]:
    """(top, left, side) of squares that do not overlap; squares for which no place is found are left out."""
    placed: list[tuple[int, int, int]] = []
    for side in sides:
        for _ in range(TRIES):
            top, left = _below(size - side + 1, draws), _below(size - side + 1, draws)
            if all(
                top + side <= t or t + s <= top or left + side <= other or other + s <= left for t, other, s in placed
            ):
                placed.append((top, left, side))
                break
    return placed


def _background(size: int, held_out: bool, draws: Draws) -> Tensor:
    texture = grey_picture(TEXTURES[_below(len(TEXTURES), draws)])
    width = texture.shape[1]
    part = texture[:, int(width * RIGHT) :] if held_out else texture[:, : int(width * LEFT)]
    if size > min(part.shape):
        raise ValueError(f"size: got {size}, wanted at most {min(part.shape)} pixels")
    top, left = (_below(room - size + 1, draws) for room in part.shape)
    return part[top : top + size, left : left + size].clone()


@cache
def _drawn(row: int, side: int, held_out: bool) -> tuple[Tensor, Tensor]:
    """Ink of a digit at a size, and the pixels that count as it."""
    ink = _digits(held_out)[0][row][None, None]
    drawn = F.interpolate(ink, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    return drawn[0, 0], F.max_pool2d((drawn > INK).float(), 3, 1, 1)[0, 0] > 0


def digit_mosaics(
    n: int,
    size: int,
    generator: torch.Generator,
    *,
    held_out: bool = False,
    digits: Sequence[int] = tuple(range(CLASSES)),
    most: int = 3,
    sides: tuple[float, float] = (0.31, 0.44),
    contrast: tuple[float, float] = (0.4, 0.8),
    signs: Sequence[int] = (1, -1),
    texture: float = 1.0,
) -> Mosaics:
    """`n` mosaics of one to `most` digits.

    Args:
        n: how many.
        size: side in pixels, at most 134.
        generator: draws everything.
        held_out: from the digits and the parts of the textures that are kept for tests.
        digits: the digits that occur, each once, in the order of their labels.
        most: digits in an image at most; fewer where no place is left that does not overlap.
        sides: smallest and largest side of a digit, as shares of `size` (20 to 28 of 64 pixels).
        contrast: smallest and largest difference of full ink to the background, in grey in [0, 1].
        signs: of the contrast: 1 for lighter digits, -1 for darker ones.
        texture: contrast of the background about its mean, 1 as photographed.

    Raises ValueError for numbers that make no sense, ImportError without scikit-image.
    """
    if n < 1 or most < 1:
        raise ValueError(f"n, most: got {n} and {most}, wanted positive numbers")
    if not digits or len(set(digits)) != len(digits) or not set(digits) <= set(range(CLASSES)):
        raise ValueError(f"digits: got {tuple(digits)}, wanted different ones of 0 to 9")
    if not 8 <= round(size * sides[0]) <= round(size * sides[1]) <= size:
        raise ValueError(f"sides: got {sides} of {size} pixels, wanted a smaller and a larger share, from 8 pixels")
    number = {digit: i for i, digit in enumerate(digits)}
    kinds = [number.get(digit) for digit in _digits(held_out)[1].tolist()]
    rows = [row for row, label in enumerate(kinds) if label is not None]
    images, masks = torch.empty(n, 1, size, size), torch.zeros(n, size, size, dtype=torch.long)
    labels, draws = torch.zeros(n, len(number)), _uniform(generator)
    low, high = round(size * sides[0]), round(size * sides[1])
    for i in range(n):
        image = _background(size, held_out, draws)
        image = image.mean() + texture * (image - image.mean())
        wanted = [low + _below(high - low + 1, draws) for _ in range(1 + _below(most, draws))]
        for top, left, side in _places(size, wanted, draws):
            row = rows[_below(len(rows), draws)]
            label = kinds[row]
            assert label is not None
            drawn, solid = _drawn(row, side, held_out)
            strength = contrast[0] + (contrast[1] - contrast[0]) * next(draws)
            image[top : top + side, left : left + side] += signs[_below(len(signs), draws)] * strength * drawn
            masks[i, top : top + side, left : left + side][solid] = label + 1
            labels[i, label] = 1
        images[i, 0] = (image - image.mean()) / image.std(correction=0).clamp_min(1e-6)
    return Mosaics(images.expand(-1, 3, -1, -1), labels, masks)
