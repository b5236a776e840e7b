"""Sharpness-aware minimisation (2010.01412), as a `torch.optim.Optimizer` around another one.

With g the gradient at w: climb by e = rho g / |g|, the norm over all parameters together; take the gradient g' at
w + e; go back to w; let the base optimiser step with g'. The adaptive form (2102.11600) measures the climb relative to
the weights: e = rho w^2 g / | |w| g |.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SAM", "MissingClosure", "climb", "frozen_norm_stats"]

EPS = 1e-12
PIECE = 16384


class MissingClosure(TypeError, ValueError, RuntimeError):
    """A step without the closure that computes the loss: the gradient is needed at two places."""


@torch.no_grad()
def climb_norm(parameters: list[Tensor], gradients: list[Tensor], adaptive: bool = False) -> Tensor:
    """|g|, or | |w| g | in the adaptive form, over all tensors together, a scalar; halves are summed as float32."""
    if not gradients:
        return torch.zeros(())
    wide = [_wide(g) for g in gradients]
    if adaptive:
        weights = [w.to(d) for w, d in zip(parameters, wide, strict=True)]
        gradients = list(torch._foreach_mul(weights, [g.to(d) for g, d in zip(gradients, wide, strict=True)]))
        wide = [g.dtype for g in gradients]
    # one after another, a million squares in float32 lose five digits: a CPU gets pieces, added up in float64
    pieces = [(g.reshape(-1).split(PIECE) if g.device.type == "cpu" else (g,)) for g in gradients]
    wide = [d for several, d in zip(pieces, wide, strict=True) for _ in several]
    gradients = [g for several in pieces for g in several]
    norms: list[Tensor] = []
    for dtype in dict.fromkeys(wide):
        norms += torch._foreach_norm([g for g, d in zip(gradients, wide, strict=True) if d == dtype], 2, dtype=dtype)
    first = norms[0].device
    sum_dtype = torch.float32 if first.type == "mps" else torch.float64
    return torch.linalg.vector_norm(torch.stack([n.to(first, sum_dtype) for n in norms]))


@torch.no_grad()
def climb(parameters: list[Tensor], gradients: list[Tensor], radii: list[float], adaptive: list[bool]) -> None:
    """Move the parameters, in place, to where the loss rises fastest within the radius.

    Args:
        parameters, gradients: tensors of the same shapes.
        radii, adaptive: rho and the form of each.
    """
    plain = [i for i, flag in enumerate(adaptive) if not flag]
    relative = [i for i, flag in enumerate(adaptive) if flag]
    parts = [climb_norm([parameters[i] for i in at], [gradients[i] for i in at], f) for at, f in
             ((plain, False), (relative, True)) if at]  # fmt: skip
    if not parts:
        return
    norm = parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack([p.to(parts[0]) for p in parts]))
    inverse = 1 / (norm + EPS)
    for rho, device in dict.fromkeys((radii[i], parameters[i].device) for i in range(len(parameters))):
        at = [i for i in plain if radii[i] == rho and parameters[i].device == device]
        _add_scaled([parameters[i] for i in at], [gradients[i] for i in at], rho * inverse, device)
        at = [i for i in relative if radii[i] == rho and parameters[i].device == device]
        if at:
            some = [parameters[i] for i in at]
            moves = torch._foreach_mul(torch._foreach_mul(some, some), [gradients[i] for i in at])
            _add_scaled(some, list(moves), rho * inverse, device)


def _add_scaled(parameters: list[Tensor], moves: list[Tensor], scale: Tensor, device: torch.device) -> None:
    if not parameters:
        return
    if device.type == "cpu":
        torch._foreach_add_(parameters, moves, alpha=float(scale))
    else:  # reading the scale would make the host wait for the device
        torch._foreach_add_(parameters, torch._foreach_mul(moves, scale.to(device, _wide(moves[0]))))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation around a base optimiser.

    Either ``loss = optimizer.step(closure)`` with torch's usual closure (zero the gradients, compute the loss, call
    backward, return the loss), which is called twice, or by hand: backward, `first_step`, backward, `second_step`.
    Learning-rate schedulers take this object. With gradient accumulation let the closure run all micro-batches. With a
    gradient scaler: ``first_step`` on the scaled gradients (their direction is all it uses), backward again,
    `restore`, ``scaler.step(optimizer.base_optimizer)``.

    Args:
        params: parameters or groups; a group may have its own `rho` and `adaptive`. The norm is over all of them.
        base_optimizer: class of the optimiser that steps, e.g. ``torch.optim.AdamW``.
        rho: radius of the climb, 0.05 in the paper of SAM; 0.5 is usual for the adaptive form.
        adaptive: climb in proportion to the weights.
        every: climb only at every k-th call of `step`; the others are steps of the base optimiser alone.
        same_rng: dropout and drop path draw the same masks in both passes of `step`.
        base: options of the base optimiser. Weight decay and momentum act in its step alone.

    Raises ValueError for a negative `rho` or `every` < 1, TypeError where `base_optimizer` is no class of optimisers.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: type[torch.optim.Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        *,
        every: int = 1,
        same_rng: bool = False,
        **base: Any,
    ) -> None:
        if not (isinstance(base_optimizer, type) and issubclass(base_optimizer, torch.optim.Optimizer)):
            got = base_optimizer.__name__ if isinstance(base_optimizer, type) else type(base_optimizer).__name__
            raise TypeError(f"base_optimizer: got {got}, wanted a class of torch.optim, such as torch.optim.AdamW")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every: got {every!r}, wanted a whole number, 1 or more")
        super().__init__(params, {"rho": _radius(rho), "adaptive": adaptive})
        for group in self.param_groups:
            _radius(group["rho"])
        self.every, self.same_rng, self._steps = every, same_rng, 0
        self.base_optimizer = base_optimizer(self.param_groups, **base)
        self.defaults.update(self.base_optimizer.defaults)
        self._saved: list[tuple[Tensor, Tensor]] | None = None
        self._kept: dict[Tensor, Tensor] = {}
        self._share()

    def _share(self) -> None:
        """One list of groups and one state for both: schedulers and checkpoints see what the base optimiser uses."""
        self.param_groups, self.state = self.base_optimizer.param_groups, self.base_optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, to the base optimiser as well."""
        if "base_optimizer" not in self.__dict__:  # while torch's constructor runs
            super().add_param_group(param_group)
            return
        own = {name: self.defaults[name] for name in ("rho", "adaptive")}
        self.base_optimizer.add_param_group({**own, **param_group})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.base_optimizer.zero_grad(set_to_none)

    @property
    def climbed(self) -> bool:
        """Whether the weights stand at w + e: between `first_step` and `second_step`."""
        return self._saved is not None

    @property
    def climbs_next(self) -> bool:
        """Whether the next `step` climbs."""
        return (self._steps + 1) % self.every == 0

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Keep w and climb to w + e along the gradients there are. Raises RuntimeError if the weights are there now."""
        if self._saved is not None:
            raise RuntimeError("first_step: the weights have climbed already, wanted second_step or restore before it")
        taken = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        parameters = [p for p, _ in taken]
        gradients = [p.grad for p in parameters]
        if any(g.is_sparse for g in gradients):
            raise RuntimeError("first_step: got sparse gradients, wanted dense ones")
        for p in parameters:
            kept = self._kept.get(p)
            if kept is None or kept.shape != p.shape or kept.dtype != p.dtype or kept.device != p.device:
                self._kept[p] = torch.empty_like(p)
        copies = [self._kept[p] for p in parameters]
        if parameters:
            torch._foreach_copy_(copies, parameters)
        self._saved = list(zip(parameters, copies, strict=True))
        climb(parameters, gradients, [g["rho"] for _, g in taken], [g["adaptive"] for _, g in taken])
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Back to w: all that climbed, from its copy. Raises RuntimeError before `first_step`."""
        if self._saved is None:
            raise RuntimeError("second_step: the weights have not climbed, wanted first_step before it")
        if self._saved:
            torch._foreach_copy_([p for p, _ in self._saved], [kept for _, kept in self._saved])
        self._saved = None

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Go back to w and step with the gradients taken at w + e. Raises RuntimeError before `first_step`."""
        self.restore()
        self.base_optimizer.step()
        self._opt_called = True  # schedulers ask whether a step came before theirs
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the loss at w. An error in the second pass leaves the weights at w.

        Raises `MissingClosure`, a TypeError, ValueError and RuntimeError, without a closure.
        """
        if closure is None:
            raise MissingClosure("closure: got None, wanted a function that zeroes the gradients, calls backward and "
                                 "returns the loss; without one, use first_step and second_step")  # fmt: skip
        with torch.enable_grad():
            states = self._random_states() if self.same_rng and self.climbs_next else None
            loss = closure()
        if not self.climbs_next:
            self.base_optimizer.step()
        else:
            self.first_step()
            try:
                if states is not None:
                    _set_random_states(states)
                with torch.enable_grad():
                    closure()
            except BaseException:
                self.restore()
                raise
            self.second_step()
        self._steps += 1
        return loss

    def _random_states(self) -> dict[torch.device, Tensor]:
        states = {torch.device("cpu"): torch.get_rng_state()}
        for device in {p.device for group in self.param_groups for p in group["params"]}:
            if device.type == "cuda":
                states[device] = torch.cuda.get_rng_state(device)
        return states

    def state_dict(self) -> dict[str, Any]:
        """The base optimiser's state and groups, and the number of steps. Raises RuntimeError while climbed."""
        if self._saved is not None:
            raise RuntimeError("state_dict: the weights have climbed, wanted second_step or restore before it")
        return {**self.base_optimizer.state_dict(), "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, or the state of the base optimiser alone; the list of groups stays the same."""
        groups = self.param_groups
        own = [{name: group[name] for name in ("rho", "adaptive")} for group in groups]
        self.base_optimizer.load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        groups[:] = self.base_optimizer.param_groups
        for group, defaults in zip(groups, own, strict=True):
            for name, value in defaults.items():
                group.setdefault(name, value)
        self.base_optimizer.param_groups = groups
        self._steps = int(state_dict.get("steps", 0))
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        if self._saved is not None:
            raise RuntimeError("copy: the weights have climbed, wanted second_step or restore before it")
        own = {name: self.__dict__[name] for name in ("every", "same_rng", "_steps", "base_optimizer")}
        return {**super().__getstate__(), **own, "_saved": None, "_kept": {}}


def _radius(rho: Any) -> float:
    if isinstance(rho, bool) or not isinstance(rho, int | float):
        raise TypeError(f"rho: got {type(rho).__name__}, wanted a number, 0 or more")
    if not 0 <= rho < float("inf"):
        raise ValueError(f"rho: got {rho}, wanted a number, 0 or more")
    return rho


def _set_random_states(states: dict[torch.device, Tensor]) -> None:
    for device, state in states.items():
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


@contextmanager
def frozen_norm_stats(model: nn.Module) -> Iterator[None]:
    """Inside, running statistics of batch and instance norms are not updated; modes and outputs are as ever.

    For the pass at w + e, whose statistics are not those of the network.
    """
    before: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        if getattr(module, "running_mean", None) is None or not module.training:
            continue
        # without tracking a batch norm in training mode does the same and leaves its buffers, the counter too
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            before.append((module, "track_running_stats", module.track_running_stats))
            module.track_running_stats = False
        else:
            before.append((module, "momentum", module.momentum))
            module.momentum = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
