"""The gate itself: h = gain phi(z) sigmoid(s (z - tau)), or with the hard gate gain phi(z) 1[z > tau]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paperworks.efficiency.dopamine import fused

__all__ = ["TauGate", "check_sharpness", "gated", "tau_gate"]


def tau_gate(
    z: Tensor,
    phi_z: Tensor,
    tau: Tensor,
    gain: Tensor,
    sharpness: float,
    *,
    hard: bool = False,
    dim: int = -1,
) -> Tensor:
    """gain_i phi(z_i) g_i with g_i = sigmoid(sharpness (z_i - tau_i)), or 1[z_i > tau_i] with `hard`.

    d h / d tau = -gain phi(z) s g (1 - g): a unit with phi(z) = 0 (ReLU, z <= 0) gives its threshold no gradient, so
    thresholds can close units and let them re-open, and cannot make a silent unit speak. A hard gate passes no gradient
    to tau, and none to z through the gate. Computed in float32 for half types; one fused pass on CPU and CUDA in eager
    mode.

    Args:
        z: pre-activations, (..., H) with ``dim=-1`` or (N, H, ...) with ``dim=1``.
        phi_z: the base activation of `z`, same shape.
        tau, gain: (H,), or (N, H) with one row for each sample of the first dimension.
        sharpness: s > 0.
        hard: the step instead of the sigmoid.
        dim: dimension of the H units.

    Returns:
        The shape and dtype of `phi_z`.

    Raises:
        TypeError: a tensor that is not floating point.
        ValueError: shapes that do not fit, `sharpness` that is not > 0 and finite.
    """
    check_sharpness(sharpness)
    if phi_z.shape != z.shape:
        raise ValueError(f"phi_z: got shape {tuple(phi_z.shape)}, wanted that of z, {tuple(z.shape)}")
    return gated(z, phi_z, None, tau, gain, sharpness, hard, dim)


def check_sharpness(sharpness: float, name: str = "sharpness") -> float:
    """`sharpness` itself; ValueError unless it is a finite number > 0."""
    if isinstance(sharpness, bool) or not isinstance(sharpness, int | float) or not 0 < sharpness < math.inf:
        raise ValueError(f"{name}: got {sharpness!r}, wanted a finite number > 0")
    return float(sharpness)


def gated(
    z: Tensor,
    phi_z: Tensor | None,
    activation: nn.Module | None,
    tau: Tensor,
    gain: Tensor,
    sharpness: float,
    hard: bool,
    dim: int,
) -> Tensor:
    """`tau_gate`, where phi(z) is given or is left to be computed together with the gate from `activation`."""
    _check_shapes(z, tau, gain, dim)
    kind = "given" if phi_z is not None else fused.kind_of(activation)
    if kind is not None:
        found = fused.call(z, phi_z, tau, gain, sharpness, hard, dim, kind)
        if found is not None:
            return found
    if phi_z is None:
        assert activation is not None
        # an activation that works in place would overwrite what the gate reads
        phi_z = activation(z.clone() if getattr(activation, "inplace", False) else z)
    return fused.formula(z, phi_z, tau, gain, sharpness, hard, dim)


def _check_shapes(z: Tensor, tau: Tensor, gain: Tensor, dim: int) -> None:
    for name, t in (("z", z), ("tau", tau), ("gain", gain)):
        if not t.is_floating_point():
            raise TypeError(f"{name}: got {t.dtype}, wanted a floating point tensor")
    if not -z.ndim <= dim < z.ndim:
        raise ValueError(f"dim: got {dim}, z has {z.ndim} dimensions")
    width = z.shape[dim]
    for name, t in (("tau", tau), ("gain", gain)):
        rows = t.shape[0] if t.ndim == 2 else 1
        if t.ndim not in (1, 2) or t.shape[-1] != width:
            raise ValueError(f"{name}: got shape {tuple(t.shape)}, wanted ({width},) for z of {tuple(z.shape)}")
        if rows != 1 and (rows != z.shape[0] or dim % z.ndim == 0):
            raise ValueError(f"{name}: got {rows} rows, wanted one for each of the {z.shape[0]} samples of z")


class TauGate(nn.Module):
    """One threshold and one gain for each of `width` units: `tau_gate` as a module.

    Args:
        width: number of units H.
        sharpness: s of the soft gate. At the start g(0) = sigmoid(-s tau_init) = 0.982 with the defaults, so that
            units that are on stay within 2 % of the base, and tau has a gradient still.
        tau_init: initial threshold; -inf gives gains alone, and with gain 1 the base.
        dim: dimension of the units.
        hard: the step at the threshold instead of the sigmoid; for inference, tau gets no gradient.
        device, dtype: of the parameters `tau` and `gain`, (width,); they stay float32 in a half-precision model.

    Raises:
        ValueError: `width` < 1, `sharpness` not > 0, `tau_init` NaN; when called, what `tau_gate` raises.
    """

    def __init__(
        self,
        width: int,
        *,
        sharpness: float = 4.0,
        tau_init: float = -1.0,
        dim: int = -1,
        hard: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width: got {width}, wanted at least 1")
        if tau_init != tau_init:
            raise ValueError("tau_init: got NaN, wanted a number or an infinity")
        self.width, self.dim, self.hard = width, dim, hard
        self.sharpness = check_sharpness(sharpness)
        self.tau = nn.Parameter(torch.full((width,), float(tau_init), device=device, dtype=dtype))
        self.gain = nn.Parameter(torch.ones(width, device=device, dtype=dtype))

    def forward(self, z: Tensor, phi_z: Tensor) -> Tensor:
        return tau_gate(z, phi_z, self.tau, self.gain, self.sharpness, hard=self.hard, dim=self.dim)

    def no_weight_decay(self) -> set[str]:
        """Weight decay would pull the gains to 0, not to 1, and the thresholds to 0."""
        return {"tau", "gain"}

    def extra_repr(self) -> str:
        return f"width={self.width}, sharpness={self.sharpness:g}, dim={self.dim}, hard={self.hard}"
