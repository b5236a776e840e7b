"""What the exact claims about MobileTL compare: gradients with a rule written out, slopes, bits, stored bytes."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.efficiency.mobiletl import mobiletl, signed_activation, stored_activations
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.mobilenets import mobilenet_v3_small
from paperworks.papers.protocols.transfer_training import stored_bytes
from paperworks.surgery.inverted_residuals import inverted_residuals

__all__ = [
    "bits_a_value",
    "differences_from_sign_rule",
    "kept_in_transfer",
    "slope_cosine",
    "slope_difference",
    "with_sign_rule",
]


def with_sign_rule(model: nn.Module, block_names: Iterable[str]) -> nn.Module:
    """A copy of `model` whose named blocks have the sign rule at their wide activations and a last norm in train mode.

    All else stays as it is: in eval mode, the inner norms differentiate as fixed statistics do.
    """
    changed, names = copy.deepcopy(model), set(block_names)
    for block in inverted_residuals(changed):
        if block.name not in names:
            continue
        for stage in block.inner:
            if stage.activation is not None:
                parent, _, key = stage.activation.rpartition(".")
                holder = changed.get_submodule(parent)
                holder._modules[key] = _BySign(changed.get_submodule(stage.activation))
        changed.get_submodule(block.project.norm).train()
    return changed


class _BySign(nn.Module):
    """The value of an activation with the slope of ReLU: the gradient passes where the input is positive."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, z: Tensor) -> Any:
        through = z.relu()
        return through + (self.activation(z) - through).detach()


def differences_from_sign_rule(trial: Trial) -> tuple[float, float, int]:
    """MobileTL on the last 5 blocks of MobileNetV3-Small against `with_sign_rule`, in float64.

    Returns the largest difference of a logit in eval mode and of a gradient in train mode, each relative to the largest
    value of its tensor, and how many gradients were compared.
    """
    with trial.global_generators("weights"):
        plain = mobilenet_v3_small(10, dropout=0.0).double()
        for norm in plain.modules():
            if isinstance(norm, nn.BatchNorm2d):  # not the values of a new network, which do nothing
                for name, values in norm.state_dict().items():
                    if name.endswith(("weight", "var")):
                        values.uniform_(0.5, 1.5)
                    elif name != "num_batches_tracked":
                        values.uniform_(-0.5, 0.5)
    images = torch.randn(4, 3, 96, 96, generator=trial.generator("images"), dtype=torch.float64)
    handle = mobiletl(copy.deepcopy(plain))
    with torch.no_grad():
        before, after = plain.eval()(images), handle.model.eval()(images)
    reference = with_sign_rule(plain.eval(), handle.block_names)
    for model in (handle.model.train(), reference):
        model(images).square().sum().backward()
    wanted, worst, compared = dict(reference.named_parameters()), 0.0, 0
    for name, parameter in handle.model.named_parameters():
        if parameter.requires_grad:
            want, got = wanted[name].grad, parameter.grad
            assert want is not None
            assert got is not None
            worst, compared = max(worst, _relative(got, want)), compared + 1
    return _relative(after, before), worst, compared


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-300))


def _slope(trial: Trial, kind: str, rule: str) -> Tensor:
    """The slope of the rule at a million standard normal inputs, in float64; rule "own" is the function's."""
    x = torch.randn(1_000_000, generator=trial.generator("inputs")).requires_grad_()
    y = getattr(functional, kind)(x) if rule == "own" else signed_activation(x, kind, backward=rule)
    return torch.autograd.grad(y.sum(), x)[0].double()


def slope_cosine(trial: Trial, kind: str, rule: str) -> float:
    """Cosine of the slopes of a rule with those of the function."""
    return float(functional.cosine_similarity(_slope(trial, kind, rule), _slope(trial, kind, "own"), dim=0))


def slope_difference(trial: Trial, kind: str, rule: str) -> float:
    """Largest difference of the slopes of a rule from those of the function."""
    return float((_slope(trial, kind, rule) - _slope(trial, kind, "own")).abs().max())


def bits_a_value(kind: str, rule: str) -> float:
    """What autograd holds for one value of an activation."""
    x = torch.zeros(80_000, requires_grad=True)
    return 8 * stored_activations(_Signed(kind, rule), x).bytes / x.numel()


class _Signed(nn.Module):
    def __init__(self, kind: str, rule: str) -> None:
        super().__init__()
        self.kind, self.rule = kind, rule

    def forward(self, x: Tensor) -> Tensor:
        return signed_activation(x, self.kind, backward=self.rule)


def kept_in_transfer(trial: Trial, arm: Arm, **options: int) -> int:
    """Bytes that a training step of an arm keeps in the network of the transfer protocol at desk."""
    images = torch.randn(10, 1, 32, 32, generator=trial.generator("images"))
    return stored_bytes(arm.build(mobilenet_v3_small(5, 1, width=0.5, stem_stride=1), **options), images)
