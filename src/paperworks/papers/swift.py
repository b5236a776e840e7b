"""SwiFT: Swin 4D fMRI Transformer (arXiv 2307.05916): the card and its claims."""

from __future__ import annotations

from datetime import date
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.fmri import attribution, subject_classification, subject_regression

paper = Paper(
    id="swift",
    title="SwiFT: Swin 4D fMRI Transformer",
    area="swin",
    arxiv="2307.05916",
    date=date(2023, 10, 30),
    authors="Peter Yongho Kim, Junbeom Kwon, Sunghwan Joo, Sangyoon Bae, Donggyu Lee, Yoonho Jung, Shinjae Yoo, "
    "Jiook Cha, Taesup Moon",
    n_authors=9,
    venue="NeurIPS 2023",
    code="https://github.com/Transconnectome/SwiFT",
    keywords=(
        "fmri", "functional mri", "resting-state fmri", "neuroimaging", "swin transformer", "window attention",
        "contrastive pre-training", "spatiotemporal transformer",
    ),
    method="paperworks.swin.swift",
    summary=(
        "SwiFT reads a functional MRI scan as it is, volumes of the brain over time, where others start from hand-made "
        "connectivity features. Attention stays within small windows of space and time, absolute embeddings give the "
        "position, and patches merge in space only, so that four dimensions fit in memory with 4.3 million "
        "parameters. The paper predicts sex, age and intelligence in the HCP, ABCD and UK Biobank studies better than "
        "earlier models, and pre-training on unlabelled clips by contrast helps further."
    ),
    usage=(
        "from paperworks.swin.swift import FMRIClips, SwiFT, attribution_to_nifti, integrated_gradients\n\n"
        "model = SwiFT(num_outputs=1)                      # clips (B, 1, 96, 96, 96, up to 20) -> (B, 1)\n"
        'model.load_official_state_dict(torch.load("hcp.ckpt", weights_only=True)["state_dict"])\n'
        'clips = FMRIClips("HCP", {"100307": 0.0})         # NIfTI runs, or frames of preprocess_nifti\n'
        'attr = integrated_gradients(model, clips[0]["image"][None])\n'
        'attribution_to_nifti(attr, "HCP/100307.nii.gz", "attr.nii.gz")'
    ),
    provenance={
        "patches, stages, windows, merging, last stage, head": "the paper; sizes and order of tokens from its code",
        "absolute positions of place and frame before every stage": "the paper; their shapes from its code",
        "contrastive losses, their temperature, augmentations, normalisation, windows of 20 frames": "its code",
        "mean of the local loss over subjects": "our choice; the code sums, reduction='sum' does",
        "integrated gradients with squared noise, background as baseline": "its code, which calls a library",
        "average of maps over frames, clips and subjects": "our reconstruction",
        "second clip, batches without a subject twice, padding of any size": "our reconstruction",
        "patches of several frames, positions for another repetition time": "our extension",
        "simulated runs, correlations of regions with a tuned linear model": "ours",
    },
)  # fmt: skip

ARMS = "paperworks.papers.protocols.fmri_arms:"
SWIFT = Arm("SwiFT", f"{ARMS}swift")
RELATIVE = Arm("relative bias", f"{ARMS}swift", {"positions": "relative"})
NO_POSITIONS = Arm("no positions", f"{ARMS}swift", {"positions": None})
PRETRAINED = Arm("SwiFT, pre-trained", f"{ARMS}swift", {"pretraining": True})
REGIONS = Arm("correlations of regions", f"{ARMS}region_correlations")
CNN = Arm("3-D CNN of volumes", f"{ARMS}volume_cnn")
TRAINED = Arm("SwiFT", "paperworks.papers.protocols.fmri_attribution:trained")
UNTRAINED = Arm("untrained", "paperworks.papers.protocols.fmri_attribution:untrained")
SEEDS = Tiers(smoke=2, desk=MINIMUM_SEEDS)

# --- exact ---


@paper.exact(
    "The backbone has 4.31 M parameters.",
    source="the code, at the paper's setting",
    published="4.31 M",
    expect={
        "backbone": Bound(equals=4_314_636),
        "with one output": Bound(equals=4_314_925),
        "published class": Bound(equals=4_315_212),
    },
    note="36 channels, depths 2, 2, 6, 2, patches of 6 x 6 x 6 voxels and one frame, 96 x 96 x 96 voxels, 20 frames",
)
def backbone_size(trial: Trial) -> dict[str, float]:
    """As `fmri_checks.backbone_size` measures it."""
    from paperworks.papers.protocols import fmri_checks

    return fmri_checks.backbone_size(trial)


@paper.exact(
    "It is the network of the published code: same weights, same feature map.",
    source="the code",
    expect={f"{n} frames: difference / largest": Bound(at_most=1e-5) for n in (4, 6)},
    note="weights under the authors' names, 96 x 96 x 96 voxels in float32; 6 frames are padded to 8 in time",
)
def equals_the_published_computation(trial: Trial) -> dict[str, float]:
    """As `fmri_checks.equals_the_published_computation` measures it."""
    from paperworks.papers.protocols import fmri_checks

    return fmri_checks.equals_the_published_computation(trial)


@paper.exact(
    "4-D windows make attention over volumes and time affordable: 320 times fewer scores than between all tokens.",
    source="abstract, section 3",
    expect={
        "tokens of the first stage": Bound(equals=81_920),
        "scores a head": Bound(equals=20_971_520),
        "scores a head, every pair": Bound(equals=6_710_886_400),
        "every pair / windows": Bound(equals=320),
        "G multiply-adds": Bound(equals=11.405, tolerance=0.01),
        "counted - by hand": Bound(equals=0),
    },
    note="96 x 96 x 96 voxels, 20 frames; twice the multiply-adds are 22.81 GFLOP",
)
def windows_are_cheap(trial: Trial) -> dict[str, float]:
    """As `fmri_checks.windows_are_cheap` measures it."""
    from paperworks.papers.protocols import fmri_checks

    return fmri_checks.windows_are_cheap(trial)


@paper.exact(
    "Its cost is linear in the number of frames.",
    source="section 3",
    expect={
        "40 frames / 20 frames": Bound(equals=2, tolerance=0.02),
        "attention between all tokens: 40 / 20": Bound(equals=4, tolerance=0.04),
    },
)
def cost_is_linear_in_frames(trial: Trial) -> dict[str, float]:
    """As `fmri_checks.cost_is_linear_in_frames` measures it."""
    from paperworks.papers.protocols import fmri_checks

    return fmri_checks.cost_is_linear_in_frames(trial)


@paper.exact(
    "Absolute positions take fewer parameters than relative biases in every window would.",
    source="our question to the choice of section 3",
    expect={
        "absolute": Bound(equals=206_640),
        "relative": Bound(equals=225_162),
        "entries of a 4-D table, a head": Bound(equals=2_401),
        "entries looked up a block and head": Bound(equals=65_536),
    },
    note="at the paper's setting, all stages",
)
def what_positions_cost(trial: Trial) -> dict[str, float]:
    """As `fmri_checks.what_positions_cost` measures it."""
    from paperworks.papers.protocols import fmri_checks

    return fmri_checks.what_positions_cost(trial)


@paper.exact(
    "At the start the local loss of a batch of 8, summed as in the published code, outweighs the instance loss by 3.2.",
    source="the code",
    expect={
        "instance": Bound(equals=2.70805, tolerance=1e-4),
        "local, mean": Bound(equals=1.09861, tolerance=1e-4),
        "local, sum": Bound(equals=8.78890, tolerance=1e-3),
        "sum / instance": Bound(equals=3.245, tolerance=1e-3),
    },
    note="log 15, log 3 and 8 log 3, for embeddings that are all alike",
)
def balance_of_the_losses(trial: Trial) -> dict[str, float]:
    """As `fmri_checks.balance_of_the_losses` measures it."""
    from paperworks.papers.protocols import fmri_checks

    return fmri_checks.balance_of_the_losses(trial)


@paper.exact(
    "A clip has one random map for all its frames; one a frame would move the head by half its contrast.",
    source="the code",
    expect={"a clip": Bound(at_most=1e-6), "a frame": Bound(at_least=0.2)},
    note="deviation over time of a still clip over that of its voxels",
)
def one_map_a_clip(trial: Trial) -> dict[str, float]:
    """As `fmri_checks.one_map_a_clip` measures it."""
    from paperworks.papers.protocols import fmri_checks

    return fmri_checks.one_map_a_clip(trial)


@paper.exact(
    "Every augmented view is drawn from the clip itself, not from the view before it.",
    source="our reading of the method; the code writes through a view of the batch",
    expect={
        "here: change of the clip": Bound(equals=0),
        "through a view: change of the clip": Bound(at_least=0.1),
    },
)
def views_are_drawn_from_the_clip(trial: Trial) -> dict[str, float]:
    """As `fmri_checks.views_are_drawn_from_the_clip` measures it."""
    from paperworks.papers.protocols import fmri_checks

    return fmri_checks.views_are_drawn_from_the_clip(trial)


@paper.exact(
    "Attributions add up to the change of the output.",
    source="integrated gradients, which the paper uses",
    expect={"4 points": Bound(at_most=0.02), "16 points": Bound(at_most=1e-4)},
    note="random weights at the paper's width and depth on 48 x 48 x 48 voxels, float64",
)
def attribution_is_complete(trial: Trial) -> dict[str, float]:
    """As `fmri_checks.attribution_is_complete` measures it."""
    from paperworks.papers.protocols import fmri_checks

    return fmri_checks.attribution_is_complete(trial)


# --- measured ---

paper.measured(
    "better-than-correlations-of-regions",
    "End to end it finds what hand-made features lose: a higher AUROC than correlations of regions.",
    source="abstract",
    protocol=subject_classification,
    criteria=Criterion("auroc", SWIFT, "greater", REGIONS, margin=0.05, seeds=SEEDS),
    note="simulated runs whose groups differ by which halves of two regions move in antiphase: the regions' means are "
    "the same in both",
)
paper.measured(
    "correlations-of-regions-win-where-they-are-the-label",
    "Where the groups differ by the correlation of regions, the hand-made features are better.",
    source="our control of the claim before",
    protocol=subject_classification,
    settings={"data": "correlation", "strength": 1.0},
    criteria=Criterion("auroc", REGIONS, "greater", SWIFT, margin=0.0, seeds=SEEDS),
)
paper.measured(
    "absolute-positions-cost-no-accuracy",
    "Absolute positions lose nothing against a relative bias: its AUROC is at most 0.02 lower.",
    source="section 3, a design choice",
    protocol=subject_classification,
    criteria=Criterion("auroc", SWIFT, "greater", RELATIVE, margin=-0.02, seeds=SEEDS, control=NO_POSITIONS),
    note="as above, where the label is which of two places has which pattern",
)
paper.measured(
    "positions-are-needed",
    "Without positions it is worse.",
    source="our question to the same choice",
    protocol=subject_classification,
    criteria=Criterion("auroc", SWIFT, "greater", NO_POSITIONS, seeds=SEEDS),
    note="without them a merging still tells its eight places apart, and the rim of the brain gives some away",
)
FEW = {
    "train_subjects": Tiers(smoke=16, desk=24, gpu=48),
    "unlabelled": Tiers(smoke=16, desk=200, gpu=1000),
    "epochs": Tiers(smoke=1, desk=50, gpu=30, full=10),
}
paper.measured(
    "pre-training-helps",
    "Contrastive pre-training on unlabelled runs raises the AUROC after fine-tuning on few.",
    source="abstract",
    protocol=subject_classification,
    settings=FEW,
    criteria=Criterion("auroc", PRETRAINED, "greater", SWIFT, seeds=SEEDS),
    note="200 unlabelled and 24 labelled simulated subjects, instance and local losses",
)
paper.measured(
    "attributions-find-the-regions",
    "Attributions find the regions that matter: more than 5 times their part of the brain, and add up within 2 %.",
    source="abstract",
    protocol=attribution,
    criteria=(
        Criterion("enrichment", TRAINED, "greater", margin=5.0, seeds=SEEDS, control=UNTRAINED),
        Criterion("completeness_gap", TRAINED, "less", margin=0.02, seeds=SEEDS, control=UNTRAINED),
    ),
    note="top 1 % of the brain's voxels by squared integrated gradients; the planted regions are known",
)

# --- needs ---

CUDA = Need("gpu", "cuda", "training at 96 x 96 x 96 voxels")
FULL = {"space": 96, "frames": 20, "stride": 20, "epochs": 10, "lr": 5e-5, "pretraining_lr": 5e-5}


def _needs(study: str, column: str) -> tuple[Need, ...]:
    return (
        Need("setting", "data", f"{study}: data=fmri:PATH with NIfTI runs or frames of preprocess_nifti", r"fmri:.+"),
        Need("setting", "labels", f"labels=FILE.csv with target={column} and subject=COLUMN"),
        CUDA,
    )


for _id, _study in (("hcp", "HCP"), ("abcd", "ABCD"), ("ukb", "UK Biobank")):
    paper.measured(
        f"sex-in-{_id}",
        f"In {_study} it predicts sex better than correlations of regions and a CNN.",
        source="experiments",
        published="the paper's numbers were not recovered, so none is quoted",
        protocol=subject_classification,
        settings=FULL,
        needs=_needs(_study, "Gender"),
        criteria=tuple(Criterion("auroc", SWIFT, "greater", arm, seeds=SEEDS) for arm in (REGIONS, CNN)),
    )
    # ABCD's children are of nearly one age
    for _target in ("intelligence",) if _id == "abcd" else ("age", "intelligence"):
        paper.measured(
            f"{_target}-in-{_id}",
            f"In {_study} it predicts {_target} better than correlations of regions and a CNN.",
            source="experiments",
            published="the paper's numbers were not recovered, so none is quoted",
            protocol=subject_regression,
            settings=FULL,
            needs=_needs(_study, f"the column of {_target}"),
            criteria=tuple(Criterion("pearson", SWIFT, "greater", arm, seeds=SEEDS) for arm in (REGIONS, CNN)),
        )
paper.measured(
    "pre-training-helps-in-hcp",
    "In HCP contrastive pre-training raises the AUROC for sex.",
    source="abstract",
    published="the paper's numbers were not recovered, so none is quoted",
    protocol=subject_classification,
    settings=FULL,
    needs=_needs("HCP", "Gender"),
    criteria=Criterion("auroc", PRETRAINED, "greater", SWIFT, seeds=SEEDS),
    note="pre-trained on the training subjects, without their labels",
)


def draw(figure: Any, results: Any) -> None:
    """A frame of the signal, the mean attribution with the planted regions outlined, and AUROC by arm."""
    import numpy as np

    claim = "attributions-find-the-regions"
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))

    def plane(name: str) -> Any:
        values = np.array(results.curves(claim, "SwiFT", f"{name}, first plane")[0][1])
        side = round(len(values) ** 0.5)
        return values.reshape(side, side)

    planted = plane("planted")
    left.imshow(plane("signal").T, cmap="gray", origin="lower")
    middle.imshow(plane("attribution").T, cmap="Oranges", origin="lower")
    for axis, title in ((left, "one frame"), (middle, "attribution")):
        axis.contour(planted.T, levels=[0.5], colors="#2462c4", linewidths=1.2)
        axis.set(title=title, xticks=(), yticks=())
    arms = (
        ("SwiFT", "better-than-correlations-of-regions", "#2462c4"),
        ("relative bias", "absolute-positions-cost-no-accuracy", "#0a7868"),
        ("no positions", "positions-are-needed", "#7a3b9a"),
        ("correlations of regions", "better-than-correlations-of-regions", "#b9500b"),
    )
    for row, (arm, where, colour) in enumerate(arms):
        values = list(results.metric(where, arm, "auroc").values())
        right.plot(values, [row] * len(values), "o", color=colour, markersize=4, alpha=0.6)
        right.plot(np.mean(values), row, "|", color=colour, markersize=16, markeredgewidth=2.2)
    right.axvline(0.5, color="#5d6874", linewidth=1, linestyle="--")
    right.set(xlabel="test AUROC", xlim=(0.3, 1.03), ylim=(3.5, -0.5))
    right.set_yticks(range(4), [arm.replace(" of ", "\nof ") for arm, _, _ in arms])


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "Left: a plane of a simulated volume, the planted regions in it outlined. Middle: the squared integrated "
        "gradients of the trained network there, mean over frames and test subjects. Right: AUROC over test subjects, "
        "a dot a seed, a bar for the mean.",
        (8.2, 2.9),
    )
)
paper.findings.extend(
    (
        Finding(
            "The published class counts 576 parameters more than it uses: a layer norm that no forward pass calls.",
            ("backbone-size",),
        ),
        Finding(
            "Absolute positions save no parameters to speak of: relative tables for all blocks would take 9 % more. "
            "What they save is a look-up of 65,536 entries a head in every block.",
            ("what-positions-cost",),
        ),
        Finding(
            "The local loss is summed over the subjects of a batch and the instance loss averaged: their balance "
            "depends on the batch size, 3.2 to 1 at 8.",
            ("balance-of-the-losses",),
        ),
        Finding(
            "Written through a view, as in the published code, an augmentation changes the batch: the views that "
            "follow start from it, each from the one before.",
            ("views-are-drawn-from-the-clip",),
        ),
    )
)
