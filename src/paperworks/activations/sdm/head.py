"""A calibrated estimator as a module: an output layer that knows how far its input lies from the training data."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .functional import sdm
from .state import SDMState
from .support import SupportIndex


class SDMHead(nn.Module):
    """p of Eq. 7 for features (..., D), in place of a linear layer with softmax.

    q and d come from the exemplars of the training data and the distance eCDFs of the calibration data, and are
    constants: gradients flow through the logits alone.  Exemplars and distances are buffers; they belong to the
    adaptor's weights and go stale if those are trained further.

    Args:
        state: a fitted `SDMState`, such as `SDMClassifier.state_`.
    """

    exemplars: Tensor
    labels: Tensor
    predictions: Tensor

    def __init__(self, state: SDMState) -> None:
        super().__init__()
        self.adaptor = copy.deepcopy(state.adaptor)
        for name in ("exemplars", "labels", "predictions"):
            self.register_buffer(name, getattr(state.index, name).clone())
        self.num_classes = state.adaptor.num_classes
        for c, ecdf in enumerate(state.cal_distances):
            self.register_buffer(f"distances_{c}", torch.tensor(ecdf.values, device=self.exemplars.device))
        self._index: SupportIndex | None = None
        self._built_from: tuple[int, int] | None = None

    def _support(self) -> SupportIndex:
        # Built anew after a move to another device or dtype, which replaces the buffer, or a change of its values.
        source = (self.exemplars.data_ptr(), self.exemplars._version)
        if self._index is None or self._built_from != source:
            self._index = SupportIndex(self.exemplars, self.labels, self.predictions)
            self._built_from = source
        return self._index

    def evidence(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (..., C), q (...) and d (...) of features (..., D)."""
        logits, h = self.adaptor(x)
        flat = h.detach().reshape(-1, h.shape[-1]).to(self.exemplars.dtype)
        q, d_nearest = self._support().query(flat, logits.detach().reshape(-1, self.num_classes).argmax(-1))
        quantiles = []
        for c in range(self.num_classes):
            known: Tensor = getattr(self, f"distances_{c}")
            below = torch.searchsorted(known, d_nearest.to(known.dtype).contiguous())
            quantiles.append(1 - below / len(known) if len(known) else torch.zeros_like(d_nearest))
        d = torch.stack([quantile.to(logits.dtype) for quantile in quantiles]).amin(0)
        return logits, q.reshape(logits.shape[:-1]), d.reshape(logits.shape[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """SDM probabilities (..., C)."""
        return sdm(*self.evidence(x))
