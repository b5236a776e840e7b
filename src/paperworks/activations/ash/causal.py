"""ASH for signals in time: the statistics at a step are those of that step and the ones before it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from paperworks.activations.ash.modules import ASH
from paperworks.activations.ash.operator import Moments, arithmetic_dtype, gated


class CausalState(NamedTuple):
    """What a stream has seen, each of x's shape with 1 for every dimension but the batch.

    weight: number of steps, earlier ones counting less where there is a decay. mean, variance: of their elements less
    `origin`, the mean of the stream's first step, so that a large common offset costs no digits.
    """

    weight: Tensor
    mean: Tensor
    variance: Tensor
    origin: Tensor


def causal_ash(
    x: Tensor,
    alpha: float | Tensor,
    z_k: float | Tensor,
    *,
    time_dim: int = 1,
    state: CausalState | None = None,
    decay: float = 1.0,
    leak: float = 0.0,
    eps: float = 1e-6,
) -> tuple[Tensor, CausalState]:
    """ASH whose mean and sigma run along time; a sequence given at once or piece by piece has the same result.

    Args:
        x: (batch, ...) with time along `time_dim`, floating. The statistics are over all other dimensions.
        alpha, z_k: as in `ash`.
        state: what came before x in the same stream; None at its start.
        decay: in (0, 1]. Below 1 a step's weight falls by this factor at each later step, so that the statistics
            follow a stream that changes; 1 weighs the whole past alike.
        leak, eps: as in `ash`.

    Returns:
        A tensor of x's shape and dtype, and the state after the last step.

    Raises:
        TypeError: x is not floating.
        ValueError: decay outside (0, 1], time_dim is the batch or not a dimension of x, or x has no elements.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating tensor, got {x.dtype}")
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be in (0, 1], got {decay}")
    if not -x.ndim <= time_dim < x.ndim or time_dim % x.ndim == 0:
        raise ValueError(f"time_dim must be a dimension of x other than the batch (0), got {time_dim} for {x.ndim}-D x")
    if math.prod(x.shape[1:]) == 0:
        raise ValueError(f"x must have elements in every sample, got shape {tuple(x.shape)}")
    time = time_dim % x.ndim
    value = x.to(arithmetic_dtype(x))
    m, last = _moments_along(value, time, state, decay, eps)
    return gated(value, m, alpha, z_k, leak).to(x.dtype), last


def _moments_along(
    x: Tensor, time: int, state: CausalState | None, decay: float, eps: float
) -> tuple[Moments, CausalState]:
    others = tuple(d for d in range(1, x.ndim) if d != time)
    length = x.shape[time]
    origin = state.origin if state is not None else _mean(x.narrow(time, 0, 1).detach(), others)
    shifted = x - origin
    steps = _each_step(shifted, others)
    if state is not None:
        steps = _Seen(*(torch.cat([old, new], time) for old, new in zip(state, steps, strict=False)))
    seen = _running(steps, time, decay)
    mean, variance = (s.narrow(time, s.shape[time] - length, length) for s in seen[1:])
    weight, last_mean, last_variance = (s.narrow(time, s.shape[time] - 1, 1) for s in seen)
    last = CausalState(weight, last_mean, last_variance, origin)
    return Moments(shifted - mean, (variance + eps).sqrt(), origin, mean), last


class _Seen(NamedTuple):
    weight: Tensor
    mean: Tensor
    variance: Tensor


def _mean(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.mean(dims, keepdim=True) if dims else x  # no dims would mean all of them


def _each_step(x: Tensor, others: tuple[int, ...]) -> _Seen:
    mean = _mean(x, others)
    return _Seen(torch.ones_like(mean), mean, _mean((x - mean).square(), others))


def _running(steps: _Seen, time: int, decay: float) -> _Seen:
    """Statistics of all steps up to each: neighbouring stretches are joined, their length doubling each time."""
    length, total = 1, steps.mean.shape[time]
    while length < total:
        tails = _Seen(*(s.narrow(time, length, total - length) for s in steps))
        heads = _Seen(*(s.narrow(time, 0, total - length) for s in steps))
        joined = _joined(heads, tails, decay**length)
        steps = _Seen(*(torch.cat([s.narrow(time, 0, length), j], time) for s, j in zip(steps, joined, strict=True)))
        length *= 2
    return steps


def _joined(earlier: _Seen, later: _Seen, decay: float) -> _Seen:
    before = earlier.weight * decay
    weight = before + later.weight
    share = later.weight / weight
    delta = later.mean - earlier.mean
    variance = earlier.variance * (1 - share) + later.variance * share + delta.square() * share * (1 - share)
    return _Seen(weight, earlier.mean + delta * share, variance)


class CausalASH(ASH):
    """ASH along time for audio and language: no step sees a later one. Arguments as in `ASH` and `causal_ash`.

    `forward` takes a whole sequence; `step` takes the next piece of a stream and its state.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        z_k: float = 1e-3,
        *,
        time_dim: int = 1,
        decay: float = 1.0,
        num_parameters: int = 1,
        channel_dim: int = -1,
        learn_alpha: bool = True,
        learn_z: bool = True,
        leak: float = 0.0,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            alpha,
            z_k,
            num_parameters=num_parameters,
            channel_dim=channel_dim,
            learn_alpha=learn_alpha,
            learn_z=learn_z,
            leak=leak,
            eps=eps,
            device=device,
            dtype=dtype,
        )
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be in (0, 1], got {decay}")
        if time_dim == 0:
            raise ValueError("time_dim must not be the batch, got 0")
        self.time_dim = time_dim
        self.decay = decay

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, None)[0]

    def step(self, x: Tensor, state: CausalState | None) -> tuple[Tensor, CausalState]:
        """The next piece of a stream, and the state to give with the one after it."""
        alpha, z_k = self.gate_parameters(x)
        return causal_ash(
            x, alpha, z_k, time_dim=self.time_dim, state=state, decay=self.decay, leak=self.leak, eps=self.eps
        )

    def statistics(self, x: Tensor) -> Moments:
        time = self.time_dim % x.ndim
        return _moments_along(x.to(arithmetic_dtype(x)), time, None, self.decay, self.eps)[0]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, time_dim={self.time_dim}, decay={self.decay}"
