"""Pictures of faces as inputs of one size, with the usual changes while training, RandAugment among them.

RandAugment (1909.13719) in timm's form, rand-m9-mstd0.5-inc1: see `RandAugment`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.data.images import LUMA, convert, resize

__all__ = ["OPERATIONS", "FaceTransform", "RandAugment", "augmented"]

OPERATIONS = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
"""What `RandAugment` draws from."""
STRONGEST = 10.0
GREY = 128 / 255


def stretched(x: Tensor) -> Tensor:
    """Each channel of (..., H, W) stretched to [0, 1]; one of a single value is left as it is."""
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-6), x)


def equalized(x: Tensor) -> Tensor:
    """Each channel of (C, H, W) with as even a histogram of 256 values as a map of values makes it."""
    found = []
    for channel in (x * 255).round().long():
        counts = torch.bincount(channel.flatten(), minlength=256)
        step = int(counts.sum() - counts[counts > 0][-1]) // 255
        table = torch.arange(256, device=x.device)
        if step:
            table = ((step // 2 + counts.cumsum(0) - counts) // step).clamp(max=255)
        found.append(table[channel])
    return torch.stack(found).to(x.dtype) / 255


def blended(x: Tensor, name: str, factor: float) -> Tensor:
    """(3, H, W) away from its duller form (factor 0) by `factor`; 1 leaves it as it is."""
    luma = torch.einsum("chw,c->hw", x, x.new_tensor(LUMA))
    if name == "sharpness":
        kernel = x.new_ones(3, 1, 3, 3) / 13
        kernel[:, :, 1, 1] = 5 / 13
        dull = x.clone()
        if min(x.shape[1:]) > 2:
            dull[:, 1:-1, 1:-1] = F.conv2d(x[None], kernel, groups=3)[0]
    else:
        dull = {"color": luma.expand_as(x), "contrast": luma.mean().expand_as(x), "brightness": torch.zeros_like(x)}[
            name
        ]
    return (dull + factor * (x - dull)).clamp(0, 1)


def moved(x: Tensor, name: str, share: float) -> Tensor:
    """(3, H, W) rotated, sheared or moved by a share, in [-1, 1], of the most there is; grey where nothing was."""
    height, width = x.shape[1:]
    a = math.radians(30 * share)
    # the place in the picture, in pixels from the centre, that a place of the result is read from
    (xx, xy, x0), (yx, yy, y0) = {
        "rotate": ((math.cos(a), -math.sin(a), 0.0), (math.sin(a), math.cos(a), 0.0)),
        "shear_x": ((1.0, 0.3 * share, 0.3 * share * height / 2), (0.0, 1.0, 0.0)),
        "shear_y": ((1.0, 0.0, 0.0), (0.3 * share, 1.0, 0.3 * share * width / 2)),
        "translate_x": ((1.0, 0.0, 0.45 * share * width), (0.0, 1.0, 0.0)),
        "translate_y": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.45 * share * height)),
    }[name]
    matrix = [[xx, xy * height / width, 2 * x0 / width], [yx * width / height, yy, 2 * y0 / height]]
    grid = F.affine_grid(x.new_tensor([matrix]), [1, *x.shape], align_corners=False)
    return (F.grid_sample(x[None] - GREY, grid, mode="bicubic", align_corners=False)[0] + GREY).clamp(0, 1)


def augmented(image: Tensor, name: str, magnitude: float) -> Tensor:
    """One operation of RandAugment on (3, H, W), floating, in [0, 1].

    At magnitude 0 a picture is as it was, but for "autocontrast", "equalize" and "invert", which have no magnitude, and
    "posterize", which goes from 4 bits of 8 at 0 to none at 10, as in timm.

    Args:
        image: the picture.
        name: one of `OPERATIONS`.
        magnitude: -10 to 10; the sign is the direction, where an operation has one. 10 is 30 degrees, 30 % of a shear,
            45 % of the side, 0.1 or 1.9 times the colour, contrast, brightness or sharpness, all values inverted, or
            110 of 255 added to the darker half.
    """
    if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point() or image.numel() == 0:
        got = f"{tuple(image.shape)}, {image.dtype}"
        raise ValueError(f"image: got {got}, wanted a floating tensor (3, H, W)")
    if name not in OPERATIONS:
        raise ValueError(f"name: got {name!r}, wanted one of {', '.join(OPERATIONS)}")
    if not abs(magnitude) <= STRONGEST:
        raise ValueError(f"magnitude: got {magnitude}, wanted -{STRONGEST:g} to {STRONGEST:g}")
    share = magnitude / STRONGEST
    if name in ("color", "contrast", "brightness", "sharpness"):
        return blended(image, name, max(0.1, 1 + 0.9 * share))
    if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        return moved(image, name, share)
    if name == "posterize":
        step = 2 ** (4 + int(4 * abs(share)))
        return (image * 255).round().div(step, rounding_mode="floor") * step / 255
    if name == "solarize":
        threshold = (256 - int(256 * abs(share)) - 0.5) / 255
        return torch.where(image >= threshold, 1 - image, image)
    if name == "solarize_add":
        lighter = (image + int(110 * abs(share)) / 255).clamp(max=1)
        return torch.where(image < 127.5 / 255, lighter, image)
    return {"autocontrast": stretched, "equalize": equalized, "invert": lambda x: 1 - x}[name](image)


class RandAugment:
    """Some operations, drawn from `OPERATIONS` with replacement, each done with a probability, at about one magnitude.

    The defaults are what the published training of SwinFace asks timm for: two operations, probability 1/2, magnitude 9
    out of 10 with a deviation of 0.5.

    Args:
        magnitude: mean, 0 to 10.
        deviation: of the normal distribution that a magnitude is drawn from, cut to 0 to 10.
        operations: a picture.
        probability: of each operation.
        generator: source of the draws; by default torch's global one.
    """

    def __init__(
        self,
        magnitude: float = 9.0,
        deviation: float = 0.5,
        operations: int = 2,
        probability: float = 0.5,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 <= magnitude <= STRONGEST:
            raise ValueError(f"magnitude: got {magnitude}, wanted 0 to {STRONGEST:g}")
        if not 0 <= deviation < math.inf:
            raise ValueError(f"deviation: got {deviation}, wanted a number from 0")
        if operations < 0:
            raise ValueError(f"operations: got {operations}, wanted 0 or more")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability: got {probability}, wanted a number from 0 to 1")
        self.magnitude, self.deviation, self.operations = magnitude, deviation, operations
        self.probability, self.generator = probability, generator

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) in [0, 1], changed."""
        for _ in range(self.operations):
            which = int(torch.randint(len(OPERATIONS), (), generator=self.generator))
            done, sign = torch.rand(2, generator=self.generator).tolist()
            drawn = self.magnitude + self.deviation * float(torch.randn((), generator=self.generator))
            if done < self.probability:
                strength = min(max(drawn, 0.0), STRONGEST)
                image = augmented(image, OPERATIONS[which], strength if sign < 0.5 else -strength)
        return image


class FaceTransform:
    """A picture (1 or 3, H, W) in [0, 1] as (3, size, size), normalised to (x - 0.5) / 0.5.

    With ``train=True`` it is changed at random first. The defaults are the recipe credited to the paper; ours for small
    sets is ``rotation=0, autocontrast=0, jitter=0.3, erasing=0.25``. SwinFace's are
    `paperworks.swin.swinface.training_transform`.

    Args:
        size: side in pixels; the picture is scaled to cover it and cut at the centre.
        train: change it.
        flip: probability of a mirror image.
        rotation: rotated by up to so many degrees either way.
        autocontrast: probability that each channel is stretched to [0, 1].
        jitter: brightness and contrast are multiplied by 1 - jitter to 1 + jitter.
        erasing: probability that a rectangle of 2 % to 20 % of the area is set to grey.
        augment: further changes to the picture (3, size, size) in [0, 1], behind the mirror: `RandAugment`.
        generator: source of the changes; by default torch's global one, which data loaders seed for each worker.
    """

    def __init__(
        self,
        size: int = 224,
        train: bool = False,
        *,
        flip: float = 0.5,
        rotation: float = 10.0,
        autocontrast: float = 0.5,
        jitter: float = 0.0,
        erasing: float = 0.0,
        augment: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"size: got {size}, wanted 1 or more")
        for name, value, most in (
            ("flip", flip, 1), ("rotation", rotation, 180), ("autocontrast", autocontrast, 1), ("jitter", jitter, 1),
            ("erasing", erasing, 1),
        ):  # fmt: skip
            if not 0 <= value <= most:
                raise ValueError(f"{name}: got {value}, wanted a number from 0 to {most}")
        self.size, self.train, self.flip, self.rotation = size, train, flip, rotation
        self.autocontrast, self.jitter, self.erasing, self.generator = autocontrast, jitter, erasing, generator
        self.augment = augment

    def __call__(self, image: Tensor) -> Tensor:
        """The input for a network, float32 (3, size, size)."""
        x = resize(convert(image[None], "rgb"), self.size, self.size)
        if self.train:
            x = self._changed(x)
        return (x[0] - 0.5) / 0.5

    def _draw(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def _changed(self, x: Tensor) -> Tensor:
        if self._draw(0, 1) < self.flip:
            x = x.flip(-1)
        if self.augment is not None:
            x = self.augment(x[0])[None]
        if self.rotation:
            a = math.radians(self._draw(-self.rotation, self.rotation))
            turn = torch.tensor([[[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]]])
            x = F.grid_sample(x, F.affine_grid(turn, list(x.shape), align_corners=False), align_corners=False)
        if self._draw(0, 1) < self.autocontrast:
            x = stretched(x)
        if self.jitter:
            mean = x.mean()
            contrast, brightness = (self._draw(1 - self.jitter, 1 + self.jitter) for _ in range(2))
            x = (((x - mean) * contrast + mean) * brightness).clamp(0, 1)
        if self._draw(0, 1) < self.erasing:
            x = self._erased(x)
        return x

    def _erased(self, x: Tensor) -> Tensor:
        area, ratio = self._draw(0.02, 0.2), math.exp(self._draw(-1.0, 1.0))
        height = min(self.size, max(1, round(self.size * math.sqrt(area * ratio))))
        width = min(self.size, max(1, round(self.size * math.sqrt(area / ratio))))
        top, left = (int(self._draw(0, self.size - side + 1)) for side in (height, width))
        x = x.clone()
        x[:, :, top : top + height, left : left + width] = 0.5
        return x
