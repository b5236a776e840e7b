"""Convolutional Kolmogorov-Arnold layers: of one basis, with the basis chosen by the channel, and what is left then."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.kan.convolution import Geometry, kan_conv
from paperworks.kan.families import Basis
from paperworks.kan.fused import Run, Tile, check_squash
from paperworks.kan.linear import check_sizes, reset_coefficients
from paperworks.kan.names import get_basis
from paperworks.kan.selection import FAMILIES, Choosing, Selecting, SelectionError

Pair = int | tuple[int, int]


def _pair(value: Pair, name: str, least: int) -> tuple[int, int]:
    """Two integers, both at least `least`. Raises ValueError by name."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(isinstance(v, bool) or not isinstance(v, int) or v < least for v in pair):
        raise ValueError(f"{name}: got {value!r}, wanted an integer >= {least} or two of them")
    return pair[0], pair[1]


def _geometry(kernel: tuple[int, int], stride: Pair, padding: Pair | str, dilation: Pair, groups: int) -> Geometry:
    steps, spread = _pair(stride, "stride", 1), _pair(dilation, "dilation", 1)
    if not isinstance(padding, str):
        return Geometry(steps, _pair(padding, "padding", 0), spread, groups)
    if padding not in ("same", "valid"):
        raise ValueError(f"padding: got {padding!r}, wanted integers, 'same' or 'valid'")
    if padding == "valid":
        return Geometry(steps, (0, 0), spread, groups)
    if steps != (1, 1):
        raise ValueError(f"padding: 'same' wants stride 1, got {stride!r}")
    extra = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
    even = all(e % 2 == 0 for e in extra)
    return Geometry(steps, (extra[0] // 2, extra[1] // 2) if even else "same", spread, groups)


class _Shape:
    """Sizes of a convolution, checked: what every class here is built from."""

    def __init__(
        self, i: int, o: int, kernel_size: Pair, stride: Pair, padding: Pair | str, dilation: Pair, groups: int
    ) -> None:
        check_sizes(in_channels=i, out_channels=o, groups=groups)
        if i % groups or o % groups:
            raise ValueError(f"groups: got {groups}, wanted a divisor of in_channels = {i} and out_channels = {o}")
        self.kernel = _pair(kernel_size, "kernel_size", 1)
        self.geometry = _geometry(self.kernel, stride, padding, dilation, groups)
        self.channels = i // groups
        self.fan_in = self.channels * self.kernel[0] * self.kernel[1]


def _check(x: Tensor, channels: int) -> tuple[Tensor, bool]:
    """x with a batch dimension, and whether it had none. Raises ValueError, TypeError for what does not fit."""
    if not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype}, wanted a floating point tensor")
    if x.ndim not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(f"x: got shape {tuple(x.shape)}, wanted (N, {channels}, H, W) or ({channels}, H, W)")
    return (x, False) if x.ndim == 4 else (x[None], True)


def _applied(x: Tensor, base_weight: Tensor | None, tiles: list[Tile], squash: str, geometry: Geometry) -> Tensor:
    channels = tiles[0].weight.shape[1] * geometry.groups
    batch, single = _check(x, channels)
    y = kan_conv(batch, base_weight, tiles, squash, geometry)
    return y[0] if single else y


class KANConv2d(nn.Module):
    """Convolution of one basis: (N, C, H, W) -> (N, O, H', W'); stride, padding and so on as in `nn.Conv2d`.

    Args:
        basis: a name of `get_basis`, or a `Basis`.
        num_functions: K, for a basis given by name.
        squash: ``"tanh"`` (of inputs that a normalisation has scaled) or ``"clamp"``.
        generator: for the initial weights; the global one if None.

    Attributes:
        coef: (O, C / groups, K, k, k).
        base_weight: (O, C / groups, k, k).

    Raises ValueError for sizes and names that do not fit; when called, for another number of channels than C.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        basis: str | Basis,
        *,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        num_functions: int = 8,
        squash: str = "tanh",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = _Shape(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, shape.kernel
        self.geometry, self.basis, self.squash = shape.geometry, get_basis(basis, num_functions), check_squash(squash)
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        k = self.basis.num_functions
        self.coef = nn.Parameter(torch.empty(out_channels, shape.channels, k, *shape.kernel, **like))
        self.base_weight = nn.Parameter(torch.empty(out_channels, shape.channels, *shape.kernel, **like))
        reset_coefficients(self.coef, self.base_weight, shape.fan_in, generator)

    def forward(self, x: Tensor) -> Tensor:
        return _applied(x, self.base_weight, [Tile((Run(self.basis),), self.coef)], self.squash, self.geometry)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, squash={self.squash}"


class SKANConv2d(Selecting):
    """S-KAN convolution: the node is the input channel. (N, C, H, W) -> (N, O, H', W').

    Arguments as in `nn.Conv2d` and `paperworks.kan.selection.SKANLinear`; u = tanh(x) expects inputs that a
    normalisation has scaled.

    Attributes:
        coef: c (M, O, C / groups, K, k, k).
        base_weight: b (O, C / groups, k, k).
        logits: l (C, M), 0 at the start; frozen by `select`.
        choice: None, and (C,) int64 after `select`.

    Raises ValueError for sizes, names and families that do not fit; when called, for another number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        num_functions: int = 8,
        families: Sequence[str | Basis] = FAMILIES,
        squash: str = "tanh",
        tau: float = 1.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = _Shape(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        super().__init__(in_channels, families, num_functions, squash, tau)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, shape.kernel
        self.geometry, self._fan_in = shape.geometry, shape.fan_in
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        m = len(self.bases)
        self.coef = nn.Parameter(torch.empty(m, out_channels, shape.channels, num_functions, *shape.kernel, **like))
        self.base_weight = nn.Parameter(torch.empty(out_channels, shape.channels, *shape.kernel, **like))
        self.logits = nn.Parameter(torch.empty(in_channels, m, **like))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the coefficients anew and make all families equal."""
        reset_coefficients(self.coef, self.base_weight, self._fan_in, generator)
        nn.init.zeros_(self.logits)

    def forward(self, x: Tensor) -> Tensor:
        if self.choice is not None:
            tiles = [Tile(self._runs(), self._chosen_coef())]
        else:
            folded = self._folded(self.weights())
            tiles = [Tile((Run(basis),), w) for basis, w in zip(self.bases, folded, strict=True)]  # type: ignore[arg-type]
        return _applied(x, self.base_weight, tiles, self.squash, self.geometry)

    def compact(self) -> PrunedSKANConv2d:
        """The same function with the chosen coefficients only. Raises SelectionError before `select`."""
        if self.choice is None:
            raise SelectionError("compact: this layer has not selected its families yet")
        return PrunedSKANConv2d(
            self._chosen_coef().detach().clone(),
            self.base_weight.detach().clone(),
            self.choice,
            copy.deepcopy(self.bases),
            squash=self.squash,
            families=self.families,
            geometry=self.geometry,
        )

    def _grouped(self, coef: Tensor) -> Tensor:
        """coef seen as (M, groups, O / groups, C / groups, K, k, k): a channel is (group, channel within)."""
        groups = self.geometry.groups
        return coef.unflatten(1, (groups, self.out_channels // groups))

    def _chosen_coef(self) -> Tensor:
        assert self.choice is not None
        grouped = self._grouped(self.coef)
        index = self.choice.view(1, grouped.shape[1], 1, grouped.shape[3], 1, 1, 1).expand(1, *grouped.shape[1:])
        return grouped.gather(0, index)[0].flatten(0, 1)

    def _folded(self, alpha: Tensor) -> Tensor:
        grouped = self._grouped(self.coef)
        scale = alpha.t().reshape(len(self.bases), grouped.shape[1], 1, grouped.shape[3], 1, 1, 1)
        return (grouped * scale).flatten(1, 2)

    def _inputs(self, x: Tensor) -> Tensor:
        batch, _ = _check(x, self.in_channels)
        return batch.permute(0, 2, 3, 1).flatten(0, 2)

    def _coefficients_by_node(self) -> Tensor:
        # (M, groups, O/g, C/g, K, k, k) -> (M, groups, C/g, O/g, k, k, K): the taps are more outputs of the node.
        by_node = self._grouped(self.coef).permute(0, 1, 3, 2, 5, 6, 4)
        return by_node.flatten(3, 5).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, {super().extra_repr()}"


class PrunedSKANConv2d(Choosing):
    """What is left of an `SKANConv2d`: one family for each channel. Made by `SKANConv2d.compact`.

    Attributes:
        coef: (O, C / groups, K, k, k).
        base_weight: (O, C / groups, k, k).
        choice: (C,) int64, indices into `families`.
    """

    def __init__(
        self,
        coef: Tensor,
        base_weight: Tensor,
        choice: Tensor,
        bases: nn.ModuleList,
        *,
        squash: str,
        families: tuple[str, ...],
        geometry: Geometry,
    ) -> None:
        super().__init__(bases)
        self.squash, self.families, self.geometry = check_squash(squash), families, geometry
        self.coef, self.base_weight = nn.Parameter(coef), nn.Parameter(base_weight)
        self._choose(choice.clone())

    def forward(self, x: Tensor) -> Tensor:
        return _applied(x, self.base_weight, [Tile(self._runs(), self.coef)], self.squash, self.geometry)
