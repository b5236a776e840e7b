"""Swin UNETR (arXiv 2201.01266): the card and its claims."""

from __future__ import annotations

from datetime import date
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.lesions import lesions

paper = Paper(
    id="swin-unetr",
    title="Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images",
    area="swin",
    arxiv="2201.01266",
    date=date(2022, 1, 4),
    authors="",
    n_authors=6,
    venue="BrainLes workshop, MICCAI 2021",
    code="https://github.com/Project-MONAI/research-contributions/tree/main/SwinUNETR/BRATS21",
    keywords=(
        "medical image segmentation", "brain tumor segmentation", "mri", "swin transformer", "u-net",
        "3d segmentation", "brats", "monai",
    ),
    method="paperworks.swin.swin_unetr",
    summary=(
        "A U-shaped network that outlines tumours in three-dimensional MRI of the head. A Swin transformer with "
        "windows of 7x7x7 patches encodes four modalities at five resolutions; a convolutional decoder joins them "
        "through skip connections and marks tumour core, whole tumour and enhancing tumour. On BraTS 2021 the paper "
        "reports a mean Dice of 0.913 in five-fold cross-validation, against 0.908 of nnU-Net, with 62 million "
        "parameters."
    ),
    usage=(
        "from paperworks.swin.swin_unetr import SwinUNETR, predict_volume\n\n"
        "model = SwinUNETR(4, 3, feature_size=48, pad_input=True)   # any size; MONAI's options by MONAI's names\n"
        "model.load_monai_state_dict(checkpoint)                    # of MONAI; monai_state_dict() goes back\n"
        "logits = predict_volume(model, image, roi=(128, 128, 128)) # a whole volume (4, D, H, W), by windows"
    ),
    provenance={
        "network, options, names of weights": "MONAI's code, which the paper's authors wrote",
        "merging-legacy": "MONAI's code before it was mended, which checkpoints of 2022 were trained with",
        "loss, augmentation, windows over a volume": "the paper and its published recipe",
        "clamped_bias='exact', pad_input, merge_strides, explain_receptive_field": "our addition",
        "surface distance from both directions pooled": "our reading of the 95 % Hausdorff distance",
        "folds without a list: every fifth case in the order of names": "our choice",
        "residual U-Net of the comparison": "our construction: the same decoder behind a convolutional encoder",
        "simulated lesions": "our construction",
    },
)  # fmt: skip

_NETWORKS = "paperworks.papers.protocols.lesions_networks"
SWIN = Arm("Swin UNETR", "paperworks.swin.swin_unetr:SwinUNETR")
UNET = Arm("residual U-Net", f"{_NETWORKS}:residual_unet")
SEGRESNET = Arm("SegResNet", f"{_NETWORKS}:segresnet")
VOXELWISE = Arm("voxel by voxel", f"{_NETWORKS}:voxelwise")
SEEDS = Tiers(smoke=2, desk=MINIMUM_SEEDS)
MONAI = Need("package", "monai", "pip install 'paperworks[swin]'")

# --- counts and identities ---


@paper.exact(
    "It has 61.98 million parameters.",
    source="table of model sizes",
    published="61.98 M",
    expect={
        "parameters": Bound(equals=61.98e6, tolerance=0.004 * 61.98e6),
        "in bias tables": Bound(equals=197_730),
        "in layer norms": Bound(equals=17_280),
        "without both": Bound(equals=61.98e6, tolerance=5e3),
    },
    note="feature size 48, four channels in and three regions out; the printed figure is the count of a tool based on "
    "layers, which passes over parameters of blocks (bias tables) and over layer norms",
)
def parameters_at_full_size(trial: Trial) -> dict[str, float]:
    """All parameters, and those that such tools miss."""
    from paperworks.papers.protocols import lesions_checks

    return lesions_checks.parameters(trial)


@paper.exact(
    "It needs 394.84 GFLOPs.",
    source="table of model sizes",
    published="394.84 GFLOPs",
    expect={
        "at 128^3": Bound(equals=394.84, tolerance=0.02 * 394.84),
        "nearest of nine counts": Bound(equals=394.84, tolerance=0.02 * 394.84),
    },
    note="10^9 multiply-adds at 128^3, the paper's crop; and the nearest of nine counts: 128^3 and 96^3 with four "
    "channels to three, 96^3 with one to fourteen, each also with additions apart and without attention's products",
)
def multiply_adds_at_full_size(trial: Trial) -> dict[str, float]:
    """The published number beside ours."""
    from paperworks.papers.protocols import lesions_checks

    return lesions_checks.nearest_count(trial)


@paper.exact(
    "Most of the multiply-adds are in the two convolutional blocks at full resolution, not in the Swin encoder.",
    source="our question",
    expect={
        "128^3, 4 to 3 channels": Bound(equals=771.6, tolerance=0.1),
        "128^3, 4 to 3 channels: decoder1": Bound(equals=405.9, tolerance=0.1),
        "128^3, 4 to 3 channels: encoder1": Bound(equals=141.7, tolerance=0.1),
        "128^3, 4 to 3 channels: Swin encoder": Bound(equals=68.4, tolerance=0.1),
        "96^3, 4 to 3 channels": Bound(equals=321.8, tolerance=0.1),
        "96^3, 1 to 14 channels": Bound(equals=318.5, tolerance=0.1),
    },
    note="10^9 multiply-adds of one forward pass",
)
def where_the_work_is(trial: Trial) -> dict[str, float]:
    """Counts by part."""
    from paperworks.papers.protocols import lesions_checks

    return lesions_checks.multiply_adds(trial)


@paper.exact(
    "Values and gradients are those of MONAI's SwinUNETR, whose weights go in and out.",
    source="MONAI's code",
    expect={
        f"{name}: {what}": Bound(at_most=limit)
        for name in ("3-D", "3-D, V2 and mergingv2", "2-D")
        for what, limit in (("there and back", 0.0), ("logits", 1e-9), ("gradients, relative", 1e-9))
    },
    needs=(MONAI,),
    note="float64, random weights, feature size 12, 64 x 32 x 32 voxels and 96 x 64 pixels",
)
def parity_with_monai(trial: Trial) -> dict[str, float]:
    """Largest differences."""
    from paperworks.papers.protocols import lesions_checks

    return lesions_checks.parity(trial)


@paper.exact(
    "The same at the paper's width, in float32.",
    source="MONAI's code",
    expect={"largest difference / largest logit": Bound(at_most=1e-4)},
    needs=(MONAI,),
    note="feature size 48, 64 x 32 x 32 voxels",
)
def parity_at_full_width(trial: Trial) -> dict[str, float]:
    """Largest relative difference."""
    from paperworks.papers.protocols import lesions_checks

    return lesions_checks.parity_at_full_width(trial)


@paper.exact(
    "The encoder extracts features at five resolutions, 1/2 to 1/32 of the input, with f to 16 f channels.",
    source="section 3",
    expect={
        "maps": Bound(equals=5),
        **{f"h{i}: input size / size": Bound(equals=2 ** (i + 1)) for i in range(5)},
        **{f"h{i}: channels / f": Bound(equals=2**i) for i in range(5)},
    },
    note="feature size 48 at 128^3",
)
def five_resolutions(trial: Trial) -> dict[str, float]:
    """Shapes of the encoder's maps."""
    from paperworks.papers.protocols import lesions_checks

    return lesions_checks.resolutions(trial)


@paper.exact(
    "Shifted windows reach far: from the third merging on the middle voxel's place depends on the whole crop.",
    source="abstract (long-range information), made a count by us",
    expect={
        "h0: % of the crop": Bound(at_most=0.001),
        "h1: % of the crop": Bound(equals=1.0467529296875),
        "h2: % of the crop": Bound(equals=66.9921875),
        "h3: % of the crop": Bound(equals=100),
        "h4: % of the crop": Bound(equals=100),
        "logits: % of the crop": Bound(equals=100),
    },
    note="a crop of 128^3; followed back through windows, shifts and merging, means of the decoder's norms held fixed",
)
def reaches_the_whole_crop(trial: Trial) -> dict[str, float]:
    """Part of the crop by map."""
    from paperworks.papers.protocols import lesions_checks

    return lesions_checks.reach(trial)


@paper.exact(
    "Merging joins all eight neighbours; MONAI's first version joined six.",
    source="section 3; MONAI's code",
    expect={
        "merging: neighbours": Bound(equals=8),
        "mergingv2: neighbours": Bound(equals=8),
        "merging-legacy: neighbours": Bound(equals=6),
    },
    note="voxels of a 2^3 block that the merged token depends on, by the order of the implementation",
)
def merging_joins_eight(trial: Trial) -> dict[str, float]:
    """Neighbours with a gradient."""
    from paperworks.papers.protocols import lesions_checks

    return lesions_checks.legacy_merging(trial)


@paper.exact(
    "In MONAI most pairs of tokens of a window that is larger than its map get the bias of another offset.",
    source="our question to the code: maps of 6^3 in the last stage at 96^3",
    expect={
        "cut: pairs with another offset's bias, %": Bound(at_least=50),
        "exact: pairs with another offset's bias, %": Bound(equals=0),
    },
    note="a window of 7^3 on a map of 6^3: 'cut' is what MONAI does, 'exact' our option",
)
def clamped_windows(trial: Trial) -> dict[str, float]:
    """Pairs of tokens with a bias of another offset."""
    from paperworks.papers.protocols import lesions_checks

    return lesions_checks.clamped_windows(trial)


@paper.exact(
    "It is trained with soft Dice on three sigmoids, with squared denominators.",
    source="Eq. 3",
    expect={"loss": Bound(at_most=1e-12), "gradient": Bound(at_most=1e-12)},
    needs=(MONAI,),
    note="against MONAI's DiceLoss(squared_pred=True, sigmoid=True), float64",
)
def loss_is_its_equation(trial: Trial) -> dict[str, float]:
    """Differences of value and gradient."""
    from paperworks.papers.protocols import lesions_checks

    return lesions_checks.loss_is_its_equation(trial)


@paper.exact(
    "Windows of 128^3 at overlap 0.7 cover a volume of 240 x 240 x 155 with positive weights everywhere.",
    source="section 4",
    expect={"windows": Bound(equals=32), "least weight in a window": Bound(at_least=1e-4)},
)
def windows_over_a_volume(trial: Trial) -> dict[str, float]:
    """Windows of one volume and the least weight."""
    from paperworks.papers.protocols import lesions_checks

    return lesions_checks.windows_over_a_volume(trial)


# --- measured ---

paper.measured(
    "sees-far-context",
    "Attention helps where the class of a voxel depends on what is far away.",
    source="abstract (long-range information)",
    protocol=lesions,
    criteria=Criterion("dice_et", SWIN, "greater", UNET, margin=0.02, seeds=SEEDS),
    note="weak form: images of 64 x 64 pixels whose lesions enhance or not by markers at least 20 pixels away; "
    "against a residual U-Net with 6 % fewer parameters, the same decoder, loss and updates; steps and learning rate "
    "are such that both networks begin to use the markers, on a seed that is not among those of the claim",
)
paper.measured(
    "gains-most-where-context-is-far",
    "Its advantage is larger on the region that far context decides than on the regions seen where they are.",
    source="our question to the above",
    protocol=lesions,
    criteria=Criterion("far_minus_near", SWIN, "greater", UNET, seeds=SEEDS),
)
paper.measured(
    "no-worse-without-far-context",
    "Where no far context is needed it is no worse than the residual U-Net by more than 0.02 Dice.",
    source="our question (control task)",
    protocol=lesions,
    criteria=Criterion("dice_near", SWIN, "greater", UNET, margin=-0.02, seeds=SEEDS, control=VOXELWISE),
    note="mean of TC and WT, of the same trainings; the control sees one voxel at a time",
)

# --- needs ---

CASES = Need("setting", "data", "BraTS 2021: data=brats:PATH with a folder a case", r"brats:.+")
CUDA = Need("gpu", "cuda", "five trainings of hundreds of epochs at 128^3")
WHOLE = {"size": Tiers(smoke=64, gpu=128), "feature_size": Tiers(smoke=12, gpu=48), "overlap": 0.7}

paper.measured(
    "cross-validated-dice",
    "Five-fold cross-validation on BraTS 2021 gives a mean Dice of 0.913, above SegResNet's 0.907.",
    source="table of cross-validation",
    published="0.913; nnU-Net 0.908, SegResNet 0.907, TransBTS 0.891",
    protocol=lesions,
    settings=WHOLE,
    needs=(CASES, CUDA, MONAI),
    criteria=(
        Criterion("dice", SWIN, "greater", margin=0.903, seeds=SEEDS, control=UNET),
        Criterion("dice", SWIN, "greater", SEGRESNET, seeds=SEEDS),
        Criterion("dice", SWIN, "greater", UNET, seeds=SEEDS),
    ),
    note="seeds go through the folds; the first criterion to 0.01",
)
paper.measured(
    "dice-on-the-validation-set",
    "On the validation set of BraTS 2021 the Dice scores are 0.858 (ET), 0.926 (WT) and 0.885 (TC).",
    source="table of the challenge",
    published="0.858, 0.926, 0.885; on the test set 0.853, 0.927, 0.876",
    protocol=lesions,
    settings=WHOLE,
    needs=(
        CASES,
        Need("setting", "test", "labelled cases held apart: test=PATH; the challenge's own labels are not public"),
        CUDA,
    ),
    criteria=tuple(
        Criterion(metric, SWIN, "greater", margin=value - 0.01, seeds=SEEDS, control=UNET)
        for metric, value in (("dice_et", 0.858), ("dice_wt", 0.926), ("dice_tc", 0.885))
    ),
    note="to 0.01, with one network where the paper has ten",
)


def draw(figure: Any, results: Any) -> None:
    """Two test images of one seed: two contrasts, the truth, and what each network outlined."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    rows = ("enhancing", "not enhancing")
    axes = figure.subplots(len(rows), 5)
    claim = "sees-far-context"
    colours = ListedColormap(("#ffe14d", "#ff8f1f", "#d4001a"))

    def picture(arm: Arm, name: str) -> Any:
        values = np.array(results.curves(claim, arm.name, name)[0][1])
        width = int(results.curves(claim, arm.name, name.split(":")[0] + ": width")[0][1][0])
        return values.reshape(-1, width)

    for row, name in zip(axes, rows, strict=True):
        # what is exactly 0 lies outside of the head
        scans = [np.ma.masked_equal(picture(SWIN, f"{name}: {part}"), 0) for part in ("FLAIR", "T1 with agent")]
        for axis, scan in zip(row, (*scans, scans[1], scans[1], scans[1]), strict=True):
            axis.set(xticks=(), yticks=())
            axis.spines[:].set_visible(False)
            axis.imshow(scan, cmap="gray", vmin=-3, vmax=4)
        for axis, arm, part in ((row[2], SWIN, "truth"), (row[3], SWIN, "found"), (row[4], UNET, "found")):
            regions = np.ma.masked_equal(picture(arm, f"{name}: {part}"), 0)
            axis.imshow(regions, cmap=colours, vmin=0.5, vmax=3.5, alpha=0.85, interpolation="nearest")
        row[0].set_ylabel(name)
    titles = ("FLAIR", "T1 with agent", "truth", SWIN.name, UNET.name)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "Two simulated test images of one seed. Yellow: whole tumour, orange: tumour core, red: enhancing tumour. The "
        "balls far from the lesion decide on the enhancement: bright, it enhances; dark, it does not.",
        (9.0, 4.0),
    )
)
paper.findings += [
    Finding(
        "The printed 61.98 million parameters leave out the tables of position biases (197,730) and the layer norms "
        "(17,280); with them there are 62,191,941.",
        ("parameters-at-full-size",),
    ),
    Finding(
        "No count gives the printed 394.84 GFLOPs. At the paper's crop of 128^3 a forward pass takes 771.6 billion "
        "multiply-adds, at 96^3 321.8; the last up block alone takes 405.9 at 128^3.",
        ("multiply-adds-at-full-size", "where-the-work-is"),
    ),
    Finding(
        "The Swin encoder does 9 % of the multiply-adds; 71 % are convolutions of the two blocks at full resolution.",
        ("where-the-work-is",),
    ),
    Finding(
        "Two blocks of windows of 7 patches bring together 28 voxels an axis; only two mergings later does a place see "
        "the whole crop of 128^3. What the finest skips add to the decoder is local.",
        ("reaches-the-whole-crop",),
    ),
    Finding(
        "MONAI's first merging takes two neighbours twice and two never. Checkpoints of that time want it: "
        "downsample='merging-legacy'.",
        ("merging-joins-eight",),
    ),
    Finding(
        "In MONAI a window that is larger than its map takes the biases of the first tokens of the full window, most "
        "of them of other offsets: in the last stage for inputs below 112 voxels an axis, such as 96^3.",
        ("clamped-windows", "parity-with-monai"),
    ),
]
