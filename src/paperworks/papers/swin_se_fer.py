"""Swin with squeeze-and-excitation for facial expressions (arXiv 2301.10906): the card and its claims."""

from __future__ import annotations

from datetime import date
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.sharpness_expressions import expression_recognition
from paperworks.papers.protocols.sharpness_tasks import face_patches, few_images
from paperworks.papers.protocols.timing import timing

paper = Paper(
    id="swin-se-fer",
    title="Facial Expression Recognition using Squeeze and Excitation-powered Swin Transformers",
    area="swin",
    arxiv="2301.10906",
    date=date(2023, 1, 25),
    authors="",
    n_authors=2,
    keywords=(
        "facial expression recognition", "fer", "emotion recognition", "swin transformer", "squeeze-and-excitation",
        "sharpness-aware minimization", "affectnet", "fine-tuning",
    ),
    method="paperworks.swin.swin_se_fer",
    summary=(
        "A pretrained Swin learns to name the emotion of a face from few examples. One squeeze-and-excitation block "
        "weighs its channels before the classifier, and sharpness-aware minimisation looks for flat minima: each step "
        "climbs to the worst point nearby and descends with the gradient found there. Trained on a mixture of face "
        "data sets, it reaches an F1 score of 0.542 on AffectNet, above the winner of the ABAW 2022 challenge."
    ),
    usage=(
        "import torch\n"
        "from paperworks.swin.swin_se_fer import SAM, add_squeeze_excite, fit_sam, sharpness\n\n"
        "add_squeeze_excite(model)             # a Swin of timm, torchvision, transformers or paperworks\n"
        "optimizer = SAM(model.parameters(), torch.optim.AdamW, lr=5e-5)   # around the optimiser you have\n"
        "fit_sam(model, loader, optimizer, torch.nn.functional.cross_entropy, epochs=2)\n"
        "print(sharpness(model, torch.nn.functional.cross_entropy, next(iter(loader))))"
    ),
    provenance={
        "Swin-T, squeeze-and-excitation, sharpness-aware minimisation, hybrid data, F1 on AffectNet": "the paper's "
        "abstract; its full text was not at hand and no code of its authors is published",
        "224 pixels, ImageNet weights, the block between encoder and head, SGD with a rate that falls tenfold every "
        "ten epochs": "a public re-implementation, which credits them to the paper",
        "batch 64, 25 epochs, rotation, mirror images, contrast, best epoch by validation": "the same "
        "re-implementation, which does not say where they are from",
        "squeeze-and-excitation, reduction 16": "its own paper (1709.01507)",
        "sharpness-aware minimisation, plain and adaptive": "their papers (2010.01412, 2102.11600)",
        "which sets the mixture has; F1 averaged over classes": "our reconstruction",
        "recipe with AdamW for small sets, start near the identity, climb at every k-th step": "our addition",
        "sharpness and the loss along the climb for any model, report of a mixture's labels": "our addition",
    },
)  # fmt: skip

_RECIPE = "paperworks.papers.protocols.sharpness_arms:recipe"
METHOD = Arm("SE and SAM", _RECIPE)
NO_SAM = Arm("SE without SAM", _RECIPE, {"sam": False})
LONGER = Arm("SE without SAM, twice the epochs", _RECIPE, {"sam": False, "times": 2})
NO_SQUEEZE = Arm("SAM without SE", _RECIPE, {"squeeze": False})
SECOND = Arm("SE and SAM at every second step", _RECIPE, {"every": 2})
PLAIN = Arm("neither", _RECIPE, {"sam": False, "squeeze": False})
SEEDS = Tiers(smoke=2, desk=MINIMUM_SEEDS, gpu=20)
PATCHES = Need("package", "skimage", "pip install scikit-image")

# --- exact, at the size of Swin-T ---


@paper.exact(
    "The block costs Swin-T 0.27 % of its parameters, and less than a ten-thousandth of its multiply-adds.",
    source="abstract (efficient); counts are ours",
    expect={
        "parameters of Swin-T at 8 classes": Bound(equals=27_525_506),
        "parameters added": Bound(equals=74_544),
        "parameters added, %": Bound(equals=0.27, tolerance=0.005),
        "G multiply-adds of Swin-T": Bound(equals=4.5, tolerance=0.1),
        "multiply-adds added / those of Swin-T": Bound(at_most=1e-4),
    },
    note="reduction 16 on 768 channels, 224 pixels",
)
def cost_of_squeeze(trial: Trial) -> dict[str, float]:
    """Counts with the block and without."""
    from paperworks.papers.protocols import sharpness_checks

    return sharpness_checks.cost_of_squeeze(trial)


@paper.exact(
    "A step of sharpness-aware minimisation takes two forward and backward passes.",
    source="sharpness-aware minimisation, its algorithm",
    expect={
        "passes a step, SAM": Bound(equals=2),
        "passes a step, SAM at every second step": Bound(equals=1.5),
        "passes a step, SGD": Bound(equals=1),
    },
    note="calls of Swin-T in four steps",
)
def passes_of_a_step(trial: Trial) -> dict[str, float]:
    """Counted calls."""
    from paperworks.papers.protocols import sharpness_checks

    return sharpness_checks.passes_of_a_step(trial)


@paper.exact(
    "The climb has the length rho and the direction of the gradient of the whole network.",
    source="sharpness-aware minimisation, Eq. 2",
    expect={
        "length / rho - 1": Bound(equals=0, tolerance=1e-6),
        "1 - cosine with the gradient": Bound(equals=0, tolerance=1e-6),
        "quadratic: step - closed form": Bound(at_most=1e-12),
    },
    note="Swin-T in float32 with its tensors in three groups; a norm taken by group or by tensor has another length",
)
def climb_of_the_whole_network(trial: Trial) -> dict[str, float]:
    """Length and direction, summed in float64."""
    from paperworks.papers.protocols import sharpness_checks

    return sharpness_checks.climb_of_swin(trial)


@paper.exact(
    "After a step all weights are back, bit by bit, before the base optimiser moves them.",
    source="our question: how to go back",
    expect={
        "weights changed": Bound(equals=0),
        "weights changed, going back by subtraction": Bound(at_least=1000),
        "tensors left at w + e, going back where the second pass has a gradient": Bound(at_least=1),
    },
    note="Swin-T, four steps at a learning rate of 0; its last block is left out of second passes, as drop path may do",
)
def weights_come_back(trial: Trial) -> dict[str, float]:
    """Weights and tensors that are not what they were."""
    from paperworks.papers.protocols import sharpness_checks

    return sharpness_checks.way_back(trial)


@paper.exact(
    "Before the mean over tokens the block does what it does after it: it gates the pooled vector by itself.",
    source="our question to the place of the block",
    expect={
        "largest difference": Bound(at_most=1e-12),
        "largest change by moving the tokens": Bound(at_most=1e-12),
    },
    note="7 x 7 tokens of 768 channels in float64",
)
def squeeze_is_a_gate_of_the_pooled_vector(trial: Trial) -> dict[str, float]:
    """Differences of the pooled vectors."""
    from paperworks.papers.protocols import sharpness_checks

    return sharpness_checks.before_or_after_the_mean(trial)


# --- measured ---

_CALL = "paperworks.papers.protocols.sharpness_calls:training_step"
_STEP = Arm("SAM around SGD", _CALL)
_BASE = Arm("SGD", _CALL, {"sam": False})
_THREE = Arm("three passes", _CALL, {"extra": True})

paper.measured(
    "time-of-two-passes",
    "A step with sharpness-aware minimisation takes twice the time of a step without: 1.75 to 2.25 times.",
    source="sharpness-aware minimisation",
    protocol=timing,
    settings={"reference": f"{_CALL}(sam=False)", "rounds": Tiers(smoke=6)},
    criteria=(
        Criterion("ratio", _STEP, "greater", margin=1.75, seeds=SEEDS, control=_BASE),
        Criterion("ratio", _STEP, "less", margin=2.25, seeds=SEEDS, control=_THREE),
    ),
    note="Swin-T with the block, two images of 64 pixels, SGD with momentum",
)
paper.measured(
    "flatter-minima",
    "Sharpness-aware minimisation ends in flatter minima: at the same training loss the loss rises less nearby.",
    source="sharpness-aware minimisation, its mechanism",
    protocol=face_patches,
    needs=(PATCHES,),
    criteria=Criterion("sharpness", METHOD, "less", NO_SAM, seeds=SEEDS),
    note="faces against other patches of 25 x 25 pixels, no expressions; both stop at the first epoch whose training "
    "loss is 0.1 or less",
)
for _id, _arm, _what in (
    ("better-at-equal-updates", NO_SAM, "after as many updates"),
    ("better-at-equal-passes", LONGER, "after as many passes, which are twice the updates"),
):
    paper.measured(
        _id,
        f"With little data, sharpness-aware minimisation has the higher F1 than AdamW alone {_what}.",
        source="abstract (minimal data)",
        protocol=few_images,
        criteria=Criterion("macro_f1", METHOD, "greater", _arm, seeds=SEEDS),
        note="100 digits, no faces and no expressions; a small Swin that is not pretrained",
    )
paper.measured(
    "squeeze-helps",
    "Squeeze-and-excitation raises F1.",
    source="abstract",
    protocol=few_images,
    criteria=Criterion("macro_f1", METHOD, "greater", NO_SQUEEZE, seeds=SEEDS),
    note="both with sharpness-aware minimisation, on 100 digits; a small Swin that is not pretrained",
)
paper.measured(
    "every-second-step-suffices",
    "With a climb at every second step only, F1 is higher than with AdamW alone after as many updates.",
    source="our question: three passes for two updates",
    protocol=few_images,
    criteria=Criterion("macro_f1", SECOND, "greater", NO_SAM, seeds=SEEDS),
    note="100 digits; a small Swin that is not pretrained",
)

# --- needs ---

AFFECTNET = Need("setting", "affectnet", "AffectNet, under its licence: affectnet=PATH, with train_set and val_set")
WEIGHTS = Need("setting", "weights", "ImageNet weights of Swin-T: weights=imagenet, or weights=FILE")
CUDA = Need("gpu", "cuda", "fine-tuning on AffectNet, about a day")

paper.measured(
    "f1-on-affectnet",
    "On AffectNet the F1 score is 0.5420.",
    source="abstract",
    published="0.5420",
    protocol=expression_recognition,
    needs=(AFFECTNET, WEIGHTS, CUDA),
    criteria=(
        Criterion("macro_f1", METHOD, "greater", margin=0.532, seeds=SEEDS, control=PLAIN),
        Criterion("macro_f1", METHOD, "greater", PLAIN, seeds=SEEDS),
    ),
    note="to one point, and above the backbone alone; fer2013=PATH and ckplus=PATH add more faces",
)


def draw(figure: Any, results: Any) -> None:
    """Patches with the probability of a face; the loss along the climb; F1 by seed of every recipe."""
    import numpy as np

    claim, blue, orange = "flatter-minima", "#2462c4", "#b9500b"
    left, middle, right = figure.subfigures(1, 3, width_ratios=(0.75, 1.1, 1.25))
    flat = np.array(results.curves(claim, METHOD.name, "patches")[0][1])
    chances = results.curves(claim, METHOD.name, "probability of a face")[0][1]
    pictures = flat.reshape(len(chances), 25, 25)
    axes = left.subplots(3, 2).T.ravel()
    for axis, picture, chance in zip(axes, pictures, chances, strict=True):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"face {chance:.0%}", fontsize=8)
        axis.set(xticks=(), yticks=())
    axis = middle.subplots()
    for arm, colour in ((NO_SAM, orange), (METHOD, blue)):
        radius = results.curves(claim, arm.name, "radius")[0][1]
        curves = np.array([values for _, values in results.curves(claim, arm.name, "loss along the climb")])
        axis.fill_between(radius, curves.min(0), curves.max(0), color=colour, alpha=0.18, linewidth=0)
        axis.plot(radius, np.median(curves, 0), color=colour, label="AdamW" if arm is NO_SAM else "SAM")
    axis.axvline(0.05, color="#5d6874", linewidth=1, linestyle="--")
    axis.set(xlabel="distance along the gradient", ylabel="training loss", ylim=(0, None))
    axis.legend(loc="best")
    axis = right.subplots()
    rows = (
        ("better-at-equal-updates", METHOD, "SE, SAM", blue),
        ("squeeze-helps", NO_SQUEEZE, "SAM", "#0a7868"),
        ("every-second-step-suffices", SECOND, "SE, SAM\nevery 2nd", "#5a4bd0"),
        ("better-at-equal-updates", NO_SAM, "SE", orange),
        ("better-at-equal-passes", LONGER, "SE, twice\nthe epochs", "#7d6300"),
    )
    for place, (where, arm, _, colour) in enumerate(rows):
        values = np.array(list(results.metric(where, arm.name, "macro_f1").values()))
        axis.plot(values, np.linspace(place - 0.15, place + 0.15, len(values)), "o", color=colour, alpha=0.6)
        axis.plot([values.mean()], [place], "|", color=colour, markersize=22, markeredgewidth=2.2)
    axis.set(xlabel="macro F1, 100 digits", yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
    axis.set_yticklabels([label for _, _, label, _ in rows])


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "Left: test patches and the probability of a face, one seed. Middle: training loss around the minima along the "
        "gradient, median and range over seeds; the dashed line is the radius of the climb. Right: macro F1 after "
        "training on 100 digits, by seed (points) and on average (bars).",
        (8.6, 3.4),
    )
)
paper.findings += [
    Finding(
        "Where the block stands, between the last norm and the mean over tokens, it knows nothing of places: it gates "
        "the pooled vector by a function of that vector, and may as well be computed once on it.",
        ("squeeze-is-a-gate-of-the-pooled-vector",),
    ),
    Finding(
        "Going back from w + e by subtracting e changes weights by rounding. Going back only where the second pass has "
        "a gradient, as a widely used implementation does, leaves perturbed what that pass does not reach.",
        ("weights-come-back",),
    ),
]
