"""Adapters of a frozen network: TauGate, and what one would use instead. Each takes the network and changes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from paperworks.efficiency.dopamine import TauGateConfig, TauGateModel, add_taugate
from paperworks.surgery.sites import activation_sites, features, freeze


@dataclass
class Adaptation:
    """An adapted network.

    Attributes:
        network: images in, logits out.
        trained: the parameters to train; empty for an adapter that is not trained.
        lr: Adam's learning rate, without weight decay.
        save: writes the adapter into a folder; None where there is nothing to save.
        gates: the gated model, where the arm has gates.
        prepare: called with the training images before the training.
        anneal: called with the progress of the training, from 0 to 1.
    """

    network: nn.Module
    trained: list[nn.Parameter]
    lr: float = 0.0
    save: Callable[[Path], None] | None = None
    gates: TauGateModel | None = None
    prepare: Callable[[Tensor], None] | None = None
    anneal: Callable[[float], object] | None = None


def frozen(network: nn.Module) -> Adaptation:
    """The foundation as it is, behind gates that are open for good so that its units are counted alike."""
    gates = add_taugate(network, TauGateConfig(tau_init=-math.inf))
    return Adaptation(gates, [], gates=gates)


def taugate(
    network: nn.Module,
    lr: float = 2e-2,
    sharpness: float = 4.0,
    tau_init: float = -1.0,
    anneal_to: float | None = None,
    sparsity: float = 0.0,
) -> Adaptation:
    """A threshold and a gain for every hidden unit."""
    config = TauGateConfig(sharpness=sharpness, tau_init=tau_init, anneal_to=anneal_to, sparsity=sparsity)
    gates = add_taugate(network, config)
    return Adaptation(gates, gates.trainable_parameters(), lr, gates.save, gates, anneal=gates.anneal)


def equalized(network: nn.Module) -> Adaptation:
    """Open gates with gains that give every unit the layer's median mean output, none more than ten. Not trained."""
    gates = add_taugate(network, TauGateConfig(tau_init=-math.inf))

    def prepare(images: Tensor) -> None:
        for name, gate in gates.gates.items():  # in order: what a layer gives depends on the gains of those before
            mean = gates.report([images]).sites[name].mean_output
            gate.gain.data[0] = (mean.median() / mean).clamp(max=10.0).to(gate.gain)

    return Adaptation(gates, [], gates=gates, prepare=prepare)


def lora(network: nn.Module, r: int = 8, alpha: float = 16.0, lr: float = 3e-3) -> Adaptation:
    """peft's LoRA of rank r, scale alpha / r, on every linear layer."""
    peft = _peft()
    targets = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return _by_peft(network, peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=targets), lr)


def ia3(network: nn.Module, lr: float = 2e-2) -> Adaptation:
    """peft's IA3: a gain for every hidden unit, at the input of the layer that follows."""
    peft = _peft()
    targets = [site.after for site in activation_sites(network) if site.after is not None]
    return _by_peft(network, peft.IA3Config(target_modules=targets, feedforward_modules=targets), lr)


def bitfit(network: nn.Module, lr: float = 1e-2) -> Adaptation:
    """The biases of all layers."""
    from safetensors.torch import save_file

    freeze(network)
    biases = {f"{name}.bias": m.bias for name, m in network.named_modules() if features(m) and m.bias is not None}
    for bias in biases.values():
        bias.requires_grad_()

    def save(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: bias.detach() for name, bias in biases.items()}, folder / "biases.safetensors")

    return Adaptation(network, list(biases.values()), lr, save)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(f"LoRA and IA3 come from peft: pip install peft ({error})") from error
    return peft


def _by_peft(network: nn.Module, config: Any, lr: float) -> Adaptation:
    adapted = _peft().get_peft_model(network, config)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    return Adaptation(adapted, trained, lr, lambda folder: adapted.save_pretrained(folder))


def tensor_bytes(folder: Path) -> int:
    """Bytes of the safetensors files in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def perceptron(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    """inputs-hidden-hidden-classes with ReLU, on flattened images."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, classes),
    )  # fmt: skip
