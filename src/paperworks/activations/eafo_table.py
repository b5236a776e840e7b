"""An activation with a correction held as a one-dimensional table: what an EAFO search or fit returns."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.activations.eafo_densities import in_float
from paperworks.activations.eafo_derivatives import Function, slopes


def hermite(z: Tensor, low: float, high: float, values: Tensor, rates: Tensor) -> Tensor:
    """Piecewise cubic through `values` with slopes `rates` at evenly spaced nodes on [low, high]; constant outside.

    Args:
        z: points, any shape.
        low, high: first and last node.
        values, rates: (nodes,) each, in the dtype of `z`. Differentiable in all three tensors.
    """
    cells = values.shape[0] - 1
    step = (high - low) / cells
    position = (z.clamp(low, high) - low) / step
    cell = position.detach().nan_to_num(0.0).long().clamp(0, cells - 1)
    u = position - cell
    rise, first, last = values.diff(), rates[:-1] * step, rates[1:] * step
    square, cube = 3 * rise - 2 * first - last, first + last - 2 * rise
    return values[cell] + u * (first[cell] + u * (square[cell] + u * cube[cell]))


class TableActivation(nn.Module):
    """g(z) = scale (f(z) + t(z)) + shift: the activation f, exact, corrected by a cubic table t on [low, high].

    Beyond the table the correction is constant, so the tails are those of f. Differentiable in z (and in the table if
    `learnable`), any shape and floating dtype; half types use the table in float32.

    Args:
        base: f, an elementwise callable; a module is registered as a submodule.
        low, high: first and last node, low < high.
        values: (nodes,) t at evenly spaced nodes, at least two.
        rates: (nodes,) t' at the nodes.
        scale, shift: an affine map of the output.
        learnable: make `values` and `rates` parameters; buffers otherwise.

    Raises:
        ValueError: low >= high, or tables that are not two equally long vectors of at least two nodes.
    """

    values: Tensor
    rates: Tensor

    def __init__(
        self,
        base: Function,
        low: float,
        high: float,
        values: Tensor,
        rates: Tensor,
        *,
        scale: float = 1.0,
        shift: float = 0.0,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low, high: got {low}, {high}, wanted finite numbers with low < high")
        if values.dim() != 1 or values.shape != rates.shape or len(values) < 2:
            raise ValueError(
                f"values, rates: got shapes {tuple(values.shape)} and {tuple(rates.shape)}, wanted (n,) twice, n >= 2"
            )
        self.base, self.low, self.high = base, float(low), float(high)
        self.scale, self.shift = float(scale), float(shift)
        for name, table in (("values", values), ("rates", rates)):
            table = table.detach().clone()
            if learnable:
                self.register_parameter(name, nn.Parameter(table))
            else:
                self.register_buffer(name, table)

    def correction(self, z: Tensor) -> Tensor:
        """t(z)."""
        return in_float(lambda t: hermite(t, self.low, self.high, self.values.to(t), self.rates.to(t)), z)

    def forward(self, z: Tensor) -> Tensor:
        corrected = self.base(z) + self.correction(z)
        return corrected if (self.scale, self.shift) == (1.0, 0.0) else self.scale * corrected + self.shift

    def first_two_derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """g'(z) and g''(z)."""
        first, second = slopes(self.base, z)
        t1, t2 = slopes(self.correction, z)
        return self.scale * (first + t1), self.scale * (second + t2)

    def nodes(self) -> Tensor:
        """(nodes,) the z of the table, float64."""
        return torch.linspace(self.low, self.high, len(self.values), dtype=torch.float64)

    @torch.no_grad()
    def lookup(self, points: int = 4096, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """The whole activation as a one-dimensional lookup table, for a runtime that has nothing but those.

        Args:
            points: entries, evenly spaced on [low, high], at least 2.
            dtype: of the entries; one that `base` takes.

        Returns:
            (z, g(z)), two vectors of `points` entries; interpolate linearly between them.

        Raises:
            ValueError: points < 2.
        """
        if points < 2:
            raise ValueError(f"points: got {points}, wanted at least 2")
        z = torch.linspace(self.low, self.high, points, dtype=dtype, device=self.values.device)
        return z, self(z)

    def changed(self, **fields: Any) -> "TableActivation":
        """A new one with other arguments than this one's."""
        kept = {name: getattr(self, name) for name in ("base", "low", "high", "values", "rates", "scale", "shift")}
        return TableActivation(**{**kept, **fields})

    def extra_repr(self) -> str:
        return f"low={self.low:.4g}, high={self.high:.4g}, nodes={len(self.values)}"
