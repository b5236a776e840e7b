"""Data-independent Module-aware Pruning for Hierarchical Vision Transformers (arXiv 2404.13648): card and claims."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.lab.trial import Trial
from paperworks.papers.protocols import pruning_checks
from paperworks.papers.protocols.pruning import pruning
from paperworks.papers.protocols.pruning_imagenet import imagenet_pruning, pruned_counts
from paperworks.papers.protocols.timing import timing

paper = Paper(
    id="dimap",
    title="Data-independent Module-aware Pruning for Hierarchical Vision Transformers",
    area="efficiency",
    arxiv="2404.13648",
    date=date(2024, 4, 21),
    authors="Yang He, Joey Tianyi Zhou",
    n_authors=2,
    venue="ICLR 2024",
    code="https://github.com/he-y/Data-independent-Module-Aware-Pruning",
    keywords=("pruning", "swin transformer", "vision transformer", "model compression", "information distortion"),
    method="paperworks.efficiency.dimap",
    summary=(
        "Which weights of a Swin can go? Magnitudes of different layers do not compare: weights shrink as the stages "
        "grow wider. The paper scores a weight by the relative distortion that its removal adds to its own layer: its "
        "square over the sum of its own and all larger squares. Attention inputs, attention outputs and MLPs are "
        "ranked apart, and the same fraction of each goes, in one shot and without a single image."
    ),
    usage=(
        "from paperworks.efficiency.dimap import dimap_prune, sparse_flops, squeeze\n\n"
        "masks = dimap_prune(model, 0.55)          # timm, transformers or torchvision Swin, in place\n"
        "print(masks, sparse_flops(model, 224, masks).macs_pruned)\n"
        "masks.remove(model)                       # plain weights with zeros, names as before\n"
        "small = squeeze(model)                    # dead neurons and heads cut out, same output"
    ),
    provenance={
        "importance, the three modules, one threshold each, what is never pruned": "the paper; its repository has "
        "checkpoints and no code",
        "the ratios 15, 35 and 55 % of DIMAP1, 2 and 3": "derived here: they give every parameter count of table 1",
        "query, key and value scored as one matrix where a library keeps them apart": "our reading; the paper's Swin "
        "has them fused",
        "ties, zero weights, several pruned layers in the bound": "our reconstruction",
        "fine-tuning: AdamW, warm-up, cosine, rates, decay": "the paper",
        "fine-tuning: masks re-applied after each step, no optimizer state of removed weights": "our reconstruction",
        "augmentation of ImageNet: crops, mirror images, colour jitter, random erasing, mixup, CutMix": "the recipe of "
        "Swin that the paper names, without its AutoAugment policy",
        "one ranking for each stage, 2:4 blocks, squeeze": "our addition",
    },
)

PRUNE = "paperworks.efficiency.dimap:dimap_prune"
DIMAP = Arm("DIMAP", PRUNE)
UNIFORM = Arm("uniform magnitude", PRUNE, {"grouping": "layer", "criterion": "magnitude"})
ONE_RANKING = Arm("one ranking", PRUNE, {"grouping": "model"})
MAGNITUDE = Arm("global magnitude", PRUNE, {"grouping": "model", "criterion": "magnitude"})
SEEDS = Tiers(smoke=2, desk=MINIMUM_SEEDS)
TRANSFORMERS = Need("package", "transformers", "pip install 'paperworks[efficiency]'")

# --- counts at real size ---

_PARAMETERS = {
    "Swin-T": ((24.4, 19.2, 14.0), (13.7, 32.0, 50.3)),
    "Swin-S": ((42.5, 33.1, 23.7), (14.2, 33.2, 52.2)),
    "Swin-B": ((75.2, 58.4, 41.7), (14.3, 33.4, 52.5)),
}
_FLOPS = {"Swin-T": (13.9, 32.4, 50.8), "Swin-S": (14.3, 33.2, 52.3), "Swin-B": (14.4, 33.5, 52.7)}
_DENSE_GMACS = {"Swin-T": 4.5, "Swin-S": 8.7, "Swin-B": 15.4}


def _parameter_bounds(name: str) -> dict[str, Bound]:
    bounds = {}
    for variant, millions, percent in zip(pruning_checks.RATIOS, *_PARAMETERS[name], strict=True):
        bounds[f"{variant}: M parameters"] = Bound(equals=millions, tolerance=0.1)
        bounds[f"{variant}: % removed"] = Bound(equals=percent, tolerance=0.1)
    return bounds


def _counts(name: str, sentence: str, published: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare the counts of table 1 for one network."""
    return paper.exact(
        sentence,
        source="table 1",
        published=published,
        expect=_parameter_bounds(name),
        needs=(TRANSFORMERS,),
        note="the network at full size, random weights: masks at 55 %, ratio x size of the modules at 15 and 35 %; to "
        "one unit of the last printed digit",
    )


@_counts(
    "Swin-T",
    "Swin-T keeps 24.4, 19.2 and 14.0 M parameters at 15, 35 and 55 %.",
    "24.4 / 19.2 / 14.0 M, 13.7 / 32.0 / 50.3 % less",
)
def parameters_of_swin_t(trial: Trial) -> dict[str, float]:
    """Counts of Swin-T after pruning."""
    return pruning_checks.parameters_left(trial, "Swin-T")


@_counts("Swin-S", "Swin-S keeps 42.5, 33.1 and 23.7 M parameters.", "42.5 / 33.1 / 23.7 M, 14.2 / 33.2 / 52.2 % less")
def parameters_of_swin_s(trial: Trial) -> dict[str, float]:
    """Counts of Swin-S after pruning."""
    return pruning_checks.parameters_left(trial, "Swin-S")


@_counts("Swin-B", "Swin-B keeps 75.2, 58.4 and 41.7 M parameters.", "75.2 / 58.4 / 41.7 M, 14.3 / 33.4 / 52.5 % less")
def parameters_of_swin_b(trial: Trial) -> dict[str, float]:
    """Counts of Swin-B after pruning."""
    return pruning_checks.parameters_left(trial, "Swin-B")


@paper.exact(
    "FLOPs of Swin-T, S and B fall by the printed percentages if the ratio is taken off every prunable layer alike.",
    source="table 1, nominal reading",
    published="T 13.9 / 32.4 / 50.8 %, S 14.3 / 33.2 / 52.3 %, B 14.4 / 33.5 / 52.7 %",
    expect={
        **{f"{name}: GMACs": Bound(equals=macs, tolerance=0.1) for name, macs in _DENSE_GMACS.items()},
        **{
            f"{name}, {variant}: % removed": Bound(equals=percent, tolerance=0.2)
            for name, printed in _FLOPS.items()
            for variant, percent in zip(pruning_checks.RATIOS, printed, strict=True)
        },
    },
    needs=(TRANSFORMERS,),
    note="ratio x multiply-adds of the prunable layers / all, at 224 pixels, attention products included in all",
)
def flops_by_the_ratio(trial: Trial) -> dict[str, float]:
    """Nominal reductions on networks that have shapes and no memory."""
    found = {}
    for name in _FLOPS:
        prunable, total = pruning_checks.prunable_macs(name)
        found[f"{name}: GMACs"] = total / 1e9
        for variant, ratio in pruning_checks.RATIOS.items():
            found[f"{name}, {variant}: % removed"] = 100 * ratio * prunable / total
    return found


@paper.exact(
    "FLOPs of Swin-T, S and B fall by the printed percentages when counted layer by layer from the masks.",
    source="table 1, counted reading",
    published="DIMAP3: T 50.8 %, S 52.3 %, B 52.7 %",
    expect={f"{name}, DIMAP3: % removed": Bound(equals=p[2], tolerance=0.2) for name, p in _FLOPS.items()},
    needs=(TRANSFORMERS,),
    note="random normal weights; the claim flops-from-the-masks-of-a-checkpoint counts on trained ones",
)
def flops_from_the_masks(trial: Trial) -> dict[str, float]:
    """Counted reductions at 55 %."""
    return {f"{name}, DIMAP3: % removed": pruning_checks.counted_reduction(trial, name, {}) for name in _FLOPS}


@paper.exact(
    "Ranking every stage apart makes the nominal FLOPs of Swin-T the counted ones.",
    source="our addition, grouping='stage'",
    expect={"counted - nominal, points": Bound(equals=0, tolerance=0.01)},
    needs=(TRANSFORMERS,),
)
def stages_apart_count_as_the_ratio(trial: Trial) -> dict[str, float]:
    """The difference of both readings at 55 %."""
    prunable, total = pruning_checks.prunable_macs("Swin-T")
    counted = pruning_checks.counted_reduction(trial, "Swin-T", {"grouping": "stage"})
    return {"counted - nominal, points": counted - 100 * pruning_checks.RATIOS["DIMAP3"] * prunable / total}


# --- identities ---


paper.exact(
    "The importance of a weight is the relative distortion of its removal; it is free of scale and keeps the ranking.",
    source="Eq. 10",
    expect={
        "importance - distortion, relative": Bound(at_most=1e-12),
        "scaled - unscaled": Bound(at_most=1e-12),
        "pairs of weights in another order": Bound(equals=0),
        "weights kept at 55 % and gone at 35 %": Bound(equals=0),
    },
    needs=(TRANSFORMERS,),
    note="every 64th weight by rank of one 192 x 384 layer in float64, and the masks of Swin-T",
)(pruning_checks.importance_is_relative_distortion)

paper.exact(
    "The change of a ReLU network's output is at most the product of the other layers' norms times the distortion.",
    source="Eq. 7",
    expect={"largest change / bound": Bound(at_most=1.0), "pruned networks": Bound(equals=60)},
    note="1000 inputs of norm 1 through each of 60 random networks, one layer or all layers pruned",
)(pruning_checks.output_change_is_bounded)

paper.exact(
    "Neurons and heads that pruning killed can be cut out of Swin-T without changing its output.",
    source="our addition, squeeze",
    expect={
        "largest change / largest logit": Bound(at_most=1e-4),
        "neurons cut": Bound(equals=3000),
        "heads cut": Bound(equals=2),
    },
    needs=(TRANSFORMERS,),
    note="Swin-T at full size in float32 with 3000 dead neurons and two dead heads, one image of 224 pixels",
)(pruning_checks.squeezing_keeps_the_output)

# --- measured ---

SHOWN = {"ratio": 0.8, "sweep": True}
"""The settings whose trials the figure shows."""

for _ratio in (0.7, 0.8, 0.85):
    paper.measured(
        f"beats-uniform-magnitude-at-{round(100 * _ratio)}",
        f"At {round(100 * _ratio)} % in one shot it loses less accuracy than magnitude pruning of each layer alike.",
        source="table of one-shot results",
        published="Swin-T: 0.17, 1.04, 6.48 and 65.3 points at 19, 28, 38 and 50 % of the parameters",
        protocol=pruning,
        settings=SHOWN if _ratio == 0.8 else {"ratio": _ratio},
        needs=(TRANSFORMERS,),
        criteria=Criterion("accuracy", DIMAP, "greater", UNIFORM, seeds=SEEDS),
        note="a Swin of two stages on 8x8 digits brought to 16 pixels, with the initial deviation that trained best of "
        "three; ratios at which the baseline had lost 5 points or more on a seed that is not among those of the claim",
    )

paper.measured(
    "beats-uniform-magnitude-when-hardly-trained",
    "At 80 % in one shot it loses less accuracy than magnitude pruning where the network is less well trained.",
    source="our question: weights near their random start",
    protocol=pruning,
    settings={"ratio": 0.8, "initial_deviation": 0.04, "epochs": Tiers(smoke=1, desk=16, gpu=100)},
    needs=(TRANSFORMERS,),
    criteria=Criterion("accuracy", DIMAP, "greater", UNIFORM, seeds=SEEDS),
    note="added after trials on spare seeds in which it was ahead at this initial deviation and not at the other",
)

paper.measured(
    "beats-one-ranking-after-fine-tuning",
    "After fine-tuning, three rankings leave a more accurate network than one.",
    source="ablation of the modules",
    published="Swin-T 80.35 against 80.12, S 82.63 against 82.31, B 83.28 against 83.17",
    protocol=pruning,
    settings={"ratio": 0.8, "finetune_epochs": Tiers(smoke=1, desk=3, gpu=30)},
    needs=(TRANSFORMERS,),
    criteria=Criterion("accuracy", DIMAP, "greater", ONE_RANKING, seeds=SEEDS),
)
paper.measured(
    "beats-one-ranking-in-one-shot",
    "In one shot, three rankings leave a more accurate network than one.",
    source="our question to the ablation of the modules",
    protocol=pruning,
    settings=SHOWN,
    needs=(TRANSFORMERS,),
    criteria=Criterion("accuracy", DIMAP, "greater", ONE_RANKING, seeds=SEEDS),
)
paper.measured(
    "beats-global-magnitude",
    "In one shot it leaves a more accurate network than one ranking of all magnitudes.",
    source="our question: what torch.nn.utils.prune.global_unstructured offers",
    protocol=pruning,
    settings=SHOWN,
    needs=(TRANSFORMERS,),
    criteria=Criterion("accuracy", DIMAP, "greater", MAGNITUDE, seeds=SEEDS),
)
paper.measured(
    "whole-neurons-vanish",
    "Whole rows of fc1 vanish: more neurons of the MLPs are dead at 90 % than with magnitude pruning of each layer.",
    source="observed pattern",
    protocol=pruning,
    settings={"ratio": 0.9},
    needs=(TRANSFORMERS,),
    criteria=Criterion("dead_neurons", DIMAP, "greater", UNIFORM, seeds=SEEDS),
)

_CALLS = "paperworks.papers.protocols.pruning_calls:forward_pass"
paper.measured(
    "squeezing-saves-time",
    "Cutting out the dead neurons of the network pruned to 90 % makes its forward pass faster.",
    source="our addition, squeeze",
    published="the paper states no measured time",
    protocol=timing,
    settings={"reference": f"{_CALLS}(ratio=0.9)"},
    needs=(TRANSFORMERS,),
    criteria=Criterion(
        "ratio", Arm("squeezed", _CALLS, {"ratio": 0.9, "squeezed": True}), "less", margin=1.0, seeds=SEEDS,
        control=Arm("with zeros", _CALLS, {"ratio": 0.9}),
    ),
    note="64 images; the network of the claims above, trained; unstructured zeros alone save no time in dense kernels",
)  # fmt: skip

# --- needs ---
PICTURES = Need("setting", "data", "ImageNet: data=imagefolder:PATH with PATH/train and PATH/val", r"imagefolder:.+")
CUDA = Need("gpu", "cuda", "fine-tuning on ImageNet")


def _weights(name: str) -> Need:
    return Need(
        "setting", "weights", f"{name}: weights=FILE, the official .pth or .safetensors of timm or transformers"
    )


# the published reductions are of all parameters, of which 91.5 % are prunable in Swin-T
for _percent, _gain in ((19, 0.17), (28, 1.04), (38, 6.48), (50, 65.3)):
    paper.measured(
        f"beats-uniform-magnitude-on-imagenet-at-{_percent}",
        f"Swin-T with {_percent} % fewer parameters: one shot is {_gain} points better than uniform magnitude.",
        source="table of one-shot results",
        published=f"{_gain} points",
        protocol=imagenet_pruning,
        settings={"ratio": round(_percent / 91.47, 4)},
        needs=(PICTURES, _weights("Swin-T"), TRANSFORMERS),
        criteria=Criterion("top1", DIMAP, "greater", UNIFORM, margin=_gain / 2, seeds=SEEDS),
        note="margin: half of the published difference. Nothing is drawn at random, the seeds repeat one measurement",
    )

for _name, _ratio, _metric, _change in (
    ("Swin-B", 0.55, "top1_change", -0.20),
    ("Swin-B", 0.55, "top5_change", -0.07),
    ("Swin-S", 0.35, "top5_change", 0.03),
):
    paper.measured(
        f"{_metric.replace('_', '-')}-of-{_name.lower()}-after-fine-tuning",
        f"{_name} at {_ratio:.0%} changes by {_change:+.2f} points of {_metric[:4]} after 30 epochs of fine-tuning.",
        source="table 1",
        published=f"{_change:+.2f} points",
        protocol=imagenet_pruning,
        settings={"ratio": _ratio, "finetune_epochs": 30},
        needs=(PICTURES, _weights(_name), CUDA, TRANSFORMERS),
        criteria=Criterion(_metric, DIMAP, "greater", margin=_change - 0.1, seeds=SEEDS, control=UNIFORM),
        note="margin: 0.1 point below the published change. What the abstract calls 0.8 % is of the error",
    )

paper.measured(
    "flops-from-the-masks-of-a-checkpoint",
    "Counted from the masks of a trained Swin at 55 %, FLOPs fall by what the ratio takes off every layer alike.",
    source="table 1, counted reading",
    published="50.8 % of Swin-T, 52.3 % of Swin-S, 52.7 % of Swin-B",
    protocol=pruned_counts,
    settings={"ratio": 0.55},
    needs=(_weights("a Swin"), TRANSFORMERS),
    criteria=Criterion("macs_shortfall", DIMAP, "less", margin=0.5, seeds=SEEDS, control=ONE_RANKING),
    note="half a point of room. The seeds repeat one measurement",
)


def draw(figure: Any, results: Any) -> None:
    """Left: accuracy by ratio, mean over seeds. Right: what is left of each layer, by depth."""
    import numpy as np

    left, right = figure.subplots(1, 2)
    claim = "beats-uniform-magnitude-at-80"
    for where, arm, label, colour in (
        (claim, "DIMAP", "DIMAP", "#2462c4"),
        (claim, "uniform magnitude", "uniform magnitude", "#5d6874"),
        ("beats-one-ranking-in-one-shot", "one ranking", "one ranking", "#0a7868"),
        ("beats-global-magnitude", "global magnitude", "global magnitude", "#b9500b"),
    ):
        curves = np.array([values for _, values in results.curves(where, arm, "accuracy by ratio")])
        ratio = results.curves(where, arm, "ratio")[0][1]
        left.plot(np.array(ratio) * 100, curves.mean(0), "o-", color=colour, label=label, markersize=3)
    left.set(xlabel="weights removed, %", ylabel="test accuracy, %", ylim=(0, 102))
    left.legend(loc="lower left")
    for kind, colour in (("qkv", "#2462c4"), ("proj", "#b9500b"), ("fc1", "#0a7868"), ("fc2", "#7a3b9a")):
        curves = np.array([v for _, v in results.curves(claim, "DIMAP", f"kept of {kind} by depth")]) * 100
        depth = np.linspace(1, 4, curves.shape[1])
        right.plot(depth, curves.mean(0), "o-", color=colour, label=kind, markersize=3)
    right.axhline(20, color="#5d6874", linewidth=1, linestyle="--", label="uniform")
    right.set(xlabel="block", ylabel="weights kept at 80 %, %", xticks=(1, 2, 3, 4))
    right.set_ylim(0)
    right.legend(loc="best")


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "Left: accuracy of the same trained networks after one shot of pruning, mean over seeds. Right: what DIMAP "
        "leaves of each layer when 80 % go, mean over seeds.",
    )
)
paper.findings.extend(
    (
        Finding(
            "The FLOPs of table 1 are what the ratio takes off every prunable layer alike. Counted layer by layer from "
            "the masks, fewer go: more weights are removed from the wide late stages, and a weight there is used for "
            "fewer tokens. Ranking each stage apart makes both counts equal.",
            (
                "flops-by-the-ratio", "flops-from-the-masks", "stages-apart-count-as-the-ratio",
                "flops-from-the-masks-of-a-checkpoint",
            ),
        ),
        Finding(
            "The ratios of DIMAP1, 2 and 3 are not printed; 15, 35 and 55 % in all three modules give every parameter "
            "count of table 1.",
            ("parameters-of-swin-t", "parameters-of-swin-s", "parameters-of-swin-b"),
        ),
        Finding(
            "On the small Swin here one ranking over the whole network keeps more accuracy than three, in one shot and "
            "after fine-tuning, and fewer neurons die whole than under uniform magnitude pruning.",
            ("beats-one-ranking-in-one-shot", "beats-one-ranking-after-fine-tuning", "whole-neurons-vanish"),
        ),
    )
)  # fmt: skip
