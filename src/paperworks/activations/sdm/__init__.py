"""Similarity-Distance-Magnitude estimation: selective classification over frozen embeddings, and verified LM heads.

"Similarity-Distance-Magnitude Universal Verification" (arXiv 2502.20167).  Each name is loaded when it is first used:
the activation alone needs neither scikit-learn nor SciPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adaptor import ExemplarAdaptor
    from .classifier import LabelTypeError, SDMClassifier
    from .ecdf import ECDF
    from .explanation import Explanation, LabelError, PointExplanation, Witness, find_label_errors
    from .functional import SOFTMAX_Q, log_sdm, sdm, sdm_loss
    from .head import SDMHead
    from .monitor import CoveragePoint, DriftAlarm, DriftReport, coverage_accuracy_curve
    from .rescaler import fit_rescaler_batch, fit_rescaler_paper, rescale, rescaler_loss
    from .result import SDMResult, index_conditional_report
    from .robust import CalibrationOutputs, robust_offsets, robust_threshold
    from .sdm_network import (
        SDMNetworkRun,
        VerifiedDocument,
        document_features,
        fit_verifier,
        greedy_completions,
        hidden_states,
        train_sdm_network,
    )
    from .state import Evidence, SDMState
    from .support import SupportIndex
    from .text import TextVerifier
    from .verified_head import VerifiedHead, peak_regularizer

_MODULES = {
    "adaptor": ("ExemplarAdaptor",),
    "classifier": ("LabelTypeError", "SDMClassifier"),
    "ecdf": ("ECDF",),
    "explanation": ("Explanation", "LabelError", "PointExplanation", "Witness", "find_label_errors"),
    "functional": ("SOFTMAX_Q", "log_sdm", "sdm", "sdm_loss"),
    "head": ("SDMHead",),
    "monitor": ("CoveragePoint", "DriftAlarm", "DriftReport", "coverage_accuracy_curve"),
    "rescaler": ("fit_rescaler_batch", "fit_rescaler_paper", "rescale", "rescaler_loss"),
    "result": ("SDMResult", "index_conditional_report"),
    "robust": ("CalibrationOutputs", "robust_offsets", "robust_threshold"),
    "sdm_network": (
        "SDMNetworkRun",
        "VerifiedDocument",
        "document_features",
        "fit_verifier",
        "greedy_completions",
        "hidden_states",
        "train_sdm_network",
    ),
    "state": ("Evidence", "SDMState"),
    "support": ("SupportIndex",),
    "text": ("TextVerifier",),
    "verified_head": ("VerifiedHead", "peak_regularizer"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ECDF",
    "SOFTMAX_Q",
    "CalibrationOutputs",
    "CoveragePoint",
    "DriftAlarm",
    "DriftReport",
    "Evidence",
    "ExemplarAdaptor",
    "Explanation",
    "LabelError",
    "LabelTypeError",
    "PointExplanation",
    "SDMClassifier",
    "SDMHead",
    "SDMNetworkRun",
    "SDMResult",
    "SDMState",
    "SupportIndex",
    "TextVerifier",
    "VerifiedDocument",
    "VerifiedHead",
    "Witness",
    "coverage_accuracy_curve",
    "document_features",
    "find_label_errors",
    "fit_rescaler_batch",
    "fit_rescaler_paper",
    "fit_verifier",
    "greedy_completions",
    "hidden_states",
    "index_conditional_report",
    "log_sdm",
    "peak_regularizer",
    "rescale",
    "rescaler_loss",
    "robust_offsets",
    "robust_threshold",
    "sdm",
    "sdm_loss",
    "train_sdm_network",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
