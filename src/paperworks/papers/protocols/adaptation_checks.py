"""The exact checks of TauGate: counts, identities and limit cases, at real sizes."""

from __future__ import annotations

from typing import Any

from paperworks.lab.trial import Trial


def _perceptron() -> Any:
    from paperworks.papers.protocols.adaptation_arms import perceptron

    return perceptron(784, 256, 10).eval()


def _varied(trial: Trial, adapted: Any) -> Any:
    """Thresholds and gains as after a training: away from the start."""
    import torch

    generator = trial.generator("mode")
    with torch.no_grad():
        for p in adapted.trainable_parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return adapted


def _vit_tiny() -> Any:
    import transformers

    size = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    return transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000, **size)).eval()


def _trained_by_lora(model: Any, targets: list[str]) -> int:
    import peft

    from paperworks.measure.parameters import count_parameters

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets)
    return count_parameters(peft.get_peft_model(model, config), trainable=True)


def _trained_by_taugate(model: Any) -> int:
    from paperworks.efficiency.dopamine import add_taugate
    from paperworks.measure.parameters import count_parameters

    return count_parameters(add_taugate(model).model, trainable=True)


def two_numbers_a_unit(trial: Trial) -> dict[str, float]:
    """Counted on the networks that the library and peft make."""
    from paperworks.efficiency.dopamine import add_taugate

    first = next(iter(add_taugate(_perceptron()).gates.values()))
    gates, lora = _trained_by_taugate(_perceptron()), _trained_by_lora(_perceptron(), ["1", "3", "5"])
    one = first.tau.numel() + first.gain.numel()
    return {"TauGate": gates, "TauGate, one layer": one, "LoRA": lora, "LoRA / TauGate": lora / gates}


def on_transformers(trial: Trial) -> dict[str, float]:
    """Counts on networks that have shapes and no memory."""
    import torch
    import transformers

    with torch.device("meta"):
        vits = [_vit_tiny() for _ in range(2)]
        gpts = [transformers.GPT2LMHeadModel(transformers.GPT2Config()) for _ in range(2)]
        return {
            "ViT-Tiny: TauGate": _trained_by_taugate(vits[0]),
            "ViT-Tiny: LoRA on fc1": _trained_by_lora(vits[1], ["fc1"]),
            "GPT-2: TauGate": _trained_by_taugate(gpts[0]),
            "GPT-2: LoRA on c_attn": _trained_by_lora(gpts[1], ["c_attn"]),
        }


def the_base_is_restored(trial: Trial) -> dict[str, float]:
    """Largest absolute differences of the logits."""
    import torch

    from paperworks.efficiency.dopamine import add_taugate

    with trial.global_generators("weights"):
        model = _vit_tiny()
    x = torch.randn(4, 3, 224, 224, generator=trial.generator("images"))

    @torch.no_grad()
    def logits() -> Any:
        return model(x).logits

    base = logits()
    adapted = _varied(trial, add_taugate(model))
    distance = {"mode on": (logits() - base).abs().max()}
    adapted.set_mode(None)
    distance["mode off"] = (logits() - base).abs().max()
    adapted.set_mode(torch.tensor([-1, 0, -1, 0]))
    distance["samples in mode -1"] = (logits() - base)[::2].abs().max()
    adapted.remove()
    distance["gates removed"] = (logits() - base).abs().max()
    return {f"{name}: largest difference": value.item() for name, value in distance.items()}


def ia3_is_a_special_case(trial: Trial) -> dict[str, float]:
    """On the 784-256-256-10 network, 64 inputs, with the same random gains."""
    import copy
    import math

    import torch

    from paperworks.efficiency.dopamine import TauGateConfig, add_taugate
    from paperworks.papers.protocols.adaptation_arms import ia3

    with trial.global_generators("weights"):
        base = _perceptron()
    x = torch.randn(64, 1, 28, 28, generator=trial.generator("inputs"))
    gains = [torch.rand(256, generator=trial.generator(f"gains {i}")) * 2 for i in range(2)]
    other = ia3(copy.deepcopy(base))
    with torch.no_grad():
        want = base(x)
        for parameter, gain in zip(other.trained, gains, strict=True):
            parameter.copy_(gain.view_as(parameter))
        theirs = other.network.eval()(x)
        adapted = add_taugate(base, TauGateConfig(tau_init=-math.inf))
        plain = adapted(x)
        for gate, gain in zip(adapted.gates.values(), gains, strict=True):
            gate.gain.copy_(gain[None])
        ours = adapted(x)
        adapted.fold_gains()
        folded = adapted(x)
    return {
        "largest difference from IA3": (ours - theirs).abs().max().item(),
        "largest difference after folding": (folded - ours).abs().max().item(),
        "largest difference from the base with gain 1": (plain - want).abs().max().item(),
    }


def hard_gates_below_zero_are_the_identity(trial: Trial) -> dict[str, float]:
    """gain 1, thresholds from -2 to 0, a million normal inputs."""
    import torch

    from paperworks.efficiency.dopamine import tau_gate

    z = torch.randn(10_000, 100, generator=trial.generator("inputs"))
    tau = -2 * torch.rand(100, generator=trial.generator("thresholds"))
    h = tau_gate(z, torch.relu(z), tau, torch.ones(100), 4.0, hard=True)
    return {"largest difference": (h - torch.relu(z)).abs().max().item(), "inputs": h.numel()}


def a_silent_unit_stays_silent(trial: Trial) -> dict[str, float]:
    """|d h / d tau| for z from -3 to 3 and thresholds from -1 to 1, each pair a unit of its own, in float64."""
    import torch

    from paperworks.efficiency.dopamine import tau_gate

    z, tau = (t.flatten() for t in torch.meshgrid(
        torch.linspace(-3, 3, 601, dtype=torch.float64), torch.linspace(-1, 1, 41, dtype=torch.float64), indexing="ij"
    ))  # fmt: skip
    tau.requires_grad_()
    h = tau_gate(z[None], torch.relu(z)[None], tau, torch.ones_like(tau), 4.0)
    slope = torch.autograd.grad(h.sum(), tau)[0].abs()
    return {
        "silent units: largest gradient": slope[z <= 0].max().item(),
        "active units: smallest gradient": slope[z > 1e-9].min().item(),
    }


def hard_gates_merge_away(trial: Trial) -> dict[str, float]:
    """Thresholds <= 0 for the units that stay, 100 inputs."""
    import torch

    from paperworks.efficiency.dopamine import add_taugate
    from paperworks.measure.parameters import count_parameters

    with trial.global_generators("weights"):
        base = _perceptron()
    parameters = count_parameters(base)
    adapted = _varied(trial, add_taugate(base))
    with torch.no_grad():
        for gate in adapted.gates.values():
            gate.tau.clamp_(-3, -2)  # below every pre-activation: open on all inputs
            gate.tau[0, ::2] = 1e3
    x = torch.rand(100, 1, 28, 28, generator=trial.generator("inputs"))
    small = adapted.compact([x])
    adapted.harden()
    with torch.no_grad():
        difference = (small(x) - adapted(x)).abs().max().item()
    return {
        "largest difference": difference,
        "weights of the middle layer": small.get_submodule("3").weight.numel(),
        "parameters, base": parameters,
        "parameters, compact": count_parameters(small),
    }
