"""The exemplar adaptor: an affine map to M filters, then an affine map to C logits (section 4.1 of the paper)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Affine(nn.Linear):
    """A linear layer that leaves its initial weights to its owner and the global generator alone."""

    def reset_parameters(self) -> None:
        return


class ExemplarAdaptor(nn.Module):
    """h' = G (x - mean) / std + b_G,  z' = W'^T h' + b'.

    G is a 1-D convolution of M filters that each span the whole input, which is a linear layer; there is no
    nonlinearity between the two maps.  The input is normalised by one scalar mean and one scalar standard deviation.

    Args:
        in_features: D, size of the frozen embedding.
        num_classes: C.
        num_filters: M, size of the exemplar vector h'.
        generator: source of the initial weights; None takes torch's global one.
        device, dtype: of the parameters.

    State: conv.weight (M, D), conv.bias (M,), fc.weight (C, M), fc.bias (C,), norm_mean (), norm_std ().  A
    convolution's (M, 1, D) weight is taken as well.
    """

    norm_mean: Tensor
    norm_std: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        num_filters: int = 1000,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("in_features", in_features, 1),
            ("num_classes", num_classes, 2),
            ("num_filters", num_filters, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.conv = _Affine(in_features, num_filters, device=device, dtype=dtype)
        self.fc = _Affine(num_filters, num_classes, device=device, dtype=dtype)
        self.register_buffer("norm_mean", torch.zeros((), device=device, dtype=dtype))
        self.register_buffer("norm_std", torch.ones((), device=device, dtype=dtype))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights and biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's default for these layers."""
        with torch.no_grad():
            for layer in (self.conv, self.fc):
                bound = 1 / math.sqrt(layer.in_features)
                for parameter in (layer.weight, layer.bias):
                    # Drawn on the CPU so that a seed means the same weights on every device.
                    draw = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                    parameter.copy_(draw)

    @property
    def in_features(self) -> int:
        return self.conv.in_features

    @property
    def num_classes(self) -> int:
        return self.fc.out_features

    def fit_normalizer(self, x: Tensor) -> ExemplarAdaptor:
        """Set the scalar mean and standard deviation (ddof 1) over all entries of x (N, D); returns self.

        Constant input keeps its scale (std 1).

        Raises:
            ValueError: fewer than two entries, or non-finite ones.
        """
        # NumPy's pairwise sum in float64 does not depend on the number of threads.
        values = torch.as_tensor(x).detach().cpu().double().numpy()
        if values.size < 2:
            raise ValueError(f"x must hold at least two entries to have a standard deviation, got {values.size}")
        mean, std = float(values.mean()), float(values.std(ddof=1))
        if not (math.isfinite(mean) and math.isfinite(std)):
            raise ValueError("x must be finite, got NaN or infinity")
        self.norm_mean.fill_(mean)
        self.norm_std.fill_(std if std > 0 else 1.0)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, D) to (logits (B, C), exemplar vectors (B, M))."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x must have {self.in_features} features, got {x.shape[-1]}")
        exemplar = self.conv((x - self.norm_mean) / self.norm_std)
        return self.fc(exemplar), exemplar

    @torch.no_grad()
    def project(self, x: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor]:
        """`forward` accumulated in float64 and rounded once to the parameters' dtype.

        A row's result is then the same in any batch and with any number of threads, short of a tie in the last digit.
        """
        weights = [p.double() for p in (self.conv.weight, self.conv.bias, self.fc.weight, self.fc.bias)]
        mean, std, dtype = self.norm_mean.double(), self.norm_std.double(), self.fc.weight.dtype
        logits, exemplars = [], []
        for rows in x.split(chunk):
            h = F.linear((rows.to(mean.device).double() - mean) / std, weights[0], weights[1])
            exemplars.append(h.to(dtype))
            logits.append(F.linear(h, weights[2], weights[3]).to(dtype))
        return torch.cat(logits), torch.cat(exemplars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        weight = state_dict.get(prefix + "conv.weight")
        if isinstance(weight, Tensor) and weight.ndim == 3 and weight.shape[1] == 1:
            state_dict[prefix + "conv.weight"] = weight.squeeze(1)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
