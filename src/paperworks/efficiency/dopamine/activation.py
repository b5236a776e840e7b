"""The base's activation module with a bank of gates: `GatedActivation` stands where the activation stood."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.efficiency.dopamine.gate import check_sharpness, gated

__all__ = ["GatedActivation"]


class GatedActivation(nn.Module):
    """h = gain_m phi(z) sigmoid(s (z - tau_m)) with phi the wrapped activation and m the mode, one or one a sample.

    Args:
        activation: the base's activation module phi; kept as it is.
        width: number of units H.
        modes: names; the rows of `tau` and `gain`, (modes, H), in this order. The first one is on.
        sharpness, tau_init, dim, hard, device, dtype: as in `TauGate`.

    Raises:
        TypeError: `activation` is no `nn.Module`.
        ValueError: a number out of range, no mode or a name twice; when called, an input of another width, or of
            another batch size than there are modes chosen.
    """

    mode: Tensor

    def __init__(
        self,
        activation: nn.Module,
        width: int,
        modes: Sequence[str] = ("default",),
        *,
        sharpness: float = 4.0,
        tau_init: float = -1.0,
        dim: int = -1,
        hard: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(activation, nn.Module):
            raise TypeError(f"activation: got {type(activation).__name__}, wanted an nn.Module")
        if width < 1:
            raise ValueError(f"width: got {width}, wanted at least 1")
        if tau_init != tau_init:
            raise ValueError("tau_init: got NaN, wanted a number or an infinity")
        if isinstance(modes, str) or not modes or len(set(modes)) < len(modes):
            raise ValueError(f"modes: got {modes!r}, wanted a list of one or more different names")
        self.activation, self.width, self.modes, self.dim, self.hard = activation, width, list(modes), dim, hard
        self.sharpness, self.tau_init = check_sharpness(sharpness), float(tau_init)
        self.tau = nn.Parameter(torch.full((len(modes), width), self.tau_init, device=device, dtype=dtype))
        self.gain = nn.Parameter(torch.ones(len(modes), width, device=device, dtype=dtype))
        # the rows in use: one for all samples, or one a sample with -1 for the base; its number of rows says which
        self.register_buffer("mode", torch.zeros(1, dtype=torch.long, device=device), persistent=False)
        self._per_sample = self._some_base = self._off = False
        self.remember = False
        self.latest: Tensor | None = None

    def forward(self, z: Tensor) -> Tensor:
        dim = self.dim
        if not -z.ndim <= dim < z.ndim or z.shape[dim] != self.width:
            raise ValueError(f"z: got shape {tuple(z.shape)}, wanted {self.width} units in dimension {dim}")
        if self._off:
            return self.activation(z)
        if self._per_sample and z.shape[0] != self.mode.shape[0]:
            raise ValueError(
                f"z: got a batch of {z.shape[0]}, wanted one of {self.mode.shape[0]}, a mode for each sample"
            )
        trained = self.training and torch.is_grad_enabled() and self.tau.requires_grad
        if self.hard and trained and not torch.compiler.is_compiling():
            warnings.warn("hard gates give tau no gradient: train with harden(False)", stacklevel=2)
        if self.remember and torch.is_grad_enabled():
            self.latest = z
        tau, gain = self.rows()
        if not self._some_base:
            return gated(z, None, self.activation, tau, gain, self.sharpness, self.hard, dim)
        base = self.activation(z.clone() if getattr(self.activation, "inplace", False) else z)
        shape = [-1] + [1] * (z.ndim - 1)
        h = gated(z, base, None, tau, gain, self.sharpness, self.hard, dim)
        return torch.where((self.mode < 0).view(shape), base, h)

    def rows(self) -> tuple[Tensor, Tensor]:
        """The thresholds and gains in use, each (1, H), or (N, H) where every sample has its mode."""
        at = self.mode.clamp(min=0)
        return self.tau.index_select(0, at), self.gain.index_select(0, at)

    def gate(self, z: Tensor) -> Tensor:
        """g(z) of the mode in use, in z's shape and at least float32."""
        ones = torch.ones_like(z, dtype=torch.promote_types(z.dtype, torch.float32))
        tau, gain = self.rows()
        return gated(z, ones, None, tau, torch.ones_like(gain), self.sharpness, self.hard, self.dim)

    def set_mode(self, mode: str | Tensor | None) -> None:
        """Turn on a mode by name, one for each sample by a LongTensor (N,) of rows with -1 = base, or None: the base.

        Raises ValueError for an unknown name or row, TypeError for another type.
        """
        if mode is None:
            self._off = True
            return
        if isinstance(mode, str):
            if mode not in self.modes:
                raise ValueError(f"mode: got {mode!r}, wanted one of {', '.join(self.modes)}")
            chosen = torch.tensor([self.modes.index(mode)])
        elif isinstance(mode, Tensor) and mode.dtype == torch.long and mode.ndim == 1:
            if len(mode) and (int(mode.min()) < -1 or int(mode.max()) >= len(self.modes)):
                low, high = int(mode.min()), int(mode.max())
                raise ValueError(f"mode: got rows from {low} to {high}, wanted -1 to {len(self.modes) - 1}")
            chosen = mode
        else:
            got = f"{mode.dtype} {tuple(mode.shape)}" if isinstance(mode, Tensor) else type(mode).__name__
            raise TypeError(f"mode: got {got}, wanted a name, an int64 tensor (N,) or None")
        self._per_sample = isinstance(mode, Tensor)
        self._some_base = self._per_sample and bool((chosen < 0).any())
        self._off = self._per_sample and bool((chosen < 0).all())
        self.mode = chosen.to(self.tau.device)

    def add_mode(self, name: str, tau: Tensor | None = None, gain: Tensor | None = None) -> None:
        """Append a row to `tau` and `gain`: (H,) each, by default the start. The parameters are new objects then.

        Raises ValueError for a name that exists, or another shape.
        """
        if name in self.modes:
            raise ValueError(f"name: {name!r} exists already; the modes are {', '.join(self.modes)}")
        rows = {"tau": tau, "gain": gain}
        for key, start in (("tau", self.tau_init), ("gain", 1.0)):
            old = getattr(self, key)
            row = torch.full_like(old[0], start) if rows[key] is None else rows[key]
            if row.shape != (self.width,):  # type: ignore[union-attr]
                raise ValueError(f"{key}: got shape {tuple(row.shape)}, wanted ({self.width},)")  # type: ignore[union-attr]
            joined = torch.cat([old.detach(), row.detach().to(old)[None]])  # type: ignore[union-attr]
            setattr(self, key, nn.Parameter(joined, requires_grad=old.requires_grad))
        self.modes.append(name)

    def fill(self, modes: Sequence[str], tau: Tensor, gain: Tensor) -> None:
        """Replace all modes: names, and (modes, H) thresholds and gains. The first one is on."""
        for key, value in (("tau", tau), ("gain", gain)):
            old = getattr(self, key)
            if old.shape == value.shape:  # an optimizer that holds the parameter keeps it
                old.data.copy_(value)
            else:
                setattr(self, key, nn.Parameter(value.to(old), requires_grad=old.requires_grad))
        self.modes = list(modes)
        self.set_mode(self.modes[0])

    def no_weight_decay(self) -> set[str]:
        """Weight decay would pull the gains to 0, not to 1, and the thresholds to 0."""
        return {"tau", "gain"}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Follow a model to another device or type; float32 thresholds and gains do not follow it to a half type."""

        def careful(t: Tensor) -> Tensor:
            moved = fn(t)
            half = t.dtype == torch.float32 and moved.dtype in (torch.float16, torch.bfloat16)
            return t.to(moved.device) if half else moved

        if recurse:
            for child in self.children():
                child._apply(fn)
        return super()._apply(careful, recurse=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "latest": None}  # it hangs on a graph, which is neither copied nor pickled

    def extra_repr(self) -> str:
        return f"width={self.width}, modes={self.modes}, sharpness={self.sharpness:g}, dim={self.dim}, hard={self.hard}"
