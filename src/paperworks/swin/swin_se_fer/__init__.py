"""Swin with squeeze-and-excitation, fine-tuned by sharpness-aware minimisation for facial expressions.

Facial Expression Recognition using Squeeze and Excitation-powered Swin Transformers (arXiv 2301.10906). Three parts,
each usable alone: one squeeze-and-excitation block on the last map of a Swin (`add_squeeze_excite`), sharpness-aware
minimisation around any optimiser (`SAM`), and the recipe that puts them together on face data (`build_fer_model`,
`fit_sam`, `FERDataset`, `HybridFER`, `macro_f1`).
"""

from paperworks.data.expressions import EXPRESSIONS, FERDataset, HybridFER
from paperworks.data.face_transforms import FaceTransform
from paperworks.swin.swin_se_fer.evaluation import f1_intervals, macro_f1, per_class_f1
from paperworks.swin.swin_se_fer.sam import SAM, frozen_norm_stats
from paperworks.swin.swin_se_fer.sharpness import loss_along_climb, sharpness
from paperworks.swin.swin_se_fer.squeeze_excite import SqueezeExcite, add_squeeze_excite, remove_squeeze_excite
from paperworks.swin.swin_se_fer.training import build_fer_model, finetune_groups, fit_sam

__all__ = [
    "EXPRESSIONS", "SAM", "FERDataset", "FaceTransform", "HybridFER", "SqueezeExcite", "add_squeeze_excite",
    "build_fer_model", "f1_intervals", "finetune_groups", "fit_sam", "frozen_norm_stats", "loss_along_climb",
    "macro_f1", "per_class_f1", "remove_squeeze_excite", "sharpness",
]  # fmt: skip
