"""The activations x1 = sigma(gate) * up of every gated MLP in a forward pass: their L1 norm and their share of zeros.

sparsity of an input = share of exact zeros in x1;   the model's = its mean over layers and many tokens    (section 3)
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from paperworks.surgery.gated_mlps import find_gated_mlps
from paperworks.surgery.recording import Recorder, valid

REDUCTIONS = ("mean", "token_norm")


def checked_reduction(reduction: str) -> str:
    """`reduction`, or ValueError naming the known ones."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}, wanted one of {', '.join(REDUCTIONS)}")
    return reduction


class ActivationRecorder(AbstractContextManager["ActivationRecorder"]):
    """Records x1, the input of every `down_proj`, with its graph, while the block runs the model.

    It holds the latest forward pass, also after the block ended; a further pass replaces it. What gradient
    checkpointing computes again is not counted twice.

    Args:
        model: a model with gated MLPs, or a wrapper around one that is called itself.

    Raises ValueError for a model without gated MLPs.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = [f"{name}.down_proj" if name else "down_proj" for name, _ in find_gated_mlps(model)]
        self._recorder = Recorder(model, self.names)

    def __enter__(self) -> ActivationRecorder:
        self._recorder.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._recorder.__exit__(*exception)

    def rows(self, attention_mask: Tensor | None = None) -> list[Tensor]:
        """x1 of the valid tokens of every layer, (N, d_ff) each, with graph.

        Args:
            attention_mask: (B, T), 1 = valid; all tokens are without one.

        Raises RuntimeError before the first pass, ValueError where the mask has another shape.
        """
        return [_valid_rows(values, attention_mask) for values in self._recorder.values.values()]

    def l1(self, attention_mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """The L1 norm of x1, reduced and then summed over the layers: a float32 (or float64) scalar with graph.

        Args:
            attention_mask: (B, T), 1 = valid.
            reduction: "mean" over valid tokens and channels, or "token_norm": the norm of a token, mean over tokens.

        Where no token is valid it is 0.
        """
        checked_reduction(reduction)
        terms = []
        for row in self.rows(attention_mask):
            wide = torch.float64 if row.dtype == torch.float64 else torch.float32
            count = len(row) * (row.shape[-1] if reduction == "mean" else 1)
            terms.append(row.abs().sum(dtype=wide) / max(1, count))
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()

    def sparsity(self, attention_mask: Tensor | None = None) -> Tensor:
        """The share of exact zeros in x1 of the valid tokens, by layer: (layers,) float32; NaN where none is valid."""
        rows = self.rows(attention_mask)
        shares = [(row.detach() == 0).float().mean() for row in rows]
        return torch.stack([share.to(shares[0].device) for share in shares])


def _valid_rows(values: list[Tensor], mask: Tensor | None) -> Tensor:
    if mask is not None and len(values) > 1 and values[0].shape[:-1] != mask.shape:
        # the replicas of DataParallel each have their part of the batch, in the order of the devices
        values = sorted(values, key=lambda value: value.device.index or 0)
        if sum(len(value) for value in values) == len(mask):
            masks = mask.split([len(value) for value in values])
            parts = [valid(value, part) for value, part in zip(values, masks, strict=True)]
            return torch.cat([part.to(parts[0].device) for part in parts])
    parts = [valid(value, mask) for value in values]
    return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].device) for part in parts])
