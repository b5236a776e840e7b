"""ASH and Hard ASH as functions of a tensor and their parameters; percentiles and z-scores."""

import math
from statistics import NormalDist

import torch
from torch import Tensor

from paperworks.activations.ash.operator import (
    arithmetic_dtype,
    formula,
    fused,
    moments,
    must_be_seen_through,
)

Dims = str | tuple[int, ...]


def ash(
    x: Tensor,
    alpha: float | Tensor,
    z_k: float | Tensor,
    *,
    dims: Dims = "auto",
    leak: float = 0.0,
    eps: float = 1e-6,
) -> Tensor:
    """x S(2 alpha (x - mean - z_k sigma)), the adaptive Swish (the paper, section 3).

    Mean and sigma = sqrt(population variance + eps) are those of each sample alone, over `dims`, in float32 for half
    precision. Gradients flow through both.

    Args:
        x: (batch, ...), floating.
        alpha: steepness; a number or a tensor that broadcasts to x.
        z_k: z-score of the percentile, see `z_from_percent`; a number or a tensor that broadcasts to x.
        dims: the dimensions the statistics are over. "sample": all but the first. "auto": the same, but the last alone
            for (batch, tokens, channels), so that no token sees another. Or a tuple of dimensions without the first.
        leak: L-ASH, x (leak + (1 - leak) S(.)). The paper names it only; this form is its analogue of a leaky ReLU.
        eps: added to the variance; the paper has none, a constant map then has no gradient.

    Returns:
        A tensor of x's shape and dtype.

    Raises:
        TypeError: x is not floating.
        ValueError: x has no batch dimension, dims name the batch or no elements, a parameter does not broadcast to x.
    """
    reduced = reduced_dims(x, dims)
    alpha_shape, z_shape = _broadcasting_shape("alpha", alpha, x), _broadcasting_shape("z_k", z_k, x)
    wide = {d for shape in (alpha_shape, z_shape) for d, size in enumerate(shape) if size > 1}
    first = x.ndim - len(reduced)
    # The fused operator wants samples that end the shape, and one pair of parameters or one a channel of the sample.
    if reduced[0] != first or len(wide) > 1 or min(wide, default=first) < first or must_be_seen_through(x):
        return formula(x, alpha, z_k, reduced, leak, eps)
    channel_dim = max(wide, default=first)
    channels = x.shape[channel_dim] if wide else 1
    return fused(x, _vector(alpha, x, channels), _vector(z_k, x, channels), channel_dim, first, leak, eps)


def hard_ash(
    x: Tensor,
    alpha: float | Tensor,
    z_k: float | Tensor,
    *,
    dims: Dims = "auto",
    max_value: float = 2.0,
    eps: float = 1e-6,
) -> Tensor:
    """clip(x, 0, max_value) clip(2 alpha (x - mean - z_k sigma) + 3, 0, 6) / 6, zero on most units (Hard ASH).

    alpha is ASH's: the follow-up's own is 2 alpha. Arguments and errors are those of `ash`; max_value is positive.
    """
    if not max_value > 0:
        raise ValueError(f"max_value must be positive, got {max_value}")
    reduced = reduced_dims(x, dims)
    _broadcasting_shape("alpha", alpha, x)
    _broadcasting_shape("z_k", z_k, x)
    value = x.to(arithmetic_dtype(x))
    m = moments(value, reduced, eps)
    u = 2 * alpha * (m.centred - z_k * m.sigma)
    return (value.clamp(0.0, max_value) * ((u + 3).clamp(0.0, 6.0) / 6)).to(x.dtype)


def z_from_percent(percent: float) -> float:
    """The z-score above which `percent` of a normal distribution lies: 2.5 -> 1.95996.

    Raises:
        ValueError: percent is not inside (0, 100).
    """
    if not 0 < percent < 100:
        raise ValueError(f"percent must be inside (0, 100), got {percent}")
    return -NormalDist().inv_cdf(percent / 100)


def percent_from_z(z: float) -> float:
    """The percentage of a normal distribution above the z-score `z`: 1.95996 -> 2.5."""
    return 50 * math.erfc(z / math.sqrt(2))


def reduced_dims(x: Tensor, dims: Dims) -> tuple[int, ...]:
    """`dims` as sorted non-negative dimensions of x, checked."""
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating tensor, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x must have a batch dimension and at least one more, got shape {tuple(x.shape)}")
    checked_dims(dims)
    if isinstance(dims, str):
        reduced = tuple(range(2 if dims == "auto" and x.ndim == 3 else 1, x.ndim))
    else:
        outside = [d for d in dims if not -x.ndim <= d < x.ndim]
        reduced = tuple(sorted({d % x.ndim for d in dims}))
        if outside or len(reduced) != len(dims) or reduced[0] == 0:
            raise ValueError(
                f"dims must be distinct dimensions of x other than the batch (0), got {dims} for {x.ndim}-D x"
            )
    if any(x.shape[d] == 0 for d in reduced):
        raise ValueError(f"x must have elements along dims {reduced}, got shape {tuple(x.shape)}")
    return reduced


def checked_dims(dims: Dims) -> Dims:
    """`dims`, checked as far as it can be without an input."""
    if isinstance(dims, str):
        if dims not in ("auto", "sample"):
            raise ValueError(f'dims must be "auto", "sample" or a tuple of ints, got {dims!r}')
    elif not dims or 0 in dims:
        raise ValueError(f"dims must name at least one dimension and not the batch (0), got {dims}")
    return dims


def _broadcasting_shape(name: str, parameter: float | Tensor, x: Tensor) -> tuple[int, ...]:
    """The parameter's shape with x's number of dimensions."""
    if not isinstance(parameter, Tensor):
        return (1,) * x.ndim
    shape = (1,) * (x.ndim - parameter.ndim) + tuple(parameter.shape)
    if len(shape) != x.ndim or any(got not in (1, size) for got, size in zip(shape, x.shape, strict=True)):
        raise ValueError(f"{name} must broadcast to x of shape {tuple(x.shape)}, got shape {tuple(parameter.shape)}")
    return shape


def _vector(parameter: float | Tensor, x: Tensor, channels: int) -> Tensor:
    if not isinstance(parameter, Tensor):
        return torch.full((channels,), parameter, dtype=arithmetic_dtype(x), device=x.device)
    vector = parameter.reshape(-1).to(arithmetic_dtype(x))
    return vector if vector.numel() == channels else vector.expand(channels).contiguous()
