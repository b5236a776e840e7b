"""Stochastic Adaptive Activation Function (arXiv 2210.11672): the card and its claims."""

from __future__ import annotations

from datetime import date
from typing import Any

from paperworks.lab.nouns import Arm, BestOf, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.continual import class_incremental
from paperworks.papers.protocols.images import classification
from paperworks.papers.protocols.latency import latency

paper = Paper(
    id="ash",
    title="Stochastic Adaptive Activation Function",
    area="activations",
    arxiv="2210.11672",
    date=date(2022, 10, 20),
    authors="Kyungsu Lee, Jaeseung Yang, Haeyun Lee, Jae Youn Hwang",
    n_authors=4,
    venue="NeurIPS 2022",
    code="https://github.com/kyungsu-lee-ksl/ASH",
    keywords=("activation function", "percentile", "top-k", "adaptive threshold", "swish", "silu"),
    method="paperworks.activations.ash",
    summary=(
        "ASH passes each unit by where its value stands in the distribution of its whole feature map: about the top "
        "k percent go through, the rest are damped. Instead of sorting, the threshold is the map's mean plus z "
        "standard deviations, and the step is a logistic curve, so the percentile (through z) and the sharpness "
        "(alpha) are two trainable scalars a layer. Swish is the special case of a threshold at zero."
    ),
    usage=(
        "from paperworks.activations.ash import ASH\n"
        "from paperworks.activations.surgery import replace_activations\n\n"
        "report = replace_activations(model, ASH)   # timm, transformers, MONAI, diffusers or plain torch\n"
        "print(report.replaced)"
    ),
    provenance={
        "formula, trainable alpha and z, per-sample statistics": "the paper; where the code's fragments disagree with "
        "the text, the text's formula x * sigmoid(2 alpha (x - mean - z std))",
        "initial values alpha = 1, z = 0.001": "the authors' code",
        "eps = 1e-6 under the square root; the axes that inputs of each rank are reduced over": "our reconstruction",
        "leaky form x (leak + (1 - leak) sigmoid(.))": "our reconstruction; the paper only names it",
        "Hard ASH": "the follow-up, arXiv 2404.17651, and its code",
        "closed-form backward": "derived here",
    },
)

RELU, SILU = Arm("ReLU", "torch.nn:ReLU"), Arm("SiLU", "torch.nn:SiLU")
ASH = Arm("ASH", "paperworks.activations.ash:ASH")
FIXED = BestOf(
    "F-ASH, best fixed z",
    tuple(
        Arm(f"F-ASH z={z}", "paperworks.activations.ash:ASH", {"z_k": z, "learn_z": False}) for z in (0.0, 0.52, 1.28)
    ),
)
SEEDS = Tiers(smoke=2, desk=10)


@paper.exact(
    "ASH generalises Swish: with alpha = 1/2 and the threshold at zero it is SiLU.",
    source="section 3",
    expect={"ASH - x S(ax + b)": Bound(at_most=1e-12), "ASH - SiLU": Bound(at_most=1e-12)},
)
def generalises_swish(trial: Trial) -> dict[str, float]:
    """Largest absolute differences over 10,000 random maps in float64."""
    import torch

    from paperworks.activations.ash import ash

    generator = trial.generator("maps")
    x = torch.randn(10_000, 4, 5, 5, generator=generator, dtype=torch.float64)
    x = x * 3 + torch.randn(10_000, 1, 1, 1, generator=generator, dtype=torch.float64)
    mean = x.mean((1, 2, 3), keepdim=True)
    std = (x.var((1, 2, 3), correction=0, keepdim=True) + 1e-6).sqrt()
    alpha, z = 0.8, 0.4
    swish = x * torch.sigmoid(2 * alpha * x - 2 * alpha * (mean + z * std))
    silu = torch.nn.functional.silu(x)
    return {
        "ASH - x S(ax + b)": (ash(x, alpha, z) - swish).abs().max().item(),
        "ASH - SiLU": (ash(x, 0.5, -mean / std) - silu).abs().max().item(),
    }


@paper.exact(
    "The smooth form is half of 1 + tanh, and tends to the hard threshold as alpha grows.",
    source="section 3",
    expect={"tanh form - logistic form": Bound(at_most=1e-12), "alpha = 1e4 - hard": Bound(at_most=1e-7)},
)
def tends_to_the_hard_threshold(trial: Trial) -> dict[str, float]:
    """Differences in float64; the hard one outside a band of 1e-3 around the threshold."""
    import torch

    from paperworks.activations.ash import ash

    x = torch.randn(200, 4, 16, 16, generator=trial.generator("maps"), dtype=torch.float64)
    mean = x.mean((1, 2, 3), keepdim=True)
    std = (x.var((1, 2, 3), correction=0, keepdim=True) + 1e-6).sqrt()
    distance = x - mean - 0.7 * std
    tanh_form = 0.5 * x * (1 + torch.tanh(1.3 * distance))
    outside = distance.abs() > 1e-3
    hard = (ash(x, 1e4, 0.7) - x * (distance > 0)).abs()[outside]
    return {
        "tanh form - logistic form": (ash(x, 1.3, 0.7) - tanh_form).abs().max().item(),
        "alpha = 1e4 - hard": hard.max().item(),
    }


@paper.exact(
    "For normal inputs z selects the top k percent, k = 1 - Phi(z): 1.96 selects 2.5 %.",
    source="section 3",
    published="2.5 % at z = 1.96",
    expect={f"z = {z}": Bound(at_most=4.0) for z in (-1.0, 0.0, 1.2816, 1.6449, 1.96)},
    note="the largest distance from 1 - Phi(z), in standard errors, over 20 maps of a million values each",
)
def z_selects_the_top_percent(trial: Trial) -> dict[str, float]:
    """Distance of the selected share from the nominal one, in standard errors."""
    import torch

    from paperworks.activations.ash import ash, percent_from_z

    worst = dict.fromkeys((-1.0, 0.0, 1.2816, 1.6449, 1.96), 0.0)
    generator = trial.generator("maps")
    for i in range(20):
        x = torch.randn(1, 1_000_000, generator=generator, dtype=torch.float64) * (i + 1) / 4 + (i - 10)
        for z in worst:
            # alpha is so large that the gate is the step; where x itself is 0 nothing is lost.
            share = (ash(x, 1e9, z, dims="sample") != 0).double().mean().item()
            nominal = percent_from_z(z) / 100
            error = (nominal * (1 - nominal) / x.numel()) ** 0.5
            worst[z] = max(worst[z], abs(share - nominal) / error)
    return {f"z = {z}": distance for z, distance in worst.items()}


@paper.exact(
    "It adds two trainable scalars a layer: ResNet-50 grows from 25,557,032 parameters by 98, at 49 sites.",
    source="section 3",
    expect={
        "parameters of ResNet-50": Bound(equals=25_557_032),
        "activation sites": Bound(equals=49),
        "added parameters": Bound(equals=98),
    },
    needs=(Need("package", "transformers", "pip install 'paperworks[activations]'"),),
)
def two_scalars_a_layer(trial: Trial) -> dict[str, float]:
    """Counts on the real ResNet-50, built from its transformers configuration."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return _counts(
        "ResNet-50", ResNetForImageClassification(ResNetConfig(num_labels=1000, downsample_in_bottleneck=False))
    )


@paper.exact(
    "It adds two trainable scalars a layer: DenseNet-121 grows from 7,978,856 parameters by 242, at 121 sites.",
    source="section 3",
    expect={
        "parameters of DenseNet-121": Bound(equals=7_978_856),
        "activation sites": Bound(equals=121),
        "added parameters": Bound(equals=242),
    },
    needs=(Need("package", "monai", "pip install 'paperworks[activations]'"),),
)
def two_scalars_a_layer_of_densenet(trial: Trial) -> dict[str, float]:
    """Counts on the real DenseNet-121, as MONAI builds it for 2-D images of three channels."""
    from monai.networks.nets import DenseNet121

    return _counts("DenseNet-121", DenseNet121(spatial_dims=2, in_channels=3, out_channels=1000))


def _counts(name: str, model: Any) -> dict[str, float]:
    from paperworks.activations.ash import ASH
    from paperworks.measure.parameters import count_parameters
    from paperworks.surgery.activations import replace_activations

    before = count_parameters(model)
    report = replace_activations(model, ASH)
    return {
        f"parameters of {name}": before,
        "activation sites": len(report.replaced),
        "added parameters": count_parameters(report.model) - before,
    }


paper.measured(
    "cheaper-than-sorting",
    "It is cheap because nothing is sorted: at least five times faster than selecting the same share exactly.",
    source="section 3",
    published='"low computational cost", without a number',
    protocol=latency,
    settings={"reference": "paperworks.activations.ash:TopPercent(percent=50.0)"},
    criteria=Criterion(
        "ratio", ASH, "less", margin=1 / 5, seeds=Tiers(smoke=1, desk=8),
        control=Arm("exact top half", "paperworks.activations.ash:TopPercent", {"percent": 50.0}),
    ),
)  # fmt: skip

paper.measured(
    "more-accurate-than-relu",
    "Networks with ASH are more accurate than with ReLU.",
    source="abstract",
    protocol=classification,
    criteria=Criterion("accuracy", ASH, "greater", RELU, seeds=SEEDS),
)

paper.measured(
    "more-accurate-than-swish",
    "Networks with ASH are more accurate than with Swish (SiLU).",
    source="abstract",
    protocol=classification,
    criteria=Criterion("accuracy", ASH, "greater", SILU, seeds=SEEDS),
)

paper.measured(
    "converges-earlier-than-relu",
    "Training converges earlier with ASH than with ReLU: fewer epochs to 85 % test accuracy.",
    source="abstract",
    protocol=classification,
    criteria=Criterion("epochs_to_target", ASH, "less", RELU, seeds=SEEDS),
)

paper.measured(
    "converges-earlier-than-swish",
    "Training converges earlier with ASH than with Swish (SiLU): fewer epochs to 85 % test accuracy.",
    source="abstract",
    protocol=classification,
    criteria=Criterion("epochs_to_target", ASH, "less", SILU, seeds=SEEDS),
)

paper.measured(
    "trainable-percentile-beats-fixed",
    "A trainable percentile is more accurate than the best fixed one.",
    source="ablation (F-ASH-k)",
    protocol=classification,
    criteria=Criterion("accuracy", ASH, "greater", FIXED, seeds=SEEDS),
    note="the fixed z is the best of 0, 0.52 and 1.28 on two seeds that take no part in the comparison",
)

paper.measured(
    "more-accurate-on-cifar",
    "On CIFAR-10 and CIFAR-100 networks with ASH are more accurate than with ReLU and with Swish.",
    source="Table 1",
    published="the paper's numbers were not recovered, so none is quoted",
    protocol=classification,
    needs=(Need("setting", "data", "CIFAR-10 or CIFAR-100: data=cifar:PATH", r"cifar:.+"),),
    criteria=(
        Criterion("accuracy", ASH, "greater", RELU, seeds=SEEDS),
        Criterion("accuracy", ASH, "greater", SILU, seeds=SEEDS),
    ),
)

paper.measured(
    "more-accurate-on-imagenet",
    "On ImageNet, networks with ASH are more accurate than with ReLU and with Swish.",
    source="Table 2",
    published="the paper's numbers were not recovered, so none is quoted",
    protocol=classification,
    needs=(
        Need("setting", "data", "ImageNet's class folders: data=imagefolder:PATH", r"imagefolder:.+"),
        Need("gpu", "cuda", "training on ImageNet"),
    ),
    criteria=(
        Criterion("accuracy", ASH, "greater", RELU, seeds=SEEDS),
        Criterion("accuracy", ASH, "greater", SILU, seeds=SEEDS),
    ),
)

_LEARNER = "paperworks.papers.protocols.continual:learner"
_HARD_ASH = "paperworks.activations.ash:HardASH"

paper.measured(
    "hard-ash-forgets-less",
    "With Adagrad and one pass over class-incremental tasks, Hard ASH ends more accurate than ReLU.",
    source="follow-up (arXiv 2404.17651), Split-MNIST",
    protocol=class_incremental,
    criteria=Criterion(
        "accuracy",
        BestOf("Hard ASH", tuple(
            Arm(f"z={z}, lr={lr}", _LEARNER, {"activation": _HARD_ASH, "options": {"alpha": 2.0, "z_k": z}, "lr": lr})
            for z in (1.0, 2.0) for lr in (0.003, 0.01, 0.03)
        )),
        "greater",
        BestOf("ReLU", tuple(
            Arm(f"lr={lr}", _LEARNER, {"activation": "torch.nn:ReLU", "lr": lr})
            for lr in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
        )),
        seeds=SEEDS,
    ),
    note="both sides choose among six settings on two seeds that take no part in the comparison; 8x8 digits stand in "
    "for MNIST unless data=idx:PATH is given",
)  # fmt: skip


@paper.exact(
    "For inputs that are not normal z selects another share: 1.96 lets 5.2 % of exponential values pass, not 2.5 %.",
    source="our finding",
    expect=Bound(equals=0.0518189, tolerance=1e-3),
)
def share_of_skewed_inputs(trial: Trial) -> float:
    """Share of a million exponential values that pass at z = 1.96; 1 - F(1 + z) = exp(-2.96)."""
    import torch

    from paperworks.activations.ash import ash

    x = torch.empty(1, 1_000_000, dtype=torch.float64).exponential_(generator=trial.generator("maps"))
    return (ash(x, 1e9, 1.96, dims="sample") != 0).double().mean().item()


def draw(figure: Any, results: Any) -> None:
    """Left: the function at several z on standard normal input. Right: test accuracy by epoch of ASH, SiLU and ReLU."""
    import numpy as np

    left, right = figure.subplots(1, 2)
    x = np.linspace(-4, 4, 401)
    for colour, z, share in (("C1", -1.0, "84 %"), ("C0", 0.0, "50 %"), ("C2", 1.2816, "10 %")):
        left.plot(x, x / (1 + np.exp(-2 * (x - z))), color=colour, label=f"z = {z:g} (top {share})")
    left.plot(x, np.maximum(x, 0), color="gray", linewidth=1, linestyle="--", label="ReLU")
    left.set(xlabel="input, standard normal over its map", ylabel="output", ylim=(-1, 4))
    left.legend(frameon=False)
    for arm, colour in (("ReLU", "gray"), ("SiLU", "C1"), ("ASH", "C0")):
        claim = "more-accurate-than-relu" if arm == "ReLU" else "more-accurate-than-swish"
        curves = np.array([values for _, values in results.curves(claim, arm, "accuracy")])
        epochs = np.arange(1, curves.shape[1] + 1)
        mean, spread = curves.mean(0), curves.std(0, ddof=1 if len(curves) > 1 else 0)
        right.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
        right.plot(epochs, mean, color=colour, label=arm, marker="o" if len(epochs) == 1 else None)
    right.set(xlabel="epoch", ylabel="test accuracy")
    right.legend(frameon=False, loc="lower right")


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "The function with alpha = 1 at three percentiles, and the test accuracy of the small network by epoch: "
        "the mean over seeds, with a band of one standard deviation.",
    )
)
paper.findings.append(
    Finding(
        "The percentile is that of a normal distribution. On a skewed map z lets another share pass: at z = 1.96, "
        "5.2 % of exponential values instead of 2.5 %.",
        ("z-selects-the-top-percent", "share-of-skewed-inputs"),
    )
)
