"""Gated-SwinRMT (arXiv 2604.06014): the card and its claims."""

from __future__ import annotations

from datetime import date
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.gated_crops import picture_classification
from paperworks.papers.protocols.gated_recipe import whole_recipe

paper = Paper(
    id="gated-swinrmt",
    title="Gated-SwinRMT: Unifying Swin Windowed Attention with Retentive Manhattan Decay via Input-Dependent Gating",
    area="swin",
    arxiv="2604.06014",
    date=date(2026, 4, 6),
    authors="",
    n_authors=3,
    keywords=(
        "swin transformer", "window attention", "retentive network", "retnet", "attention decay", "gated attention",
        "vision backbone", "image classification",
    ),
    method="paperworks.swin.gated_swinrmt",
    summary=(
        "A vision backbone with Swin's shifted windows and the rule of retentive networks that a token counts for less "
        "the farther away it stands: scores decay with Manhattan distance, first along the width, then along the "
        "height. One variant (SWAT) replaces softmax by a sigmoid and gates the values, the other keeps softmax and "
        "gates the output. At 77 to 79 million parameters the paper reports 80.2 % and 78.2 % top-1 on Mini-ImageNet "
        "against 73.7 % of the ungated RMT; on 32x32 images, where each window spans the whole map, the gain shrinks "
        "to half a point."
    ),
    usage=(
        "from paperworks.swin.gated_swinrmt import convert_swin, effective_window_report, gated_swinrmt_swat\n\n"
        "model = gated_swinrmt_swat(num_classes=100)      # 78.7 M parameters, any image size\n"
        "print(effective_window_report(model, 32))        # where attention has become global\n"
        'convert_swin(swin, "retention")                  # timm, torchvision, transformers or MONAI Swin, in place'
    ),
    provenance={
        "two passes, width before height; decay inside softmax or after the sigmoid; which gate where; adaptive "
        "windows": "the paper's abstract; its full text was not at hand and no code is published",
        "decay rates, projections, initialisation, local enhancement, stem, merging, head, feed-forward network": "the "
        "code of RMT, its parent",
        "balanced slopes": "the code of SWAT; how an odd number of heads is balanced is our reconstruction",
        "rows of SWAT divided by their sum where that is above 1": "our reconstruction of how the output is normalised",
        "rotary angles inside the window, local enhancement inside the window, from the gated values": "our "
        "reconstruction",
        "rule of the adaptive window": "our reconstruction: the divisor of the map nearest to the nominal window",
        "widths, depths and heads": "our choice: the parents' shape at the printed number of parameters",
        "training recipe": "our reconstruction: the usual one of Swin, the same for all models",
        "convert_swin, heal, attention_map, effective_window_report": "our addition",
    },
)  # fmt: skip

_BUILD = "paperworks.swin.gated_swinrmt"
SWAT = Arm("Gated-SwinRMT-SWAT", f"{_BUILD}:gated_swinrmt_swat")
RETENTION = Arm("Gated-SwinRMT-Retention", f"{_BUILD}:gated_swinrmt_retention")
RMT = Arm("RMT", f"{_BUILD}:rmt_baseline")
SEEDS = Tiers(smoke=2, desk=MINIMUM_SEEDS)
PICTURES = Need("package", "skimage", "pip install scikit-image")

# --- counts and identities at real size ---


@paper.exact(
    "Both gated variants have 77 to 79 million parameters, at 100 classes.",
    source="abstract",
    published="77-79 M",
    expect={f"{name}: M parameters": Bound(at_least=77, at_most=79) for name in ("SWAT", "Retention")},
    note="the widths and depths are our choice, made to meet this: a check of consistency",
)
def parameters_at_full_size(trial: Trial) -> dict[str, float]:
    """Counts of both variants, and of RMT at the same widths."""
    from paperworks.papers.protocols import gated_checks

    return gated_checks.parameters_at_full_size(trial)


@paper.exact(
    "RMT, as the baseline is built here, has the parameters of its own paper: S 27 M, B 54 M, L 95 M.",
    source="RMT (2309.11523), its table of models",
    published="27 / 54 / 95 M",
    expect={
        f"RMT-{name}: M parameters": Bound(equals=count, tolerance=0.5)
        for name, count in (("S", 27), ("B", 54), ("L", 95))
    },
    note="1000 classes",
)
def parameters_of_the_parents(trial: Trial) -> dict[str, float]:
    """Counts of the parents."""
    from paperworks.papers.protocols import gated_checks

    return gated_checks.parameters_of_the_parents(trial)


@paper.exact(
    "On 32x32 images the windows of every stage span the whole map; on 224x224 they do not.",
    source="abstract",
    expect={
        f"{name}, {size} pixels: {what}": bound
        for name in ("SWAT", "Retention")
        for size, what, bound in (
            (32, "global stages", Bound(equals=4)),
            (32, "change by windows of 64", Bound(at_most=1e-5)),
            (224, "global stages", Bound(equals=1)),
            (224, "change by windows of 64", Bound(at_least=0.01)),
        )
    },
    note="networks at full size with random weights; change of the last map, relative, if the nominal window is 64",
)
def small_images_are_global(trial: Trial) -> dict[str, float]:
    """Windows by stage, and the outputs beside those of a network with larger windows."""
    from paperworks.papers.protocols import gated_checks

    return gated_checks.small_images_are_global(trial)


@paper.exact(
    "On 32x32 images Gated-SwinRMT-Retention with its gates held open is RMT: the gates are all that differs.",
    source="our question to the abstract's CIFAR-10 result",
    expect={
        "gates open: change": Bound(at_most=1e-5),
        "gates as they are: change": Bound(at_least=0.01),
    },
    note="networks at full size with the same random weights; relative change of the last map",
)
def small_images_leave_only_the_gate(trial: Trial) -> dict[str, float]:
    """The last map of both networks."""
    from paperworks.papers.protocols import gated_checks

    return gated_checks.small_images_leave_only_the_gate(trial)


@paper.exact(
    "Two passes along the axes of a window need (h + w) / (h w) of the multiply-adds of window attention.",
    source="abstract (decomposition)",
    expect={f"{variant} / Swin": Bound(equals=14 / 49, tolerance=1e-12) for variant in ("retention", "swat")},
    note="scores and mixing of one 7 x 7 window of 128 channels in 4 heads, counted; projections cost what they did",
)
def cost_of_two_passes(trial: Trial) -> dict[str, float]:
    """Counted multiply-adds of the products outside of linear layers."""
    from paperworks.papers.protocols import gated_checks

    return gated_checks.cost_of_two_passes(trial)


@paper.exact(
    "The output gate lifts the low-rank bottleneck of the value and output projections: D becomes 2 D.",
    source="abstract (G1)",
    expect={"rank without gate": Bound(equals=8), "rank with gate": Bound(equals=16)},
    note="one head of D = 8 in 32 channels, mixing frozen: rank of the stacked Jacobians of the output by the token's "
    "own features over 256 tokens, float64, tolerance 1e-9",
)
def rank_of_the_output(trial: Trial) -> dict[str, float]:
    """Numerical ranks with and without the gate."""
    from paperworks.papers.protocols import gated_checks

    return gated_checks.rank_of_the_output(trial)


@paper.exact(
    "The two passes of the retention variant decay as gamma to the Manhattan distance.",
    source="abstract; RMT",
    expect={"largest difference": Bound(at_most=1e-12)},
    note="equal scores, a window of 7 x 7: every token's mixing weights over its own, in float64",
)
def decay_is_manhattan(trial: Trial) -> dict[str, float]:
    """Weights against powers of gamma."""
    from paperworks.papers.protocols import gated_checks

    return gated_checks.decay_is_manhattan(trial)


_FAR = {4: 2, 8: 4, 16: 8, 32: 16}


@paper.exact(
    "Balanced slopes: half of the heads of the SWAT variant weigh distant tokens more than near ones at equal scores.",
    source="our question: negative slopes beside the decay",
    expect={f"stage {i}, of {h} heads": Bound(equals=far) for i, (h, far) in enumerate(_FAR.items(), 1)},
    note="sigmoid(s |d|) gamma^|d| at a score of 0, any distance up to 6 against 0",
)
def heads_that_favour_distance(trial: Trial) -> dict[str, float]:
    """Heads whose weight is largest away from the token itself, by stage."""
    from paperworks.papers.protocols import gated_checks

    return gated_checks.heads_that_favour_distance(trial)


# --- measured ---

for _arm, _name, _gain in ((SWAT, "swat", "+6.48"), (RETENTION, "retention", "+4.46")):
    paper.measured(
        f"{_name}-beats-rmt",
        f"{_arm.name} is more accurate than RMT where a map has several windows.",
        source="abstract, Mini-ImageNet at 224 pixels",
        published=f"{_gain} points top-1",
        protocol=picture_classification,
        needs=(PICTURES,),
        criteria=Criterion("accuracy", _arm, "greater", RMT, seeds=SEEDS),
        note="weak form: grey crops of 14 pictures, a network of two stages, minutes of training in all",
    )
paper.measured(
    "gain-shrinks-on-one-window",
    "Where every map fits one window, the gain of SWAT over RMT is smaller.",
    source="abstract, CIFAR-10 at 32 pixels",
    published="+0.56 points against +6.48",
    protocol=picture_classification,
    needs=(PICTURES,),
    criteria=Criterion("windowed_minus_one_window", SWAT, "greater", RMT, seeds=SEEDS),
    note="both networks are trained on both sizes: the difference of the differences is the difference of the gains",
)
paper.measured(
    "order-of-the-three",
    "SWAT is more accurate than Retention, and Retention than RMT.",
    source="abstract",
    published="80.22, 78.20 and 73.74 %",
    protocol=picture_classification,
    needs=(PICTURES,),
    criteria=(
        Criterion("accuracy", SWAT, "greater", RETENTION, seeds=SEEDS),
        Criterion("accuracy", RETENTION, "greater", RMT, seeds=SEEDS),
    ),
)

# --- needs ---

CUDA = Need("gpu", "cuda", "three trainings of 300 epochs at 224 pixels for each seed")
MINI = Need(
    "setting",
    "data",
    "mini-ImageNet: data=miniimagenet:PATH, class folders in train, val, test, or their tables and images",
    r"miniimagenet:.+",
)
CIFAR = Need("setting", "data", "CIFAR-10: data=cifar:PATH, the folder cifar-10-batches-py", r"cifar:.+")

paper.measured(
    "accuracies-on-mini-imagenet",
    "On Mini-ImageNet SWAT reaches 80.22 % top-1, Retention 78.20 % and RMT 73.74 %.",
    source="abstract",
    published="80.22, 78.20 and 73.74 %",
    protocol=whole_recipe,
    needs=(MINI, CUDA),
    criteria=(
        Criterion("top1", SWAT, "greater", margin=79.22, seeds=SEEDS, control=RMT),
        Criterion("top1", RETENTION, "greater", margin=77.20, seeds=SEEDS, control=RMT),
        Criterion("top1", RMT, "less", margin=74.74, seeds=SEEDS, control=SWAT),
        Criterion("top1", SWAT, "greater", RMT, margin=3.24, seeds=SEEDS),
        Criterion("top1", RETENTION, "greater", RMT, margin=2.23, seeds=SEEDS),
    ),
    note="values to one point, differences to half of the published ones; the pictures of each class are divided 500 "
    "to 100, since the few-shot split has no class in two parts",
)
paper.measured(
    "gain-on-cifar",
    "On CIFAR-10 SWAT is better than RMT, by 0.56 points.",
    source="abstract",
    published="+0.56 points",
    protocol=whole_recipe,
    settings={"size": Tiers(smoke=32), "epochs": Tiers(smoke=1, gpu=20, full=200)},
    needs=(CIFAR, CUDA),
    criteria=(
        Criterion("top1", SWAT, "greater", RMT, seeds=SEEDS),
        Criterion("top1", SWAT, "less", RMT, margin=3.24, seeds=SEEDS),
    ),
    note="above zero, and below half of the gain on Mini-ImageNet",
)


def draw(figure: Any, results: Any) -> None:
    """Above: a test image and what one token attends to in each network. Below: accuracies by seed at both sizes."""
    import numpy as np

    top, bottom = figure.subfigures(2, 1, height_ratios=(1.0, 1.15))
    arms = (("swat-beats-rmt", RMT), ("retention-beats-rmt", RETENTION), ("swat-beats-rmt", SWAT))

    def square(claim: str, arm: Arm, curve: str) -> Any:
        values = np.array(results.curves(claim, arm.name, curve)[0][1])
        side = round(len(values) ** 0.5)
        return values.reshape(side, side)

    image, side = square("swat-beats-rmt", RMT, "test image"), len(square("swat-beats-rmt", RMT, "attention"))
    axes = top.subplots(1, 4)
    axes[0].set_title("test image")
    for axis, (claim, arm) in zip(axes[1:], arms, strict=True):
        weights = square(claim, arm, "attention")
        axis.set_title(arm.name.removeprefix("Gated-SwinRMT-"))
        axis.imshow(weights, cmap="Oranges", extent=(0, 1, 1, 0), vmin=0)
        axis.plot([0.5 + 0.5 / side], [0.5 + 0.5 / side], "+", color="#2462c4", markersize=9)
    axes[0].imshow(image, cmap="gray", extent=(0, 1, 1, 0))
    axes[0].plot([0.5 + 0.5 / side], [0.5 + 0.5 / side], "+", color="#2462c4", markersize=9)
    for axis in axes:
        axis.set(xticks=(), yticks=())
    sides = bottom.subplots(1, 2, sharey=True)
    for axis, metric, title in (
        (sides[0], "accuracy", "maps of several windows"),
        (sides[1], "accuracy_one_window", "maps of one window"),
    ):
        for place, ((claim, arm), colour) in enumerate(zip(arms, ("#5d6874", "#0a7868", "#b9500b"), strict=True)):
            values = 100 * np.array(list(results.metric(claim, arm.name, metric).values()))
            axis.plot(np.linspace(place - 0.15, place + 0.15, len(values)), values, "o", color=colour, alpha=0.6)
            axis.plot([place], [values.mean()], "_", color=colour, markersize=26, markeredgewidth=2.2)
        axis.set(title=title, xticks=range(3), xlim=(-0.5, 2.5))
        axis.set_xticklabels(["RMT", "Retention", "SWAT"])
    sides[0].set(ylabel="test accuracy, %")


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "Above: one test image, and how much the token at the cross takes of each other token in the first block, mean "
        "over its heads: of the whole map in RMT, of its window in the gated variants. Below: test accuracy by seed "
        "(points) and on average (bars), where a map has four windows and where it has one.",
        (7.2, 4.6),
    )
)
paper.findings += [
    Finding(
        "On 32x32 images the paper's comparison is one of gates alone. Every window spans its map and the last map is "
        "a single token, so Retention with open gates computes what RMT computes, to the last bit of rounding.",
        ("small-images-are-global", "small-images-leave-only-the-gate"),
    ),
    Finding(
        "Half of the slopes of the SWAT variant are meant to favour distance, but the decay after the sigmoid "
        "outweighs most of them: at equal scores 0 of 4, 1 of 8, 3 of 16 and 7 of 32 heads weigh any other place more "
        "than their own.",
        ("heads-that-favour-distance",),
    ),
    Finding(
        "Both variants add one C x C map to a block, the value gate or the output gate, and so have the same number of "
        "parameters at the same widths; RMT at these widths has 5.4 M fewer.",
        ("parameters-at-full-size",),
    ),
]
