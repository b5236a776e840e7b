"""Activation Space Selectable Kolmogorov-Arnold Networks (arXiv 2408.08338): the card and its claims."""

from __future__ import annotations

from datetime import date
from itertools import pairwise
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, BestOf, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.function_fitting import FUNCTIONS, function_fitting
from paperworks.papers.protocols.kan_images import network_classification

paper = Paper(
    id="s-kan",
    title="Activation Space Selectable Kolmogorov-Arnold Networks",
    area="kan",
    arxiv="2408.08338",
    date=date(2024, 8, 15),
    authors="Zhuoqin Yang, Jiansong Zhang, Xiaoling Luo, Zheng Lu, Linlin Shen",
    n_authors=5,
    keywords=("kolmogorov-arnold network", "kan", "basis function", "image classification", "mlp"),
    method="paperworks.kan.s_kan",
    summary=(
        "A Kolmogorov-Arnold network learns a function on every edge, and the family that this function is taken from "
        "(splines, polynomials, waves, bumps) decides what it fits well. S-KAN gives every node a pool of families "
        "with weights. All are trained first, then the weights are driven towards one, and what was not chosen is cut "
        "off: a network as small as one of a single family, with the family picked for each node by the data. "
        "S-ConvKAN is the same for convolutions."
    ),
    usage=(
        "from paperworks.kan.s_kan import SKAN, fit_skan\n\n"
        "model = SKAN([2, 5, 1])          # five families at every node\n"
        "history = fit_skan(model, x, y)  # full, selective, prune\n"
        "small = model.compact()          # one family a node, the same function"
    ),
    provenance={
        "a pool of families with weights, three training stages, choice at each node": "the paper (abstract)",
        "B-spline, Chebyshev, RBF and wavelet families": "the paper, by public summaries; formulas and sizes are ours",
        "Fourier family, an equal number of functions in all families": "ours",
        "node = input; alpha a softmax with falling temperature; stage lengths; choice by contribution": "our "
        "reconstruction: the paper's text could not be read and its code is not public",
        "S-ConvKAN: basis maps zero padded, weights by input channel, BatchNorm before": "our reconstruction; the "
        "authors' public layers of single families unfold a zero-padded input instead",
        "the seven functions": "ours: the paper's are unnamed in what could be read; five are the usual ones for "
        "Kolmogorov-Arnold networks",
    },
)

NETWORKS = "paperworks.papers.protocols.kan_networks"
FAMILIES = ("bspline", "chebyshev", "fourier", "rbf", "wavelet")
SEEDS = Tiers(smoke=2, desk=MINIMUM_SEEDS)

S_KAN = Arm("S-KAN", f"{NETWORKS}:s_kan")
SINGLE = {family: Arm(f"KAN, {family}", f"{NETWORKS}:kan", {"basis": family}) for family in FAMILIES}
BEST_SINGLE = BestOf("best single family", tuple(SINGLE.values()))
MLP = BestOf("MLP", tuple(Arm(f"rate {lr:g}", f"{NETWORKS}:mlp", {"lr": lr}) for lr in (1e-2, 3e-2, 6e-2)))


def _images(widths: str) -> tuple[Criterion, Criterion]:
    """S-ConvKAN above plain convolutions of as many parameters, and above the best single family."""

    def rated(target: str) -> tuple[Arm, ...]:
        rates = (5e-3, 1.5e-2)
        return tuple(Arm(f"rate {lr:g}", f"{NETWORKS}:{target}", {"lr": lr, "widths": widths}) for lr in rates)

    method, twin = BestOf("S-ConvKAN", rated("s_conv_kan")), BestOf("plain convolutions", rated("conv_twin"))
    singles = tuple(Arm(f, f"{NETWORKS}:conv_kan", {"basis": f, "lr": 1.5e-2, "widths": widths}) for f in FAMILIES)
    best = BestOf("ConvKAN, best single family", singles)
    return (
        Criterion("accuracy", method, "greater", twin, seeds=SEEDS),
        Criterion("accuracy", method, "greater", best, seeds=SEEDS),
    )


@paper.exact(
    "After pruning S-KAN costs what one family costs: D O (K + 1) parameters a layer, of D O (1 + M K) + D M before.",
    source="abstract (pruning); equal cost follows from our equal K",
    expect={
        "[2, 5, 1]: full": Bound(equals=650),
        "[2, 5, 1]: pruned": Bound(equals=135),
        "[2, 5, 1]: single family": Bound(equals=135),
        "[784, 64, 10]: full": Bound(equals=2_087_696),
        "[784, 64, 10]: pruned": Bound(equals=457_344),
        "[784, 64, 10]: single family": Bound(equals=457_344),
    },
    note="K = 8 functions, M = 5 families",
)
def pruned_costs_one_family(trial: Trial) -> dict[str, float]:
    """Counts of real networks before selection, of what compact() returns, and of networks of one family."""
    from torch import nn

    from paperworks.kan.bases import KANLinear
    from paperworks.kan.s_kan import SKAN
    from paperworks.measure.parameters import count_parameters

    found: dict[str, float] = {}
    for widths in ([2, 5, 1], [784, 64, 10]):
        model = SKAN(widths, generator=trial.generator("weights"))
        found[f"{widths}: full"] = count_parameters(model)
        model.select()
        found[f"{widths}: pruned"] = count_parameters(model.compact())
        single = nn.Sequential(*(KANLinear(i, o, "rbf") for i, o in pairwise(widths)))
        found[f"{widths}: single family"] = count_parameters(single)
    return found


@paper.exact(
    "The pruned network is the same function as the network that has selected.",
    source="abstract (pruning)",
    expect={
        "S-KAN [784, 64, 10]": Bound(at_most=1e-6),
        "S-ConvKAN (16, 32, 64)": Bound(at_most=1e-6),
        "selected - mixture, weights one-hot": Bound(at_most=1e-5),
        "selected - mixture, weights equal": Bound(at_least=1e-2),
    },
    note="the last two: folding alpha in changes nothing where the weights are one-hot, and much where they are not",
)
def compact_is_the_same_function(trial: Trial) -> dict[str, float]:
    """Largest absolute differences of outputs, of logits of mixed size, on 64 random inputs."""
    import torch

    from paperworks.kan.s_kan import SKAN, SConvKAN
    from paperworks.kan.selectable import selecting_layers

    generator = trial.generator("weights")
    found: dict[str, float] = {}
    x = torch.rand(64, 784, generator=generator) * 2 - 1
    images = torch.rand(64, 3, 32, 32, generator=generator)
    with torch.no_grad():
        for scale, name in ((100.0, "one-hot"), (0.0, "equal")):
            model = SKAN([784, 64, 10], generator=generator)
            for layer in selecting_layers(model):
                hot = torch.randint(5, (layer.nodes,), generator=generator)
                layer.logits.copy_(scale * torch.nn.functional.one_hot(hot, 5))
            before = model(x)
            model.select()
            found[f"selected - mixture, weights {name}"] = (model(x) - before).abs().max().item()
        found["S-KAN [784, 64, 10]"] = (model.compact()(x) - model(x)).abs().max().item()
        net = SConvKAN(3, 10, generator=generator).eval()
        for conv in selecting_layers(net):
            conv.logits.data.normal_(generator=generator)
        net.select(images)
        found["S-ConvKAN (16, 32, 64)"] = (net.compact()(images) - net(images)).abs().max().item()
    return found


@paper.exact(
    "Padding the basis maps and unfolding a padded input are the same convolution inside the image, not at its border.",
    source="our finding",
    expect={
        "inside: largest difference": Bound(at_most=1e-4),
        "border: largest difference": Bound(at_least=1e-2),
    },
    note="16 -> 32 channels, 3x3, 32 pixels; one layer of 144 inputs on patches of the zero-padded input",
)
def padding_matters_at_the_border_only(trial: Trial) -> dict[str, float]:
    """A convolution, and the linear layer with the same coefficients on unfolded patches, side by side."""
    import torch

    from paperworks.kan.bases import KANLinear
    from paperworks.kan.s_kan import KANConv2d

    generator = trial.generator("weights")
    conv = KANConv2d(16, 32, 3, "rbf", padding=1, generator=generator)
    linear = KANLinear(16 * 9, 32, "rbf", generator=generator)
    x = torch.randn(4, 16, 32, 32, generator=generator)
    with torch.no_grad():
        linear.coef.copy_(conv.coef.flatten(3).transpose(2, 3).reshape(32, 144, 8))
        assert linear.base_weight is not None
        linear.base_weight.copy_(conv.base_weight.reshape(32, 144))
        patches = torch.nn.functional.unfold(x, 3, padding=1).transpose(1, 2)
        difference = (linear(patches).transpose(1, 2).reshape(4, 32, 32, 32) - conv(x)).abs()
    inside = difference[:, :, 1:-1, 1:-1].max().item()
    difference[:, :, 1:-1, 1:-1] = 0
    return {"inside: largest difference": inside, "border: largest difference": difference.max().item()}


paper.measured(
    "more-exact-than-mlp-at-equal-parameters",
    "S-KAN fits functions better than an MLP of as many parameters.",
    source="abstract",
    published="surpasses MLP-based models with the same number of parameters",
    protocol=function_fitting,
    criteria=Criterion("log_rmse", S_KAN, "less", MLP, seeds=SEEDS),
    note="mean over seven functions of log10 of the test RMSE; the MLP has two SiLU layers, no fewer parameters than "
    "the pruned S-KAN, and the best of three rates on seeds of their own",
)

paper.measured(
    "better-than-every-single-family-on-every-function",
    "S-KAN outperforms the network of any single family on each of the seven functions.",
    source="abstract",
    published="outperforms single-activation-space KANs in seven function fitting tasks",
    protocol=function_fitting,
    criteria=tuple(Criterion(f"log_rmse_{name}", S_KAN, "less", BEST_SINGLE, seeds=SEEDS) for name in FUNCTIONS),
    note="against the family that is best on this function, chosen on seeds of their own; the literal reading",
)

paper.measured(
    "varies-less-than-any-single-family",
    "Over the seven functions S-KAN is nearer to the best family of each than any one family is.",
    source="abstract",
    published="mitigates performance variability across data and tasks",
    protocol=function_fitting,
    criteria=tuple(Criterion("log_rmse", S_KAN, "less", arm, seeds=SEEDS) for arm in SINGLE.values()),
    note="the geometric mean of RMSE / best single RMSE: the best single is the same for both sides, so the mean of "
    "log10 RMSE decides",
)

paper.measured(
    "choice-fits-the-function",
    "What is chosen follows the function: waves for oscillations, splines for smooth functions, in most first nodes.",
    source="abstract (selection by the data)",
    protocol=function_fitting,
    criteria=(
        Criterion("waves_on_waves", S_KAN, "greater", margin=0.5, seeds=SEEDS, control=SINGLE["chebyshev"]),
        Criterion("splines_on_smooth", S_KAN, "greater", margin=0.5, seeds=SEEDS, control=SINGLE["chebyshev"]),
    ),
    note="waves: fourier or wavelet on J0(20x) and sin(6 pi x) exp(-4x^2); smooth: x y and the function of four "
    "variables. The control has one family everywhere",
)

paper.measured(
    "s-convkan-leads-on-digits",
    "S-ConvKAN classifies images better than plain convolutions of as many parameters and than any single family.",
    source="abstract, by proxy",
    published="leading results on four general image classification datasets",
    protocol=network_classification,
    criteria=_images("8-16"),
    note="8x8 digits stand in for the four sets; all arms see the same batches for the same number of steps",
)

for _id, _what, _form in (
    ("mnist", "MNIST and Fashion-MNIST", "idx"),
    ("cifar", "CIFAR-10 and CIFAR-100", "cifar"),
):
    paper.measured(
        f"s-convkan-leads-on-{_id}",
        f"On {_what} S-ConvKAN is more accurate than plain convolutions and than any single family.",
        source="abstract; the four sets are presumed",
        published="the paper's numbers were not recovered, so none is quoted",
        protocol=network_classification,
        needs=(Need("setting", "data", f"{_what}: data={_form}:PATH", rf"{_form}:.+"),),
        criteria=_images("16-32-64"),
    )


def draw(figure: Any, results: Any) -> None:
    """Left: test RMSE by function and family. Right: what the first nodes chose, by function."""
    import numpy as np

    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = ("#2462c4", "#b9500b", "#0a7868", "#a12f86", "#7d6300")
    claim, labels = "varies-less-than-any-single-family", [name.replace("_", " ") for name in FUNCTIONS]
    at = np.arange(len(FUNCTIONS))

    def medians(name: str) -> list[float]:
        return [10 ** float(np.median(list(results.metric(claim, name, f"log_rmse_{f}").values()))) for f in FUNCTIONS]

    for (family, arm), colour in zip(SINGLE.items(), colours, strict=True):
        left.plot(medians(arm.name), at, "o", color=colour, markersize=4, label=family, alpha=0.8)
    left.plot(medians("S-KAN"), at, "D", color="#1b2028", markersize=6, markerfacecolor="none", label="S-KAN")
    left.set(xscale="log", xlabel="test RMSE", yticks=at, yticklabels=labels, ylim=(len(at) - 0.5, -0.5))
    left.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=3)
    start = np.zeros(len(at))
    for family, colour in zip(FAMILIES, colours, strict=True):
        share = np.mean([values for _, values in results.curves(claim, "S-KAN", f"picks {family}")], 0)
        right.barh(at, share, left=start, color=colour, height=0.6)
        start += share
    right.set(xlabel="part of first nodes", yticks=at, yticklabels=[], xlim=(0, 1), ylim=(len(at) - 0.5, -0.5))


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "Left: median test RMSE on the seven functions, each family alone (dots) and S-KAN (diamond). Right: the "
        "families that S-KAN's first nodes chose on each function, in the same colours.",
        size=(7.2, 4.0),
    )
)
paper.findings.append(
    Finding(
        "Each function has a best single family and it is not the same one. S-KAN comes between the best and the worst "
        "of them on nearly every function; over all seven it is ahead neither of bspline nor of fourier.",
        ("better-than-every-single-family-on-every-function", "varies-less-than-any-single-family"),
    )
)
paper.findings.append(
    Finding(
        "Pruning changes the function unless the weights have become one-hot by then. In fits of a few hundred steps "
        "they have not, since logits of competing families stay close: the loss jumps and the third stage has to win "
        "it back (metrics `decided` and `jump` of the trials).",
        ("compact-is-the-same-function", "varies-less-than-any-single-family"),
    )
)
paper.findings.append(
    Finding(
        "Where a convolution pads decides what a border tap says: zero padding of the basis maps lets it say nothing, "
        "zero padding of the input lets it say phi(0).",
        ("padding-matters-at-the-border-only",),
    )
)
