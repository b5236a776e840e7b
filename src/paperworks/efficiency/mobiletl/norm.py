"""A batch norm whose statistics and scale stand still: only the shift trains, and no input is kept for it.

y = a x + (beta - a mu),   a = gamma / sqrt(sigma^2 + eps)        dx = a dy,   dbeta = sum over N, H, W of dy
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paperworks.efficiency.mobiletl.activation import SignedActivation, affine, shifted_activation

__all__ = ["ShiftOnlyNorm2d"]


class ShiftOnlyNorm2d(nn.Module):
    """Norm of (N, C, H, W) by fixed global statistics with a trainable shift; the same in train and eval mode.

    Args:
        num_features: C.
        eps: added to the variance.
        act: activation applied to the result, or None. With a signed activation both are one pass.

    Attributes:
        scale, mean, var: buffers (C,): gamma, mu and sigma^2.
        bias: parameter (C,): beta.

    Raises:
        ValueError: when called on anything but (N, C, H, W).
    """

    scale: Tensor
    mean: Tensor
    var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        act: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_features, self.eps = num_features, eps
        self.bias = nn.Parameter(torch.zeros(num_features, **where))
        self.register_buffer("scale", torch.ones(num_features, **where))
        self.register_buffer("mean", torch.zeros(num_features, **where))
        self.register_buffer("var", torch.ones(num_features, **where))
        self.drop: nn.Module | None = None
        self.act = act

    @classmethod
    def from_norm(cls, norm: nn.Module, act: nn.Module | None = None) -> ShiftOnlyNorm2d:
        """The same function as `norm` in eval mode.

        Args:
            norm: `nn.BatchNorm2d`, or timm's `BatchNormAct2d`, whose activation (and drop layer) come along.
            act: activation in place of what `norm` applies; None keeps that.

        Raises:
            ValueError: no scale and shift, or no running statistics.
        """
        bn = checked_norm(norm)
        made = cls(bn.num_features, bn.eps, device=bn.weight.device, dtype=bn.weight.dtype)
        made.drop = _own(bn, "drop")
        made.act = _own(bn, "act") if act is None else act
        with torch.no_grad():
            for own, value in made._pairs(bn):
                own.copy_(value)
        return made.train(bn.training)

    def write_to(self, norm: nn.Module) -> None:
        """Give `norm`, of the kind `from_norm` takes, the values of this one."""
        bn = checked_norm(norm)
        bn.to(self.bias.device, self.bias.dtype)
        with torch.no_grad():
            for own, value in self._pairs(bn):
                value.copy_(own)

    def _pairs(self, bn: Any) -> list[tuple[Tensor, Tensor]]:
        return [
            (self.bias, bn.bias),
            (self.scale, bn.weight),
            (self.mean, bn.running_mean),
            (self.var, bn.running_var),
        ]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise ValueError(f"x: got shape {tuple(x.shape)}, want (N, {self.num_features}, H, W)")
        a = self.scale * torch.rsqrt(self.var + self.eps)
        b = self.bias - a * self.mean
        act = self.act
        if isinstance(act, SignedActivation) and self.drop is None:
            return shifted_activation(x, a, b, act.kind, act.backward_rule, act.pack_bits)
        y = affine(x, a, b)
        for part in (self.drop, act):
            y = y if part is None else part(y)
        return y

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


def checked_norm(norm: nn.Module, name: str = "norm") -> Any:
    """The norm itself. Raises ValueError for one that has no scale, shift and running statistics a channel."""
    missing = [k for k in ("weight", "bias", "running_mean", "running_var") if getattr(norm, k, None) is None]
    if missing or not isinstance(norm, nn.BatchNorm2d):
        lacks = f" without {' and '.join(missing)}" if missing else ""
        raise ValueError(
            f"{name}: got {type(norm).__name__}{lacks}, want a BatchNorm2d with scale, shift and running statistics"
        )
    return norm


def _own(norm: nn.Module, name: str) -> nn.Module | None:
    part = getattr(norm, name, None)
    return part if isinstance(part, nn.Module) and not isinstance(part, nn.Identity) else None
