"""Which units a mode opens, closes and amplifies, beside the base: the attribution that gates allow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paperworks.surgery.recording import Recorder
from paperworks.surgery.sites import run_sample

if TYPE_CHECKING:
    from paperworks.efficiency.dopamine.activation import GatedActivation
    from paperworks.efficiency.dopamine.adapter import TauGateModel

__all__ = ["GateReport", "SiteReport", "batch_inputs", "gate_report", "pre_activations", "recorded_pass"]

_TOP = 5


@dataclass(frozen=True)
class SiteReport:
    """Means over a loader's samples (and positions, where a sample has several) at one site, float64.

    Attributes:
        labels: (C,) the classes, in order; empty without labels, and C = 1 below.
        counts: (C,) samples.
        gate: (C, H) mean gate.
        output: (C, H) mean of gain phi(z) g.
        base_output: (C, H) mean of phi(z) in the base.
        open: (H,) share of samples with z > tau.
        firing: (H,) share of samples with z > tau and phi(z) > 0.
        base_firing: (H,) share of samples with phi(z) > 0 in the base.
        top: (H, k) the samples, by their order in the loader, with the largest outputs; -1 where there are fewer.
    """

    labels: Tensor
    counts: Tensor
    gate: Tensor
    output: Tensor
    base_output: Tensor
    open: Tensor
    firing: Tensor
    base_firing: Tensor
    top: Tensor

    @property
    def mean_output(self) -> Tensor:
        """(H,) mean output over all samples."""
        return (self.output * self.counts[:, None]).sum(0) / self.counts.sum()

    @property
    def difference(self) -> Tensor:
        """(C, H) mean output minus the base's."""
        return self.output - self.base_output

    @property
    def strong_share(self) -> float:
        """Share of units whose mean output is above half of the largest one."""
        mean = self.mean_output
        return float((mean > mean.max() / 2).double().mean())

    @property
    def open_share(self) -> float:
        """Share of pairs of unit and sample whose hard gate is open."""
        return float(self.open.mean())

    @property
    def closed(self) -> Tensor:
        """Units that fire in the base and never in this mode."""
        return torch.nonzero((self.base_firing > 0) & (self.firing == 0)).flatten()

    @property
    def opened(self) -> Tensor:
        """Units that fire in this mode and never in the base (what earlier layers feed them has changed)."""
        return torch.nonzero((self.base_firing == 0) & (self.firing > 0)).flatten()


@dataclass(frozen=True)
class GateReport:
    """The report of one mode: a `SiteReport` by site. Its text is a table."""

    mode: str
    sites: dict[str, SiteReport]

    def signature(self) -> dict[str, tuple[list[int], list[int]]]:
        """By site, the units closed and the units opened against the base."""
        return {name: (site.closed.tolist(), site.opened.tolist()) for name, site in self.sites.items()}

    def __str__(self) -> str:
        lines = [f"mode {self.mode!r}", f"{'site':40} units  closed  opened  open gates  strong units"]
        for name, site in self.sites.items():
            numbers = f"{site.open.numel():5}  {len(site.closed):6}  {len(site.opened):6}"
            lines.append(f"{name:40} {numbers}  {site.open_share:10.1%}  {site.strong_share:12.1%}")
        return "\n".join(lines)


def batch_inputs(batch: Any) -> tuple[Any, Tensor | None]:
    """A loader's batch as model input and labels: inputs, (inputs, labels), or a mapping with or without "labels"."""
    if hasattr(batch, "keys"):
        keys = list(batch.keys())
        labels = batch["labels"] if "labels" in keys else None
        return {key: batch[key] for key in keys if key != "labels"}, labels
    if isinstance(batch, list | tuple):
        if len(batch) == 2 and isinstance(batch[1], Tensor) and batch[1].dtype == torch.long and batch[1].ndim == 1:
            return batch[0], batch[1]
        return (batch[0] if len(batch) == 1 else tuple(batch)), None
    return batch, None


def recorded_pass(adapted: TauGateModel, inputs: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """z and phi(z) at each site in one pass of the mode in use, both (N, positions, H)."""
    gates = adapted.gates
    with Recorder(adapted.model, list(gates), at="input") as recorder:
        run_sample(adapted.model, inputs)
    found = {}
    for name, tensors in recorder.values.items():
        gate = gates[name]
        pairs = [(t.detach(), gate.activation(t.detach().clone())) for t in tensors]
        units = [[t.movedim(gate.dim, -1) for t in both] for both in zip(*pairs, strict=True)]
        z, phi = (torch.cat([t.reshape(t.shape[0], -1, t.shape[-1]) for t in both], dim=1) for both in units)
        found[name] = z, phi
    return found


@torch.no_grad()
def pre_activations(adapted: TauGateModel, loader: Iterable[Any]) -> dict[str, Tensor]:
    """The pre-activations of each site over a loader, in the mode in use: (samples * positions, H)."""
    seen: dict[str, list[Tensor]] = {name: [] for name in adapted.gates}
    for batch in loader:
        for name, (z, _) in recorded_pass(adapted, batch_inputs(batch)[0]).items():
            seen[name].append(z.flatten(0, 1).float())
    if not all(seen.values()):
        raise ValueError("loader: got no batch, wanted at least one")
    return {name: torch.cat(parts) for name, parts in seen.items()}


@torch.no_grad()
def gate_report(adapted: TauGateModel, loader: Iterable[Any]) -> GateReport:
    """See `TauGateModel.report`. Raises ValueError for an empty loader, or where no mode is on by name."""
    mode = adapted.active
    if mode is None:
        raise ValueError("mode: the base or a mode for each sample is on, wanted one by name: set_mode(name)")
    sums = {name: _Sums(gate) for name, gate in adapted.gates.items()}
    training = adapted.training
    adapted.eval()
    try:
        for batch in loader:
            inputs, labels = batch_inputs(batch)
            seen = recorded_pass(adapted, inputs)
            adapted.set_mode(None)
            base = recorded_pass(adapted, inputs)
            adapted.set_mode(mode)
            for name, site in sums.items():
                site.add(*seen[name], base[name][1], labels)
    finally:
        adapted.set_mode(mode)
        adapted.train(training)
    return GateReport(mode, {name: site.report() for name, site in sums.items()})


class _Sums:
    """Running sums of one site, by class."""

    def __init__(self, gate: GatedActivation) -> None:
        self.gate, self.count = gate, 0
        self.by_class: dict[int, Tensor] = {}  # (4, H): samples, gate, output, base output
        self.rates = torch.zeros(3, gate.width, dtype=torch.float64)
        self.best = torch.full((gate.width, _TOP), -torch.inf, dtype=torch.float64)
        self.top = torch.full((gate.width, _TOP), -1)

    def add(self, z: Tensor, phi: Tensor, base: Tensor, labels: Tensor | None) -> None:
        """z and phi(z) in the mode, phi(z) in the base, each (N, positions, H)."""
        tau, gain = (t.detach()[0] for t in self.gate.rows())
        phi, base = phi.double(), base.double()
        above = z.double() - tau.double()
        open = above > 0
        gate = open.double() if self.gate.hard else torch.sigmoid(self.gate.sharpness * above)
        output = gain.double() * phi * gate
        values = torch.stack([torch.ones_like(gate), gate, output, base]).mean(2).cpu()
        classes = torch.zeros(len(z), dtype=torch.long) - 1 if labels is None else labels.cpu()
        for label in classes.unique().tolist():
            part = values[:, classes == label].sum(1)
            self.by_class[label] = self.by_class[label] + part if label in self.by_class else part
        self.rates += torch.stack([t.double().mean(1).sum(0) for t in (open, open & (phi > 0), base > 0)]).cpu()
        here = torch.arange(self.count, self.count + len(z)).expand(self.gate.width, -1)
        best = torch.cat([self.best, values[2].T], 1).topk(_TOP, 1)
        self.best, self.top = best.values, torch.cat([self.top, here], 1).gather(1, best.indices)
        self.count += len(z)

    def report(self) -> SiteReport:
        if not self.count:
            raise ValueError("loader: got no batch, wanted at least one")
        labels = sorted(self.by_class)
        sums = torch.stack([self.by_class[label] for label in labels], 1)  # (4, C, H)
        counts = sums[0, :, 0]
        gate, output, base = (t / counts[:, None] for t in sums[1:])
        known = torch.tensor([label for label in labels if label >= 0 or len(labels) > 1], dtype=torch.long)
        open, firing, base_firing = self.rates / self.count
        return SiteReport(known, counts, gate, output, base, open, firing, base_firing, self.top)
