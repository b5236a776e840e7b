"""EAFO while training: any activation with a learnable step along its own entropy direction.

    f(z) = f_b(z) + eps k(z; m, v),   k(z) = -sqrt(2 pi) v [p'(z) - p(z) R(z)],   p = N(m, v)
    R(z) = f_b'' f_b' / (f_b'^2 + delta^2)

with m, v the running mean and variance of the pre-activation. k is the EAFO direction c of `eafo_entropy` up to a
factor below 0, so eps > 0 raises the output entropy and eps < 0 lowers it. For f_b = ReLU, m = 0, v = 1 it is CRReLU.
The paper ("A Method on Searching Better Activation Functions", arXiv 2405.12954) announces the dynamic form and leaves
it open; the running statistics, the factor v (which keeps k of order 1 at any scale of z) and the softened R (f'' / f'
has poles where GELU and SiLU turn around, and is 0 / 0 where ReLU is flat) are our reconstruction.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from paperworks.activations.eafo_densities import in_float
from paperworks.activations.eafo_derivatives import BASES, name_of, slopes

_REACH = 14.0  # standard deviations; beyond, the bell is below 1e-42, R need not exist and is not asked for
_LEAST_VARIANCE = 1e-12  # of a layer whose input has been constant


def channel_view(eps: Tensor, x: Tensor, channel_dim: int) -> Tensor:
    """`eps` shaped to act along `channel_dim` of `x`; a single value acts everywhere.

    Raises:
        ValueError: `x` has no such dimension, or another number of channels.
    """
    if eps.numel() == 1:
        return eps.reshape(())
    if not -x.dim() <= channel_dim < x.dim():
        raise ValueError(
            f"channel_dim: got {channel_dim} for an input of shape {tuple(x.shape)}, wanted one of its dims"
        )
    if x.shape[channel_dim] != eps.numel():
        raise ValueError(
            f"num_parameters: got {eps.numel()} for {x.shape[channel_dim]} channels (dim {channel_dim} of an input of "
            f"shape {tuple(x.shape)}), wanted 1 or as many as channels"
        )
    shape = [1] * x.dim()
    shape[channel_dim] = -1
    return eps.view(shape)


def initial_eps(
    eps: float,
    num_parameters: int,
    learnable: bool,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Parameter:
    """The (num_parameters,) parameter of a layer; with learnable=False one that takes no gradient.

    Raises:
        ValueError: non-finite `eps`, or num_parameters < 1.
    """
    if not math.isfinite(eps):
        raise ValueError(f"eps: got {eps}, wanted a finite number")
    if num_parameters < 1:
        raise ValueError(f"num_parameters: got {num_parameters}, wanted at least 1")
    return nn.Parameter(torch.full((num_parameters,), float(eps), device=device, dtype=dtype), requires_grad=learnable)


class EAFOActivation(nn.Module):
    """f(z) = base(z) + eps k(z; running mean, running variance), any shape and floating dtype.

    In training each call uses the statistics so far and then moves them towards those of its input (all elements; no
    gradient; float32). Evaluation leaves them alone, so an output never depends on the rest of its batch. They are
    buffers: `DistributedDataParallel` keeps them equal across processes as it does those of a batch norm.

    Args:
        base: "relu", "leaky_relu" (slope 0.01), "gelu" (erf), "gelu_tanh", "silu", "tanh", "sigmoid", "hardsigmoid",
            "softplus", "elu", or any
            elementwise callable that can be differentiated twice; a module is registered and trained along.
        eps: start of the learnable step.
        num_parameters: 1, or as many as channels.
        channel_dim: dimension of the channels; used with num_parameters > 1.
        momentum: weight of the newest batch in the running statistics, in (0, 1].
        delta: softening of f'' / f', above 0 (in units of f').
        learnable: False keeps `eps` as it is.

    Raises:
        ValueError: unknown base name, non-finite eps, momentum outside (0, 1], delta <= 0, num_parameters < 1; when
            called, num_parameters that do not match the channels.
        TypeError: `base` is neither a name nor callable; when called, an integer tensor.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        base: str | Callable[[Tensor], Tensor] = "relu",
        *,
        eps: float = 0.01,
        num_parameters: int = 1,
        channel_dim: int = 1,
        momentum: float = 0.01,
        delta: float = 1e-2,
        learnable: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(base, str) and base not in BASES:
            raise ValueError(f"base: got {base!r}, wanted one of {', '.join(BASES)} or a callable")
        if not (isinstance(base, str) or callable(base)):
            raise TypeError(f"base: got {type(base).__name__}, wanted a name or a callable")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum: got {momentum}, wanted a number in (0, 1]")
        if not (math.isfinite(delta) and delta > 0):
            raise ValueError(f"delta: got {delta}, wanted a finite number above 0")
        # torch.tanh and nn.Tanh() become "tanh": closed forms, and a module that can be pickled.
        self.base = base if isinstance(base, str) else name_of(base) or base
        self.momentum, self.delta, self.channel_dim = float(momentum), float(delta), channel_dim
        self.frozen = False
        self.eps = initial_eps(eps, num_parameters, learnable, device, dtype)
        self.register_buffer("running_mean", torch.zeros((), device=device, dtype=torch.float32))
        self.register_buffer("running_var", torch.ones((), device=device, dtype=torch.float32))
        self.register_buffer("num_batches_tracked", torch.zeros((), device=device, dtype=torch.long))

    def forward(self, z: Tensor) -> Tensor:
        eps = channel_view(self.eps, z, self.channel_dim)
        result = in_float(lambda t: self._value(t, eps), z)
        if self.training and not self.frozen:
            self._track(z)
        return result

    def _value(self, z: Tensor, eps: Tensor) -> Tensor:
        function = BASES[self.base].value if isinstance(self.base, str) else self.base
        return function(z) + eps.to(z.dtype) * self.kernel(z)

    def kernel(self, z: Tensor) -> Tensor:
        """k(z) for the statistics so far; float32 or float64."""
        # Copies, because the next training call changes the buffers before this one's backward may have run.
        mean, var = self.running_mean.to(z, copy=True), self.running_var.to(z, copy=True)
        std = var.clamp(min=_LEAST_VARIANCE).sqrt()
        t = ((z - mean) / std).clamp(-_REACH, _REACH)
        bell = torch.exp(-0.5 * t * t)
        if isinstance(self.base, str) and BASES[self.base].curvature is None:
            return t * bell
        near = mean + std * t
        first, second = self._slopes(near)
        return (t + std * (second * first / (first * first + self.delta**2))) * bell

    def _slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return slopes(BASES[self.base].value if isinstance(self.base, str) else self.base, z)

    @torch.no_grad()
    def _track(self, z: Tensor) -> None:
        if z.numel() == 0:
            return
        var, mean = torch.var_mean(z.detach().float(), correction=0)
        finite = torch.isfinite(mean) & torch.isfinite(var)  # one overflowing batch of half-precision training
        weight = self.momentum * finite
        self.running_mean.lerp_(torch.where(finite, mean, 0.0), weight)
        self.running_var.lerp_(torch.where(finite, var, 0.0), weight)
        self.num_batches_tracked.add_(1)

    def freeze_stats(self) -> "EAFOActivation":
        """Keep the running statistics as they are from now on, in training too (fine-tuning, export). Returns self."""
        self.frozen = True
        return self

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone (it would pull `eps` to 0), as timm asks."""
        return {"eps"}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EAFOActivation":
        # Averages kept in half precision would stop moving (an update is 1 % of a difference), so `half()` and
        # `bfloat16()` leave the statistics in float32; moves between devices are followed.
        before = {name: getattr(self, name) for name in ("running_mean", "running_var")}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = getattr(self, name)
            if new.dtype != torch.float32:
                setattr(self, name, old.to(new.device) if old.device.type != "meta" else new.float())
        return self

    def extra_repr(self) -> str:
        base = self.base if isinstance(self.base, str) else getattr(self.base, "__name__", type(self.base).__name__)
        return f"base={base}, num_parameters={self.eps.numel()}, momentum={self.momentum:g}, delta={self.delta:g}"
