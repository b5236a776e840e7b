"""How a map of any size is cut into the windows of Gated-SwinRMT, and who may attend to whom in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paperworks.swin.gated_swinrmt.decay import adaptive_window, kept
from paperworks.swin.gated_swinrmt.masks import AxisMasks
from paperworks.swin.windows import cyclic_shift, pad_to_window, window_partition, window_reverse

if TYPE_CHECKING:
    from paperworks.swin.gated_swinrmt.network import GatedSwinRMT

__all__ = ["MapWindows", "StageWindows", "effective_window_report"]

Pair = tuple[int, int]


@dataclass(frozen=True)
class MapWindows:
    """The windows of one map: it is padded at the end of its axes, rolled by minus the shift, and cut.

    Attributes:
        space: height and width of the map.
        window: of its windows.
        shift: 0 on an axis that is not rolled.
    """

    space: Pair
    window: Pair
    shift: Pair

    @staticmethod
    def adapted(space: Pair, nominal: Pair, shifted: bool) -> MapWindows:
        """The windows of `adaptive_window` on each axis; an axis that is one window is not shifted."""
        windows, shifts = [], []
        for size, wanted in zip(space, nominal, strict=True):
            window, padding = adaptive_window(size, wanted)
            windows.append(window)
            shifts.append(window // 2 if shifted and window < size + padding else 0)
        return MapWindows(space, (windows[0], windows[1]), (shifts[0], shifts[1]))

    @property
    def grid(self) -> Pair:
        """The size after padding."""
        (height, width), (h, w) = self.space, self.window
        return -(-height // h) * h, -(-width // w) * w

    @property
    def padding(self) -> Pair:
        """Tokens added at the end of each axis."""
        return self.grid[0] - self.space[0], self.grid[1] - self.space[1]

    def cut(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B x windows, h, w, C)."""
        x = cyclic_shift(pad_to_window(x, self.window)[0], self.shift)
        return window_partition(x, self.window).unflatten(1, self.window)

    def join(self, windows: Tensor) -> Tensor:
        """The inverse of `cut`; padding is cut off."""
        x = cyclic_shift(window_reverse(windows.flatten(1, 2), self.window, self.grid), self.shift, undo=True)
        return x[:, : self.space[0], : self.space[1]]

    def masks(self, device: torch.device) -> AxisMasks | None:
        """Tokens attend where both or neither were rolled round the end, and never to padding; None where all may."""
        if not any(self.shift) and self.grid == self.space:
            return None
        masks: AxisMasks = _masks(self, device)
        return masks


@kept
def _masks(windows: MapWindows, device: torch.device) -> AxisMasks:
    allowed = []
    for size, grid, window, shift in zip(windows.space, windows.grid, windows.window, windows.shift, strict=True):
        place = torch.arange(grid, device="cpu")
        wrapped, real = (place >= grid - shift).view(-1, window), ((place + shift) % grid < size).view(-1, window)
        allowed.append((wrapped[:, :, None] == wrapped[:, None, :]) & real[:, None, :])
    columns, rows = allowed  # down the height, along the width
    down, along = len(columns), len(rows)
    return AxisMasks(
        rows.repeat(down, 1, 1).unsqueeze(1).to(device),
        columns.repeat_interleave(along, 0).unsqueeze(1).to(device),
    )


@dataclass(frozen=True)
class StageWindows:
    """What the attention of a stage sees at one input size.

    Attributes:
        stage: number of the stage, from 1.
        space: the map.
        window, padding: of its windows.
    """

    stage: int
    space: Pair
    window: Pair
    padding: Pair

    @property
    def is_global(self) -> bool:
        """Whether one window spans the map."""
        return self.window == self.space


def effective_window_report(model: GatedSwinRMT, size: int | Sequence[int]) -> list[StageWindows]:
    """The windows that each stage of `model` really has on images of `size`: where attention has become global.

    Args:
        model: a `GatedSwinRMT`; of the variant "rmt" every stage is global.
        size: side of the images, or (height, width).
    """
    height, width = (size, size) if isinstance(size, int) else (int(n) for n in size)
    if min(height, width) < 1:
        raise ValueError(f"size: got {size}, wanted positive numbers")
    found = []
    for stage, space in enumerate(model.map_sizes((height, width)), 1):
        nominal = space if model.variant == "rmt" else (model.window_size, model.window_size)
        windows = MapWindows.adapted(space, nominal, shifted=False)
        found.append(StageWindows(stage, space, windows.window, windows.padding))
    return found
