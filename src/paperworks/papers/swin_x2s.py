"""Swin-X2S (arXiv 2501.05961): the card and its claims."""

from __future__ import annotations

from datetime import date
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.bones import bones

paper = Paper(
    id="swin-x2s",
    title="Swin-X2S: Reconstructing 3D Shape from 2D Biplanar X-ray with Swin Transformers",
    area="swin",
    arxiv="2501.05961",
    date=date(2025, 1, 10),
    authors="",
    n_authors=11,
    code="https://github.com/liukuan5625/Swin-X2S",
    keywords=(
        "3d reconstruction", "biplanar x-ray", "radiography", "digitally reconstructed radiograph",
        "swin transformer", "cross-attention", "medical imaging", "orthopaedics",
    ),
    method="paperworks.swin.swin_x2s",
    summary=(
        "From two X-rays, one of the front and one of the side, Swin-X2S builds the labelled bones in three "
        "dimensions. One 2-D Swin encodes both views, every feature map is spread along the depth it lacks, "
        "cross-attention lets the views exchange what they see, and a 3-D decoder names each voxel. X-rays to train on "
        "are projected from labelled CT volumes. The paper tests nine data sets with 54 categories, takes clinical "
        "measures from the result, and reports better overlap and labelling than earlier encoder-decoders."
    ),
    usage=(
        "from paperworks.swin.swin_x2s import biplanar_pair, swin_x2s, two_view_loss\n\n"
        "# X-rays of a CT (B, 1, X, Y, Z) in Hounsfield units, by a cone of rays; differentiable\n"
        "a, b = biplanar_pair(ct, spacing=(2.0, 2.0, 2.0), detector_shape=(128, 160), pixel_size=2.2)\n"
        'model = swin_x2s("base", out_channels=55)           # or load_official_state_dict(weights)\n'
        "loss = two_view_loss(*model(a, b), labels)[\"total\"]  # labels (B, 1, X, Y, Z)\n"
        "bones = model.predict(a, b)                         # (B, X, Y, Z)"
    ),
    provenance={
        "network, loss, augmentation, names of weights": "the authors' code",
        "fusion at 1/32 alone, without a residual": "the authors' code; the paper's figure suggests it in the decoder",
        "residual=True, reprojection, disagreement of the views": "our addition",
        "projector": "our reconstruction of the geometry that the authors' code gives to ITK",
        "min-max of an image without a padded border": "our choice: the authors' code stretches with it",
        "Chamfer distance as the mean of both directions, 95 % of both pooled": "our reading",
        "volumes turned to right, front, up before they are projected": "our choice",
        "repeated views and a residual U-Net": "our construction: the same decoder, no attention, nothing in 2-D",
        "simulated bones": "our construction",
    },
)  # fmt: skip

_NETWORKS = "paperworks.papers.protocols.bones_networks"
X2S = Arm("Swin-X2S", "paperworks.swin.swin_x2s:SwinX2S")
ONE = Arm("one view", f"{_NETWORKS}:one_view")
REPEATED = Arm("repeated views, U-Net", f"{_NETWORKS}:repeated_views")
APART = Arm("no exchange", "paperworks.swin.swin_x2s:SwinX2S", {"fusion_depth": 0})
SEEDS = Tiers(smoke=2, desk=MINIMUM_SEEDS)

# --- counts and identities ---


@paper.exact(
    "It comes in four sizes, Tiny to Large.",
    source="the authors' code",
    expect={
        "tiny: parameters": Bound(equals=32_557_901),
        "small: parameters": Bound(equals=130_067_563),
        "base: parameters": Bound(equals=313_847_449),
        "large: parameters": Bound(equals=557_804_903),
        "tiny: 10^9 multiply-adds": Bound(equals=789, tolerance=0.5),
        "base: 10^9 multiply-adds": Bound(equals=7034, tolerance=0.5),
    },
    note="128 x 128 x 160 voxels, 55 classes, both views",
)
def four_sizes(trial: Trial) -> dict[str, float]:
    """Parameters and multiply-adds."""
    from paperworks.papers.protocols import bones_checks

    return bones_checks.sizes(trial)


@paper.exact(
    "Nearly all of the work is 3-D convolution at full resolution, not the Swin encoder.",
    source="our question",
    expect={
        "last up block, %": Bound(at_least=55),
        "first block, %": Bound(at_least=18),
        "2-D Swin, %": Bound(at_most=0.5),
    },
    note="shares of Base's multiply-adds",
)
def where_the_work_is(trial: Trial) -> dict[str, float]:
    """Shares by part."""
    from paperworks.papers.protocols import bones_checks

    return bones_checks.where_the_work_is(trial)


@paper.exact(
    "Both views share every weight.",
    source="section 3",
    expect={"silent for view a": Bound(equals=0), "silent for view b": Bound(equals=0)},
    note="weights of Tiny, at its widths and 32 x 32 x 64 voxels, that have no gradient from one view's logits",
)
def shared_weights(trial: Trial) -> dict[str, float]:
    """Weights without a gradient."""
    from paperworks.papers.protocols import bones_checks

    return bones_checks.shared_weights(trial)


@paper.exact(
    "The views exchange features symmetrically: inputs exchanged, outputs exchanged.",
    source="section 3",
    expect={"swapped: largest difference": Bound(equals=0)},
    note="Base's cross-attention at its real size, 1536 channels and 80 voxels, bit for bit",
)
def exchange_is_symmetric(trial: Trial) -> dict[str, float]:
    """Largest difference."""
    from paperworks.papers.protocols import bones_checks

    return bones_checks.exchange(trial)


@paper.exact(
    "Without a residual, what leaves the exchange for a view is made of the other view's values alone.",
    source="our question to the code",
    expect={
        "its own view, of a uniform other": Bound(at_most=1e-5),
        "the same with a residual": Bound(at_least=0.1),
    },
    note="how much the output for view a changes when a is turned upside down, while b is uniform",
)
def nothing_of_its_own(trial: Trial) -> dict[str, float]:
    """Change of the output."""
    from paperworks.papers.protocols import bones_checks

    return bones_checks.exchange(trial)


@paper.exact(
    "The expansion to three dimensions starts as a plain repetition, and keeps the transformer in two.",
    source="section 3",
    expect={
        "largest difference of a plane": Bound(equals=0),
        "2-D Swin, both views: 10^9 multiply-adds": Bound(equals=32.8, tolerance=0.1),
        "times": Bound(at_least=10),
    },
    note="at the six levels of Base; beside one pass of a Swin of the same widths with windows of 7^3",
)
def expansion_repeats(trial: Trial) -> dict[str, float]:
    """Differences and multiply-adds."""
    from paperworks.papers.protocols import bones_checks

    return bones_checks.expansion(trial)


@paper.exact(
    "X-rays are line integrals along a cone of rays, 1800 mm to the middle and 2000 mm to the detector.",
    source="the authors' code",
    expect={
        "chord of a ball: largest error, %": Bound(at_most=1),
        "magnification": Bound(equals=2000 / 1800, tolerance=0.005),
        "derivatives agree with differences": Bound(equals=1),
    },
    note="a ball of 28 voxels at three angles, two rods, and float64",
)
def projector(trial: Trial) -> dict[str, float]:
    """Chord, magnification, derivatives."""
    from paperworks.papers.protocols import bones_checks

    return bones_checks.projector(trial)


@paper.exact(
    "As it is divided, the divergence that lets the views teach one another is below 1 % of the loss.",
    source="our question to the authors' code",
    expect={
        "divergence by mean / the rest, %": Bound(at_most=1),
        "divergence by voxel / the rest, %": Bound(at_least=10),
    },
    note="of two unrelated random outputs, 55 classes; 'mean' divides by voxels and classes, 'voxel' by voxels alone",
)
def divergence_weighs(trial: Trial) -> dict[str, float]:
    """Share of the loss."""
    from paperworks.papers.protocols import bones_checks

    return bones_checks.divergence(trial)


# --- measured ---

paper.measured(
    "two-views-beat-one",
    "Two views give a better shape than one.",
    source="motivation",
    protocol=bones,
    criteria=Criterion("dice", X2S, "greater", ONE, margin=0.03, seeds=SEEDS),
    note="weak form: simulated vertebrae under one label; one view: the same network with the front view alone, "
    "decoded once",
)
paper.measured(
    "overlaps-better",
    "It beats earlier encoder-decoders in overlap.",
    source="abstract",
    protocol=bones,
    criteria=Criterion("dice", X2S, "greater", REPEATED, seeds=SEEDS),
    note="weak form: all bones under one label; against both views repeated along the axis they lack and a residual "
    "3-D U-Net of as many parameters within 10 %, the same decoder, loss, learning rate and updates",
)
paper.measured(
    "fits-an-unseen-angle",
    "What two views give fits an X-ray from an angle that neither has better than what one gives.",
    source="our question (reprojection)",
    protocol=bones,
    criteria=Criterion("shadow", X2S, "greater", ONE, seeds=SEEDS),
    note="shadows of truth and prediction at 45 degrees",
)
paper.measured(
    "disagreement-marks-errors",
    "Where the two views' outputs disagree the result is more often wrong.",
    source="our question",
    protocol=bones,
    criteria=Criterion("disagreement_auc", X2S, "greater", margin=0.6, seeds=SEEDS, control=REPEATED),
    note="chance that a wrong voxel near bone has the larger disagreement than a right one; the control has one output",
)
CUDA = Need("gpu", "cuda", "trainings of 2,000 updates and more")
paper.measured(
    "labels-better",
    "It beats earlier encoder-decoders in labelling.",
    source="abstract",
    protocol=bones,
    needs=(CUDA,),
    criteria=(
        Criterion("dice", X2S, "greater", REPEATED, seeds=SEEDS),
        Criterion("identified", X2S, "greater", REPEATED, seeds=SEEDS),
    ),
    note="simulated bones, a label each; the same baseline",
)
paper.measured(
    "exchange-helps",
    "Cross-attention between the views improves the result.",
    source="ablation",
    protocol=bones,
    needs=(CUDA,),
    criteria=Criterion("dice", X2S, "greater", APART, seeds=SEEDS),
    note="against the same network whose views do not meet before their logits are added",
)

# --- needs ---

CASES = Need("setting", "data", "labelled CT: data=xray:PATH, a folder of cases or a data_list.json", "xray:.+")

paper.measured(
    "nine-data-sets",
    "On nine CT data sets with 54 categories it beats earlier methods in overlap, surface distance and labelling.",
    source="abstract",
    protocol=bones,
    needs=(CASES, CUDA),
    criteria=(
        Criterion("dice", X2S, "greater", REPEATED, seeds=SEEDS),
        Criterion("hd95", X2S, "less", REPEATED, seeds=SEEDS),
        Criterion("identified", X2S, "greater", REPEATED, seeds=SEEDS),
    ),
    note="one data set at a time; its clinical measures are not carried",
)


def draw(figure: Any, results: Any) -> None:
    """One test case of one seed from both sides: X-ray, truth, what the networks built, and where the views differ."""
    import numpy as np

    def picture(arm: Arm, name: str) -> Any:
        claim = "overlaps-better" if arm is REPEATED else "two-views-beat-one"
        values = np.array(results.curves(claim, arm.name, name)[0][1])
        return values.reshape(-1, int(results.curves(claim, arm.name, "width")[0][1][0])).T

    axes = figure.subplots(2, 6)
    for row, view, side in zip(axes, "ab", ("front (view a)", "side (view b)"), strict=True):
        row[0].imshow(picture(X2S, f"{view}: X-ray"), cmap="gray", origin="lower")
        row[0].set(title="X-ray", ylabel=side)
        columns = [("truth", X2S, "truth"), *((arm.name.split(",")[0], arm, "found") for arm in (X2S, ONE, REPEATED))]
        for axis, (title, arm, part) in zip(row[1:], columns, strict=False):
            labels = np.ma.masked_equal(picture(arm, f"{view}: {part}"), 0)
            axis.imshow(labels, cmap="tab10", vmin=0.5, vmax=10.5, origin="lower", interpolation="nearest")
            axis.set(title=title)
        row[5].imshow(picture(X2S, f"{view}: disagreement"), cmap="magma", vmin=0, vmax=1, origin="lower")
        row[5].set(title="views disagree")
    for axis in axes.flat:
        axis.set(xticks=(), yticks=())
        axis.title.set_fontsize(9)


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "A simulated test case of one seed from its two sides: X-rays, the bones that are there, what each network "
        "built from the X-rays (colours are labels), and where the two views' outputs of Swin-X2S disagree most along "
        "the line of sight (bright, in bits).",
        (9.0, 6.0),
    )
)
paper.findings += [
    Finding(
        "The 2-D Swin that gives the network its name does 0.5 % of Base's multiply-adds; the two convolutional blocks "
        "at full resolution do 76 %.",
        ("where-the-work-is", "four-sizes"),
    ),
    Finding(
        "A view's decoder sees the other view at 1/32 alone, a few voxels of the deepest map. In short trainings on "
        "simulated vertebrae the plain baseline, a 3-D U-Net of both views repeated, learns to intersect them sooner.",
        ("overlaps-better",),
    ),
    Finding(
        "The views meet once, at 1/32 of the size. There, without a residual, the deep features of a view are made of "
        "the other view's: what a view itself knows reaches its decoder through the skips alone.",
        ("nothing-of-its-own",),
    ),
    Finding(
        "The divergence that lets the views teach one another is divided by voxels and by classes: even between two "
        "unrelated outputs it is below 1 % of the loss. kl_reduction='voxel' leaves the classes out.",
        ("divergence-weighs",),
    ),
]
