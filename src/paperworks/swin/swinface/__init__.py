"""SwinFace: identity, expression, age and forty attributes of a face in one pass (arXiv 2308.11509).

The network is `SwinFace`; its attention over the levels of a pyramid, `MLCA`, plugs onto any backbone. Losses
(`CosFaceHead`, `age_loss`, `multitask_loss`), the joint training of several data sets (`JointBatches`, `fit_joint`) and
scores (`verify_pairs`, `task_scores`, `subgroup_scores`, `fit_temperatures`, `gate_report`) are usable on their own.
"""

from paperworks.data.face_pairs import FacePairs, IJBTemplates, align_face
from paperworks.data.face_transforms import FaceTransform, RandAugment
from paperworks.data.faces import FaceTasks, read_pairs, render_faces
from paperworks.swin.swinface.attention import MLCA, level_widths, pool_levels
from paperworks.swin.swinface.evaluation import (
    GateUse,
    calibration_error,
    fit_temperatures,
    gate_report,
    predict,
    subgroup_scores,
    task_scores,
)
from paperworks.swin.swinface.losses import (
    CosFaceHead,
    TaskBatch,
    age_loss,
    cosface_logits,
    epsilon_error,
    multitask_loss,
)
from paperworks.swin.swinface.network import SwinFace
from paperworks.swin.swinface.tasks import FACE_TASK_GROUPS, TaskGroup, task_name
from paperworks.swin.swinface.training import JointBatches, Part, fit_joint, training_groups, training_transform
from paperworks.swin.swinface.verification import (
    VerificationScore,
    embed,
    pair_scores,
    template_embeddings,
    true_accepts,
    verify_pairs,
)

__all__ = [
    "FACE_TASK_GROUPS", "MLCA", "CosFaceHead", "FacePairs", "FaceTasks", "FaceTransform", "GateUse", "IJBTemplates",
    "JointBatches", "Part", "RandAugment", "SwinFace", "TaskBatch", "TaskGroup", "VerificationScore", "age_loss",
    "align_face", "calibration_error", "cosface_logits", "embed", "epsilon_error", "fit_joint", "fit_temperatures",
    "gate_report", "level_widths", "multitask_loss", "pair_scores", "pool_levels", "predict", "read_pairs",
    "render_faces", "subgroup_scores", "task_name", "task_scores", "template_embeddings", "training_groups",
    "training_transform", "true_accepts", "verify_pairs",
]  # fmt: skip
