"""Which mode for which sample: a linear router on pooled features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ModeRouter"]


class ModeRouter(nn.Module):
    """argmax of a linear map of features: the row of the mode for each sample, as `TauGateModel.set_mode` takes it.

    Args:
        in_features: number of features; features with positions, (N, T, F), are averaged over them.
        modes: names of the modes, in the model's order (`TauGateModel.modes`).
        device, dtype: of the weights.
    """

    def __init__(
        self,
        in_features: int,
        modes: Sequence[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(modes, str) or len(modes) < 1:
            raise ValueError(f"modes: got {modes!r}, wanted a list of one or more names")
        self.modes = list(modes)
        self.linear = nn.Linear(in_features, len(modes), device=device, dtype=dtype)

    def logits(self, features: Tensor) -> Tensor:
        """(N, F) or (N, ..., F) features to (N, modes)."""
        if features.ndim < 2 or features.shape[-1] != self.linear.in_features:
            got, want = tuple(features.shape), self.linear.in_features
            raise ValueError(f"features: got shape {got}, wanted (N, {want}) or (N, ..., {want})")
        pooled = features.flatten(1, -2).mean(1) if features.ndim > 2 else features
        return self.linear(pooled)

    def forward(self, features: Tensor) -> Tensor:
        """The chosen rows, int64 (N,)."""
        return self.logits(features).argmax(1)

    def fit(self, features: Tensor, rows: Tensor, *, weight_decay: float = 1e-3, steps: int = 100) -> float:
        """Logistic regression on features (N, F) with known rows (N,), from zero, by L-BFGS; returns the loss.

        Raises ValueError for rows that are no modes.
        """
        if rows.shape != features.shape[:1] or int(rows.min()) < 0 or int(rows.max()) >= len(self.modes):
            raise ValueError(f"rows: wanted ({len(features)},) numbers from 0 to {len(self.modes) - 1}")
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        optimizer = torch.optim.LBFGS(self.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(self.logits(features), rows) + weight_decay * self.linear.weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
            return closure().item()
