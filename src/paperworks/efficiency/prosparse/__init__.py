"""ProSparse: intrinsic activation sparsity for language models with gated feed-forward networks.

"ProSparse: Introducing and Enhancing Intrinsic Activation Sparsity within Large Language Models" (arXiv 2402.13516).
With x1 = sigma(x Ws^T) * (x W1^T) and FFN(x) = x1 W2^T, three steps make most of x1 exact zeros:

    1. sigma := ReLU, and training goes on                                             `relufy`
    2. L = L_lm + lambda(t) sum ||x1||_1, with a factor that rises in stages           `train_prosparse`
    3. sigma(x) = x if x >= t else 0                                                   `set_threshold`

What is zero need not be read: `sparsify` skips the rows of W1 and the columns of W2 behind it, with the same result.
"""

from typing import TYPE_CHECKING, Any

from paperworks.efficiency.prosparse.calibration import calibrate_thresholds, sparsity_report
from paperworks.efficiency.prosparse.checkpoints import (
    export_checkpoint,
    load_checkpoint,
    packed_batches,
    read_documents,
)
from paperworks.efficiency.prosparse.fatrelu import FATReLU, fatrelu, relufy, set_threshold, thresholds
from paperworks.efficiency.prosparse.predictor import (
    ActivationPredictor,
    active_channels,
    fit_predictors,
    predictor_metrics,
)
from paperworks.efficiency.prosparse.recorder import ActivationRecorder
from paperworks.efficiency.prosparse.schedule import (
    SparsityRegularisation,
    peak_for_sparsity,
    published_schedule,
    sparsity_for_peak,
)
from paperworks.efficiency.prosparse.sparse_ffn import ffn_weights, gate_product, sparse_down, sparse_ffn, sparse_up
from paperworks.efficiency.prosparse.sparse_mlp import SparseGatedMLP, sparsify
from paperworks.efficiency.prosparse.training import History, train_prosparse
from paperworks.surgery.gated_mlps import find_gated_mlps

if TYPE_CHECKING:
    from paperworks.efficiency.prosparse.trainer import ProSparseTrainer

__all__ = [
    "ActivationPredictor",
    "ActivationRecorder",
    "FATReLU",
    "History",
    "ProSparseTrainer",
    "SparseGatedMLP",
    "SparsityRegularisation",
    "active_channels",
    "calibrate_thresholds",
    "export_checkpoint",
    "fatrelu",
    "ffn_weights",
    "find_gated_mlps",
    "fit_predictors",
    "gate_product",
    "load_checkpoint",
    "packed_batches",
    "peak_for_sparsity",
    "predictor_metrics",
    "published_schedule",
    "read_documents",
    "relufy",
    "set_threshold",
    "sparse_down",
    "sparse_ffn",
    "sparse_up",
    "sparsify",
    "sparsity_for_peak",
    "sparsity_report",
    "thresholds",
    "train_prosparse",
]


def __getattr__(name: str) -> Any:
    if name != "ProSparseTrainer":  # the only name that needs transformers
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from paperworks.efficiency.prosparse.trainer import ProSparseTrainer
    except ImportError as error:
        raise ImportError(
            f"ProSparseTrainer needs transformers: pip install 'paperworks[efficiency]' ({error})"
        ) from error
    globals()[name] = ProSparseTrainer
    return ProSparseTrainer
