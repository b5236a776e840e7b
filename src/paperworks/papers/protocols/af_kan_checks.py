"""The exact checks of AF-KAN's card: counts at the published size, and identities of the layer."""

from __future__ import annotations

from typing import Any

from paperworks.lab.trial import Trial


def _built(name: str, width: int = 64) -> Any:
    """A 784-width-10 network, without memory."""
    import torch

    from paperworks.papers.protocols import af_kan_arms

    with torch.device("meta"):
        return getattr(af_kan_arms, name)(784, 10, width=width)


def _parameters(name: str) -> int:
    from paperworks.measure.parameters import count_parameters

    return count_parameters(_built(name), trainable=True)


def parameters_of_an_mlp(trial: Trial) -> dict[str, float]:
    """Counts of 784-64-10 networks, and the sum of `parameter_count` over the two layers."""
    from paperworks.kan.af_kan import parameter_count

    ours, mlp = _parameters("af_kan"), _parameters("layer_norm_mlp")
    formula = parameter_count(784, 64) + parameter_count(64, 10)
    return {"AF-KAN": ours, "MLP with LayerNorm": mlp, "AF-KAN by formula": formula, "AF-KAN / MLP": ours / mlp}


COUNTED = {  # trainable parameters of 784-64-10 in the public implementations
    "relu_kan": ("ReLU-KAN", 316_842),
    "faster_kan": ("FasterKAN", 408_224),
    "bsrbf_kan": ("BSRBF-KAN", 459_040),
    "fast_kan": ("FastKAN", 459_114),
    "efficient_kan": ("EfficientKAN", 508_160),
}


def six_to_ten_times_fewer(trial: Trial) -> dict[str, float]:
    """Trainable parameters of each network and of the smallest and largest beside AF-KAN."""
    found: dict[str, float] = {label: _parameters(name) for name, (label, _) in COUNTED.items()}
    ours = _parameters("af_kan")
    return found | {"fewest / AF-KAN": min(found.values()) / ours, "most / AF-KAN": max(found.values()) / ours}


def more_operations_than_an_mlp(trial: Trial) -> dict[str, float]:
    """`flop_count` of the two layers; of the MLP its matrices, its LayerNorms by the same rule, and its activation."""
    from paperworks.kan.af_kan import flop_count

    layers = [flop_count(784, 64), flop_count(64, 10)]
    ours = sum(layer["total"] for layer in layers)
    mlp = sum(layer["linear"] + layer["layer_norm"] for layer in layers) + 64
    return {"AF-KAN: operations": ours, "MLP: operations": mlp, "AF-KAN / MLP": ours / mlp}


def _pixels(trial: Trial, rows: int = 64) -> Any:
    """Random pixels in [-1, 1], a third of them background as in digits."""
    import torch

    generator = trial.generator("pixels")
    x = 2 * torch.rand(rows, 784, generator=generator, dtype=torch.float64) - 1
    return torch.where(torch.rand(rows, 784, generator=generator) < 1 / 3, -1.0, x)


def l2_normalisation_cancels(trial: Trial) -> dict[str, float]:
    """Largest difference between min-max of F and min-max of F / |F|."""
    import torch

    from paperworks.kan.af_kan.functional import min_max, pair_terms

    found = {}
    for dtype in (torch.float64, torch.float32):
        low = (torch.arange(-3, 3, dtype=torch.float64) / 3).to(dtype)
        terms = pair_terms(_pixels(trial).to(dtype), low, low + 4 / 3)
        difference = min_max(terms, "batch") - min_max(terms / terms.norm(), "batch")
        found[str(dtype).removeprefix("torch.")] = difference.abs().max().item()
    return found


def _layer(trial: Trial, **options: Any) -> Any:
    """A 784-64 layer in float64, its reduction's weights drawn apart from 0."""
    import torch

    from paperworks.kan.af_kan import AFKANLayer

    with trial.global_generators("weights"):
        return AFKANLayer(784, 64, dtype=torch.float64, **options)


def batch_mates_change_the_output(trial: Trial) -> dict[str, float]:
    """max |f(batch)_0 - f(x_0)| for the min-max over the batch and over each sample."""
    x = _pixels(trial)
    x[0] /= 2
    found = {}
    for norm in ("batch", "sample"):
        layer = _layer(trial, feature_norm=norm)
        found[f"{norm}: largest difference"] = (layer(x)[0] - layer(x[:1])[0]).abs().max().item()
    return found


def attention_bias_cannot_matter(trial: Trial) -> dict[str, float]:
    """What the output changes by when the bias moves, and the gradient that reaches it."""
    import torch

    layer, x = _layer(trial), _pixels(trial)
    before = layer(x)
    [gradient] = torch.autograd.grad(before.square().sum(), layer.reduce.bias)
    with torch.no_grad():
        layer.reduce.bias += 3
    change = (layer(x) - before).abs().max().item()
    return {"bias moved by 3: largest difference": change, "largest gradient": gradient.abs().max().item()}


def epsilon_outweighs_the_variance(trial: Trial) -> dict[str, float]:
    """Variance of s over the features, at 784 inputs and at 64, in units of the default epsilon."""
    import torch

    from paperworks.kan.af_kan import AFKANLayer
    from paperworks.kan.af_kan.functional import reduce_terms

    found = {}
    for name, inputs in (("variance of s / epsilon", 784), ("of 64 inputs", 64)):
        with trial.global_generators("weights"):
            layer = AFKANLayer(inputs, 10, dtype=torch.float64)
        s = reduce_terms(layer.features(_pixels(trial)[:, :inputs]), "global_attn", layer.parameters_as(torch.float64))
        assert layer.norm is not None
        found[name] = (s.var(1, correction=0).mean() / layer.norm.eps).item()
    return found


def fused_is_the_same_function(trial: Trial) -> dict[str, float]:
    """Two networks with the same weights on the same pixels."""
    import torch

    from paperworks.measure.stored_activations import stored_activations
    from paperworks.papers.protocols.af_kan_calls import network

    fused, plain = (network(trial, name) for name in ("af_kan", "straightforward_af_kan"))
    x = _pixels(trial, 256).float()
    outputs = [model(x) for model in (fused, plain)]
    gradients = [
        torch.autograd.grad(y.square().sum(), list(m.parameters()))
        for y, m in zip(outputs, (fused, plain), strict=True)
    ]
    apart = [
        ((a - b).abs().max() / b.abs().max()).item()
        for a, b, (name, _) in zip(*gradients, fused.named_parameters(), strict=True)
        if not name.endswith("reduce.bias")  # 0 in truth
    ]
    kept = [stored_activations(model, x).bytes for model in (fused, plain)]
    return {
        "output: largest difference": (outputs[0] - outputs[1]).abs().max().item(),
        "gradients: largest relative difference": max(apart),
        "kept for the backward pass: fused / straightforward": kept[0] / kept[1],
    }


def terms_peak_outside_their_phases(trial: Trial) -> dict[str, float]:
    """Largest value of a term between its phases and outside of them, on a fine grid, with SiLU and with ReLU."""
    import torch

    from paperworks.kan.af_kan.functional import pair_terms

    x = torch.linspace(-6, 6, 120_001, dtype=torch.float64)
    low, high = torch.zeros(1, dtype=torch.float64), torch.full((1,), 4 / 3, dtype=torch.float64)
    inside = (x >= low) & (x <= high)
    found = {}
    for activation in ("silu", "relu"):
        term = pair_terms(x, low, high, activation, "quad1")[:, 0]
        found[f"{activation}: between"] = term[inside].max().item()
        found[f"{activation}: outside"] = term[~inside].max().item()
    return found
