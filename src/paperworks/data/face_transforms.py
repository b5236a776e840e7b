"""Pictures of faces as inputs of one size, with the usual changes while training."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.data.images import convert, resize

__all__ = ["FaceTransform"]


class FaceTransform:
    """A picture (1 or 3, H, W) in [0, 1] as (3, size, size), normalised to (x - 0.5) / 0.5.

    With ``train=True`` it is changed at random first. The defaults are the recipe credited to the paper; ours for small
    sets is ``rotation=0, autocontrast=0, jitter=0.3, erasing=0.25``.

    Args:
        size: side in pixels; the picture is scaled to cover it and cut at the centre.
        train: change it.
        flip: probability of a mirror image.
        rotation: rotated by up to so many degrees either way.
        autocontrast: probability that each channel is stretched to [0, 1].
        jitter: brightness and contrast are multiplied by 1 - jitter to 1 + jitter.
        erasing: probability that a rectangle of 2 % to 20 % of the area is set to grey.
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
        if self.rotation:
            a = math.radians(self._draw(-self.rotation, self.rotation))
            turn = torch.tensor([[[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]]])
            x = F.grid_sample(x, F.affine_grid(turn, list(x.shape), align_corners=False), align_corners=False)
        if self._draw(0, 1) < self.autocontrast:
            low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
            x = torch.where(high > low, (x - low) / (high - low).clamp(min=1e-6), x)
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
