"""Prediction of a subject's target from functional MRI, and where a trained network looks."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.images import _positive


def _data(value: str) -> None:
    from paperworks.papers.protocols.fmri_data import check_data

    check_data(value)


PRELOAD = ("sklearn.linear_model", "sklearn.metrics", "torch.utils.data")
SIGNATURE = "paperworks.papers.protocols.fmri_data:data_signature"
DATA = (
    Setting("data", str, "antiphase", "antiphase or correlation (simulated), or fmri:PATH", _data, SIGNATURE),
    Setting("labels", str, "", "for fmri:PATH: a CSV file with one row a subject", signature=SIGNATURE),
    Setting("target", str, "Gender", "its column with 0/1, M/F or numbers"),
    Setting("subject", str, "Subject", "its column with the subjects"),
    Setting("space", int, Tiers(smoke=16, gpu=32, full=96), "edge of the grid that volumes are brought to", _positive),
    Setting("frames", int, Tiers(smoke=4, gpu=20), "frames of a clip", _positive),
    Setting("stride", int, Tiers(smoke=4, gpu=20), "frames between the starts of two clips", _positive),
    Setting("run_frames", int, Tiers(smoke=16, gpu=60), "frames of a simulated run", _positive),
    Setting("strength", float, 3.0, "deviation of the planted signal over that of the networks"),
    Setting("train_subjects", int, Tiers(smoke=16, desk=96, gpu=600), "simulated, with labels", _positive),
    Setting("validation_subjects", int, Tiers(smoke=8, desk=16, gpu=100), "simulated", _positive),
    Setting("test_subjects", int, Tiers(smoke=16, desk=96, gpu=300), "simulated", _positive),
    Setting("unlabelled", int, 0, "simulated subjects for pre-training"),
)
TRAINING = (
    Setting("epochs", int, Tiers(smoke=1, desk=22, gpu=30, full=10), "passes over the training subjects", _positive),
    Setting("batch_size", int, 8, "clips a step", _positive),
    Setting("lr", float, Tiers(smoke=3e-3, gpu=1e-3, full=5e-5), "peak learning rate of AdamW", _positive),
    Setting("weight_decay", float, 0.01, "of AdamW"),
    Setting("pretraining_steps", int, Tiers(smoke=2, desk=70, gpu=2000, full=20000), "of contrastive pre-training"),
    Setting("pretraining_lr", float, Tiers(smoke=3e-3, gpu=1e-3, full=5e-5), "peak learning rate of it", _positive),
)


@protocol(
    "subjects from fMRI",
    metrics={
        "auroc": "area under the ROC curve over test subjects, by the mean logit of their clips",
        "balanced_accuracy": "over test subjects, with the Youden threshold of the validation subjects",
    },
    settings=(*DATA, *TRAINING),
    time_limit=7200.0,
    preload=PRELOAD,
)
def subject_classification(trial: Trial, arm: Arm) -> dict[str, float]:
    """The arm's target is called as ``target(trial, task, regression=False)`` and returns a predictor of clips.

    The seed sets runs, split, weights and batches; arms of a seed share them.
    """
    from paperworks.papers.protocols.fmri_training import classify_subjects

    return classify_subjects(trial, arm)


@protocol(
    "numbers of subjects from fMRI",
    metrics={
        "pearson": "correlation of prediction and target over test subjects",
        "mae": "mean absolute error over test subjects, in the target's unit",
        "mse": "mean squared error over test subjects, in the target's unit squared",
    },
    settings=(*DATA, *TRAINING),
    time_limit=7200.0,
    preload=PRELOAD,
)
def subject_regression(trial: Trial, arm: Arm) -> dict[str, float]:
    """As `subject_classification`, with targets standardised over the training subjects and a squared error."""
    from paperworks.papers.protocols.fmri_training import regress_subjects

    return regress_subjects(trial, arm)


@protocol(
    "attribution of fMRI",
    metrics={
        "enrichment": "part of the 1 % of the brain with the largest attribution that lies in the planted regions, "
        "over the regions' part of the brain",
        "completeness_gap": "largest |f(x) - f(baseline) - sum of the attribution| over the change, over clips",
    },
    settings=(
        *DATA,
        *TRAINING,
        Setting("maps", int, Tiers(smoke=2, desk=12), "test clips that are explained", _positive),
        Setting("ig_steps", int, Tiers(smoke=8, desk=80), "points of the path", _positive),
    ),
    time_limit=7200.0,
    preload=PRELOAD,
)
def attribution(trial: Trial, arm: Arm) -> dict[str, float]:
    """Integrated gradients of the arm's trained network on simulated data.

    Squares are averaged over frames and clips. The mean map, the planted regions and the brain in the plane where the
    regions lie are kept as curves.
    """
    from paperworks.papers.protocols.fmri_attribution import explain

    return explain(trial, arm)
