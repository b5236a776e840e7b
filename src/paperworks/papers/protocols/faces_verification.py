"""Whether two faces are one person: pairs as LFW has them and templates of IJB, by the published weights."""

from __future__ import annotations

from typing import Any

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.faces_published import WEIGHTS, network
from paperworks.papers.protocols.faces_tasks import not_negative, positive

SETS = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")
_LISTING = "paperworks.papers.protocols.faces_published:files_listing"
THUMBNAIL = 16
RATE = 1e-4


def known_set(name: str) -> None:
    """Raises ValueError for a set that the paper does not test on."""
    if name not in SETS:
        raise ValueError(f"got {name!r}, wanted one of {', '.join(SETS)}")


def compared_by(pixels: bool = False) -> bool:
    """Whether an arm compares pixels in place of embeddings."""
    return pixels


_SETTINGS = (
    *WEIGHTS,
    Setting("batch_size", int, Tiers(smoke=4, desk=64, gpu=256), "faces at once", positive),
    Setting("workers", int, Tiers(smoke=0, gpu=8), "processes that read pictures", not_negative),
)


@protocol(
    "published pairs",
    metrics={
        "accuracy": "mean over ten folds, each at the threshold that is best on the others",
        "auc": "probability that a pair of one person is more alike than a pair of two",
    },
    settings=(
        Setting("pairs", str, "", "folder with lfw.bin and so on, or lfw/pairs.txt and pictures", signature=_LISTING),
        Setting("set", str, "lfw", f"one of {', '.join(SETS)}", known_set),
        *_SETTINGS,
    ),
    time_limit=86400.0,
)
def published_pairs(trial: Trial, arm: Arm) -> dict[str, float]:
    """Embeddings of faces and their mirror images, added; the seed draws the pairs of each fold with replacement."""
    import torch

    from paperworks.swin.swinface import FacePairs, FaceTransform, verify_pairs

    faces = FacePairs(trial.settings["pairs"], trial.settings["set"], FaceTransform(112))
    first, second = _embeddings(trial, arm, faces).unflatten(0, (-1, 2)).unbind(1)
    generator, drawn = trial.generator("test pairs"), []
    for fold in torch.arange(len(faces.same)).tensor_split(10):
        drawn.append(fold[torch.randint(0, len(fold), (len(fold),), generator=generator)])
    rows = torch.cat(drawn)
    found = verify_pairs(first[rows], second[rows], faces.same[rows])
    return {"accuracy": found.accuracy, "auc": found.auc}


@protocol(
    "published templates",
    metrics={"accepted": "share of the pairs of one person that are accepted where 1 of 10,000 of the others is"},
    settings=(
        Setting("ijbc", str, "", "folder of IJB-C with meta and loose_crop", signature=_LISTING),
        *_SETTINGS,
    ),
    time_limit=86400.0,
)
def published_templates(trial: Trial, arm: Arm) -> dict[str, float]:
    """Faces weighted by the detector's score, averaged by video, added by template; the seed draws the pairs."""
    import torch

    from paperworks.swin.swinface import IJBTemplates, pair_scores, template_embeddings, true_accepts

    faces = IJBTemplates(trial.settings["ijbc"], "ijbc", _centred)
    embeddings = _embeddings(trial, arm, faces)
    names, found = template_embeddings(embeddings, faces.templates, faces.media, faces.detected)
    score = pair_scores(found, torch.searchsorted(names, faces.pairs))
    rows = torch.randint(0, len(score), (len(score),), generator=trial.generator("test pairs"))
    return {"accepted": true_accepts(score[rows], faces.same[rows], RATE)}


def _centred(image: Any) -> Any:
    return image * 2 - 1


def _embeddings(trial: Trial, arm: Arm, faces: Any) -> Any:
    """Of all faces (N, D), by the network or, for the baseline, small pictures as they are."""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d
    from torch.utils.data import DataLoader

    from paperworks.swin.swinface import embed

    loader: Any = DataLoader(faces, trial.settings["batch_size"], num_workers=trial.settings["workers"])

    def batches() -> Any:
        for number, some in enumerate(loader):
            trial.progress(number / len(loader), f"batch {number + 1}/{len(loader)}")
            yield some

    if arm.build():
        return torch.cat([adaptive_avg_pool2d(x + x.flip(-1), THUMBNAIL).flatten(1) for x in batches()])
    return embed(network(trial), batches())
