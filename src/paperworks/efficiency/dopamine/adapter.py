"""Thresholds and gains around a frozen model: `add_taugate` and the `TauGateModel` it returns."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.efficiency.dopamine import compact, report, storage
from paperworks.efficiency.dopamine.activation import GatedActivation
from paperworks.efficiency.dopamine.folding import Folding
from paperworks.efficiency.dopamine.gate import check_sharpness
from paperworks.surgery.sites import ActivationSite, activation_sites, freeze, replace_site, restore

__all__ = ["TauGateConfig", "TauGateModel", "add_taugate", "load_taugate"]


@dataclass
class TauGateConfig:
    """How a model is gated.

    Attributes:
        targets: activation modules: None takes all, a list names them (whole or from their end, `mlp.act`), a string
            is a regular expression for the whole qualified name.
        sharpness: s at the start.
        anneal_to: s at the end; `TauGateModel.anneal` moves from the one to the other, in equal ratios.
        tau_init: threshold at the start.
        sparsity: lambda of `TauGateModel.sparsity_loss`.
        init: "constant", or "calibrated": each threshold starts at the 1 % quantile of its unit's pre-activations on
            the sample, minus 1 / sharpness.
        keep_dropout: train() turns the base's dropout on; by default the whole base stays in eval mode. Norms with
            running statistics stay in eval mode either way.
    """

    targets: str | Sequence[str] | None = None
    sharpness: float = 4.0
    anneal_to: float | None = None
    tau_init: float = -1.0
    sparsity: float = 0.0
    init: str = "constant"
    keep_dropout: bool = False

    def __post_init__(self) -> None:
        check_sharpness(self.sharpness)
        if self.anneal_to is not None:
            check_sharpness(self.anneal_to, "anneal_to")
        if self.tau_init != self.tau_init:
            raise ValueError("tau_init: got NaN, wanted a number or an infinity")
        if not self.sparsity >= 0:
            raise ValueError(f"sparsity: got {self.sparsity!r}, wanted a number >= 0")
        if self.init not in ("constant", "calibrated"):
            raise ValueError(f"init: got {self.init!r}, wanted 'constant' or 'calibrated'")


def add_taugate(model: nn.Module, config: TauGateConfig | None = None, *, sample: Any = None) -> TauGateModel:
    """Freeze a model and put a gate at its activations, in place; mode "default" is on.

    Args:
        model: any `nn.Module` with activation modules, such as a transformers `PreTrainedModel`.
        config: see `TauGateConfig`.
        sample: one input batch (a tensor, a tuple of positional or a dict of keyword arguments). Widths and neighbours
            are then read from a forward pass; it is needed where no linear layer beside the activation tells its width.

    Raises:
        ValueError: no site, a target that matches nothing (near names are listed), an activation that is a function
            (it is named), a width that is not known without `sample`, a model that has gates already.
    """
    config = TauGateConfig() if config is None else config
    if gates := [name for name, module in model.named_modules() if isinstance(module, GatedActivation)]:
        raise ValueError(
            f"model: has a gate at {gates[0]!r} already; call remove() first, or add_mode() for one more mode"
        )
    if config.init == "calibrated" and sample is None:
        raise ValueError("sample: got None, wanted a batch for init='calibrated'")
    sites = activation_sites(model, targets=config.targets, sample=sample)
    for site in sites:
        if site.width is None:
            raise ValueError(
                f"sample: got None, and no linear layer beside {site.name!r} tells its width; wanted a batch"
            )
    adapted = TauGateModel(model, config, sites)
    if config.init == "calibrated":
        adapted.calibrate([sample])
    return adapted


def load_taugate(model: nn.Module, folder: str | Path) -> TauGateModel:
    """Gate a base model as `TauGateModel.save` wrote it. Raises what `add_taugate` and `TauGateModel.load` raise."""
    saved = storage.read_config(Path(folder))
    adapted = TauGateModel(model, TauGateConfig(**saved["config"]), storage.checked_sites(model, saved))
    adapted.load(folder)
    return adapted


class TauGateModel(nn.Module):
    """A frozen model with gates. `model` is the wrapped model, called as before; this module calls it too.

    The base stays in eval mode whoever calls `train()` on it (see `TauGateConfig.keep_dropout`); blocks for which
    transformers' gradient checkpointing is on are put in training mode, which is what it asks for.
    """

    def __init__(self, model: nn.Module, config: TauGateConfig, sites: Sequence[ActivationSite]) -> None:
        super().__init__()
        self.config, self.sites = config, list(sites)
        self.sharpness = config.sharpness
        self._training_before = {name: module.training for name, module in model.named_modules()}
        self._trained_before = freeze(model)
        self._folding: Folding | None = None
        self.active: str | None = "default"
        device = next((p.device for p in model.parameters()), None)
        for site in self.sites:
            old = model.get_submodule(site.name)
            tensor = next(old.parameters(), None)
            dtype = (
                torch.float64 if next((p.dtype for p in model.parameters()), None) == torch.float64 else torch.float32
            )
            gate = GatedActivation(
                old, site.width or 0, sharpness=config.sharpness, tau_init=config.tau_init, dim=site.dim,
                device=_device_of(model, site) or (device if tensor is None else tensor.device), dtype=dtype,
            )  # fmt: skip
            gate.remember = config.sparsity > 0
            replace_site(model, site.name, gate)
        self.model = model
        training = model.training
        # the model itself is what a trainer is given, and what it calls train() on
        model.train = functools.partial(_train_gates, model, config.keep_dropout)  # type: ignore[method-assign]
        self.train(training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    @property
    def gates(self) -> dict[str, GatedActivation]:
        """The gates by site, in the order of the model's module tree."""
        found = {site.name: self.model.get_submodule(site.name) for site in self.sites}
        return {name: gate for name, gate in found.items() if isinstance(gate, GatedActivation)}

    @property
    def modes(self) -> list[str]:
        """The names of the modes, in the order of the rows."""
        return list(next(iter(self._live().values())).modes)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """tau and gain of every site, (modes, H) each. Train them without weight decay, which pulls gains to 0."""
        return [p for gate in self._live().values() for p in (gate.tau, gate.gain)]

    def set_mode(self, mode: str | Tensor | None) -> None:
        """Switch: a name, a LongTensor (N,) with a mode for each sample of the next batches (-1: base), or None: base.

        Raises:
            ValueError: an unknown name or row.
            RuntimeError: the base is asked for while gains are folded into its weights.
        """
        gates = self._live()
        base = mode is None or (isinstance(mode, Tensor) and bool((mode < 0).any()))
        if base and self._folding is not None:
            raise RuntimeError("mode: gains are folded into the base's weights; remove() gives the base back")
        for gate in gates.values():
            gate.set_mode(mode)
        self.active = mode if isinstance(mode, str) else None

    def add_mode(self, name: str) -> None:
        """A new mode with thresholds and gains as at the start; an optimizer wants the new `trainable_parameters()`."""
        self._refuse_folded("add_mode")
        for gate in self._live().values():
            gate.add_mode(name)

    def combine(self, name: str, weights: Mapping[str, float]) -> None:
        """A new mode between others: tau and gain are the weighted sums of theirs.

        Raises ValueError for an unknown mode, or weights that do not sum to 1.
        """
        self._refuse_folded("combine")
        known = self.modes
        if unknown := [mode for mode in weights if mode not in known]:
            raise ValueError(f"weights: got the mode {unknown[0]!r}, wanted some of {', '.join(known)}")
        if abs(sum(weights.values()) - 1) > 1e-6:
            raise ValueError(f"weights: got a sum of {sum(weights.values()):g}, wanted 1")
        for gate in self._live().values():
            w = gate.tau.new_zeros(len(known))
            for mode, weight in weights.items():
                w[known.index(mode)] = weight
            # an infinite threshold with weight 0 would give NaN
            tau, gain = (
                torch.where(w[:, None] != 0, w[:, None] * p.detach(), 0.0).sum(0) for p in (gate.tau, gate.gain)
            )
            gate.add_mode(name, tau, gain)

    def harden(self, on: bool = True) -> None:
        """Hard gates 1[z > tau] instead of soft ones, for inference: tau has no gradient then."""
        for gate in self._live().values():
            gate.hard = on

    def anneal(self, progress: float) -> float:
        """Set the sharpness to sharpness (anneal_to / sharpness)^progress, progress from 0 to 1, and return it."""
        if not 0 <= progress <= 1:
            raise ValueError(f"progress: got {progress}, wanted a number from 0 to 1")
        end = self.config.sharpness if self.config.anneal_to is None else self.config.anneal_to
        self.sharpness = self.config.sharpness * (end / self.config.sharpness) ** progress
        for gate in self._live().values():
            gate.sharpness = self.sharpness
        return self.sharpness

    @torch.no_grad()
    def calibrate(self, loader: Iterable[Any], quantile: float = 0.01) -> None:
        """Start the active mode's thresholds at a quantile of each unit's pre-activations, minus 1 / sharpness."""
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile: got {quantile}, wanted a number from 0 to 1")
        gates, mode = self._live(), self.active
        if mode is None:
            raise ValueError("mode: the base or a mode for each sample is on, wanted one by name: set_mode(name)")
        row = self.modes.index(mode)
        self.set_mode(None)
        try:
            seen = report.pre_activations(self, loader)
        finally:
            self.set_mode(mode)
        for name, gate in gates.items():
            z = seen[name].sort(0).values
            gate.tau[row] = (z[round(quantile * (len(z) - 1))] - 1 / gate.sharpness).to(gate.tau)

    def sparsity_loss(self) -> Tensor:
        """lambda times the mean open gate of the latest pass, over sites; 0 where the configuration's sparsity is 0.

        Raises RuntimeError where no pass with gradients came before.
        """
        gates = self._live()
        if self.config.sparsity == 0:
            return next(iter(gates.values())).tau.new_zeros(())
        means = []
        for name, gate in gates.items():
            if gate.latest is None:
                raise RuntimeError(f"no pass with gradients has gone through {name!r}; run the model first")
            means.append(gate.gate(gate.latest).mean())
        return self.config.sparsity * torch.stack([m.to(means[0].device) for m in means]).mean()

    def state_dict_adapter(self) -> dict[str, Tensor]:
        """``{"<site>.tau": (modes, H), "<site>.gain": (modes, H)}``; site = name of the activation in the base."""
        pairs = [(name, key, getattr(gate, key)) for name, gate in self._live().items() for key in ("tau", "gain")]
        return {f"{name}.{key}": value.detach().clone() for name, key, value in pairs}

    def save(self, folder: str | Path) -> None:
        """Write `taugate_config.json` and `taugate_model.safetensors`; the base's weights are not written.

        The names are not those of a base model or of peft, so a folder of `save_pretrained` can hold both.
        """
        self._refuse_folded("save")
        storage.write(self, Path(folder))

    def load(self, folder: str | Path) -> None:
        """Take modes, thresholds, gains, sharpness and hardness from what `save` wrote; the saved mode is on.

        Raises ValueError where the sites or widths differ, or a file is not as it should be.
        """
        self._refuse_folded("load")
        storage.read(self, Path(folder))

    def fold_gains(self, sample: Any = None) -> None:
        """Move the active mode's gains into the following linear layers; they become 1 and the output stays the same.

        Other modes are divided by the same gains and compute what they did. In a gated MLP (Llama) the gains pass the
        product with the up projection and go into the down projection.

        Args:
            sample: one input batch; where following layers are not known from structure, a pass finds them.

        Raises:
            ValueError: a site has no following layer that alone reads it (it is named); another mode would be divided
                by a gain of 0. Nothing is changed then.
        """
        self._refuse_folded("fold_gains")
        if self.active is None:
            raise ValueError("mode: the base or a mode for each sample is on, wanted one by name: set_mode(name)")
        if sample is not None:
            self.sites = compact.traced_sites(self, sample)
        self._folding = Folding(self.model, self.sites, self._live(), self.modes.index(self.active))

    def remove(self) -> nn.Module:
        """The base model, exactly as it was: its own activation modules, weights, training flags. Ends this object."""
        gates = self._live()
        if self._folding is not None:
            self._folding.undo(self.model)
            self._folding = None
        for name, gate in gates.items():
            replace_site(self.model, name, gate.activation)
        del self.model.__dict__["train"]
        restore(self.model, self._trained_before)
        for name, module in self.model.named_modules():
            module.training = self._training_before[name]
        return self.model

    def report(self, loader: Iterable[Any]) -> report.GateReport:
        """What the active mode does to every unit, beside the base, by class where the loader gives labels."""
        return report.gate_report(self, loader)

    def compact(self, loader: Iterable[Any]) -> nn.Module:
        """A smaller model with the active mode's hard gates: see `paperworks.efficiency.dopamine.compact.compacted`."""
        return compact.compacted(self, loader)

    def train(self, mode: bool = True) -> TauGateModel:
        """Training mode for the gates; the base stays in eval mode (see `TauGateConfig.keep_dropout`)."""
        self.training = mode
        self.model.train(mode)
        return self

    def _live(self) -> dict[str, GatedActivation]:
        gates = self.gates
        if not gates:
            raise RuntimeError("the gates were removed from this model: add_taugate() puts new ones in")
        return gates

    def _refuse_folded(self, what: str) -> None:
        if self._folding is not None:
            raise RuntimeError(f"{what}: gains are folded into the base's weights; remove() undoes it")


def _device_of(model: nn.Module, site: ActivationSite) -> torch.device | None:
    neighbour = site.before or site.after
    tensor = None if neighbour is None else next(model.get_submodule(neighbour).parameters(), None)
    return None if tensor is None else tensor.device


_KEEP_STATISTICS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def _train_gates(model: nn.Module, keep_dropout: bool, mode: bool = True) -> nn.Module:
    """`model.train` of a gated model."""
    gates = {id(part) for module in model.modules() if isinstance(module, GatedActivation) for part in module.modules()}
    for module in model.modules():
        on = id(module) in gates or keep_dropout or getattr(module, "gradient_checkpointing", False) is True
        module.training = mode and on and not isinstance(module, _KEEP_STATISTICS)
    return model
