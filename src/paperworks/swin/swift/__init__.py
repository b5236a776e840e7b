"""SwiFT: a Swin transformer on four axes that reads functional MRI as it is, volumes over time.

SwiFT: Swin 4D fMRI Transformer (NeurIPS 2023), arXiv 2307.05916. Attention stays inside windows of 4 x 4 x 4 places
and 4 frames; absolute positions before every stage take the place of a relative bias; patches merge in space only;
the last stage sees the whole brain in 4 frames at once.
"""

from paperworks.data.fmri import FMRIClips, SubjectBatches, preprocess_nifti
from paperworks.swin.swift.attribution import attribution_to_nifti, integrated_gradients
from paperworks.swin.swift.augmentation import ClipAugment
from paperworks.swin.swift.contrastive import ContrastiveHead, contrastive_loss, local_local_loss, nt_xent, pretrain
from paperworks.swin.swift.evaluation import subject_scores, youden_threshold
from paperworks.swin.swift.network import SwiFT, SwiftStage
from paperworks.swin.swift.schedule import CosineWarmRestarts, warm_restarts
from paperworks.swin.swift.streaming import StreamedScore, stream_scores
from paperworks.swin.swift.subject_maps import BootstrapMap, Cluster, bootstrap_map, cluster_report, subject_maps

__all__ = [
    "BootstrapMap",
    "ClipAugment",
    "Cluster",
    "ContrastiveHead",
    "CosineWarmRestarts",
    "FMRIClips",
    "StreamedScore",
    "SubjectBatches",
    "SwiFT",
    "SwiftStage",
    "attribution_to_nifti",
    "bootstrap_map",
    "cluster_report",
    "contrastive_loss",
    "integrated_gradients",
    "local_local_loss",
    "nt_xent",
    "preprocess_nifti",
    "pretrain",
    "stream_scores",
    "subject_maps",
    "subject_scores",
    "warm_restarts",
    "youden_threshold",
]
