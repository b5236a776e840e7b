"""The Similarity-Distance-Magnitude activation and its loss as pure functions.

"Similarity-Distance-Magnitude Universal Verification" (arXiv 2502.20167).  For logits z (Magnitude), a similarity
q >= 0 and a distance quantile d in [0, 1]:

    p_i   = (2 + q)^(d z_i) / sum_c (2 + q)^(d z_c)          (Eq. 7)
    loss  = mean_n -log_(2 + q_n) p_(n, y_n)                 (Eq. 8)

q = e - 2 with d = 1 is softmax and its cross entropy; d = 0 gives the uniform distribution; argmax z never changes
for d > 0.  Everything goes through log-softmax of d z ln(2 + q), so no probability is clipped.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SOFTMAX_Q = math.e - 2.0
"""The similarity at which the activation is softmax."""


def _along(value: float | Tensor, z: Tensor, dim: int, name: str) -> float | Tensor:
    """`value` in z's compute dtype, with axis `dim` put back when it is a tensor."""
    if not isinstance(value, Tensor):
        return float(value)
    value = value.to(z.dtype)
    if value.ndim == 0:
        return value
    wanted = list(z.shape)
    del wanted[dim]
    if list(value.shape) != wanted:
        raise ValueError(
            f"{name} must be a number or a tensor of z's shape without `dim`: got {tuple(value.shape)}, "
            f"wanted {tuple(wanted)}"
        )
    return value.unsqueeze(dim)


def _scaled(z: Tensor, q: float | Tensor, d: float | Tensor, dim: int) -> tuple[Tensor, float | Tensor]:
    """d z ln(2 + q) and ln(2 + q), in float32 or wider."""
    if not isinstance(z, Tensor) or not z.is_floating_point():
        got = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"z must be a floating point tensor, got {got}")
    if z.ndim == 0 or not -z.ndim <= dim < z.ndim:
        raise ValueError(f"dim must name an axis of z: got {dim} for z of shape {tuple(z.shape)}")
    if not isinstance(q, Tensor) and not q > -1:
        raise ValueError(f"q must be above -1 (the base 2 + q must exceed 1), got {q}")
    if not isinstance(d, Tensor) and not 0 <= d <= 1:
        raise ValueError(f"d must be in [0, 1], got {d}")
    # In half precision d z ln(2 + q) would lose the digits that the base is meant to sharpen.
    wide = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    dim = dim % z.ndim
    q_ = _along(q, wide, dim, "q")
    log_base = torch.log(q_ + 2) if isinstance(q_, Tensor) else math.log(q_ + 2)
    return wide * (_along(d, wide, dim, "d") * log_base), log_base


def sdm(z: Tensor, q: float | Tensor, d: float | Tensor = 1.0, *, dim: int = -1) -> Tensor:
    """SDM activation, Eq. 7: softmax(d z ln(2 + q)).

    Args:
        z: logits, any shape, floating point.
        q: similarity, above -1; a number or a tensor of z's shape without `dim`.
        d: distance quantile in [0, 1]; a number or a tensor of z's shape without `dim`.
        dim: the axis of the classes.

    Returns:
        Probabilities of z's shape and dtype.

    Raises:
        TypeError: z is not a floating point tensor.
        ValueError: q, d or dim out of range or of another shape.
    """
    scaled, _ = _scaled(z, q, d, dim)
    return torch.softmax(scaled, dim).to(z.dtype)


def log_sdm(z: Tensor, q: float | Tensor, d: float | Tensor = 1.0, *, dim: int = -1) -> Tensor:
    """log to the base 2 + q of the SDM activation: log_softmax(d z ln(2 + q)) / ln(2 + q).

    Arguments, shapes and errors as in `sdm`; half precision input gives a float32 result.
    """
    scaled, log_base = _scaled(z, q, d, dim)
    return torch.log_softmax(scaled, dim) / log_base


def sdm_loss(
    z: Tensor,
    target: Tensor,
    q: float | Tensor,
    d: float | Tensor = 1.0,
    *,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """SDM negative log likelihood, Eq. 8: -log_(2 + q) p_y.

    q and d are constants of the loss (no gradient flows into them).  The base of the logarithm cancels in the
    gradient with respect to z, which is d (p - onehot(y)), over N for the mean.

    Args:
        z: logits (..., C), the classes last.
        target: class indices (...), integers.
        q: similarity, a number or a tensor (...).
        d: distance quantile, a number or a tensor (...).
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: `target` has another shape than z without its last axis, or `reduction` is unknown.
        TypeError: `target` is not an integer tensor.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"target must hold integer class indices, got {target.dtype}")
    if target.shape != z.shape[:-1]:
        raise ValueError(f"target must have shape {tuple(z.shape[:-1])} (z without its last axis), got {target.shape}")
    q = q.detach() if isinstance(q, Tensor) else q
    d = d.detach() if isinstance(d, Tensor) else d
    log_p = log_sdm(z, q, d)
    return F.nll_loss(log_p.reshape(-1, z.shape[-1]), target.reshape(-1).long(), reduction=reduction).reshape(
        target.shape if reduction == "none" else ()
    )
