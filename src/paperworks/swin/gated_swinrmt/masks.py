"""Which tokens of a window may attend to which, as the two passes see it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["AxisMasks"]

BLOCKED = -50.0
"""An additive mask at or below this means: may not attend."""


@dataclass(frozen=True)
class AxisMasks:
    """Who may attend to whom inside the rows and inside the columns of each window.

    Attributes:
        rows: bool (nW, h or 1, w, w), True where a token of a row may attend to another.
        columns: bool (nW, w or 1, h, h).
        row_scores, column_scores: what is added to the scores, of the same shapes, or None.
    """

    rows: Tensor
    columns: Tensor
    row_scores: Tensor | None = None
    column_scores: Tensor | None = None

    @property
    def windows(self) -> int:
        """nW."""
        return self.rows.shape[0]

    @staticmethod
    def of(mask: Tensor, h: int, w: int) -> AxisMasks:
        """The parts of a mask (nW, h w, h w), bool or additive, that the two passes look at."""
        grid = mask.view(mask.shape[0], h, w, h, w)
        rows = grid.diagonal(dim1=1, dim2=3).movedim(-1, 1)
        columns = grid.diagonal(dim1=2, dim2=4).movedim(-1, 1)
        if mask.dtype == torch.bool:
            return AxisMasks(rows, columns)
        return AxisMasks(rows > BLOCKED, columns > BLOCKED, rows, columns)
