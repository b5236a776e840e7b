"""ASH, Hard ASH, the exact top-k reference, and what goes with them in a network."""

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.activations.ash.functional import Dims, ash, checked_dims, hard_ash, reduced_dims
from paperworks.activations.ash.operator import Moments, arithmetic_dtype, frozen, moments


class PercentileGate(nn.Module):
    """The parameters that ASH and Hard ASH share: `alpha` and `z_k`, one for the layer or one a channel."""

    def __init__(
        self,
        alpha: float,
        z_k: float,
        *,
        num_parameters: int,
        channel_dim: int,
        dims: Dims,
        learn_alpha: bool,
        learn_z: bool,
        eps: float,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if not (alpha > 0 and math.isfinite(alpha)):
            raise ValueError(f"alpha must be positive and finite, got {alpha}")
        if not math.isfinite(z_k):
            raise ValueError(f"z_k must be finite, got {z_k}")
        if num_parameters < 1:
            raise ValueError(f"num_parameters must be 1 or the number of channels, got {num_parameters}")
        if not eps >= 0:
            raise ValueError(f"eps must not be negative, got {eps}")
        self.num_parameters = num_parameters
        self.channel_dim = channel_dim
        self.dims = checked_dims(dims if isinstance(dims, str) else tuple(dims))
        self.eps = eps
        self.alpha = nn.Parameter(torch.full((num_parameters,), alpha, device=device, dtype=dtype), learn_alpha)
        self.z_k = nn.Parameter(torch.full((num_parameters,), z_k, device=device, dtype=dtype), learn_z)

    @property
    def percent(self) -> Tensor:
        """The share of a normal map, in percent, that each current z_k lets through; shape (num_parameters,)."""
        return 50 * torch.erfc(self.z_k.detach() / math.sqrt(2))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must spare, as timm asks a model for them."""
        return {"alpha", "z_k"}

    def gate_parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and z_k, broadcastable to x.

        Raises:
            ValueError: x does not have `num_parameters` channels.
        """
        if self.num_parameters == 1:
            return self.alpha, self.z_k
        if not -x.ndim <= self.channel_dim < x.ndim or x.shape[self.channel_dim] != self.num_parameters:
            raise ValueError(
                f"x must have num_parameters={self.num_parameters} channels along dim {self.channel_dim}, "
                f"got shape {tuple(x.shape)}"
            )
        shape = [1] * x.ndim
        shape[self.channel_dim] = self.num_parameters
        return self.alpha.view(shape), self.z_k.view(shape)

    def statistics(self, x: Tensor) -> Moments:
        """Mean and sigma that the layer uses for x."""
        return moments(x.to(arithmetic_dtype(x)), reduced_dims(x, self.dims), self.eps)

    def extra_repr(self) -> str:
        if self.num_parameters == 1:
            parameters = f"alpha={self.alpha.item():.4g}, z_k={self.z_k.item():.4g}"
        else:
            parameters = f"num_parameters={self.num_parameters}, channel_dim={self.channel_dim}"
        return f"{parameters}, dims={self.dims!r}"


class ASH(PercentileGate):
    """x S(2 alpha (x - mean - z_k sigma)) with learned alpha and z_k; takes the place of ReLU, SiLU, GELU.

    The same function in training and evaluation, of one sample alone. Training may make alpha negative, which turns the
    gate round: `inverted_layers` finds such layers.

    Args:
        alpha: initial steepness, positive.
        z_k: initial z-score of the percentile; `z_from_percent` gives it.
        num_parameters: 1, or the number of channels for one pair a channel.
        channel_dim: the dimension of the channels, where there is more than one pair.
        dims: the dimensions of the statistics, see `ash`.
        learn_alpha, learn_z: whether each is trained; learn_z=False is the paper's F-ASH-k.
        leak: above 0 for L-ASH, see `ash`.
        eps: added to the variance.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        z_k: float = 1e-3,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        dims: Dims = "auto",
        learn_alpha: bool = True,
        learn_z: bool = True,
        leak: float = 0.0,
        eps: float = 1e-6,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            alpha,
            z_k,
            num_parameters=num_parameters,
            channel_dim=channel_dim,
            dims=dims,
            learn_alpha=learn_alpha,
            learn_z=learn_z,
            eps=eps,
            device=device,
            dtype=dtype,
        )
        if not 0 <= leak < 1:
            raise ValueError(f"leak must be in [0, 1), got {leak}")
        self.leak = leak

    def forward(self, x: Tensor) -> Tensor:
        alpha, z_k = self.gate_parameters(x)
        return ash(x, alpha, z_k, dims=self.dims, leak=self.leak, eps=self.eps)

    def fold(self, mean: float, sigma: float) -> "FoldedASH":
        """This layer with its statistics frozen at `mean` and `sigma`."""
        threshold = self.z_k.detach() * sigma + mean
        return FoldedASH(self.alpha.detach().clone(), threshold, channel_dim=self.channel_dim, leak=self.leak)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", leak={self.leak}" if self.leak else "")


class HardASH(PercentileGate):
    """clip(x, 0, max_value) hard_sigmoid(2 alpha (x - mean - z_k sigma)): sparse units for continual learning.

    alpha and z_k are fixed unless asked otherwise. The follow-up normalises the hidden weights, see `CentredUnitRows`;
    its own alpha is 2 alpha here. Arguments and errors are those of `ASH`.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        z_k: float = 1.0,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        dims: Dims = "auto",
        max_value: float = 2.0,
        learn_alpha: bool = False,
        learn_z: bool = False,
        eps: float = 1e-6,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            alpha,
            z_k,
            num_parameters=num_parameters,
            channel_dim=channel_dim,
            dims=dims,
            learn_alpha=learn_alpha,
            learn_z=learn_z,
            eps=eps,
            device=device,
            dtype=dtype,
        )
        if not max_value > 0:
            raise ValueError(f"max_value must be positive, got {max_value}")
        self.max_value = max_value

    def forward(self, x: Tensor) -> Tensor:
        alpha, z_k = self.gate_parameters(x)
        return hard_ash(x, alpha, z_k, dims=self.dims, max_value=self.max_value, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, max_value={self.max_value}"


class FoldedASH(nn.Module):
    """x (leak + (1 - leak) S(a x + b)) with constant a = 2 alpha and b = -2 alpha threshold: ASH for deployment.

    Args:
        alpha, threshold: shape (1,) or (channels,); threshold is mean + z_k sigma.
        channel_dim: the dimension of the channels, where there is more than one.
    """

    alpha: Tensor
    threshold: Tensor

    def __init__(self, alpha: Tensor, threshold: Tensor, *, channel_dim: int = 1, leak: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("alpha", alpha)
        self.register_buffer("threshold", threshold)
        self.channel_dim = channel_dim
        self.leak = leak

    def forward(self, x: Tensor) -> Tensor:
        return frozen(x, self.alpha, self.threshold, self.channel_dim, self.leak)


class TopPercent(nn.Module):
    """The activation that ASH approximates: the ceil(percent / 100 * n) largest values of a sample, 0 for the others.

    Among equal values at the threshold, as many are kept as fit.

    Args:
        percent: inside (0, 100).
        dims: the dimensions of one sample, see `ash`.

    Raises:
        ValueError: percent is not inside (0, 100), or dims name the batch.
    """

    def __init__(self, percent: float, dims: Dims = "auto") -> None:
        super().__init__()
        if not 0 < percent < 100:
            raise ValueError(f"percent must be inside (0, 100), got {percent}")
        self.percent = percent
        self.dims = checked_dims(dims if isinstance(dims, str) else tuple(dims))
        # As written in decimals: 2.5 percent of 1000 are 25, whatever binary fractions make of it.
        self._share = (Fraction(repr(float(percent))) / 100).as_integer_ratio()

    def forward(self, x: Tensor) -> Tensor:
        reduced = reduced_dims(x, self.dims)
        last = tuple(range(-len(reduced), 0))
        samples = x.movedim(reduced, last)
        flat = samples.flatten(-len(reduced))
        numerator, denominator = self._share
        keep = -(-flat.shape[-1] * numerator // denominator)
        kept = torch.zeros_like(flat, dtype=torch.bool).scatter(-1, flat.topk(keep, sorted=False).indices, True)
        return torch.where(kept.unflatten(-1, samples.shape[-len(reduced) :]).movedim(last, reduced), x, 0.0)

    def extra_repr(self) -> str:
        return f"percent={self.percent}, dims={self.dims!r}"


class CentredUnitRows(nn.Module):
    """Parametrization of a weight whose output rows have mean 0 and norm 1: Hard ASH's hidden layers.

    `torch.nn.utils.parametrize.register_parametrization(layer, "weight", CentredUnitRows())`
    """

    def forward(self, weight: Tensor) -> Tensor:
        """weight: (rows, ...), at least two entries a row.

        Raises:
            ValueError: a row has fewer than two entries, so that centring leaves nothing.
        """
        if weight.ndim < 2 or weight[0].numel() < 2:
            raise ValueError(f"weight must have rows of at least two entries, got shape {tuple(weight.shape)}")
        rows = weight.flatten(1)
        rows = rows - rows.mean(1, keepdim=True)
        return nn.functional.normalize(rows, dim=1).view_as(weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def no_weight_decay(model: nn.Module) -> set[str]:
    """Qualified names of alpha and z_k in every ASH and Hard ASH layer of `model`, for an optimiser without decay."""
    return {
        f"{name}.{parameter}" if name else parameter
        for name, layer in model.named_modules()
        if isinstance(layer, PercentileGate)
        for parameter in layer.no_weight_decay()
    }
